//! Where locks come from: one locker a process and Redis.

mod cluster;
mod sentinel;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use redis::Client;

use crate::builder::Builder;
use crate::driver::{Share, check_may_block};
use crate::error::{Cause, Error};
use crate::lock::Lock;
use crate::options::wait_of;

/// Makes locks. One is enough for a process; clones are cheap and share everything.
///
/// A locker has a background thread, `redlease`, which renews leases, watches their deadlines and
/// releases dropped guards, and a connection to Redis for it; another connection for each tokio
/// runtime that acquires locks. What the thread has to send goes over one of the others while its
/// own cannot be opened or does not answer.
///
/// # The end of a locker
///
/// When its last handle (locker, [`Lock`] or guard) is dropped, the releases that are still under
/// way are waited for, at most [`Builder::flush_timeout`]. So a guard that is dropped as the last
/// statement of `main` leaves no key behind. A locker in a `static` is never dropped: call
/// [`close`](Self::close) before `main` returns.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), redlease::Error> {
/// let locker = redlease::Locker::connect("redis://127.0.0.1/").await?;
/// let guard = locker.mutex("invoice:42").lock().await?;
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Locker {
    handle: Arc<Share>,
}

impl Locker {
    /// Connects to one Redis server, with the defaults of [`Builder`].
    ///
    /// The URL is one that the `redis` crate takes: `redis://user:password@host:port/db`,
    /// `rediss://…` for [TLS](crate#tls), or `unix:///path/to/socket`. RESP3 is tried first, unless
    /// the URL ends with `?protocol=resp2`.
    ///
    /// The call waits for two connections: that of the present runtime, and that of the background
    /// thread, without which no lock could be renewed. [`Builder::connect_lazily`] waits for none.
    ///
    /// A connection is opened anew when it breaks or falls silent, and when its server has become a
    /// replica, so a name that moves to a new master is followed. It is kept while a master
    /// refuses writes for want of replicas (`min-replicas-to-write`). A proxy that hangs up at
    /// `PING` cannot be used. [`Builder::credentials`] is for passwords and tokens that change.
    ///
    /// A server that may evict locks, or is a replica that takes writes, is warned of in `tracing`,
    /// if the user has the right to `INFO` and the server speaks RESP3.
    ///
    /// # Cancel safety
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a URL that is not one, or that asks for TLS without the cargo feature
    /// `tls`, [`Error::Unavailable`] if the server cannot be reached or does not take both
    /// connections, [`Error::Refused`] if it is not a Redis server, refuses the credentials, does not let the user run a command that locks need, or is one of
    /// several masters of a Redis Cluster, and if a certificate is refused or the URL is wrong about
    /// TLS.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder().connect(url).await
    }

    /// Connects to a quorum of independent Redis servers (Redlock), with the defaults of
    /// [`Builder`]: a lock is held while a majority of them has its key.
    ///
    /// The servers must not replicate each other. Take an odd number, three or five: an even
    /// number puts up with no more failures than one server less, and is warned of in `tracing`.
    /// A server under two names counts once, and is warned of at the first acquire.
    ///
    /// # What it buys
    ///
    /// With any minority of the servers crashed, frozen or cut off, locks are acquired, renewed
    /// and released as if nothing had happened, and still exclude each other. A server that comes
    /// back empty is given the keys of the locks that are held. Fencing tokens are agreed on by a
    /// majority, so they grow whichever servers answer.
    ///
    /// # What it does not
    ///
    /// * A server that comes back without its data has forgotten its grants. Until the next
    ///   renewal has repaired it, it counts as failed, and a second one that forgets in that time,
    ///   or that missed the grant, can let two holders in. So a server without persistence
    ///   (`appendonly yes`, `appendfsync always`) should be kept down for the longest TTL before it
    ///   is started again.
    /// * A replica that takes the place of one of the servers is such a loss, too: a failover
    ///   forgets what was not yet replicated. Give the quorum plain servers.
    /// * Waiters are served in the order of their arrival at *one* server: the first by name of
    ///   those that answer. The order is lost where that server fails, and where processes name the
    ///   servers differently, which costs up to some seconds as well: give all processes the same
    ///   URLs. `try_lock`, and the first
    ///   attempt at a key that was free a moment ago, do not queue: two of them can take a part each,
    ///   and be turned away both. Where one lost the race and one of the servers that had granted it
    ///   fell silent, `try_lock` answers after [`Builder::command_timeout`].
    /// * Each step costs a request to every server, and lasts as long as the fastest majority
    ///   takes.
    ///
    /// One server is the better choice where its failure may stop the work, or where the lock only
    /// saves work rather than protects it.
    ///
    /// # Cancel safety
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a URL that is not one, fewer than three servers, or the same server
    /// twice; [`Error::Unavailable`] if no majority can be reached with both connections (see
    /// [`connect`](Self::connect)), [`Error::Refused`] if so many refuse for good that there can
    /// be none.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), redlease::Error> {
    /// let locker = redlease::Locker::quorum([
    ///     "redis://redis-a/",
    ///     "redis://redis-b/",
    ///     "redis://redis-c/",
    /// ])
    /// .await?;
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub async fn quorum(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, Error> {
        Self::builder().quorum(urls).await
    }

    /// Returns a builder, for what [`connect`](Self::connect) leaves at its default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Makes a locker that keeps its locks in this process' memory: the same semantics without a
    /// Redis, for unit tests and examples.
    ///
    /// Locks exclude each other within this locker and its clones only.
    ///
    /// # Panics
    ///
    /// If the system refuses a thread.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlease::Error> {
    /// let locker = redlease::Locker::in_memory();
    /// let _guard = locker.mutex("a").lock().await?;
    /// assert!(locker.mutex("a").try_lock().await?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn in_memory() -> Self {
        match Self::builder().in_memory() {
            Ok(locker) => locker,
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns a handle on the mutex of a key, a lock with one holder at a time. No I/O.
    ///
    /// The key is used in Redis verbatim, behind [`Builder::prefix`]. It must not be empty, which
    /// is found out when the lock is acquired.
    pub fn mutex(&self, key: impl Into<String>) -> Lock {
        Lock::new(&self.handle, key.into())
    }

    /// Fails all waiters, releases every guard, and waits for the releases, at most `timeout`.
    ///
    /// Guards that still exist are lost with [`LostReason::Closed`](crate::LostReason::Closed);
    /// locks can no longer be acquired. Closing twice is harmless. Any `timeout` works:
    /// [`Duration::MAX`] waits until the last release is confirmed or its TTL is over.
    ///
    /// # Cancel safety
    ///
    /// The locker is closed as soon as the call is polled; cancelling it ends only the wait.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if releases were not confirmed in time. They are tried further until
    /// their TTL.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    pub async fn close(&self, timeout: Duration) -> Result<(), Error> {
        self.handle.close();
        let pending = &self.handle.pending;
        let done = tokio::time::timeout(wait_of(timeout), pending.wait_async()).await;
        done.map_err(|_| self.not_flushed())
    }

    async fn connected(self) -> Result<Self, Error> {
        let within = self.handle.settings.command_timeout;
        let connected = self.handle.connect(within).await;
        connected.map_err(|fault| fault.about(None))?;
        Ok(self)
    }

    pub(crate) fn connected_blocking(self) -> Result<Self, Error> {
        let driver = Arc::clone(&**self.handle);
        // The thread's connection is the only one that is needed.
        self.handle.block_on(None, async move {
            let within = driver.settings.command_timeout;
            let connected = driver.connect(within).await;
            connected.map_err(|fault| fault.about(None))
        })?;
        Ok(self)
    }

    pub(crate) fn close_blocking(&self, timeout: Duration) -> Result<(), Error> {
        check_may_block(None)?;
        self.handle.close();
        let pending = &self.handle.pending;
        if pending.wait(wait_of(timeout)) {
            Ok(())
        } else {
            Err(self.not_flushed())
        }
    }

    fn not_flushed(&self) -> Error {
        Error::Unavailable {
            key: None,
            server: self.handle.backend.server(),
            source: Cause::new(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "releases were not confirmed in time",
            )),
        }
    }
}

impl Builder {
    /// Connects to one Redis server by its URL; see [`Locker::connect`].
    ///
    /// # Errors
    ///
    /// As for [`Locker::connect`], and [`Error::Invalid`] for a setting that is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn connect(self, url: impl AsRef<str>) -> Result<Locker, Error> {
        self.connect_lazily(url)?.connected().await
    }

    /// Makes a locker for one Redis server that need not be there yet.
    ///
    /// No I/O, and no runtime is needed. The first acquire connects and finds out all that
    /// [`connect`](Self::connect) does, before it is granted anything. A server that is away then
    /// is put up with for [`outage_limit`](crate::Lock::outage_limit), as at any other time.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a URL that is not one or a setting that is not usable, or if the
    /// system refuses a thread.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), redlease::Error> {
    /// let locker = redlease::Locker::builder().connect_lazily("redis://127.0.0.1/")?;
    /// let lock = locker.mutex("invoice:42");
    /// # Ok(()) }
    /// ```
    pub fn connect_lazily(self, url: impl AsRef<str>) -> Result<Locker, Error> {
        let handle = self.on_server(url.as_ref())?;
        Ok(Locker { handle })
    }

    /// Connects to the server of a [`redis::Client`], for connection settings that a URL does not
    /// hold. This crate re-exports [`redis`](crate::redis) in the version that it takes.
    ///
    /// Whatever protocol version the client asks for, RESP3 is tried first: a client that names
    /// none asks for RESP2. For RESP2 alone, [`connect`](Self::connect) to a URL that ends with
    /// `?protocol=resp2`. `TCP_NODELAY` and keep-alive are switched on. A client with TLS needs the
    /// cargo feature `tls`, without which it is [`Error::Invalid`].
    ///
    /// # Errors
    ///
    /// As for [`Locker::connect`], and [`Error::Invalid`] for a setting that is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn connect_client(self, client: Client) -> Result<Locker, Error> {
        self.connect_client_lazily(client)?.connected().await
    }

    /// Makes a locker for the server of a `redis::Client`, which need not be there yet: to
    /// [`connect_client`](Self::connect_client) what [`connect_lazily`](Self::connect_lazily) is to
    /// [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// As for [`connect_lazily`](Self::connect_lazily).
    pub fn connect_client_lazily(self, client: Client) -> Result<Locker, Error> {
        let handle = self.on_client(&client)?;
        Ok(Locker { handle })
    }

    /// Connects to a quorum of independent servers by their URLs; see [`Locker::quorum`].
    ///
    /// # Errors
    ///
    /// As for [`Locker::quorum`], and [`Error::Invalid`] for a setting that is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn quorum(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        self.quorum_lazily(urls)?.connected().await
    }

    /// Makes a locker for a quorum of independent servers that need not be there yet: to
    /// [`quorum`](Self::quorum) what [`connect_lazily`](Self::connect_lazily) is to
    /// [`connect`](Self::connect).
    ///
    /// The first acquire connects to a majority.
    ///
    /// # Errors
    ///
    /// As for [`connect_lazily`](Self::connect_lazily), and [`Error::Invalid`] for fewer than three
    /// servers or the same server twice.
    pub fn quorum_lazily(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        let handle = self.on_quorum(urls)?;
        Ok(Locker { handle })
    }

    /// Makes a locker without Redis; see [`Locker::in_memory`].
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a setting that is not usable, or if the system refuses a thread.
    pub fn in_memory(self) -> Result<Locker, Error> {
        let handle = self.in_this_process()?;
        Ok(Locker { handle })
    }
}

impl fmt::Debug for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locker")
            .field("server", &self.handle.backend.server())
            .field("owner", &self.handle.settings.owner.label())
            .field("prefix", &self.handle.settings.prefix)
            .finish_non_exhaustive()
    }
}

// A panic of the caller's leaves no state of ours half changed: none of it is changed while foreign
// code runs, but for wakers and subscribers of `tracing`, whose panics are contained.
impl UnwindSafe for Locker {}
impl RefUnwindSafe for Locker {}
