//! Local hand-over: a lease goes from holder to holder of one process without a round trip.

#[path = "common/waiters.rs"]
mod waiters;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redlease::{LockGuard, Locker, LostReason, Released};
use testkit::*;
use tokio::time::timeout;
use waiters::*;

const TASKS: usize = 64;

/// Runs tasks that take turns, and returns who held with which token, in order.
async fn take_turns(lock: redlease::Lock, tasks: usize, turns: usize) -> Vec<(usize, u64)> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let (lock, log, inside) = (lock.clone(), Arc::clone(&log), Arc::clone(&inside));
            tokio::spawn(async move {
                for _ in 0..turns {
                    let guard = lock.lock().await.unwrap();
                    assert!(!inside.swap(true, Ordering::SeqCst), "P1: two are inside");
                    log.lock().push((task, guard.fencing_token()));
                    inside.store(false, Ordering::SeqCst);
                    drop(guard);
                }
            })
        })
        .collect();
    for task in tasks {
        done(task).await;
    }
    let log = log.lock().clone();
    assert!(log.is_sorted_by(|a, b| a.1 < b.1), "P8: tokens grow");
    log
}

#[tokio::test]
async fn tasks_take_turns_in_order_and_hardly_ask_redis() {
    const TURNS: usize = 200;
    let server = Server::start();
    let locker = connect(&server).await;
    let before = scripts(&server);
    let log = take_turns(locker.mutex(unique_key()).ttl(TTL), TASKS, TURNS).await;
    // On one thread a task that lets go is behind all others before the next one runs.
    for (turn, (task, _)) in log.iter().enumerate() {
        assert_eq!(*task, turn % TASKS, "FIFO at turn {turn}");
    }
    let asked = scripts(&server) - before;
    let turns = (TASKS * TURNS) as u64;
    assert!(asked * 20 < turns, "{asked} scripts for {turns} turns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p8_one_is_inside_and_tokens_grow_on_several_threads() {
    let server = Server::start();
    let locker = connect(&server).await;
    let log = take_turns(locker.mutex(unique_key()).ttl(TTL), TASKS, 100).await;
    assert_eq!(log.len(), TASKS * 100);
    drop(locker);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}

#[tokio::test]
async fn p8_tokens_grow_in_the_shortest_stretches() {
    let server = Server::start();
    let locker = connect(&server).await;
    for stretch in [1, 1_000, 100_000] {
        let lock = locker.mutex(unique_key()).ttl(TTL);
        take_turns(lock.handover_for(Duration::from_nanos(stretch)), 4, 50).await;
    }
}

#[tokio::test]
async fn a_lease_is_handed_on_to_one_with_the_same_options_only() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    let other = locker.mutex(&key).ttl(2 * TTL);
    let first = lock.lock().await.unwrap();
    let value = first.value().to_owned();
    let mut same = Box::pin(lock.lock());
    let mut different = Box::pin(other.lock());
    begin(&mut same);
    begin(&mut different);
    drop(first);
    let second = within(DEADLINE, "handed over", same).await.unwrap();
    assert_eq!(second.value(), value);
    drop(second);
    let third = within(DEADLINE, "acquired", different).await.unwrap();
    assert_ne!(third.value(), value, "Q4");
    assert!(third.remaining() > TTL, "the ttl that was asked for");
}

#[tokio::test]
async fn max_hold_counts_for_each_guard() {
    let server = Server::start();
    let locker = connect(&server).await;
    let limit = Duration::from_millis(500);
    let lock = locker.mutex(unique_key()).ttl(TTL).max_hold(limit);
    let first = lock.lock().await.unwrap();
    let value = first.value().to_owned();
    let mut next = Box::pin(lock.lock());
    begin(&mut next);
    tokio::time::sleep(limit / 5).await;
    let left = first.remaining();
    assert!(left <= limit * 4 / 5);
    drop(first);
    let second = within(DEADLINE, "handed over", next).await.unwrap();
    assert_eq!(second.value(), value, "handed over");
    assert!(second.remaining() > left, "counted anew");
    within(DEADLINE, "the token", second.lost().cancelled()).await;
    assert!(matches!(second.lost_reason(), Some(LostReason::MaxHold)));
}

#[tokio::test]
async fn an_heir_that_is_cancelled_passes_the_lease_on() {
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL).handover_for(TTL);
    let first = lock.lock().await.unwrap();
    let mut heirs: Vec<_> = (0..4).map(|_| Box::pin(lock.lock())).collect();
    heirs.iter_mut().for_each(begin);
    let mut last = Box::pin(lock.lock());
    begin(&mut last);
    // The end of the first stretch: one number was reserved, because nobody waited then.
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    let second = heirs.remove(0).await.unwrap();
    // A server that echoes may have us look at what the release wrote, but nothing is written.
    let writes = || ["set", "pexpire", "del"].map(|command| server.calls(command));
    let (value, written) = (second.value().to_owned(), writes());
    drop(second);
    drop(heirs);
    let guard = within(DEADLINE, "the last has it", last).await.unwrap();
    assert_eq!(guard.value(), value, "handed over");
    assert_eq!(writes(), written, "without a request");
}

#[tokio::test]
async fn without_hand_over_every_turn_goes_through_redis() {
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let before = scripts(&server);
    take_turns(lock.handover_for(Duration::ZERO), 8, 10).await;
    assert!(scripts(&server) - before >= 2 * 80 - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_passes_the_lock_on_after_its_stretch() {
    let server = Server::start();
    let (busy, foreign) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let over = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (lock, over) = (busy.mutex(&key).ttl(TTL), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    drop(lock.lock().await.unwrap());
                }
            })
        })
        .collect();
    for _ in 0..10 {
        let lock = foreign.mutex(&key).ttl(TTL);
        let guard: LockGuard = within(TTL / 10, "its turn", lock.lock()).await.unwrap();
        guard.release().await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    for task in tasks {
        done(task).await;
    }
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_always_has_its_full_ttl() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let lock = |locker: &Locker| locker.mutex(&key).ttl(TTL).auto_renew(false);
    let first = lock(&here).lock().await.unwrap();
    let value = first.value().to_owned();
    let local = wait_for(&lock(&here));
    tokio::task::yield_now().await;
    drop(first);
    let second = done(local).await;
    assert_ne!(second.value(), value, "not handed over");
    assert!(second.remaining() > TTL * 9 / 10);
    let far = wait_for(&lock(&there));
    until_queued(&server, &key, 1).await;
    second.release().await.unwrap();
    let third = done(far).await;
    assert!(third.remaining() > TTL * 9 / 10, "though granted for less");
    let ttl: u64 = server.command(&["PTTL", &key]);
    assert!(Duration::from_millis(ttl) > TTL * 9 / 10);
}

#[tokio::test]
async fn p1_a_release_cancelled_while_redis_is_asked_leaves_the_lock_to_one() {
    // Where HELLO is refused, other connections are opened than are counted on here.
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let here = Locker::connect(proxy.url()).await.unwrap();
    let there = connect(&server).await;
    let key = unique_key();
    let lock = here.mutex(&key).ttl(TTL);
    let first = lock.lock().await.unwrap();
    let local = wait_for(&lock);
    tokio::task::yield_now().await;
    // Connection 0 is the caller's, 1 the driver's.
    proxy.hold_connection(0);
    let mut release = Box::pin(first.release());
    begin(&mut release);
    eventually("the question is under way", || proxy.waiting() == 1).await;
    drop(release);
    let decided = || local.is_finished() || server.get(&key).is_none();
    eventually("the background has decided", decided).await;
    let foreign = wait_for(&there.mutex(&key).ttl(TTL));
    let arrived = || foreign.is_finished() || queued(&server, &key) == 1;
    eventually("somebody else is there", arrived).await;
    // Now the question of before reaches the server.
    proxy.let_go(0);
    if local.is_finished() {
        let local = done(local).await;
        if let Ok(foreign) = timeout(TTL / 20, foreign).await {
            assert!(local.is_lost() || foreign.unwrap().is_lost(), "P1");
        }
    } else {
        drop(done(foreign).await);
        drop(done(local).await);
    }
}

#[tokio::test]
async fn p10_a_heartbeat_that_the_grant_overtook_takes_nothing_for_nobody() {
    // Where HELLO is refused, other connections are opened than are counted on here.
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let here = Locker::connect(proxy.url()).await.unwrap();
    let (holder, there) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let first = holder.mutex(&key).ttl(TTL).lock().await.unwrap();
    let lock = here.mutex(&key).ttl(TTL);
    let waiter = wait_for(&lock);
    until_queued(&server, &key, 1).await;
    let foreign = wait_for(&there.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 2).await;
    proxy.hold_connection(0);
    eventually("a heartbeat is under way", || proxy.waiting() == 1).await;
    first.release().await.unwrap();
    let second = done(waiter).await;
    let local = wait_for(&lock);
    tokio::task::yield_now().await;
    // Asks over the driver's connection, which passes the lock on.
    drop(second);
    done(foreign).await.release().await.unwrap();
    let start = Instant::now();
    proxy.let_go(0);
    drop(done(local).await);
    assert!(start.elapsed() < TTL / 3, "the lock was free");
    drop((here, holder, there));
    until_only_fences_are_left(&server).await;
}

/// A question whether to keep the lock, that nobody waits for any more, may arrive at any later
/// time, and pass the lock on. So the lock must not go on to the next of the process.
#[tokio::test]
async fn p1_a_release_cut_short_is_not_followed_by_a_local_hand_over() {
    // Where HELLO is refused, other connections are opened than are counted on here.
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let locker = Locker::connect(proxy.url()).await.unwrap();
    let key = unique_key();
    // A stretch that is over at once, so that each release asks whether to keep the lock.
    let lock = locker.mutex(&key).handover_for(Duration::from_nanos(1));
    let guard = lock.lock().await.unwrap();
    let mut next = Box::pin(lock.lock());
    let is_queued = timeout(Duration::ZERO, &mut next).await.is_err();
    assert!(is_queued);
    proxy.hold_connection(0);
    let is_cut_short = timeout(Duration::from_millis(50), guard.release())
        .await
        .is_err();
    assert!(is_cut_short);
    eventually("the lock is given up", || server.get(&key).is_none()).await;
    proxy.let_go(0);
    let guard = timeout(DEADLINE, next).await.unwrap().unwrap();
    guard.renew().await.unwrap();
    assert!(!guard.is_lost());
}
