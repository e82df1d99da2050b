//! What an acquired lock is to its holder.

use std::fmt;
use std::future::Future;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::driver::{HeldLock, Share};
use crate::error::{Error, Lost, LostReason};
use crate::released::Released;

/// A lock that is held. Dropping it releases the lock.
///
/// While the guard lives, a watchdog on a background thread renews its lease. If the lease is lost
/// all the same, the guard says so on time: [`is_lost`](Self::is_lost) by the clock alone,
/// [`lost`](Self::lost) through a token.
///
/// # Dropping
///
/// `drop` never blocks and never panics: it leaves the release to the background thread. It works
/// in a task, on a plain thread, after the runtime has ended, and while unwinding. Only when the
/// guard is the last thing left of its [`Locker`](crate::Locker) does its drop wait until the
/// release is confirmed, at most [`Builder::flush_timeout`](crate::Builder::flush_timeout). To wait
/// for the release yourself, and to hear what became of it, call [`release`](Self::release).
///
/// A guard that is leaked with [`std::mem::forget`] is renewed for as long as the process lives.
///
/// # What a guard is not
///
/// A lease is advice, not a wall: a process that was paused after it asked `is_lost` may act when
/// somebody else has the lock. Where that matters, check
/// [`fencing_token`](Self::fencing_token) where the data lives.
#[must_use = "if unused, the lock is released immediately"]
#[clippy::has_significant_drop]
pub struct LockGuard {
    lock: HeldLock,
    // Behind the lock, so that the last handle waits for its release.
    handle: Arc<Share>,
}

impl LockGuard {
    pub(crate) fn new(lock: HeldLock, handle: &Arc<Share>) -> Self {
        Self {
            lock,
            handle: Arc::clone(handle),
        }
    }

    pub(crate) fn lock(&self) -> &HeldLock {
        &self.lock
    }

    pub(crate) fn handle(&self) -> &Arc<Share> {
        &self.handle
    }

    /// Returns the key of the lock, with the prefix of the locker.
    #[must_use]
    pub fn key(&self) -> &str {
        self.lock.name()
    }

    /// Returns the value that this acquisition has in Redis: `<uuid>:<owner label>`.
    #[must_use]
    pub fn value(&self) -> &str {
        self.lock.value()
    }

    /// Returns whether the lease is over.
    ///
    /// Compares the clock with the lease's deadline: no I/O, no lock, and never late, whatever
    /// state Redis, the network or the runtime is in. Once `true`, it stays `true`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// let locker = redlease::Locker::in_memory();
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// assert!(!guard.is_lost());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lock.lease().is_lost()
    }

    /// Returns an error if the lease is over: [`is_lost`](Self::is_lost) for the `?` operator.
    ///
    /// # Errors
    ///
    /// [`Lost`], with the reason. It converts into [`Error`].
    pub fn ensure_held(&self) -> Result<(), Lost> {
        self.lock.lease().ensure_held()
    }

    /// Returns a token that fires when the lease is lost, and never because of a release.
    ///
    /// It fires at the deadline even if every thread of the caller's runtime is blocked, and at
    /// once when Redis says that the key is not ours. In another task it hears of the loss also if
    /// the guard is dropped as soon as it is lost.
    ///
    /// Each call returns a token of its own: to cancel it does nothing to the lock, and touches
    /// neither the guard nor the token of anybody else. Clones of one token are the same token.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// # let locker = redlease::Locker::in_memory();
    /// # async fn next_step() -> bool { false }
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// let lost = guard.lost();
    /// loop {
    ///     tokio::select! {
    ///         () = lost.cancelled() => break, // stop: somebody else may have the lock
    ///         more = next_step() => if !more { break },
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// Where a future is wanted that borrows nothing:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// # let locker = redlease::Locker::in_memory();
    /// # let guard = locker.mutex("invoice:42").lock().await?;
    /// # let watcher =
    /// tokio::spawn(guard.lost().cancelled_owned());
    /// # watcher.abort();
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lock.lease().token()
    }

    /// Returns why the lease was lost, or `None` while it is held.
    #[must_use]
    pub fn lost_reason(&self) -> Option<LostReason> {
        self.lock.lease().lost_reason()
    }

    /// Returns how long the lease lasts from now if it is not renewed; zero if it is lost.
    ///
    /// This is the time until the local deadline, which is earlier than the key's expiry in Redis
    /// by TTL/100 + 2 ms and the time that the request took.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.lock.lease().remaining()
    }

    /// Returns the fencing token: larger for every later acquisition of the same key.
    ///
    /// Send it along with each write, and have the store refuse a token smaller than the largest
    /// that it has seen. It fits an SQL `BIGINT`, and a double without rounding. The order holds
    /// in real time: if this acquisition ended before another began, its token is smaller. It
    /// survives the loss of the server's data up to the error of the clients' wall clocks.
    #[must_use]
    pub fn fencing_token(&self) -> u64 {
        self.lock.lease().fence()
    }

    /// Asks Redis now whether the lock is still ours, and extends the lease to its full TTL.
    ///
    /// The watchdog does this by itself every [`renew_every`](crate::Lock::renew_every); call it
    /// where certainty is worth a round trip, or with
    /// [`auto_renew(false)`](crate::Lock::auto_renew).
    ///
    /// # Cancel safety
    ///
    /// A cancelled call may or may not have extended the key; the guard counts on the shorter
    /// lease.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the lease is over; [`Error::Unavailable`] or [`Error::Refused`] if Redis
    /// gave no answer of use, in which case the lease runs on until its deadline.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn renew(&self) -> Result<(), Error> {
        self.lock.renew().await
    }

    /// Runs a future to its end, or drops it when the lease is lost.
    ///
    /// The output of a future that ends at the same moment is returned.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call drops the future.
    ///
    /// # Errors
    ///
    /// [`Lost`] if the lease was lost first, or before the call.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// # let locker = redlease::Locker::in_memory();
    /// # async fn settle() -> u32 { 42 }
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// let settled = guard.run_until_lost(settle()).await?;
    /// assert_eq!(settled, 42);
    /// # Ok(()) }
    /// ```
    pub async fn run_until_lost<F: Future>(&self, future: F) -> Result<F::Output, Lost> {
        self.ensure_held()?;
        let lost = self.lock.lease().token();
        tokio::select! {
            biased;
            output = future => Ok(output),
            () = lost.cancelled() => {
                self.ensure_held()?;
                unreachable!("L4: the token fires on loss only")
            }
        }
    }

    /// Releases the lock, and says what became of it.
    ///
    /// # Cancel safety
    ///
    /// A cancelled call leaves the release to the background thread.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] or [`Error::Refused`] if Redis gave no answer of use: it is unknown
    /// whether the key is free. The background thread goes on trying; at the latest the TTL frees
    /// it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// use redlease::Released;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// # let locker = redlease::Locker::in_memory();
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// assert_eq!(guard.release().await?, Released::Freed);
    /// # Ok(()) }
    /// ```
    pub async fn release(self) -> Result<Released, Error> {
        let Self { lock, handle } = self;
        let released = lock.release().await;
        drop(handle);
        released
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("key", &self.key())
            .field("fencing_token", &self.fencing_token())
            .field("remaining", &self.remaining())
            .field("lost", &self.lost_reason())
            .finish_non_exhaustive()
    }
}

// As for `Locker`.
impl UnwindSafe for LockGuard {}
impl RefUnwindSafe for LockGuard {}
