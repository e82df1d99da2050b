//! Where locks are kept: what a lock asks of a store, and the stores that can answer.

pub(crate) mod connection;
pub(crate) mod memory;
pub(crate) mod node;
pub(crate) mod quorum;
pub(crate) mod script;

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

use crate::backend::quorum::stake::Stake;
use crate::fault::Fault;
use crate::key::Key;
use crate::lease::clock::Moment;
use crate::options::{margin, whole_millis};
use crate::owner::Holder;

/// What a contender asks for: the same from the first attempt to the release.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) key: Arc<Key>,
    /// Tells this acquisition from all others (P6).
    pub(crate) value: Arc<str>,
    /// In whole milliseconds.
    pub(crate) ttl: Duration,
    /// What a quorum knows of the claim at its servers.
    stake: OnceLock<Arc<Stake>>,
}

impl Claim {
    pub(crate) fn new(key: Arc<Key>, value: Arc<str>, ttl: Duration) -> Self {
        Self {
            key,
            value,
            ttl,
            stake: OnceLock::new(),
        }
    }

    pub(crate) fn ttl_millis(&self) -> u64 {
        whole_millis(self.ttl)
    }

    /// P3: until when a lease counts that was asked for at `sent`.
    pub(crate) fn deadline(&self, sent: Moment) -> Moment {
        sent + (self.ttl - margin(self.ttl))
    }

    /// When the request was sent that was granted until `deadline`.
    pub(crate) fn sent(&self, deadline: Moment) -> Moment {
        deadline.minus(self.ttl - margin(self.ttl))
    }
}

/// Fencing numbers that follow each other, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fences {
    pub(crate) from: u64,
    pub(crate) count: u64,
}

impl Fences {
    /// What to ask for now: `count` numbers, from the wall clock on or later (P8). All servers of
    /// a quorum are asked for the same, so that they agree as a rule.
    pub(crate) fn floor(count: u64) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            from: since_epoch.map_or(0, |elapsed| elapsed.as_micros() as u64),
            count,
        }
    }

    pub(crate) fn last(self) -> u64 {
        self.from + self.count - 1
    }
}

/// The answer to an attempt to acquire.
#[derive(Debug)]
pub(crate) enum Attempt {
    Granted {
        /// The first of the fencing numbers that the grant reserved.
        fence: u64,
        deadline: Moment,
    },
    /// Somebody else has it, for as long as `ttl` if he does not renew; `None`: without a TTL.
    Held { ttl: Option<Duration> },
}

/// The answer to a renewal. "Unknown" is a [`Fault`].
#[derive(Debug)]
pub(crate) enum Renewal {
    Renewed { deadline: Moment },
    Removed,
    Stolen,
}

/// The answer to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    Freed,
    NotOurs,
}

pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send + 'a>>;

/// A clean-up that must go the way that the request in doubt went.
pub(crate) struct Cleanup {
    /// The runtime that drives that way.
    pub(crate) runtime: Handle,
    pub(crate) run: Answer<'static, Freed>,
}

/// A store of locks. Every method does its I/O on the runtime it is called on, and takes at most
/// about `within`.
///
/// A [`Fault`] leaves open whether the request was or will yet be carried out.
pub(crate) trait Backend: Send + Sync + fmt::Debug + 'static {
    /// The name of the store in messages: the server's address.
    fn server(&self) -> Arc<str>;

    /// Makes sure that the store can be reached from the present runtime, and is usable.
    fn connect(&self, within: Duration) -> Answer<'_, ()>;

    /// Takes the lock if it is free, reserving `fences`, from its first number on or from a later
    /// one. Idempotent for a value.
    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt>;

    /// Gives up on a claim whose acquire was cut short: the clean-ups that cannot overtake it.
    /// None if no attempt is in doubt.
    fn disown(&self, claim: &Arc<Claim>) -> Vec<Cleanup>;

    /// Whether an attempt that was not granted spends its value: it may have left traces, which
    /// are yet to be cleaned up under that value, so the next attempt needs another.
    fn spends_values(&self) -> bool {
        false
    }

    /// Extends the lock if it is ours; never shortens and never creates it (P7).
    fn renew<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Renewal>;

    /// Frees the lock if it is ours (P6). Idempotent.
    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed>;

    /// Waits for what an answered release left to be done behind the scenes, at most `within`.
    fn settle<'a>(
        &'a self,
        _claim: &'a Arc<Claim>,
        _within: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(ready(()))
    }

    /// Tells who has the lock.
    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>>;

    /// Takes the lock from whoever has it; says whether anybody had.
    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool>;
}
