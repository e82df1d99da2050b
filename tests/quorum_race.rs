//! Contenders of several processes over one quorum: as many lockers, which share nothing.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use redlease::Locker;
use tokio::sync::Barrier;

use common::servers::Servers;
use common::{DEADLINE, unique_key};

/// The figures for 1,000 rounds come from `cargo bench --bench quorum`.
#[tokio::test]
async fn p1_three_racers_on_three_servers_have_one_holder_at_a_time_and_none_starves() {
    const ROUNDS: usize = 50;
    let servers = Servers::start(3);
    let key = unique_key();
    let inside = Arc::new(AtomicU32::new(0));
    let start = Arc::new(Barrier::new(3));
    let mut racers = Vec::new();
    for _ in 0..3 {
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let (key, inside, start) = (key.clone(), Arc::clone(&inside), Arc::clone(&start));
        racers.push(tokio::spawn(async move {
            for _ in 0..ROUNDS {
                start.wait().await;
                let lock = locker.lock(&key);
                let guard = tokio::time::timeout(DEADLINE, lock.lock()).await;
                let guard = guard.expect("a split vote ends").unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        }));
    }
    for racer in racers {
        racer.await.unwrap();
    }
}
