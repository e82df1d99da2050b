//! Where locks are kept: what a lock asks of a store, and the stores that can answer.

pub(crate) mod connection;
pub(crate) mod memory;
pub(crate) mod node;
pub(crate) mod push;
pub(crate) mod script;
pub(crate) mod verdict;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::{self, Handle};

use crate::fault::Fault;
use crate::key::Key;
use crate::lease::clock::Moment;
use crate::options::{margin, whole_millis};
use crate::owner::Holder;

/// A waiter in the queue of Redis lives this long after its last heartbeat, at most.
const LONGEST_WAITER_TTL: Duration = Duration::from_secs(3);
const SHORTEST_WAITER_TTL: Duration = Duration::from_millis(500);

/// What a contender asks for: the same from the first attempt to the release.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) key: Arc<Key>,
    /// Tells this acquisition from all others (P6).
    pub(crate) value: Arc<str>,
    /// In whole milliseconds.
    pub(crate) ttl: Duration,
    /// The last fencing number in use, if more were reserved; else 0. The release gives the rest
    /// back, so that the counter does not run ahead of the clock (P8).
    last_fence: AtomicU64,
}

impl Claim {
    pub(crate) fn new(key: Arc<Key>, value: Arc<str>, ttl: Duration) -> Self {
        Self {
            key,
            value,
            ttl,
            last_fence: AtomicU64::new(0),
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

    /// How long a waiter for this claim lives without a heartbeat.
    pub(crate) fn waiter_ttl(&self) -> Duration {
        self.ttl.clamp(SHORTEST_WAITER_TTL, LONGEST_WAITER_TTL)
    }

    pub(crate) fn note_fence(&self, fence: u64) {
        self.last_fence.store(fence, Ordering::Relaxed);
    }

    pub(crate) fn last_fence(&self) -> Option<u64> {
        match self.last_fence.load(Ordering::Relaxed) {
            0 => None,
            fence => Some(fence),
        }
    }
}

/// Fencing numbers that a grant reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fences {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// The answer to an attempt to acquire.
#[derive(Debug)]
pub(crate) enum Attempt {
    Granted {
        fences: Fences,
        deadline: Moment,
    },
    /// Somebody else has it, for as long as `ttl` if he does not renew; `None`: without a TTL.
    Held {
        ttl: Option<Duration>,
    },
}

/// The answer to a heartbeat in the queue.
#[derive(Debug)]
pub(crate) enum Beat {
    Granted { fences: Fences, deadline: Moment },
    Waiting(Standing),
}

/// How a waiter stands in the queue.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Nobody is before it: it watches the holder.
    pub(crate) first: bool,
    /// How long the holder's key lives if he does not renew; `None`: without a TTL.
    pub(crate) ttl: Option<Duration>,
    /// Grants and changes are told at once; else only a heartbeat finds them.
    pub(crate) pushes: bool,
}

/// The answer to a holder that would like to go on.
#[derive(Debug)]
pub(crate) enum Kept {
    NotOurs,
    /// For another stretch.
    Ours {
        fences: Fences,
        deadline: Moment,
    },
    /// Somebody else waited, and has the lock now.
    PassedOn,
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

    /// Takes the lock if it is free, reserving `fences` fencing numbers. Idempotent for a value.
    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: u64,
        within: Duration,
    ) -> Answer<'a, Attempt>;

    /// Gives up on a claim whose acquire was cut short: the clean-ups that cannot overtake it.
    /// None if no attempt is in doubt.
    fn disown(&self, claim: &Arc<Claim>) -> Vec<Cleanup>;

    /// Extends the lock if it is ours; never shortens and never creates it (P7).
    fn renew<'a>(&'a self, claim: &'a Claim, within: Duration) -> Answer<'a, Renewal>;

    /// Frees the lock if it is ours (P6). Idempotent.
    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed>;

    /// Keeps the lock for another stretch, unless somebody else waits for it.
    fn keep<'a>(&'a self, claim: &'a Arc<Claim>, fences: u64, within: Duration)
    -> Answer<'a, Kept>;

    /// The queue between processes, if there is one here.
    fn queue(&self) -> Option<&dyn Queue>;

    /// Tells who has the lock.
    fn holder<'a>(&'a self, key: &'a Key, within: Duration) -> Answer<'a, Option<Holder>>;

    /// Takes the lock from whoever has it; says whether anybody had.
    fn force_release<'a>(&'a self, key: &'a Key, within: Duration) -> Answer<'a, bool>;
}

/// A first-come, first-served queue between processes, with direct grants.
pub(crate) trait Queue: Send + Sync {
    /// Takes a place, or keeps it: the heartbeat. Idempotent for a claim.
    fn enqueue<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: u64,
        within: Duration,
    ) -> Answer<'a, Beat>;

    /// Leaves for good, and passes on a lock that was granted meanwhile.
    fn leave<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed>;
}

/// A lock that a releaser gave to a waiter, as the waiter's connection hears of it.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) fences: Fences,
    /// When the waiter sent the heartbeat that was the last to run.
    pub(crate) stamp: Moment,
    /// How long after that moment, at least, the server keeps the key.
    pub(crate) life: Duration,
}

impl Grant {
    /// P3: counted from the echoed stamp, never from the message's arrival.
    pub(crate) fn deadline(&self) -> Moment {
        let from = match cfg!(redlease_mutation = "grant_from_arrival") {
            true => crate::lease::clock::Clock::system().now(),
            false => self.stamp,
        };
        from + self.life.saturating_sub(margin(self.life))
    }
}

/// What a store tells without being asked. All of it is hints: any of it may be missing (P11).
pub(crate) trait Signals: Send + Sync + fmt::Debug + 'static {
    /// Somebody changed the key, or all of them (`None`), as the connection of `runtime` heard;
    /// without a runtime, the store itself tells.
    fn changed(&self, key: Option<&str>, runtime: Option<runtime::Id>);

    /// Signals were or may have been missed on the connection of `runtime`.
    fn deaf(&self, runtime: runtime::Id);

    /// A releaser gave a lock to a waiter of this process.
    fn granted(&self, grant: Grant);
}
