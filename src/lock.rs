//! A lock: a key and how to hold it.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::acquire::{Wait, acquire};
use crate::backend::Signals;
use crate::driver::{HeldLock, Share};
use crate::error::{Error, Fault};
use crate::events::emit;
use crate::guard::LockGuard;
use crate::holder::Holder;
use crate::key::Key;
use crate::options::{CheckedOptions, Options, wait_of};
use crate::released::Released;

/// A handle on the lock of one key. Making one does no I/O; clones are cheap.
///
/// Locks are **not re-entrant**: a task that acquires a key that it holds waits for itself.
///
/// # Options
///
/// Each option is a method that takes and returns the handle. They are checked when the lock is
/// acquired. [`Builder`](crate::Builder) has methods of the same names, for other defaults.
///
/// | option | default | meaning |
/// |---|---|---|
/// | [`ttl`](Self::ttl) | 10 s | how long the key outlives a holder that crashed |
/// | [`renew_every`](Self::renew_every) | ttl/3 | how often the watchdog renews |
/// | [`max_hold`](Self::max_hold) | none | after how long a guard is lost although Redis is well |
/// | [`auto_renew`](Self::auto_renew) | `true` | whether the watchdog renews at all |
/// | [`handover_for`](Self::handover_for) | 10 ms | how long a process passes a lock on to its own waiters before it asks Redis who else waits |
/// | [`outage_limit`](Self::outage_limit) | 10 s | how long an unreachable Redis is put up with |
///
/// # Waiting
///
/// First come, first served, without polling. Within one process, waiters get the lock in the
/// order in which they came, and a released lease changes hands without a round trip (see
/// [`handover_for`](Self::handover_for)). Between processes on one server there is a queue in
/// Redis; a release grants the lock straight to the next who is alive. Waiters of other programs
/// that do not know the queue take the lock whenever they find it free.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
/// let locker = redlease::Locker::in_memory();
/// let lock = locker.mutex("invoice:42").ttl(Duration::from_secs(5));
/// match lock.try_lock().await? {
///     Some(guard) => println!("it is ours, with token {}", guard.fencing_token()),
///     None => println!("somebody else has it: {:?}", lock.holder().await?),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a lock does nothing until it is acquired"]
pub struct Lock {
    handle: Arc<Share>,
    key: Arc<Key>,
    options: Options,
}

impl Lock {
    pub(crate) fn new(handle: &Arc<Share>, key: String) -> Self {
        Self {
            key: Arc::new(Key::new(&handle.settings.prefix, key)),
            handle: Arc::clone(handle),
            options: handle.settings.options,
        }
    }

    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.handle
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        self.key.name()
    }

    /// Sets the time to live of the key in Redis: how long the lock stays taken after its holder
    /// crashed.
    ///
    /// A guard may be held for much longer: the watchdog renews it. A short TTL frees a crashed
    /// holder's lock sooner, a long one puts up with a longer outage of Redis. In whole
    /// milliseconds, from 10 ms to 100 years. Defaults to 10 seconds.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.options.ttl = ttl;
        self
    }

    /// Sets how often the watchdog renews the lease, counted from request to request.
    ///
    /// At least 1 ms, and shorter than the lease lasts at this end (the TTL less TTL/100 + 2 ms).
    /// Defaults to a third of the TTL, so that two renewals may fail before the lease is in
    /// danger.
    pub fn renew_every(mut self, interval: Duration) -> Self {
        self.options.renew_every = Some(interval);
        self
    }

    /// Sets after how long a guard is lost although Redis is well: a bound for jobs that hang.
    ///
    /// At that time the lost token fires with
    /// [`LostReason::MaxHold`](crate::LostReason::MaxHold) and renewal stops; the key stays until
    /// its TTL or the guard's drop, so that the holder has time to stop. Counts for each guard.
    /// Unlimited by default.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.options.max_hold = Some(limit);
        self
    }

    /// Sets whether the watchdog renews the lease.
    ///
    /// Without it the guard is lost at the end of its TTL, unless the holder calls
    /// [`LockGuard::renew`]. Defaults to `true`.
    pub fn auto_renew(mut self, renew: bool) -> Self {
        self.options.auto_renew = renew;
        self
    }

    /// Sets for how long at a stretch a process passes the lock on among its own waiters before
    /// it asks Redis whether anybody else waits.
    ///
    /// If nobody else waits, the lock is kept for the next stretch; if somebody does, it goes to
    /// that waiter. A lease goes over only to a waiter with the same TTL and the same
    /// `renew_every`, each holder with a token, a `max_hold` and a fencing number of its own. Zero
    /// switches the local hand-over off; so does [`auto_renew(false)`](Self::auto_renew). Defaults
    /// to 10 milliseconds.
    ///
    /// Over a quorum, a stretch ends after a hundred holders at the latest, and the lock is
    /// released then.
    pub fn handover_for(mut self, stretch: Duration) -> Self {
        self.options.handover_for = stretch;
        self
    }

    /// Sets how long an acquire puts up with a Redis that cannot be reached or does not answer,
    /// before it fails with [`Error::Unavailable`].
    ///
    /// It counts from the last answer, also for those who wait behind another of this process: each
    /// hears of the outage when its own time is over. Defaults to 10 seconds.
    pub fn outage_limit(mut self, limit: Duration) -> Self {
        self.options.outage_limit = limit;
        self
    }

    /// Returns the key, with the prefix of the locker.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key.name()
    }

    /// Acquires the lock, and waits for as long as others have it.
    ///
    /// # Cancel safety
    ///
    /// A cancelled call loses its place in the queue, and leaves no key behind: a request that was
    /// under way is undone in the background.
    ///
    /// One that is neither polled nor dropped holds others up for 1.5 s at most, or one TTL if
    /// Redis had granted it the lock. If its turn has come, or the lock was handed to it, that goes on to
    /// the next after 1 to 1.5 seconds; it queues anew when it is polled again. What Redis had
    /// granted to it goes when the TTL ends, as after a crash.
    ///
    /// # Errors
    ///
    /// Never for contention. [`Error::Invalid`] for an option or key that is not usable,
    /// [`Error::Unavailable`] when Redis gave no answer for
    /// [`outage_limit`](Self::outage_limit), [`Error::Refused`] when it refuses for good,
    /// [`Error::Closed`] when the locker is closed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// let locker = redlease::Locker::in_memory();
    /// let guard = locker.mutex("nightly").lock().await?;
    /// // … as long as it takes; the lease is renewed meanwhile …
    /// drop(guard);
    /// # Ok(()) }
    /// ```
    pub async fn lock(&self) -> Result<LockGuard, Error> {
        let options = self.checked_options()?;
        let hold = acquire(&self.handle, &self.key, &options, Wait::Unbounded).await?;
        match hold {
            Some(hold) => Ok(self.guard(hold)),
            None => unreachable!("an unbounded wait does not end"),
        }
    }

    /// Tries once to acquire the lock; `None` if somebody else has it.
    ///
    /// Answers without I/O if this process holds the key, waits for it, or is about to release it
    /// in the background. A Redis that does not answer is asked again for
    /// [`outage_limit`](Self::outage_limit).
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn try_lock(&self) -> Result<Option<LockGuard>, Error> {
        let options = self.checked_options()?;
        let hold = acquire(&self.handle, &self.key, &options, Wait::None).await?;
        Ok(hold.map(|hold| self.guard(hold)))
    }

    /// Acquires the lock if it becomes free within `limit`; `None` otherwise.
    ///
    /// Tries a last time when `limit` is over. Any limit works: [`Duration::MAX`] waits for ever.
    /// Where no connection is open yet and opening one takes longer than 250 ms, callers with
    /// limits shorter than that can keep each other from it.
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock). A Redis that does not answer within `limit` is
    /// [`Error::Unavailable`], never `None`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn try_lock_for(&self, limit: Duration) -> Result<Option<LockGuard>, Error> {
        let options = self.checked_options()?;
        let wait = Wait::Until(Instant::now() + wait_of(limit));
        let hold = acquire(&self.handle, &self.key, &options, wait).await?;
        Ok(hold.map(|hold| self.guard(hold)))
    }

    /// Acquires the lock, runs a routine with it until that ends or the lease is lost, and
    /// releases the lock.
    ///
    /// The release is awaited. If it fails, the routine's result is returned all the same, and the
    /// failure goes to `tracing`: the TTL frees the key.
    ///
    /// # Cancel safety
    ///
    /// A cancelled call drops the routine, and releases the lock in the background.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock), and [`Error::Lost`] if the lease was lost before the routine
    /// had ended.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// # let locker = redlease::Locker::in_memory();
    /// # async fn settle(token: u64) -> bool { token > 0 }
    /// let lock = locker.mutex("invoice:42");
    /// let settled = lock.run(async |guard| settle(guard.fencing_token()).await).await?;
    /// assert!(settled);
    /// # Ok(()) }
    /// ```
    pub async fn run<T>(&self, routine: impl AsyncFnOnce(&LockGuard) -> T) -> Result<T, Error> {
        let guard = self.lock().await?;
        let output = guard.run_until_lost(routine(&guard)).await;
        self.note_release(guard.release().await);
        Ok(output?)
    }

    /// Tells who has the lock, whoever took it, in whatever language; `None` if nobody has.
    ///
    /// Over a quorum, who has a majority of the servers; [`Error::Unavailable`] if that depends on
    /// servers that do not answer.
    ///
    /// # Cancel safety
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the key holds something that is not a string, as the locks of
    /// Redisson do; otherwise as for [`lock`](Self::lock).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn holder(&self) -> Result<Option<Holder>, Error> {
        self.checked_options()?;
        let within = self.handle.settings.command_timeout;
        let holder = self.handle.backend.holder(&self.key, within).await;
        holder.map_err(|fault| self.about(fault))
    }

    /// Takes the lock from whoever has it, and says whether anybody had. For operators.
    ///
    /// The holder hears of it as [`LostReason::Removed`](crate::LostReason::Removed); until then
    /// it may go on working, so the next holder's fencing token is what keeps them apart.
    ///
    /// # Cancel safety
    ///
    /// A cancelled call may or may not have taken the lock.
    ///
    /// # Errors
    ///
    /// As for [`holder`](Self::holder), except that a key of any type is removed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn force_release(&self) -> Result<bool, Error> {
        self.checked_options()?;
        let within = self.handle.settings.command_timeout;
        let freed = self.handle.backend.force_release(&self.key, within).await;
        let freed = freed.map_err(|fault| self.about(fault))?;
        // The server does not push what we did ourselves, and the holder may be one of ours.
        self.handle.keys.changed(self.key());
        Ok(freed)
    }

    pub(crate) fn note_release(&self, release: Result<Released, Error>) {
        if let Err(error) = release {
            let key = Arc::clone(&self.key);
            emit(move || {
                tracing::warn!(
                    lock = %key.name(),
                    cause = %error,
                    "a release was not confirmed; the ttl frees the key"
                );
            });
        }
    }

    fn guard(&self, lock: HeldLock) -> LockGuard {
        LockGuard::new(lock, &self.handle)
    }

    fn checked_options(&self) -> Result<CheckedOptions, Error> {
        self.key.check()?;
        let options = self.options.check(Some(self.key.name()))?;
        if self.handle.keys.is_closed() {
            return Err(Error::closed(self.key.name()));
        }
        Ok(options)
    }

    fn about(&self, fault: Fault) -> Error {
        fault.about(Some(self.key.name()))
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let mut lock = f.debug_struct("Lock");
        lock.field("key", &self.key()).field("ttl", &options.ttl);
        match options.renew_every {
            _ if !options.auto_renew => lock.field("auto_renew", &false),
            Some(interval) => lock.field("renew_every", &interval),
            None => lock.field("renew_every", &(options.ttl / 3)),
        };
        if let Some(limit) = options.max_hold {
            lock.field("max_hold", &limit);
        }
        lock.field("handover_for", &options.handover_for)
            .field("outage_limit", &options.outage_limit)
            .finish()
    }
}

// As for `Locker`.
impl UnwindSafe for Lock {}
impl RefUnwindSafe for Lock {}
