//! What stores answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Moment;
use crate::options::margin;

/// Fencing numbers that follow each other, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fences {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Fences {
    /// What to ask for now: `count` numbers, from the wall clock on or later (P8). All servers of
    /// a quorum are asked for the same, so that they agree as a rule.
    pub(crate) fn floor(count: u64) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            first: since_epoch.map_or(0, |elapsed| elapsed.as_micros() as u64),
            count,
        }
    }

    /// The numbers that were reserved for this request, which begin at `first`.
    pub(crate) fn granted_from(self, first: i64) -> Self {
        Self {
            first: first.unsigned_abs(),
            count: self.count,
        }
    }

    /// Whether the scripts can have reserved these: below 2^53, where a double tells any two apart.
    pub(crate) fn are_in_range(self) -> bool {
        let end = self.first.checked_add(self.count);
        self.count > 0 && end.is_some_and(|end| end <= 1 << 53)
    }

    pub(crate) fn last(self) -> u64 {
        self.first + self.count - 1
    }
}

/// The answer to an attempt to acquire.
#[derive(Debug)]
pub(crate) enum Attempt {
    Granted {
        fences: Fences,
        deadline: Moment,
    },
    /// Somebody else has it, for as long as `ttl` if it is not renewed; `None`: without a TTL.
    Held {
        ttl: Option<Duration>,
    },
}

/// The answer to a heartbeat in the queue.
#[derive(Debug)]
pub(crate) enum Beat {
    Granted {
        fences: Fences,
        deadline: Moment,
        /// A message of it was sent to us before.
        told: bool,
    },
    Waiting(Standing),
}

/// How a waiter stands in the queue.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Nobody is before it: it watches the holder.
    pub(crate) first: bool,
    /// How long the holder's key lives if it is not renewed; `None`: without a TTL.
    pub(crate) ttl: Option<Duration>,
    pub(crate) tells: Tells,
}

/// What a waiter is told at once; all else only a heartbeat finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    /// Its grant, and what others do to the key.
    All,
    /// Its grant.
    Grants,
    Nothing,
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

/// The answer to a look at a lock.
#[derive(Debug)]
pub(crate) enum Look {
    /// `until`: the key lives at least until then. `None` if a renewal has something to mend: the
    /// key has no TTL, or a server of a quorum lost it.
    Ours {
        until: Option<Moment>,
    },
    Removed,
    Stolen,
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
        self.stamp + self.life.saturating_sub(margin(self.life))
    }
}
