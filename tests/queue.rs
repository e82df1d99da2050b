//! The queue in Redis: who is refused waits in it, and a release gives the lock to the next.

#[path = "common/waiters.rs"]
mod waiters;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redlease::{Locker, Released};
use testkit::*;
use waiters::*;

async fn connect_some(server: &Server, count: usize) -> Vec<Locker> {
    let mut lockers = Vec::new();
    for _ in 0..count {
        lockers.push(connect(server).await);
    }
    lockers
}

#[tokio::test]
async fn a_release_gives_the_lock_to_the_process_that_waits() {
    let server = Server::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
    let waiter = wait_for(&b.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    // Nothing that the waiter did: the release itself made it the holder.
    let value = server.get(&key).expect("never free while somebody waits");
    let second = within(TTL / 10, "the grant", waiter).await.unwrap();
    assert_eq!(second.value(), value);
    assert!(!second.is_lost());
    assert_eq!(second.release().await.unwrap(), Released::Freed);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test]
async fn a_grant_is_made_to_last_the_full_ttl() {
    let server = Server::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
    let waiter = wait_for(&b.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    first.release().await.unwrap();
    let second = done(waiter).await;
    eventually("renewed", || second.remaining() > TTL * 9 / 10).await;
    assert!(!second.is_lost());
}

#[tokio::test]
async fn p8_eight_processes_have_it_in_the_order_of_arrival_with_growing_tokens() {
    let server = Server::start();
    let holder = connect(&server).await;
    let lockers = connect_some(&server, 8).await;
    let key = unique_key();
    let first = holder.mutex(&key).ttl(TTL).lock().await.unwrap();
    let log = Arc::new(Mutex::new(vec![(0, first.fencing_token())]));
    let mut tasks = Vec::new();
    for (number, locker) in (1..).zip(&lockers) {
        let (lock, log) = (locker.mutex(&key).ttl(TTL), Arc::clone(&log));
        tasks.push(tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            log.lock().push((number, guard.fencing_token()));
            guard.release().await.unwrap()
        }));
        until_queued(&server, &key, number).await;
    }
    first.release().await.unwrap();
    for task in tasks {
        assert_eq!(done(task).await, Released::Freed);
    }
    let log = log.lock().clone();
    let order: Vec<_> = log.iter().map(|&(number, _)| number).collect();
    assert_eq!(order, (0..=8).collect::<Vec<_>>());
    assert!(log.is_sorted_by(|a, b| a.1 < b.1), "{log:?}");
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test]
async fn a_waiter_that_gives_up_leaves_the_queue() {
    let server = Server::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
    let cancelled = wait_for(&b.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    cancelled.abort();
    until_queued(&server, &key, 0).await;
    let limit = Duration::from_millis(100);
    let late = b.mutex(&key).ttl(TTL).try_lock_for(limit).await.unwrap();
    assert!(late.is_none());
    until_queued(&server, &key, 0).await;
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test]
async fn p11_a_waiter_that_gives_up_after_the_grant_passes_it_on() {
    let server = Server::start();
    let lockers = connect_some(&server, 3).await;
    let key = unique_key();
    let lock = |number: usize| lockers[number].mutex(&key).ttl(TTL);
    let first = lock(0).lock().await.unwrap();
    let leaver = lock(1);
    let mut leaver = Box::pin(leaver.lock());
    for _ in 0..1_000 {
        begin(&mut leaver);
        if queued(&server, &key) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let next = wait_for(&lock(2));
    until_queued(&server, &key, 2).await;
    let value = first.value().to_owned();
    first.release().await.unwrap();
    // The leaver has the lock in Redis, and has not been polled since.
    let granted = server.get(&key).expect("granted");
    assert_ne!(granted, value);
    assert!(!next.is_finished());
    drop(leaver);
    // Far less than a waiter that is gone counts for.
    let next = within(Duration::from_secs(2), "the next has it", next);
    assert_ne!(next.await.unwrap().value(), granted);
}

#[tokio::test]
async fn a_last_attempt_at_the_limit_finds_a_lock_that_nobody_told_of() {
    // Without RESP3 a waiter asks often, and finds it long before the limit.
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = connect(&server).await;
    let key = unique_key();
    let () = server.command(&["SET", &key, "foreign", "PX", "60000"]);
    // Somebody ahead who never comes: so ours does not watch the holder, and is told nothing.
    let time: Vec<u64> = server.command(&["TIME"]);
    let beat = (time[0] * 1_000 + time[1] / 1_000).to_string();
    let record = format!("{beat} 400 1000 1 0 redlease:nowhere");
    let () = server.command(&["ZADD", &format!("{{{key}}}:lock-queue"), "1", "ghost"]);
    let () = server.command(&["HSET", &format!("{{{key}}}:lock-waiters"), "ghost", &record]);
    let limit = Duration::from_millis(700);
    let start = Instant::now();
    let lock = locker.mutex(&key).ttl(TTL);
    let attempt = tokio::spawn(async move { lock.try_lock_for(limit).await.unwrap() });
    until_queued(&server, &key, 2).await;
    let () = server.command(&["DEL", &key]);
    let guard = done(attempt).await.expect("free at the limit");
    assert!(start.elapsed() >= limit, "not before: it was told nothing");
    drop(guard);
}

#[tokio::test]
async fn the_first_of_the_queue_has_the_lock_of_one_who_stopped_waiting() {
    let server = Server::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
    // In the queue, alive by its record, but with nobody behind it.
    let time: Vec<u64> = server.command(&["TIME"]);
    let beat = (time[0] * 1_000 + time[1] / 1_000).to_string();
    let record = format!("{beat} 500 30000 1 0 redlease:nowhere");
    let () = server.command(&["ZADD", &format!("{{{key}}}:lock-queue"), "1", "ghost"]);
    let () = server.command(&["HSET", &format!("{{{key}}}:lock-waiters"), "ghost", &record]);
    let waiter = wait_for(&b.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 2).await;
    first.release().await.unwrap();
    // The ghost's grant, if it got one, lasts for what was left of its life; then helping.
    let second = within(TTL / 5, "helping", waiter).await.unwrap();
    assert!(!second.is_lost());
}

/// Scripts for each acquisition when so many processes take turns.
async fn cost(count: usize) -> f64 {
    const TURNS: usize = 15;
    let server = Server::start();
    let lockers = connect_some(&server, count).await;
    let key = unique_key();
    let before = scripts(&server);
    let tasks: Vec<_> = lockers
        .iter()
        .map(|locker| {
            let lock = locker.mutex(&key).ttl(TTL);
            tokio::spawn(async move {
                for _ in 0..TURNS {
                    lock.lock().await.unwrap().release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        done(task).await;
    }
    let cost = (scripts(&server) - before) as f64 / (count * TURNS) as f64;
    drop(lockers);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
    cost
}

#[tokio::test]
async fn the_requests_for_an_acquisition_do_not_grow_with_the_waiters() {
    if Server::with_command("HELLO").is_none() {
        return;
    }
    let (few, many) = (cost(2).await, cost(16).await);
    // Two are the least: enqueue and release.
    assert!(few < 4.0 && many < 4.0, "{few} and {many} scripts");
}

#[tokio::test]
async fn two_lockers_that_wait_for_many_keys_leave_nothing_behind() {
    const KEYS: usize = 50;
    let server = Server::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let mut tasks = Vec::new();
    for _ in 0..KEYS {
        let key = unique_key();
        let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&b.mutex(&key).ttl(TTL));
        tasks.push((key, first, waiter));
    }
    for (key, first, waiter) in tasks {
        until_queued(&server, &key, 1).await;
        drop(first);
        drop(done(waiter).await);
    }
    assert_eq!(until_only_fences_are_left(&server).await, KEYS);
}
