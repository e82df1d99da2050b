//! A quorum of real servers, in corners: one server under two names, a dead one, and one key that
//! many tasks want.

mod common;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use redlease::{Locker, Released};
use tokio::task::JoinSet;

use common::servers::Servers;
use common::{DEADLINE, eventually, unique_key};

#[tokio::test]
async fn p2_one_server_under_two_names_counts_once() {
    let mut servers = Servers::start(2);
    let again = format!("redis+unix://{}", servers.0[0].socket().display());
    let urls = [servers.0[0].url(), again, servers.0[1].url()];
    let locker = Locker::quorum(urls).await.unwrap();
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    guard.renew().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    servers.0[1].kill();
    let lock = lock.outage_limit(Duration::ZERO);
    let error = lock.try_lock().await.expect_err("one server of two");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("another name"), "{cause}");
}

#[tokio::test]
async fn a_dead_server_is_not_stormed_with_connections() {
    let servers = Servers::start(2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    thread::spawn(move || {
        for connection in listener.incoming() {
            drop(connection);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let dead = format!("redis://127.0.0.1:{port}/");
    let urls = [servers.0[0].url(), servers.0[1].url(), dead];
    let locker = Locker::quorum(urls).await.unwrap();
    let start = Instant::now();
    for _ in 0..300 {
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    let elapsed = start.elapsed();
    let connections = connections.load(Ordering::Relaxed);
    // The caller's runtime and the driver's.
    let allowed = 2 * (elapsed.as_millis() as usize / 10 + 1);
    assert!(connections <= allowed, "{connections} in {elapsed:?}");
}

/// The reservation of a block of fencing numbers, and the local hand-over that uses it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p1_p8_many_tasks_on_one_key_have_it_one_at_a_time_with_growing_tokens() {
    const TASKS: usize = 64;
    const ROUNDS: usize = 50;
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let inside = Arc::new(AtomicUsize::new(0));
    let last = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (lock, inside, last) = (lock.clone(), Arc::clone(&inside), Arc::clone(&last));
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let guard = lock.lock().await.unwrap();
                let token = guard.fencing_token();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "P1");
                assert!(last.swap(token, Ordering::SeqCst) < token, "P8");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                if round % 2 == 0 {
                    assert_eq!(guard.release().await.unwrap(), Released::Freed);
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let grants: u64 = servers.0.iter().map(|s| s.calls("set")).max().unwrap();
    assert!(grants < (TASKS * ROUNDS) as u64, "handed over: {grants}");
    locker.close(DEADLINE).await.unwrap();
    eventually("all are free", || servers.with_key(lock.key()) == 0).await;
}

#[tokio::test]
async fn the_token_does_not_fire_because_of_a_release_that_others_wait_for() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker
        .mutex(unique_key())
        .ttl(Duration::from_secs(3))
        .renew_every(Duration::from_millis(100));
    let guard = lock.lock().await.unwrap();
    let token = guard.lost().clone();
    let renewals = || servers.0.iter().map(|s| s.calls("pexpire")).min();
    eventually("the driver's thread has renewed it", || {
        renewals() >= Some(1)
    })
    .await;
    let next = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await.unwrap() }
    });
    tokio::task::yield_now().await;
    let release = std::pin::pin!(guard.release());
    let blocked = async {
        // The request was carried out, and the caller's only thread is busy.
        while servers.with_key(lock.key()) > 0 {
            tokio::task::yield_now().await;
        }
        thread::sleep(Duration::from_millis(300));
    };
    let (released, ()) = tokio::join!(release, blocked);
    assert_eq!(released.unwrap(), Released::Freed);
    assert!(!token.is_cancelled(), "it fired because of the release");
    drop(next.await.unwrap());
}
