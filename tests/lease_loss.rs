//! How and when a guard is lost, on a real server.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use redlease::{Error, Locker, LostReason, Released};
use testkit::{DEADLINE, Server, eventually, eventually_blocking, unique_key};
use tokio::time::timeout;

const TTL: Duration = Duration::from_millis(900);
/// More than any clock read can be off from the next.
const BLINK: Duration = Duration::from_millis(1);

async fn locker(server: &Server) -> Locker {
    Locker::connect(server.url()).await.expect("a locker")
}

fn pttl(server: &Server, key: &str) -> Duration {
    let millis: i64 = server.command(&["PTTL", key]);
    Duration::from_millis(millis.try_into().expect("a key with a ttl"))
}

#[tokio::test]
async fn p3_the_local_deadline_is_before_the_keys_expiry() {
    let server = Server::start();
    let locker = locker(&server).await;
    for round in 0..50 {
        let key = unique_key();
        let lock = locker.mutex(&key).ttl(TTL).auto_renew(round % 2 == 0);
        let guard = lock.lock().await.unwrap();
        let read = Instant::now();
        let ours = guard.remaining();
        // What the server says comes later, and less precisely, than what we read.
        let theirs = pttl(&server, &key) + read.elapsed() + BLINK;
        assert!(ours > Duration::ZERO);
        assert!(ours + TTL / 100 <= theirs, "{ours:?} of {theirs:?}");
    }
}

#[tokio::test]
async fn p3_p4_a_frozen_server_costs_the_lease_at_its_deadline_and_not_before() {
    let server = Server::start();
    let locker = locker(&server).await;
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
    let token = guard.lost();
    server.freeze();
    let watch = std::thread::spawn(move || {
        let mut deadline = Instant::now();
        loop {
            let told = guard.lost().is_cancelled() || guard.lost_reason().is_some();
            if guard.is_lost() {
                break;
            }
            assert!(!told, "neither is early");
            let remaining = guard.remaining();
            if remaining > Duration::ZERO {
                deadline = Instant::now() + remaining;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let lost_at = Instant::now();
        assert!(lost_at + BLINK >= deadline, "not before the deadline");
        (guard, deadline)
    });
    timeout(DEADLINE, token.cancelled()).await.expect("a token");
    let fired_at = Instant::now();
    let (guard, deadline) = watch.join().unwrap();
    assert!(fired_at + BLINK >= deadline, "not before the deadline");
    let late = fired_at.saturating_duration_since(deadline);
    assert!(late < Duration::from_secs(2), "{late:?} late");
    let lost = guard.ensure_held().unwrap_err();
    assert_eq!(lost.reason(), LostReason::Expired);
    assert!(lost.source().is_some(), "what renewing failed with");
    server.thaw();
    // P5: the server is back, and the guard stays lost.
    eventually("the server answers", || {
        server.command::<String>(&["PING"]) == "PONG"
    })
    .await;
    assert!(guard.is_lost());
    assert!(matches!(guard.renew().await, Err(Error::Lost(_))));
    assert!(guard.ensure_held().is_err());
}

#[tokio::test]
async fn a_server_that_thaws_before_the_deadline_costs_nothing() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let ttl = Duration::from_secs(4);
    let lock = locker.mutex(&key).ttl(ttl);
    let guard = lock.renew_every(ttl / 20).lock().await.unwrap();
    server.freeze();
    // Long enough for several renewals to go unanswered.
    tokio::time::sleep(ttl / 4).await;
    server.thaw();
    let deadline = Instant::now() + guard.remaining();
    eventually("a renewal", || {
        Instant::now() + guard.remaining() > deadline + ttl / 10
    })
    .await;
    assert!(!guard.is_lost());
    assert!(!guard.lost().is_cancelled());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(!server.exists(&key));
}

/// Blocks both workers of a runtime while `check` runs.
fn with_blocked_workers(server: &Server, ttl: Duration, check: impl FnOnce(&redlease::LockGuard)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let locker = runtime.block_on(locker(server));
    let guard = runtime
        .block_on(locker.mutex(unique_key()).ttl(ttl).lock())
        .unwrap();
    let blocked = Arc::new(Barrier::new(3));
    let done = Arc::new(AtomicBool::new(false));
    for _ in 0..2 {
        let blocked = Arc::clone(&blocked);
        let done = Arc::clone(&done);
        runtime.spawn(async move {
            blocked.wait();
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    blocked.wait();
    check(&guard);
    done.store(true, Ordering::SeqCst);
}

#[test]
fn a_blocked_runtime_does_not_lose_the_lease() {
    let server = Server::start();
    let ttl = 2 * TTL;
    with_blocked_workers(&server, ttl, |guard| {
        std::thread::sleep(ttl * 5 / 2);
        assert!(!guard.is_lost());
        assert!(!guard.lost().is_cancelled());
        assert!(server.exists(guard.key()));
    });
}

#[test]
fn p4_the_token_fires_although_the_runtime_is_blocked() {
    let server = Server::start();
    with_blocked_workers(&server, TTL, |guard| {
        let token = guard.lost();
        server.freeze();
        let mut deadline = Instant::now() + guard.remaining();
        eventually_blocking("the token fires", || {
            let remaining = guard.remaining();
            if remaining > Duration::ZERO {
                deadline = Instant::now() + remaining;
            }
            token.is_cancelled()
        });
        let fired_at = Instant::now();
        assert!(fired_at + BLINK >= deadline, "not before the deadline");
        let late = fired_at.saturating_duration_since(deadline);
        assert!(late < Duration::from_secs(2), "{late:?} late");
        server.thaw();
    });
}

/// Holds a lock, does it a harm, and returns why the guard was lost.
async fn reason_after(harm: impl FnOnce(&Server, &str)) -> (Server, String, LostReason) {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    // The token is to fire by the renewal, not by the deadline.
    let lock = locker.mutex(&key).ttl(Duration::from_secs(60));
    let guard = lock
        .renew_every(Duration::from_millis(50))
        .lock()
        .await
        .unwrap();
    harm(&server, &key);
    timeout(DEADLINE, guard.lost().cancelled())
        .await
        .expect("the token fires at once, not at the deadline");
    assert!(guard.is_lost());
    assert_eq!(guard.remaining(), Duration::ZERO);
    let reason = guard.lost_reason().expect("a reason");
    let lost = guard.ensure_held().unwrap_err();
    assert_eq!(lost.key(), key);
    drop(guard);
    locker.close(DEADLINE).await.expect("a confirmed release");
    (server, key, reason)
}

#[tokio::test]
async fn p7_a_deleted_key_is_a_loss_and_stays_deleted() {
    let (server, key, reason) = reason_after(|server, key| {
        assert_eq!(server.command::<i64>(&["DEL", key]), 1);
    })
    .await;
    assert!(matches!(reason, LostReason::Removed), "{reason:?}");
    assert!(!server.exists(&key));
}

#[tokio::test]
async fn p7_flushall_is_a_loss_and_leaves_nothing() {
    let (server, _, reason) = reason_after(|server, _| {
        server.command::<()>(&["FLUSHALL"]);
    })
    .await;
    assert!(matches!(reason, LostReason::Removed), "{reason:?}");
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
}

#[tokio::test]
async fn p6_a_thief_keeps_its_key() {
    let (server, key, reason) = reason_after(|server, key| {
        server.command::<()>(&["SET", key, "thief", "PX", "50000"]);
    })
    .await;
    assert!(matches!(reason, LostReason::Stolen), "{reason:?}");
    assert_eq!(server.get(&key).as_deref(), Some("thief"));
    // Our TTL was longer: a renewal of the thief's key would show.
    assert!(pttl(&server, &key) <= Duration::from_secs(50));
}

#[tokio::test]
async fn p6_a_key_of_another_type_is_a_theft_and_stays() {
    let (server, key, reason) = reason_after(|server, key| {
        server.command::<()>(&["DEL", key]);
        server.command::<()>(&["HSET", key, "redisson", "1"]);
    })
    .await;
    // The renewal may come between the two.
    let fits = matches!(reason, LostReason::Stolen | LostReason::Removed);
    assert!(fits, "{reason:?}");
    assert_eq!(server.command::<String>(&["TYPE", &key]), "hash");
}

#[tokio::test]
async fn p6_an_old_holder_cannot_touch_the_next_ones_key() {
    let server = Server::start();
    let (old, new) = (locker(&server).await, locker(&server).await);
    let key = unique_key();
    let short = old
        .mutex(&key)
        .ttl(Duration::from_millis(50))
        .auto_renew(false);
    let first = short.lock().await.unwrap();
    let second = new.mutex(&key).lock().await.unwrap();
    assert!(first.is_lost(), "P1");
    assert!(first.fencing_token() < second.fencing_token());
    assert!(matches!(first.renew().await, Err(Error::Lost(_))));
    assert_eq!(first.release().await.unwrap(), Released::AlreadyLost);
    assert_eq!(server.get(&key).as_deref(), Some(second.value()));
    assert!(!second.is_lost());
    second.renew().await.unwrap();
}

#[tokio::test]
async fn p5_a_loss_that_renew_finds_is_final() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(Duration::from_secs(60));
    let guard = lock.lock().await.unwrap();
    let value: String = server.get(&key).unwrap();
    server.command::<()>(&["SET", &key, "thief"]);
    assert!(matches!(guard.renew().await, Err(Error::Lost(_))));
    assert!(guard.lost().is_cancelled());
    assert!(matches!(guard.lost_reason(), Some(LostReason::Stolen)));
    // Even if the thief put everything back.
    server.command::<()>(&["SET", &key, &value, "PX", "500"]);
    assert!(matches!(guard.renew().await, Err(Error::Lost(_))));
    assert!(guard.is_lost());
    let left: i64 = server.command(&["PTTL", &key]);
    assert!(left <= 500, "P5: {left}");
}

#[tokio::test]
async fn p7_a_renewal_never_shortens_the_keys_life() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(Duration::from_secs(5));
    let guard = lock
        .renew_every(Duration::from_millis(20))
        .lock()
        .await
        .unwrap();
    server.command::<()>(&["PEXPIRE", &key, "1000000"]);
    let before = server.calls("evalsha");
    eventually("some renewals", || server.calls("evalsha") > before + 3).await;
    guard.renew().await.unwrap();
    assert!(pttl(&server, &key) > Duration::from_secs(900));
    assert!(
        guard.remaining() < Duration::from_secs(5),
        "our own is ours"
    );
}

#[tokio::test]
async fn max_hold_ends_the_guard_and_leaves_the_key() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let hold = Duration::from_millis(300);
    let lock = locker.mutex(&key).ttl(Duration::from_secs(60));
    let before = Instant::now();
    let guard = lock.max_hold(hold).lock().await.unwrap();
    timeout(DEADLINE, guard.lost().cancelled()).await.unwrap();
    assert!(before.elapsed() >= hold);
    assert!(matches!(guard.lost_reason(), Some(LostReason::MaxHold)));
    assert_eq!(server.get(&key).as_deref(), Some(guard.value()));
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(!server.exists(&key));
}

#[tokio::test]
async fn without_auto_renewal_only_renew_extends_the_lease() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(Duration::from_secs(3));
    let guard = lock.auto_renew(false).lock().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(guard.remaining() < Duration::from_millis(1800));
    assert!(pttl(&server, &key) <= Duration::from_millis(1800));
    let before = guard.remaining();
    guard.renew().await.unwrap();
    assert!(guard.remaining() > before);
    timeout(DEADLINE, guard.lost().cancelled()).await.unwrap();
    let lost = guard.ensure_held().unwrap_err();
    assert_eq!(lost.reason(), LostReason::Expired);
    assert!(lost.source().is_none(), "by the clock: {lost:?}");
}

#[tokio::test]
async fn force_release_takes_the_lock_from_its_holder() {
    let server = Server::start();
    let (holder, operator) = (locker(&server).await, locker(&server).await);
    let key = unique_key();
    let lock = holder.mutex(&key).ttl(Duration::from_secs(60));
    let lock = lock.renew_every(Duration::from_millis(50));
    let guard = lock.lock().await.unwrap();
    assert!(operator.mutex(&key).force_release().await.unwrap());
    timeout(DEADLINE, guard.lost().cancelled()).await.unwrap();
    assert!(matches!(guard.lost_reason(), Some(LostReason::Removed)));
    assert!(!operator.mutex(&key).force_release().await.unwrap());
    assert!(operator.mutex(&key).try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn a_routine_is_dropped_when_the_lease_is_lost() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(Duration::from_secs(60));
    let lock = lock.renew_every(Duration::from_millis(50));
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = Flag(Arc::clone(&dropped));
    let outcome = lock
        .run(async |guard| {
            server.command::<()>(&["DEL", guard.key()]);
            let _flag = flag;
            std::future::pending::<()>().await;
        })
        .await;
    assert!(dropped.load(Ordering::SeqCst));
    match outcome {
        Err(Error::Lost(lost)) => assert!(matches!(lost.reason(), LostReason::Removed)),
        other => panic!("{other:?}"),
    }
}
