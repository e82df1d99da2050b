//! The end of a lease that nobody asked for.

use std::fmt;
use std::sync::Arc;

use crate::fault::Cause;

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The [`Locker`](crate::Locker) was closed, or its background thread ended, while the guard
    /// was alive.
    Closed,
    /// The lease was not renewed in time, and its local deadline passed. What the last attempt to
    /// renew failed with, if it failed, is the [`source()`](std::error::Error::source) of [`Lost`].
    Expired,
    /// The guard was held for as long as [`Lock::max_hold`](crate::Lock::max_hold) allows. The key
    /// stays in Redis until its TTL, so that the holder has time to stop.
    MaxHold,
    /// The key is gone from Redis: deleted, flushed, evicted, or lost in a failover.
    Removed,
    /// The key holds another value: somebody else has the lock.
    Stolen,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the locker was closed",
            Self::Expired => "it was not renewed in time",
            Self::MaxHold => "it was held for the longest time allowed",
            Self::Removed => "the key was removed from redis",
            Self::Stolen => "another holder's value is in the key",
        })
    }
}

/// The error of a lease that was lost: the caller no longer has the lock.
///
/// Its [`source()`](std::error::Error::source) is what the last attempt to renew failed with, if the
/// lease expired because of that.
#[derive(Clone, Debug, thiserror::Error)]
#[error("lock {key:?}: the lease was lost: {reason}")]
pub struct Lost {
    key: Arc<str>,
    reason: LostReason,
    #[source]
    last_error: Option<Cause>,
}

impl Lost {
    pub(crate) fn new(key: Arc<str>, reason: LostReason, last_error: Option<Cause>) -> Self {
        Self {
            key,
            reason,
            last_error,
        }
    }

    /// Returns the key of the lock.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns why the lease was lost.
    #[must_use]
    pub fn reason(&self) -> LostReason {
        self.reason
    }
}
