//! The peers, as their documentation says, with the best settings that were found for this load.

use std::time::Duration;

use anyhow::{Result, bail};
use async_redis_lock::{Locker, Options};
use rslock::{LockGuard, LockManager};

use crate::contender::{Client, Lock, Renewing, Store};

/// rslock: one `LockManager` a process, `acquire`, which waits without bound, and
/// `release().await`. It has no renewal outside its `using`.
///
/// Its waiters try again after a random time below `set_retry`'s delay, which is 200 ms by default.
/// A long one leaves the holder undisturbed, so an empty section turns over fastest with it; a
/// short one hands over sooner and is fairer. No single one is the best, so both are measured.
#[derive(Clone)]
pub struct Rslock(LockManager);

/// rslock with the retry delay that had the shortest hand-off of 200, 100, 50, 20, 10 and 5 ms.
#[derive(Clone)]
pub struct RslockEager(LockManager);

pub const RSLOCK_EAGER_RETRY: Duration = Duration::from_millis(10);

/// rslock's own default, which `set_retry` wants beside a delay.
const RSLOCK_TRIES: u32 = 3;

pub struct RslockLock {
    manager: LockManager,
    key: String,
    ttl: Duration,
}

impl Client for Rslock {
    type Lock = RslockLock;

    async fn connect(store: &Store) -> Result<Self> {
        Ok(Self(LockManager::new(store.urls.clone())))
    }

    fn lock(&self, key: &str, ttl: Duration) -> RslockLock {
        RslockLock::new(&self.0, key, ttl)
    }
}

impl Client for RslockEager {
    type Lock = RslockLock;

    async fn connect(store: &Store) -> Result<Self> {
        let mut manager = LockManager::new(store.urls.clone());
        manager.set_retry(RSLOCK_TRIES, RSLOCK_EAGER_RETRY);
        Ok(Self(manager))
    }

    fn lock(&self, key: &str, ttl: Duration) -> RslockLock {
        RslockLock::new(&self.0, key, ttl)
    }
}

impl RslockLock {
    fn new(manager: &LockManager, key: &str, ttl: Duration) -> Self {
        Self {
            manager: manager.clone(),
            key: key.to_owned(),
            ttl,
        }
    }
}

impl Lock for RslockLock {
    type Guard = LockGuard;

    async fn acquire(&mut self) -> Result<LockGuard> {
        Ok(self.manager.acquire(self.key.as_str(), self.ttl).await?)
    }

    async fn release(&mut self, guard: LockGuard) -> Result<()> {
        guard.release().await;
        Ok(())
    }
}

/// async-redis-lock: one `Locker` a process, no bound on the wait, renewal every third of the
/// TTL, and `release().await`.
///
/// Its waiters try again at a fixed interval. Its default of 100 ms starves most of them here;
/// 10 ms had a hand-off ten times shorter, and lost no throughput.
#[derive(Clone)]
pub struct AsyncRedisLock(Locker);

pub const ASYNC_REDIS_LOCK_RETRY: Duration = Duration::from_millis(10);

pub struct AsyncRedisLockLock {
    locker: Locker,
    key: String,
    options: Options,
}

impl Client for AsyncRedisLock {
    type Lock = AsyncRedisLockLock;

    async fn connect(store: &Store) -> Result<Self> {
        let [url] = &store.urls[..] else {
            bail!("async-redis-lock has one server");
        };
        Ok(Self(Locker::from_redis_url(url).await?))
    }

    fn lock(&self, key: &str, ttl: Duration) -> AsyncRedisLockLock {
        AsyncRedisLockLock {
            locker: self.0.clone(),
            key: key.to_owned(),
            options: Options::new()
                .ttl(ttl)
                .extend(ttl / 3)
                .timeout(None)
                .retry(ASYNC_REDIS_LOCK_RETRY),
        }
    }
}

impl Lock for AsyncRedisLockLock {
    type Guard = async_redis_lock::Lock;

    async fn acquire(&mut self) -> Result<Self::Guard> {
        let lock = self.locker.acquire_with_options(&self.options, &self.key);
        Ok(lock.await?)
    }

    async fn release(&mut self, guard: Self::Guard) -> Result<()> {
        Ok(guard.release().await?)
    }
}

impl Renewing for AsyncRedisLock {
    fn is_lost(guard: &async_redis_lock::Lock) -> bool {
        guard.is_lost()
    }
}
