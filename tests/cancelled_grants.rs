//! Waiters that are cancelled just as their grant arrives: none hangs, none leaks, and the next in
//! line gets it.
//!
//! `REDLEASE_ROUNDS` says how many rounds; 1,000 unless told, and 10,000 in a release build.

#[path = "common/waiters.rs"]
mod waiters;

use std::time::{Duration, Instant};

use redlease::{Error, LockGuard};
use testkit::*;
use tokio::task::JoinHandle;
use waiters::*;

fn rounds() -> usize {
    let default = if cfg!(debug_assertions) {
        1_000
    } else {
        10_000
    };
    let given = std::env::var("REDLEASE_ROUNDS").ok();
    given.map_or(default, |rounds| {
        rounds.parse().expect("a number of rounds")
    })
}

/// Less than the lock or a place in the queue would live by itself.
const NEXT_IN_LINE: Duration = Duration::from_secs(2);
/// So many rounds may take longer: the machine may be busy. A leak would happen time and again.
const SLOW_ROUNDS: usize = 3;

/// The next one's guard; counts the rounds in which it took too long.
async fn next_in_line(next: JoinHandle<LockGuard>, round: usize, slow: &mut usize) -> LockGuard {
    let start = Instant::now();
    let guard = done(next).await;
    assert!(!guard.is_lost());
    if start.elapsed() > NEXT_IN_LINE {
        *slow += 1;
        assert!(*slow <= SLOW_ROUNDS, "{slow} slow rounds until {round}");
    }
    guard
}

/// When the waiter is cancelled: from long before its grant to after it, in small steps.
fn moment(round: usize) -> Duration {
    Duration::from_micros((round * 37 % 1_000) as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_p11_the_next_process_gets_what_a_cancelled_waiter_was_granted() {
    let server = Server::start();
    let lockers = [
        connect(&server).await,
        connect(&server).await,
        connect(&server).await,
    ];
    let key = unique_key();
    let lock = |number: usize| lockers[number % 3].mutex(&key).ttl(TTL);
    let mut holder = lock(0).lock().await.unwrap();
    let mut slow = 0;
    for round in 0..rounds() {
        let cancelled = wait_for(&lock(2 * round + 1));
        // In every other round the cancelled one is surely in the queue.
        if round % 2 == 0 {
            until_queued(&server, &key, 1).await;
        }
        let next = wait_for(&lock(2 * round + 2));
        let release = tokio::spawn(holder.release());
        tokio::time::sleep(moment(round)).await;
        cancelled.abort();
        done(release).await.unwrap();
        // It may have had the lock before it was cancelled; then it dropped it.
        drop(cancelled.await);
        holder = next_in_line(next, round, &mut slow).await;
    }
    holder.release().await.unwrap();
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_p11_the_next_of_the_process_gets_what_a_cancelled_waiter_was_handed() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let lock = here.mutex(&key).ttl(TTL);
    let mut holder = lock.lock().await.unwrap();
    let mut slow = 0;
    for round in 0..rounds() {
        let cancelled = wait_for(&lock);
        let foreign = (round % 5 == 0).then(|| wait_for(&there.mutex(&key).ttl(TTL)));
        tokio::task::yield_now().await;
        let next = wait_for(&lock);
        tokio::task::yield_now().await;
        drop(holder);
        tokio::time::sleep(moment(round) / 4).await;
        cancelled.abort();
        drop(cancelled.await);
        if let Some(foreign) = foreign {
            // Before or behind the next of this process, as it happened to arrive.
            tokio::spawn(async move { drop(done(foreign).await) });
        }
        holder = next_in_line(next, round, &mut slow).await;
    }
    holder.release().await.unwrap();
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_limit_that_ends_as_the_lock_comes_free_leaks_nothing() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let (lock, other) = (here.mutex(&key).ttl(TTL), there.mutex(&key).ttl(TTL));
    for round in 0..rounds() / 4 {
        let holder = lock.lock().await.unwrap();
        let waiter = {
            let other = other.clone();
            tokio::spawn(async move { other.try_lock_for(2 * moment(round)).await })
        };
        tokio::time::sleep(moment(round)).await;
        holder.release().await.unwrap();
        match done(waiter).await {
            Ok(guard) => assert!(guard.is_none_or(|guard| !guard.is_lost())),
            // On a busy machine the answer may come after the limit.
            Err(error) => assert!(matches!(error, Error::Unavailable { .. }), "{error}"),
        }
    }
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}
