//! A request that came to no answer of use.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

/// What stands behind an [`Error`](crate::Error) or a loss; clones share it.
///
/// It dereferences to the error itself, which can be downcast, to `redis::RedisError` for
/// instance.
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    pub(crate) fn new(cause: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(cause))
    }
}

// Not an `Error` itself: `source()` is to lead to the error inside, so that a downcast finds it.
impl Deref for Cause {
    type Target = dyn Error + Send + Sync;

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
