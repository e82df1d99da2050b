//! Waiters that are not polled: those behind them, and other processes, are not held up.

#[path = "common/waiters.rs"]
mod waiters;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use redlease::{Lock, Locker};
use testkit::*;
use tokio::sync::oneshot;
use waiters::*;

/// Has the lock taken by somebody who knows nothing of the queue.
fn take(server: &Server, lock: &Lock) {
    server.command::<()>(&["SET", lock.key(), "foreign"]);
}

fn give_back(server: &Server, lock: &Lock) {
    assert_eq!(server.command::<i64>(&["DEL", lock.key()]), 1);
}

fn lock(locker: &Locker) -> Lock {
    locker.mutex(unique_key()).ttl(TTL)
}

#[tokio::test]
async fn p11_a_turn_that_is_not_taken_up_goes_to_the_next() {
    let server = Server::start();
    let lock = lock(&connect(&server).await);
    take(&server, &lock);
    let contender = wait_for(&lock);
    until_queued(&server, lock.key(), 1).await;
    let mut unpolled = Box::pin(lock.lock());
    begin(&mut unpolled);
    let next = wait_for(&lock);
    tokio::task::yield_now().await;
    contender.abort();
    give_back(&server, &lock);
    drop(
        within(DEADLINE, "the next has the lock", next)
            .await
            .unwrap(),
    );
    drop(
        within(DEADLINE, "polled again, it has it", unpolled)
            .await
            .unwrap(),
    );
    drop(lock);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test]
async fn p11_a_lease_that_is_not_taken_up_goes_to_the_next() {
    let server = Server::start();
    let lock = lock(&connect(&server).await);
    let first = lock.lock().await.unwrap();
    let mut unpolled = Box::pin(lock.lock());
    begin(&mut unpolled);
    let next = wait_for(&lock);
    tokio::task::yield_now().await;
    let fence = first.fencing_token();
    drop(first);
    let next = done(next).await;
    assert!(next.fencing_token() > fence, "P8");
    let fence = next.fencing_token();
    drop(next);
    let last = within(DEADLINE, "polled again, it has it", unpolled).await;
    assert!(last.unwrap().fencing_token() > fence, "P8");
    drop(lock);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test]
async fn p9_a_lease_that_nobody_takes_up_is_released() {
    let server = Server::start();
    let (ours, theirs) = (connect(&server).await, connect(&server).await);
    let lock = lock(&ours);
    let first = lock.lock().await.unwrap();
    let mut unpolled = Box::pin(lock.lock());
    begin(&mut unpolled);
    drop(first);
    let other = done(wait_for(&theirs.mutex(lock.key()).ttl(TTL))).await;
    begin(&mut unpolled);
    drop(other);
    drop(
        within(DEADLINE, "polled again, it has it", unpolled)
            .await
            .unwrap(),
    );
}

#[tokio::test]
async fn p9_a_lease_of_a_future_that_was_leaked_is_released() {
    let server = Server::start();
    let lock = lock(&connect(&server).await);
    let first = lock.lock().await.unwrap();
    let mut leaked = Box::pin(lock.lock());
    begin(&mut leaked);
    std::mem::forget(leaked);
    drop(first);
    eventually("it is free", || !server.exists(lock.key())).await;
    drop(done(wait_for(&lock)).await);
}

/// One that waits in Redis, on a runtime that stands still from then on.
#[tokio::test]
async fn p11_a_contender_on_a_blocked_runtime_keeps_no_other_from_a_free_lock() {
    let server = Server::start();
    let lock = lock(&connect(&server).await);
    take(&server, &lock);
    let theirs = lock.clone();
    let (block, until_blocked) = oneshot::channel::<()>();
    let (unblock, until_unblocked) = mpsc::channel::<()>();
    let (ended, end) = mpsc::channel::<()>();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let waiter = runtime.spawn(async move { theirs.lock().await.unwrap() });
        runtime.block_on(until_blocked).unwrap();
        until_unblocked.recv().unwrap();
        drop(runtime.block_on(waiter).unwrap());
        ended.send(()).unwrap();
    });
    until_queued(&server, lock.key(), 1).await;
    block.send(()).unwrap();
    let next = wait_for(&lock);
    tokio::task::yield_now().await;
    give_back(&server, &lock);
    let next = done(next).await;
    assert!(!next.is_lost());
    unblock.send(()).unwrap();
    let early = end.recv_timeout(Duration::from_millis(300));
    assert!(early.is_err() && !next.is_lost(), "P1");
    drop(next);
    let last = tokio::task::spawn_blocking(move || end.recv_timeout(DEADLINE));
    done(last).await.expect("unblocked, it has the lock");
}

/// One whose request was granted, and which was not polled since: as if its process had crashed.
#[tokio::test]
async fn p9_a_grant_that_is_not_taken_up_ends_with_its_ttl() {
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(1));
    // From here on, one poll sends the request.
    let warm_up = lock.lock().await.unwrap();
    warm_up.release().await.unwrap();
    let mut unpolled = Box::pin(lock.lock());
    begin(&mut unpolled);
    eventually("it is granted", || server.exists(lock.key())).await;
    let next = done(wait_for(&lock)).await;
    begin(&mut unpolled);
    assert!(!next.is_lost(), "P1");
    drop(next);
    drop(
        within(DEADLINE, "polled again, it has it", unpolled)
            .await
            .unwrap(),
    );
}
