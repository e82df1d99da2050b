//! redlease. The one file that knows its API.
//!
//! Defaults throughout: fencing, hand-over within the process for 10 ms, renewal every third of
//! the TTL.

use std::time::Duration;

use anyhow::Result;
use redlease::{LockGuard, Locker};

use crate::contender::{Client, Lock, Renewing, Store};

impl Client for Locker {
    type Lock = redlease::Lock;

    async fn connect(store: &Store) -> Result<Self> {
        Ok(match &store.urls[..] {
            urls if store.is_cluster => Self::cluster(urls).await?,
            [url] => Self::connect(url).await?,
            urls => Self::quorum(urls).await?,
        })
    }

    fn lock(&self, key: &str, ttl: Duration) -> Self::Lock {
        Self::mutex(self, key).ttl(ttl)
    }
}

impl Lock for redlease::Lock {
    type Guard = LockGuard;

    async fn acquire(&mut self) -> Result<LockGuard> {
        Ok(self.lock().await?)
    }

    async fn release(&mut self, guard: LockGuard) -> Result<()> {
        guard.release().await?;
        Ok(())
    }
}

impl Renewing for Locker {
    fn is_lost(guard: &LockGuard) -> bool {
        guard.is_lost()
    }
}
