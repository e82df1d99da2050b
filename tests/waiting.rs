//! Waiting without polling: the process' queue, the queue in Redis, and pushes.

mod common;

use std::time::{Duration, Instant};

use common::*;
use redlease::{Locker, Released};

#[tokio::test]
async fn a_release_grants_the_lock_to_the_waiting_process() {
    let server = Server::start();
    let (a, b) = (
        Locker::connect(server.url()).await.unwrap(),
        Locker::connect(server.url()).await.unwrap(),
    );
    let key = unique_key();
    let first = a.lock(&key).lock().await.unwrap();
    let waiter = tokio::spawn({
        let lock = b.lock(&key);
        async move { lock.lock().await.unwrap() }
    });
    let queue = format!("{{{key}}}:lock-queue");
    eventually("the waiter is queued", || {
        server.command::<u64>(&["ZCARD", &queue]) == 1
    })
    .await;
    let calls = server.calls("evalsha");
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    let second = waiter.await.unwrap();
    println!(
        "{second:?} {:?} {}",
        second.remaining(),
        server.calls("evalsha") - calls
    );
    assert!(!second.is_lost());
    assert_eq!(server.get(&key).as_deref(), Some(second.value()));
    drop(second);
    eventually("freed", || server.get(&key).is_none()).await;
    let left: Vec<String> = server.command(&["KEYS", "*"]);
    assert_eq!(left, [format!("{{{key}}}:fence")]);
}

#[tokio::test]
async fn foreign_release() {
    let server = Server::start();
    let b = Locker::connect(server.url()).await.unwrap();
    let key = unique_key();
    let _: () = server.command(&["SET", &key, "x", "PX", "100000"]);
    let waiter = tokio::spawn({
        let lock = b.lock(&key);
        async move {
            let g = lock.lock().await.unwrap();
            (g, Instant::now())
        }
    });
    let queue = format!("{{{key}}}:lock-queue");
    eventually("the waiter is queued", || {
        server.command::<u64>(&["ZCARD", &queue]) == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let t = Instant::now();
    let _: () = server.command(&["DEL", &key]);
    let (g, at) = waiter.await.unwrap();
    println!("foreign DEL: {:?}", at - t);
    let t = Instant::now();
    let _: () = server.command(&["SET", &key, "thief"]);
    g.lost().cancelled().await;
    println!("stolen: {:?} {:?}", t.elapsed(), g.lost_reason());
    drop(g);
    assert_eq!(server.get(&key).as_deref(), Some("thief"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_over() {
    let server = Server::start();
    for handover in [10, 0] {
        let a = Locker::connect(server.url()).await.unwrap();
        let key = unique_key();
        let t = Instant::now();
        let mut tasks = vec![];
        for _ in 0..64 {
            let lock = a.lock(&key).handover_for(Duration::from_millis(handover));
            tasks.push(tokio::spawn(async move {
                let mut n = 0u64;
                let mut last = 0;
                while t.elapsed() < Duration::from_secs(1) {
                    let g = lock.lock().await.unwrap();
                    assert!(g.fencing_token() > last);
                    last = g.fencing_token();
                    n += 1;
                }
                n
            }));
        }
        let mut total = 0;
        let mut min = u64::MAX;
        let mut max = 0;
        for t in tasks {
            let n = t.await.unwrap();
            total += n;
            min = min.min(n);
            max = max.max(n);
        }
        println!(
            "handover {handover}: {total} cycles, {min}..{max}, {} calls",
            server.calls("evalsha")
        );
    }
}
