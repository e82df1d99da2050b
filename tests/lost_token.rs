//! The token of a guard that goes the moment it is lost, and of one that is released in time.

#[path = "common/waiters.rs"]
mod waiters;

use std::time::Duration;

use redlease::{Lock, LockGuard, Locker, LostReason, Released};
use testkit::*;
use tokio_util::sync::CancellationToken;
use waiters::*;

const SHORT: Duration = Duration::from_millis(60);
const ROUNDS: usize = 15;

/// Workers that each have a clone of the token and wait for it.
struct Workers {
    token: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Workers {
    fn of(guard: &LockGuard) -> Self {
        let token = guard.lost();
        let tasks = (0..3).map(|_| {
            let token = token.clone();
            tokio::spawn(async move { token.cancelled().await })
        });
        Self {
            tasks: tasks.collect(),
            token,
        }
    }

    async fn are_told(self, what: &str) {
        assert!(self.token.is_cancelled(), "the guard is gone: {what}");
        for task in self.tasks {
            done(task).await;
        }
    }
}

/// How a lock is held whose guard is lost by the clock.
fn ways(locker: &Locker) -> [(&'static str, Lock); 2] {
    [
        (
            "auto_renew(false)",
            locker.mutex(unique_key()).ttl(SHORT).auto_renew(false),
        ),
        (
            "max_hold",
            locker.mutex(unique_key()).ttl(TTL).max_hold(SHORT),
        ),
    ]
}

/// Spins until the guard is lost, on a thread that does nothing else.
fn spin(guard: &LockGuard) {
    while !guard.is_lost() {
        std::hint::spin_loop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_the_token_fires_if_the_guard_is_dropped_as_soon_as_it_is_lost() {
    let server = Server::start();
    let locker = connect(&server).await;
    for _ in 0..ROUNDS {
        for (way, lock) in ways(&locker) {
            let guard = lock.lock().await.unwrap();
            let workers = Workers::of(&guard);
            spin(&guard);
            drop(guard);
            workers.are_told(way).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_the_token_fires_if_the_guard_is_released_as_soon_as_it_is_lost() {
    let server = Server::start();
    let locker = connect(&server).await;
    for _ in 0..ROUNDS {
        for (way, lock) in ways(&locker) {
            let guard = lock.lock().await.unwrap();
            let workers = Workers::of(&guard);
            spin(&guard);
            let released = guard.release().await.unwrap();
            if way == "max_hold" {
                assert_eq!(released, Released::Freed, "the key was ours still");
            }
            workers.are_told(way).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_the_token_fires_before_a_waiter_of_the_process_has_the_lock() {
    let server = Server::start();
    let locker = connect(&server).await;
    for _ in 0..ROUNDS {
        for in_background in [false, true] {
            let lock = locker.mutex(unique_key()).ttl(TTL);
            let guard = lock.clone().max_hold(SHORT).lock().await.unwrap();
            let waiter = wait_for(&lock);
            let token = guard.lost();
            spin(&guard);
            if in_background {
                drop(guard);
            } else {
                guard.release().await.unwrap();
            }
            let next = done(waiter).await;
            assert!(token.is_cancelled());
            assert!(!next.is_lost() && !next.lost().is_cancelled());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_the_reason_of_a_guard_that_goes_as_soon_as_it_is_lost_is_the_clock() {
    let server = Server::start();
    let locker = connect(&server).await;
    for (way, lock) in ways(&locker) {
        let guard = lock.lock().await.unwrap();
        let token = guard.lost();
        spin(&guard);
        let reason = guard.lost_reason();
        let fits = match way {
            "max_hold" => matches!(reason, Some(LostReason::MaxHold)),
            _ => matches!(reason, Some(LostReason::Expired)),
        };
        assert!(fits, "{way}: {reason:?}");
        drop(guard);
        assert!(token.is_cancelled());
    }
}

/// Time enough to begin a release in, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1);

/// The deadline of a lease has passed, and the driver has seen it.
async fn until_well_past_the_deadline() {
    tokio::time::sleep(LEASE * 3 / 2).await;
}

#[tokio::test]
async fn p4_a_release_that_takes_longer_than_the_lease_fires_no_token() {
    let server = Server::start();
    let locker = connect(&server).await;
    for in_background in [false, true] {
        let lock = locker.mutex(unique_key()).ttl(LEASE).auto_renew(false);
        let guard = lock.lock().await.unwrap();
        let token = guard.lost();
        server.freeze();
        assert!(!guard.is_lost());
        let release = if in_background {
            drop(guard);
            None
        } else {
            let mut release = Box::pin(guard.release());
            begin(&mut release);
            Some(release)
        };
        until_well_past_the_deadline().await;
        assert!(!token.is_cancelled());
        server.thaw();
        if let Some(release) = release {
            // It may be told that there was no answer in time.
            let _ = release.await;
        }
        assert!(!token.is_cancelled());
    }
}

/// The question whether anybody else waits is part of a release.
#[tokio::test]
async fn p4_a_question_at_the_end_of_a_stretch_that_takes_longer_than_the_lease_fires_no_token() {
    let server = Server::start();
    let locker = connect(&server).await;
    for (in_background, cut_short) in [(false, false), (false, true), (true, false)] {
        let stretch = Duration::from_millis(1);
        let lock = locker.mutex(unique_key()).ttl(LEASE);
        let lock = lock.handover_for(stretch);
        let guard = lock.lock().await.unwrap();
        let waiter = wait_for(&lock);
        tokio::time::sleep(stretch * 2).await;
        let token = guard.lost();
        server.freeze();
        assert!(!guard.is_lost());
        let mut release = None;
        if in_background {
            drop(guard);
        } else {
            begin(release.insert(Box::pin(guard.release())));
        }
        until_well_past_the_deadline().await;
        if cut_short {
            release = None;
        }
        assert!(!token.is_cancelled());
        server.thaw();
        if let Some(release) = release {
            let _ = release.await;
        }
        // P9: whatever became of the question, the next has the lock.
        let next = done(waiter).await;
        assert!(!next.lost().is_cancelled());
        assert!(!token.is_cancelled());
    }
}
