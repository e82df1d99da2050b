//! Subscribers of `tracing` that stall or panic, and the end of the background thread.

#[path = "common/waiters.rs"]
mod waiters;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, Once};
use redlease::{Error, LockGuard, Locker, LostReason};
use testkit::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use waiters::*;

/// How long a lease lasts that is renewed while a subscriber stalls.
const LEASE: Duration = Duration::from_millis(900);

/// Does to an event what the key in it says; the subscriber of this process.
struct Hostile;

static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());
static STALLED: Mutex<bool> = Mutex::new(true);
static GO_ON: Condvar = Condvar::new();

/// The text of the field `lock` of an event.
#[derive(Default)]
struct LockField(String);

impl Visit for LockField {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "lock" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Hostile {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("redlease")
    }

    fn event(&self, event: &Event<'_>) {
        let mut lock = LockField::default();
        event.record(&mut lock);
        HEARD.lock().push(lock.0.clone());
        if lock.0.starts_with("stall") {
            let mut stalled = STALLED.lock();
            GO_ON.wait_while_for(&mut stalled, |stalled| *stalled, DEADLINE);
        }
        assert!(!lock.0.starts_with("panic"), "on purpose");
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn subscribe() {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| tracing::subscriber::set_global_default(Hostile).expect("the first"));
}

fn was_heard(key: &str) -> bool {
    HEARD.lock().iter().any(|heard| heard == key)
}

async fn until_heard(key: &str) {
    eventually("the event", || was_heard(key)).await;
}

/// A key whose events are dealt with as its first word says.
fn key(manner: &str) -> String {
    format!("{manner}:{}", unique_key())
}

async fn hold(locker: &Locker, key: &str, ttl: Duration) -> LockGuard {
    let lock = locker.mutex(key).ttl(ttl);
    within(DEADLINE, "the lock", lock.lock()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_subscriber_that_stalls_delays_no_renewal_and_no_token() {
    subscribe();
    let server = Server::start();
    let locker = connect(&server).await;
    let stolen = key("stall");
    let victim = hold(&locker, &stolen, TTL).await;
    let guard = hold(&locker, &key("quiet"), LEASE).await;
    let () = server.command(&["DEL", &stolen]);
    within(DEADLINE, "the token", victim.lost().cancelled()).await;
    until_heard(&stolen).await;
    // The subscriber stands still, for longer than the lease lasts.
    tokio::time::sleep(LEASE * 2).await;
    assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
    let next = hold(&locker, &stolen, TTL).await;
    drop(next);
    eventually("the drop", || !server.exists(&stolen)).await;
    server.freeze();
    let late = tokio::task::spawn_blocking(move || {
        eventually_blocking("the lease is over", || guard.is_lost());
        let over = Instant::now();
        eventually_blocking("the token", || guard.lost().is_cancelled());
        over.elapsed()
    });
    let late = done(late).await;
    server.thaw();
    assert!(late < LEASE, "{late:?} late");
    *STALLED.lock() = false;
    GO_ON.notify_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_subscriber_that_panics_costs_no_other_lease() {
    subscribe();
    let server = Server::start();
    let locker = connect(&server).await;
    let stolen = key("panic");
    let victim = hold(&locker, &stolen, TTL).await;
    let guard = hold(&locker, &key("panic"), LEASE).await;
    let () = server.command(&["DEL", &stolen]);
    within(DEADLINE, "the token", victim.lost().cancelled()).await;
    until_heard(&stolen).await;
    tokio::time::sleep(LEASE * 2).await;
    assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
    let next = hold(&locker, &stolen, TTL).await;
    drop(next);
    eventually("the drop", || !server.exists(&stolen)).await;
}

#[tokio::test]
async fn p12_a_subscriber_that_panics_makes_no_drop_panic() {
    subscribe();
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(key("panic"));
    let limit = Duration::from_millis(30);
    for _ in 0..5 {
        let guard = lock.clone().max_hold(limit).lock().await.unwrap();
        while !guard.is_lost() {
            std::hint::spin_loop();
        }
        drop(guard);
    }
    until_heard(lock.key()).await;
    eventually("the drop", || !server.exists(lock.key())).await;
    let guard = hold(&locker, &key("panic"), TTL).await;
    let () = server.command(&["SET", guard.key(), "thief"]);
    assert!(matches!(guard.renew().await, Err(Error::Lost(_))));
    assert!(guard.lost().is_cancelled());
    until_heard(guard.key()).await;
}

#[tokio::test]
async fn a_subscriber_that_panics_leaves_no_guard_of_a_closed_locker_held() {
    subscribe();
    let server = Server::start();
    let locker = connect(&server).await;
    let mut guards = Vec::new();
    for _ in 0..5 {
        guards.push(hold(&locker, &key("panic"), TTL).await);
    }
    locker.close(DEADLINE).await.unwrap();
    for guard in &guards {
        assert!(matches!(guard.lost_reason(), Some(LostReason::Closed)));
        assert!(guard.lost().is_cancelled());
        assert!(!server.exists(guard.key()), "released");
    }
}

/// A waker of the caller's own, which runs on the locker's thread when a lease is lost.
struct Bomb;

impl Bomb {
    fn put_under<F: Future>(future: &mut Pin<Box<F>>) {
        let waker = Arc::new(Self).into();
        let first = future.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(first.is_pending());
    }
}

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        panic!("on purpose");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_waker_that_panics_costs_nobody_else_anything() {
    subscribe();
    let server = Server::start();
    let locker = connect(&server).await;
    let held = hold(&locker, &key("quiet"), TTL).await;
    let waiter = wait_for(&locker.mutex(held.key()).ttl(TTL));
    let short = |name: String| locker.mutex(name).ttl(TTL).max_hold(LEASE);
    let bombed = short(key("quiet")).lock().await.unwrap();
    let other = short(key("quiet")).lock().await.unwrap();
    let behind = wait_for(&locker.mutex(bombed.key()).ttl(TTL));
    let mut lost = Box::pin(bombed.lost().cancelled_owned());
    Bomb::put_under(&mut lost);
    within(DEADLINE, "the other token", other.lost().cancelled()).await;
    eventually("its own", || bombed.lost().is_cancelled()).await;
    drop(lost);
    drop(bombed);
    assert!(!done(behind).await.is_lost(), "the turn has gone on");
    held.renew().await.unwrap();
    drop(held);
    assert!(!done(waiter).await.is_lost());
}
