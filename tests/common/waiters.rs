//! What tests of waiting share.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use redlease::{Lock, LockGuard, Locker};
use testkit::{DEADLINE, Server, eventually};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Far from every fallback: renewals come every 10 s, a heartbeat every second, and a waiter that
/// is gone counts for 3 s.
pub const TTL: Duration = Duration::from_secs(30);

pub async fn connect(server: &Server) -> Locker {
    Locker::connect(server.url()).await.unwrap()
}

/// Waits for a lock in a task of its own.
pub fn wait_for(lock: &Lock) -> JoinHandle<LockGuard> {
    let lock = lock.clone();
    tokio::spawn(async move { lock.lock().await.unwrap() })
}

/// What a task ends with; panics when it does not end.
pub async fn done<T>(task: impl Future<Output = Result<T, tokio::task::JoinError>>) -> T {
    within(DEADLINE, "the task ends", task).await.unwrap()
}

/// What a future ends with; panics when it takes longer than `limit`.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// How many wait for a key in Redis.
pub fn queued(server: &Server, key: &str) -> u64 {
    server.command(&["ZCARD", &format!("{{{key}}}:lock-queue")])
}

pub async fn until_queued(server: &Server, key: &str, count: u64) {
    let what = format!("{count} wait for {key} in Redis");
    eventually(&what, || queued(server, key) == count).await;
}

/// How many scripts the server has run.
pub fn scripts(server: &Server) -> u64 {
    server.calls("evalsha") + server.calls("eval")
}

/// Polls a future once; panics if it is ready.
pub fn begin<F: Future>(future: &mut Pin<Box<F>>) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending(), "it waits");
}

/// Waits until only the fencing counters are left on the server, and says how many.
pub async fn until_only_fences_are_left(server: &Server) -> usize {
    let mut left: Vec<String> = Vec::new();
    eventually("only fencing counters are left", || {
        left = server.command(&["KEYS", "*"]);
        left.iter().all(|key| key.ends_with(":fence"))
    })
    .await;
    for key in &left {
        let ttl: i64 = server.command(&["PTTL", key]);
        assert!(ttl > 0, "{key} expires");
    }
    left.len()
}
