//! Fencing tokens while a minority of the servers is in trouble all the time, in small. The large
//! version, with processes, is the example `torture` with `--servers 3`.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redlease::Locker;

use common::servers::Servers;
use common::{Server, unique_key};

const CONTENDERS: usize = 4;
const ACQUISITIONS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_tokens_are_unique_and_grow_while_servers_freeze_and_restart_with_their_data() {
    let persistent = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = Servers((0..3).map(|_| Server::with(&persistent)).collect());
    let key = unique_key();
    let mut contenders = Vec::new();
    for _ in 0..CONTENDERS {
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let lock = locker.mutex(&key).outage_limit(Duration::from_secs(60));
        let lock = lock.ttl(Duration::from_secs(2));
        contenders.push(tokio::spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..ACQUISITIONS {
                let began = Instant::now();
                let guard = lock.lock().await.unwrap();
                tokens.push((guard.fencing_token(), began, Instant::now()));
                // Unknown, if the majority is in trouble: the TTL frees it then.
                let _ = guard.release().await;
            }
            tokens
        }));
    }
    let done = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&done);
    let trouble = std::thread::spawn(move || {
        for index in (0..3).cycle() {
            if flag.load(Ordering::SeqCst) {
                return;
            }
            let server = &mut servers.0[index];
            if fastrand::bool() {
                server.freeze();
                std::thread::sleep(Duration::from_millis(50));
                server.thaw();
            } else {
                server.restart();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut all = Vec::new();
    for contender in contenders {
        all.extend(contender.await.unwrap());
    }
    done.store(true, Ordering::SeqCst);
    trouble.join().unwrap();
    all.sort_unstable_by_key(|&(token, ..)| token);
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let mut earliest_end = None;
    for (token, began, ended) in all.into_iter().rev() {
        assert!(
            earliest_end.is_none_or(|end| began < end),
            "{token} came after a larger one"
        );
        earliest_end = Some(earliest_end.map_or(ended, |end: Instant| end.min(ended)));
    }
}
