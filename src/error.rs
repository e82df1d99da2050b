//! What can go wrong, sorted by what the caller can do about it.

use std::fmt;
use std::sync::Arc;

use crate::fault::{Cause, Fault};
use crate::lost::Lost;

/// Why a lock operation failed.
///
/// Each variant is a different thing that the caller can do. Contention and the end of a wait are
/// not errors: [`Lock::try_lock`](crate::Lock::try_lock) answers them with `None`.
///
/// [`source()`](std::error::Error::source) keeps the cause; for errors of the server or the
/// connection it can be downcast to `redis::RedisError`.
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

    /// The server refuses for good (authentication, rights, the type of the key): a retry is of no
    /// use before somebody changes the server or the credentials.
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
