//! A connection to the old master after a failover: what that says of a lock means nothing (P13).
//!
//! The old master is a replica now whose link is down, and says nothing of that to whoever only
//! reads. The locker's first runtime and its driver are still connected to it; connections that
//! are opened now reach the new master.

#[path = "common/waiters.rs"]
mod waiters;

use std::future::Future;
use std::thread;
use std::time::Duration;

use redlease::{Lock, LockGuard, Locker, Released};
use testkit::*;
use tokio::sync::{mpsc, oneshot};
use waiters::*;

struct Failover {
    old: Server,
    new: Server,
    proxy: Proxy,
    locker: Locker,
    /// A runtime with a connection to the old master.
    elsewhere: mpsc::UnboundedSender<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Failover {
    async fn begin() -> Self {
        let (old, new) = (Server::start(), Server::start());
        let proxy = Proxy::before(old.port);
        let (elsewhere, mut tasks) = mpsc::unbounded_channel();
        let (connected, locker) = oneshot::channel();
        let url = proxy.url();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let _ = connected.send(Locker::connect(url).await.unwrap());
                while let Some(task) = tasks.recv().await {
                    tokio::spawn(task);
                }
            });
        });
        let locker = locker.await.unwrap();
        let this = Self {
            old,
            new,
            proxy,
            locker,
            elsewhere,
        };
        eventually("the driver is connected, too", || {
            let list: String = this.old.command(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
            list.lines().count() == 2
        })
        .await;
        this
    }

    /// From now on the new server is the master.
    fn take_place(&self) {
        self.old.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
        self.proxy.lead_to(self.new.port);
    }

    /// Runs a future on the runtime that is connected to the old master.
    async fn elsewhere<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (sender, receiver) = oneshot::channel();
        let task = Box::pin(async move {
            let _ = sender.send(future.await);
        });
        assert!(self.elsewhere.send(task).is_ok());
        within(DEADLINE, "it is done elsewhere", receiver)
            .await
            .unwrap()
    }

    fn lock(&self) -> Lock {
        self.locker.mutex(unique_key()).ttl(TTL)
    }
}

async fn until_extended(server: &Server, guard: &LockGuard) {
    let () = server.command(&["PEXPIRE", guard.key(), "5000"]);
    eventually("it is extended", || {
        server.command::<i64>(&["PTTL", guard.key()]) > 6_000
    })
    .await;
}

#[tokio::test]
async fn p13_a_held_guard_is_renewed_at_the_new_master() {
    let failover = Failover::begin().await;
    failover.take_place();
    let lock = failover.lock().renew_every(Duration::from_millis(100));
    let guard = lock.lock().await.unwrap();
    assert!(failover.new.exists(guard.key()));
    until_extended(&failover.new, &guard).await;
    assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
}

#[tokio::test]
async fn p13_a_renewal_that_is_asked_for_reaches_the_new_master() {
    let failover = Failover::begin().await;
    failover.take_place();
    let guard = failover.lock().lock().await.unwrap();
    let (guard, renewed) = failover
        .elsewhere(async move {
            let mut renewed = guard.renew().await;
            // The first may hear that the old one is no master.
            for _ in 0..10 {
                if renewed.is_ok() {
                    break;
                }
                renewed = guard.renew().await;
            }
            (guard, renewed)
        })
        .await;
    assert!(renewed.is_ok(), "{renewed:?}");
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn p9_a_release_frees_the_key_at_the_new_master() {
    let failover = Failover::begin().await;
    failover.take_place();
    let guard = failover.lock().lock().await.unwrap();
    let key = guard.key().to_owned();
    let released = failover.elsewhere(guard.release()).await;
    assert_eq!(released.unwrap(), Released::Freed);
    assert!(!failover.new.exists(&key));
}

#[tokio::test]
async fn p9_a_dropped_guard_frees_the_key_at_the_new_master() {
    let failover = Failover::begin().await;
    failover.take_place();
    let guard = failover.lock().lock().await.unwrap();
    let key = guard.key().to_owned();
    drop(guard);
    // Long before its TTL.
    let freed = eventually("it is free", || !failover.new.exists(&key));
    within(TTL / 2, "it is free", freed).await;
}

#[tokio::test]
async fn p9_a_lease_at_the_end_of_its_stretch_goes_on_at_the_new_master() {
    let failover = Failover::begin().await;
    failover.take_place();
    let lock = failover.lock().handover_for(Duration::from_nanos(1));
    let guard = lock.lock().await.unwrap();
    let key = guard.key().to_owned();
    let heir = wait_for(&lock);
    tokio::task::yield_now().await;
    let released = failover.elsewhere(guard.release()).await;
    assert_eq!(released.unwrap(), Released::Freed);
    // Were the key still the first one's, this would take its whole TTL.
    let heir = within(TTL / 2, "the heir has it", heir).await.unwrap();
    assert_eq!(heir.release().await.unwrap(), Released::Freed);
    assert!(!failover.new.exists(&key));
}

#[tokio::test]
async fn p10_a_waiter_that_gives_up_leaves_the_queue_of_the_new_master() {
    let failover = Failover::begin().await;
    failover.take_place();
    let lock = failover.lock();
    let () = failover
        .new
        .command(&["SET", lock.key(), "foreign", "PX", "60000"]);
    let waiter = wait_for(&lock);
    until_queued(&failover.new, lock.key(), 1).await;
    waiter.abort();
    // The queue lives for 10 s after the last heartbeat.
    let left = until_queued(&failover.new, lock.key(), 0);
    within(Duration::from_secs(7), "it has left", left).await;
}

#[tokio::test]
async fn p1_a_guard_is_not_extended_by_a_replica_on_which_its_key_lives_for_longer() {
    let failover = Failover::begin().await;
    let lock = failover.lock().renew_every(Duration::from_millis(100));
    let guard = failover
        .elsewhere(async move { lock.lock().await.unwrap() })
        .await;
    // As on a replica whose clock is behind.
    let () = failover.old.command(&["PEXPIRE", guard.key(), "600000"]);
    failover.take_place();
    let other = connect(&failover.new).await;
    let second = other.mutex(guard.key()).ttl(TTL).lock().await.unwrap();
    // The failover lost the key; who has it now, the next renewal tells.
    within(TTL / 2, "the first is lost", guard.lost().cancelled()).await;
    assert!(!second.is_lost());
}
