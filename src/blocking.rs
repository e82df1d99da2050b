//! The same locks without `async`: no runtime is needed.
//!
//! The names are those of the asynchronous API, without `.await`. The calls block the present
//! thread while the locker's background thread does the work, so they do not belong into
//! asynchronous code: there they would block the runtime. On the background thread itself, where a
//! [`Waker`](std::task::Waker) of the caller's own may run, they fail with [`Error::Invalid`]; a
//! guard that was to be released is released in the background then.
//! [`run_until_lost`](crate::LockGuard::run_until_lost) of the asynchronous API has no
//! counterpart, because a closure cannot be interrupted: ask [`LockGuard::is_lost`] in between.
//!
//! Each type converts from and into its counterpart at no cost, so that one locker serves both
//! APIs.
//!
//! # Examples
//!
//! ```
//! use redlease::blocking::Locker;
//!
//! # fn main() -> Result<(), redlease::Error> {
//! # let locker = Locker::in_memory();
//! # /*
//! let locker = Locker::connect("redis://127.0.0.1/")?;
//! # */
//! let lock = locker.mutex("nightly");
//! let _g = lock.lock()?; // released at the end of the scope
//!
//! // The same locks, for asynchronous code.
//! let tasks = redlease::Locker::from(locker.clone());
//! # drop(tasks);
//! # Ok(()) }
//! ```

mod cluster;
mod guard;
mod sentinel;

use std::fmt;
use std::time::Duration;

pub use self::guard::LockGuard;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::holder::Holder;
use crate::{builder, lock, locker};

/// A type and its counterpart in the other API.
macro_rules! counterparts {
    ($($here:ident = $there:path;)*) => {$(
        impl From<$there> for $here {
            fn from(there: $there) -> Self {
                Self(there)
            }
        }

        impl From<$here> for $there {
            fn from(here: $here) -> Self {
                here.0
            }
        }

        impl fmt::Debug for $here {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

counterparts! {
    Builder = builder::Builder;
    Lock = lock::Lock;
    LockGuard = crate::LockGuard;
    Locker = locker::Locker;
}

/// Makes locks; see [`Locker`](crate::Locker).
#[derive(Clone)]
pub struct Locker(locker::Locker);

impl Locker {
    /// Connects to one Redis server; see [`Locker::connect`](crate::Locker::connect).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn connect(url: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder().connect(url)
    }

    /// Connects to a quorum of independent Redis servers; see
    /// [`Locker::quorum`](crate::Locker::quorum).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn quorum(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, Error> {
        Self::builder().quorum(urls)
    }

    /// Returns a builder, for what [`connect`](Self::connect) leaves at its default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Makes a locker without Redis; see [`Locker::in_memory`](crate::Locker::in_memory).
    ///
    /// # Panics
    ///
    /// If the system refuses a thread.
    pub fn in_memory() -> Self {
        Self(locker::Locker::in_memory())
    }

    /// Returns a handle on the mutex of a key; see [`Locker::mutex`](crate::Locker::mutex).
    pub fn mutex(&self, key: impl Into<String>) -> Lock {
        Lock(self.0.mutex(key))
    }

    /// Fails all waiters, releases every guard, and waits for the releases, at most `timeout`; see
    /// [`Locker::close`](crate::Locker::close).
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if releases were not confirmed in time.
    pub fn close(&self, timeout: Duration) -> Result<(), Error> {
        self.0.close_blocking(timeout)
    }
}

/// Builds a [`Locker`]; the settings and their defaults are those of
/// [`Builder`](crate::Builder).
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until it connects"]
pub struct Builder(builder::Builder);

impl Builder {
    /// Sets the owner label; see [`Builder::owner`](crate::Builder::owner).
    pub fn owner(self, label: impl Into<String>) -> Self {
        Self(self.0.owner(label))
    }

    /// Sets a text that is put before every key; see [`Builder::prefix`](crate::Builder::prefix).
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self(self.0.prefix(prefix))
    }

    /// Sets how long one command to Redis may take; see
    /// [`Builder::command_timeout`](crate::Builder::command_timeout).
    pub fn command_timeout(self, timeout: Duration) -> Self {
        Self(self.0.command_timeout(timeout))
    }

    /// Sets how long the drop of the last handle may wait; see
    /// [`Builder::flush_timeout`](crate::Builder::flush_timeout).
    pub fn flush_timeout(self, timeout: Duration) -> Self {
        Self(self.0.flush_timeout(timeout))
    }

    /// Sets the authorities that servers are trusted by; see
    /// [`Builder::root_certificates`](crate::Builder::root_certificates).
    #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))))]
    pub fn root_certificates(self, pem: impl Into<Vec<u8>>) -> Self {
        Self(self.0.root_certificates(pem))
    }

    /// Sets the certificate that the server knows us by, and its key; see
    /// [`Builder::client_certificate`](crate::Builder::client_certificate).
    #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))))]
    pub fn client_certificate(
        self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        Self(self.0.client_certificate(certificate_pem, key_pem))
    }

    /// Sets who is asked for the credentials of a connection, each time that one is opened; see
    /// [`Builder::credentials`](crate::Builder::credentials). The provider may block.
    pub fn credentials<F, R, E>(self, provider: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self(self.0.credentials(provider))
    }

    /// Sets the TTL of each lock that does not set its own; see
    /// [`Builder::ttl`](crate::Builder::ttl).
    pub fn ttl(self, ttl: Duration) -> Self {
        Self(self.0.ttl(ttl))
    }

    /// Sets how often the watchdog renews; see
    /// [`Builder::renew_every`](crate::Builder::renew_every).
    pub fn renew_every(self, interval: Duration) -> Self {
        Self(self.0.renew_every(interval))
    }

    /// Sets after how long a guard is lost; see [`Builder::max_hold`](crate::Builder::max_hold).
    pub fn max_hold(self, limit: Duration) -> Self {
        Self(self.0.max_hold(limit))
    }

    /// Sets whether the watchdog renews; see [`Builder::auto_renew`](crate::Builder::auto_renew).
    pub fn auto_renew(self, renew: bool) -> Self {
        Self(self.0.auto_renew(renew))
    }

    /// Sets for how long a process passes a lock on among its own waiters; see
    /// [`Builder::handover_for`](crate::Builder::handover_for).
    pub fn handover_for(self, stretch: Duration) -> Self {
        Self(self.0.handover_for(stretch))
    }

    /// Sets how long an unreachable Redis is put up with; see
    /// [`Builder::outage_limit`](crate::Builder::outage_limit).
    pub fn outage_limit(self, limit: Duration) -> Self {
        Self(self.0.outage_limit(limit))
    }

    /// Connects to one Redis server by its URL.
    ///
    /// # Errors
    ///
    /// As for [`Builder::connect`](crate::Builder::connect).
    pub fn connect(self, url: impl AsRef<str>) -> Result<Locker, Error> {
        self.connect_lazily(url)?.0.connected_blocking().map(Locker)
    }

    /// Connects to the server of a `redis::Client`.
    ///
    /// # Errors
    ///
    /// As for [`Builder::connect_client`](crate::Builder::connect_client).
    pub fn connect_client(self, client: redis::Client) -> Result<Locker, Error> {
        self.connect_client_lazily(client)?
            .0
            .connected_blocking()
            .map(Locker)
    }

    /// Connects to a quorum of independent servers by their URLs.
    ///
    /// # Errors
    ///
    /// As for [`Builder::quorum`](crate::Builder::quorum).
    pub fn quorum(self, urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Locker, Error> {
        self.quorum_lazily(urls)?.0.connected_blocking().map(Locker)
    }

    /// Makes a locker for one Redis server that need not be there yet.
    ///
    /// # Errors
    ///
    /// As for [`Builder::connect_lazily`](crate::Builder::connect_lazily).
    pub fn connect_lazily(self, url: impl AsRef<str>) -> Result<Locker, Error> {
        self.0.connect_lazily(url).map(Locker)
    }

    /// Makes a locker for the server of a `redis::Client`, which need not be there yet.
    ///
    /// # Errors
    ///
    /// As for [`Builder::connect_client_lazily`](crate::Builder::connect_client_lazily).
    pub fn connect_client_lazily(self, client: redis::Client) -> Result<Locker, Error> {
        self.0.connect_client_lazily(client).map(Locker)
    }

    /// Makes a locker for a quorum of independent servers that need not be there yet.
    ///
    /// # Errors
    ///
    /// As for [`Builder::quorum_lazily`](crate::Builder::quorum_lazily).
    pub fn quorum_lazily(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        self.0.quorum_lazily(urls).map(Locker)
    }

    /// Makes a locker without Redis.
    ///
    /// # Errors
    ///
    /// As for [`Builder::in_memory`](crate::Builder::in_memory).
    pub fn in_memory(self) -> Result<Locker, Error> {
        self.0.in_memory().map(Locker)
    }
}

/// A handle on the lock of one key; see [`Lock`](crate::Lock) for the options and their defaults.
#[derive(Clone)]
#[must_use = "a lock does nothing until it is acquired"]
pub struct Lock(lock::Lock);

impl Lock {
    /// Sets the time to live of the key in Redis; see [`Lock::ttl`](crate::Lock::ttl).
    pub fn ttl(self, ttl: Duration) -> Self {
        Self(self.0.ttl(ttl))
    }

    /// Sets how often the watchdog renews; see [`Lock::renew_every`](crate::Lock::renew_every).
    pub fn renew_every(self, interval: Duration) -> Self {
        Self(self.0.renew_every(interval))
    }

    /// Sets after how long a guard is lost; see [`Lock::max_hold`](crate::Lock::max_hold).
    pub fn max_hold(self, limit: Duration) -> Self {
        Self(self.0.max_hold(limit))
    }

    /// Sets whether the watchdog renews; see [`Lock::auto_renew`](crate::Lock::auto_renew).
    pub fn auto_renew(self, renew: bool) -> Self {
        Self(self.0.auto_renew(renew))
    }

    /// Sets for how long a process passes the lock on among its own waiters; see
    /// [`Lock::handover_for`](crate::Lock::handover_for).
    pub fn handover_for(self, stretch: Duration) -> Self {
        Self(self.0.handover_for(stretch))
    }

    /// Sets how long an unreachable Redis is put up with; see
    /// [`Lock::outage_limit`](crate::Lock::outage_limit).
    pub fn outage_limit(self, limit: Duration) -> Self {
        Self(self.0.outage_limit(limit))
    }

    /// Returns the key, with the prefix of the locker.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.key()
    }

    /// Acquires the lock, and waits for as long as others have it.
    ///
    /// # Errors
    ///
    /// As for [`Lock::lock`](crate::Lock::lock).
    pub fn lock(&self) -> Result<LockGuard, Error> {
        let guard = self.block_on(async |lock| lock.lock().await)?;
        Ok(guard.into())
    }

    /// Tries once to acquire the lock; `None` if somebody else has it.
    ///
    /// # Errors
    ///
    /// As for [`Lock::try_lock`](crate::Lock::try_lock).
    pub fn try_lock(&self) -> Result<Option<LockGuard>, Error> {
        let guard = self.block_on(async |lock| lock.try_lock().await)?;
        Ok(guard.map(LockGuard::from))
    }

    /// Acquires the lock if it becomes free within `limit`; `None` otherwise.
    ///
    /// # Errors
    ///
    /// As for [`Lock::try_lock_for`](crate::Lock::try_lock_for).
    pub fn try_lock_for(&self, limit: Duration) -> Result<Option<LockGuard>, Error> {
        let guard = self.block_on(async move |lock| lock.try_lock_for(limit).await)?;
        Ok(guard.map(LockGuard::from))
    }

    /// Acquires the lock, runs a routine with it, and releases the lock.
    ///
    /// The routine is not interrupted if the lease is lost: it asks [`LockGuard::is_lost`] where
    /// that matters. A release that fails does not cost the result.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), redlease::Error> {
    /// let locker = redlease::blocking::Locker::in_memory();
    /// let token = locker.mutex("nightly").run(|guard| guard.fencing_token())?;
    /// assert!(token > 0);
    /// # Ok(()) }
    /// ```
    pub fn run<T>(&self, routine: impl FnOnce(&LockGuard) -> T) -> Result<T, Error> {
        let guard = self.lock()?;
        let output = routine(&guard);
        self.0.note_release(guard.release());
        Ok(output)
    }

    /// Tells who has the lock; `None` if nobody has.
    ///
    /// # Errors
    ///
    /// As for [`Lock::holder`](crate::Lock::holder).
    pub fn holder(&self) -> Result<Option<Holder>, Error> {
        self.block_on(async |lock| lock.holder().await)
    }

    /// Takes the lock from whoever has it, and says whether anybody had. For operators.
    ///
    /// # Errors
    ///
    /// As for [`Lock::force_release`](crate::Lock::force_release).
    pub fn force_release(&self) -> Result<bool, Error> {
        self.block_on(async |lock| lock.force_release().await)
    }

    fn block_on<T, F, R>(&self, call: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(lock::Lock) -> R,
        R: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let key = Some(self.0.name());
        self.0.share().block_on(key, call(self.0.clone()))
    }
}
