//! The guard of the blocking API.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Lost, LostReason};
use crate::guard;
use crate::released::Released;

/// A lock that is held. Dropping it releases the lock; see [`LockGuard`](crate::LockGuard).
#[must_use = "if unused, the lock is released immediately"]
#[clippy::has_significant_drop]
pub struct LockGuard(pub(super) guard::LockGuard);

impl LockGuard {
    /// Returns the key of the lock, with the prefix of the locker.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.key()
    }

    /// Returns the value that this acquisition has in Redis: `<uuid>:<owner label>`.
    #[must_use]
    pub fn value(&self) -> &str {
        self.0.value()
    }

    /// Returns whether the lease is over, by the clock alone; see
    /// [`LockGuard::is_lost`](crate::LockGuard::is_lost).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// Returns an error if the lease is over.
    ///
    /// # Errors
    ///
    /// [`Lost`], with the reason.
    pub fn ensure_held(&self) -> Result<(), Lost> {
        self.0.ensure_held()
    }

    /// Returns a token of the caller's own that fires when the lease is lost; see
    /// [`LockGuard::lost`](crate::LockGuard::lost).
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.0.lost()
    }

    /// Returns why the lease was lost, or `None` while it is held.
    #[must_use]
    pub fn lost_reason(&self) -> Option<LostReason> {
        self.0.lost_reason()
    }

    /// Returns how long the lease lasts from now if it is not renewed; zero if it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.remaining()
    }

    /// Returns the fencing token; see
    /// [`LockGuard::fencing_token`](crate::LockGuard::fencing_token).
    #[must_use]
    pub fn fencing_token(&self) -> u64 {
        self.0.fencing_token()
    }

    /// Asks Redis now whether the lock is still ours, and extends the lease to its full TTL.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::renew`](crate::LockGuard::renew).
    pub fn renew(&self) -> Result<(), Error> {
        let lock = self.0.lock();
        self.0.handle().block_on(Some(lock.name()), lock.renew())
    }

    /// Releases the lock, and says what became of it.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::release`](crate::LockGuard::release).
    pub fn release(self) -> Result<Released, Error> {
        let key = Arc::clone(self.0.lock().name());
        // Outlives the guard, so that the last handle is not dropped on the background thread.
        let handle = Arc::clone(self.0.handle());
        let release = async move { self.0.release().await };
        handle.block_on(Some(&key), release)
    }
}
