//! What is compared, and what a load needs from each.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How long a key outlives a holder that crashed, unless a scenario says otherwise.
pub const TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
pub enum Contender {
    /// Bare redis-rs: the least that a lock on Redis costs.
    Floor,
    Redlease,
    Rslock,
    /// rslock whose waiters try again sooner than by default.
    RslockEager,
    AsyncRedisLock,
}

impl Contender {
    pub const ALL: [Self; 5] = [
        Self::Floor,
        Self::Redlease,
        Self::Rslock,
        Self::RslockEager,
        Self::AsyncRedisLock,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "bare redis-rs",
            Self::Redlease => "redlease",
            Self::Rslock => "rslock",
            Self::RslockEager => "rslock, 10 ms",
            Self::AsyncRedisLock => "async-redis-lock",
        }
    }

    /// Whether it sends `SET` itself, instead of calling it in a script.
    pub fn sends_set(self) -> bool {
        matches!(self, Self::Floor | Self::Rslock | Self::RslockEager)
    }
}

/// Where the locks are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Store {
    /// One server, those of a quorum, or those of a cluster.
    pub urls: Vec<String>,
    pub is_cluster: bool,
}

/// A connected lock library. Clones share the connection.
pub trait Client: Clone + Send + Sync + Sized + 'static {
    type Lock: Lock;

    fn connect(store: &Store) -> impl Future<Output = Result<Self>> + Send;

    /// A handle on one key, which a task makes once and uses for all its cycles.
    fn lock(&self, key: &str, ttl: Duration) -> Self::Lock;
}

pub trait Lock: Send + 'static {
    type Guard: Send + 'static;

    /// Waits for the lock without bound.
    fn acquire(&mut self) -> impl Future<Output = Result<Self::Guard>> + Send;

    /// Releases it, and waits for the answer.
    fn release(&mut self, guard: Self::Guard) -> impl Future<Output = Result<()>> + Send;
}

/// A library that renews a lease while its guard is held.
pub trait Renewing: Client {
    fn is_lost(guard: &<Self::Lock as Lock>::Guard) -> bool;
}
