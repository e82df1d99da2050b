//! What can go wrong, sorted by what the caller can do about it.

use std::fmt;
use std::ops::Deref;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

/// Why a lock operation failed.
///
/// Each variant is a different thing that the caller can do. Contention and the end of a wait are
/// not errors: [`Lock::try_lock`](crate::Lock::try_lock) answers them with `None`.
///
/// [`source()`](std::error::Error::source) keeps the cause; for errors of the server or the
/// connection it can be downcast to [`redis::RedisError`](crate::redis::RedisError).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The [`Locker`](crate::Locker) was closed, or its background thread has ended: make a new one.
    #[error("{}: the locker is closed", Subject(key))]
    #[non_exhaustive]
    Closed {
        /// The key of the lock, where the operation had one.
        key: Option<Arc<str>>,
    },

    /// An option, a key or a URL is not usable, or a blocking call was made on the background
    /// thread of a locker: correct the call. Nothing was sent to Redis.
    #[error("{}: {problem}", Subject(key))]
    #[non_exhaustive]
    Invalid {
        /// The key of the lock, where the operation had one.
        key: Option<Arc<str>>,
        /// What is wrong with which value.
        problem: String,
        /// The cause, where another library found the fault.
        #[source]
        source: Option<Cause>,
    },

    /// The lease was lost: stop, and do not commit.
    #[error(transparent)]
    Lost(#[from] Lost),

    /// The server refuses for good (authentication, rights, the type of the key), or its certificate
    /// is refused: a retry is of no use before somebody changes the server, the credentials or the
    /// URL.
    #[error("{}: redis at {server} refuses the request", Subject(key))]
    #[non_exhaustive]
    Refused {
        /// The key of the lock, where the operation had one.
        key: Option<Arc<str>>,
        /// The server's address, without credentials.
        server: Arc<str>,
        /// What the server said.
        #[source]
        source: Cause,
    },

    /// The server could not be reached, or did not answer in time: try again later.
    ///
    /// The request may have been carried out all the same; a key that it set is cleaned up in the
    /// background, or by its TTL.
    #[error("{}: redis at {server} is unavailable", Subject(key))]
    #[non_exhaustive]
    Unavailable {
        /// The key of the lock, where the operation had one.
        key: Option<Arc<str>>,
        /// The server's address, without credentials.
        server: Arc<str>,
        /// What happened last.
        #[source]
        source: Cause,
    },
}

impl Error {
    pub(crate) fn invalid(key: Option<&Arc<str>>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.cloned(),
            problem: problem.into(),
            source: None,
        }
    }

    pub(crate) fn closed(key: &Arc<str>) -> Self {
        Self::Closed {
            key: Some(Arc::clone(key)),
        }
    }

    /// Returns the key of the lock that the error is about, if it is about one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Closed { key }
            | Self::Invalid { key, .. }
            | Self::Refused { key, .. }
            | Self::Unavailable { key, .. } => key.as_deref(),
            Self::Lost(lost) => Some(lost.key()),
        }
    }
}

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

/// What stands behind an [`Error`](crate::Error) or a loss; clones share it.
///
/// It dereferences to the error itself, which can be downcast, to
/// [`redis::RedisError`](crate::redis::RedisError) for instance.
#[derive(Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Cause {
    pub(crate) fn new(cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(cause))
    }

    pub(crate) fn boxed(cause: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self(Arc::from(cause))
    }
}

// Not an `Error` itself: `source()` is to lead to the error inside, so that a downcast finds it.
impl Deref for Cause {
    type Target = dyn std::error::Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

// It is only ever read.
impl UnwindSafe for Cause {}
impl RefUnwindSafe for Cause {}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a backend reports instead of an answer. Whether the request was carried out is unknown.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// A retry cannot help.
    pub(crate) permanent: bool,
    /// The server's address, without credentials.
    pub(crate) server: Arc<str>,
    pub(crate) cause: Cause,
}

impl Fault {
    pub(crate) fn about(self, key: Option<&Arc<str>>) -> Error {
        let key = key.cloned();
        if self.permanent {
            Error::Refused {
                key,
                server: self.server,
                source: self.cause,
            }
        } else {
            Error::Unavailable {
                key,
                server: self.server,
                source: self.cause,
            }
        }
    }
}

/// The beginning of every message: the lock by its key, or the locker as such.
struct Subject<'a>(&'a Option<Arc<str>>);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "lock {key:?}"),
            None => f.write_str("locker"),
        }
    }
}
