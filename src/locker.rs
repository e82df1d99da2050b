//! Where locks come from: one locker a process and Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::Client;

use crate::driver::{Settings, Share, check_may_block};
use crate::error::Error;
use crate::fault::Cause;
use crate::holder::Owner;
use crate::lock::Lock;
use crate::topology;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

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
#[derive(Clone, Debug)]
pub struct Locker {
    handle: Arc<Share>,
}

impl Locker {
    /// Connects to one Redis server, with the defaults of [`Builder`].
    ///
    /// The URL is one that the `redis` crate takes: `redis://user:password@host:port/db` or
    /// `unix:///path/to/socket`. RESP3 is tried first, unless the URL ends with `?protocol=resp2`.
    ///
    /// The call waits for two connections: that of the present runtime, and that of the background
    /// thread, without which no lock could be renewed.
    ///
    /// # Cancel safety
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a URL that is not one, [`Error::Unavailable`] if the server cannot
    /// be reached or does not take both connections, [`Error::Refused`] if it is not a Redis server,
    /// refuses the credentials, or does not let the user run a command that locks need.
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
    /// * It is not fair, and contenders of different processes come back at random. `try_lock`
    ///   can find two contenders taking a part each, and turn both away.
    /// * Each step costs a request to every server, and lasts as long as the fastest majority
    ///   takes.
    ///
    /// One server is the better choice where its failure may stop the work, where the lock only
    /// saves work rather than protects it, or where waiters should be served in turn.
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

    /// Returns a handle on the lock of a key, without I/O.
    ///
    /// The key is used in Redis verbatim, behind the builder's prefix. It must not be empty.
    pub fn mutex(&self, key: impl Into<String>) -> Lock {
        Lock::new(&self.handle, key.into())
    }

    /// Fails all waiters, releases every guard, and waits for the releases, at most `timeout`.
    ///
    /// Guards that still exist are lost with [`LostReason::Closed`](crate::LostReason::Closed);
    /// locks can no longer be acquired. Closing twice is harmless.
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
        let timeout = timeout.min(LONGEST_TIMEOUT);
        let done = tokio::time::timeout(timeout, pending.wait_async()).await;
        done.map_err(|_| self.not_flushed())
    }

    async fn connected(self) -> Result<Self, Error> {
        let driver = &self.handle;
        let within = driver.settings.command_timeout;
        // P4, P13: without the driver's connection a lock would be lost one TTL later.
        let connect = driver.backend.connect(driver.runtime(), within);
        connect.await.map_err(|fault| fault.about(None))?;
        Ok(self)
    }

    fn connected_blocking(self) -> Result<Self, Error> {
        let backend = Arc::clone(&self.handle.backend);
        let within = self.handle.settings.command_timeout;
        let driver = self.handle.runtime().clone();
        // The thread's connection is the only one that is needed.
        self.handle.block_on(None, async move {
            let connected = backend.connect(&driver, within).await;
            connected.map_err(|fault| fault.about(None))
        })?;
        Ok(self)
    }

    pub(crate) fn close_blocking(&self, timeout: Duration) -> Result<(), Error> {
        check_may_block(None)?;
        self.handle.close();
        let pending = &self.handle.pending;
        if pending.wait(timeout.min(LONGEST_TIMEOUT)) {
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

/// Builds a [`Locker`].
///
/// # Defaults
///
/// | setting | default |
/// |---|---|
/// | [`owner`](Self::owner) | `host/pid` |
/// | [`prefix`](Self::prefix) | none |
/// | [`command_timeout`](Self::command_timeout) | 1 s |
/// | [`flush_timeout`](Self::flush_timeout) | 1 s |
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), redlease::Error> {
/// let locker = redlease::Locker::builder()
///     .owner("billing")
///     .prefix("locks:")
///     .connect("redis://127.0.0.1/")
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct Builder {
    owner: Option<String>,
    prefix: String,
    command_timeout: Duration,
    flush_timeout: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            owner: None,
            prefix: String::new(),
            command_timeout: COMMAND_TIMEOUT,
            flush_timeout: FLUSH_TIMEOUT,
        }
    }
}

impl Builder {
    /// Sets the owner label, which `redis-cli GET key` and
    /// [`Lock::holder`](crate::Lock::holder) show.
    ///
    /// 1 to 256 bytes without control characters. Defaults to `host/pid` of this process.
    pub fn owner(mut self, label: impl Into<String>) -> Self {
        self.owner = Some(label.into());
        self
    }

    /// Sets a text that is put before every key. Defaults to none.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how long one command to Redis, or opening a connection, may take.
    ///
    /// A command that took longer is tried again where that makes sense. Renewals take at most a
    /// third of what is left of the lease. From 1 ms to 24 hours; defaults to 1 second.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Sets how long the drop of a locker's last handle may wait for releases that are under way.
    ///
    /// Zero switches the wait off. At most 24 hours; defaults to 1 second.
    pub fn flush_timeout(mut self, timeout: Duration) -> Self {
        self.flush_timeout = timeout;
        self
    }

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
        let client = topology::client(url.as_ref())?;
        self.on_one_server(&client)?.connected().await
    }

    /// Connects to the server of a `redis::Client`, for connection settings that a URL does not
    /// hold.
    ///
    /// Whatever protocol version the client asks for, RESP3 is tried first: a client that names
    /// none asks for RESP2. For RESP2 alone, [`connect`](Self::connect) to a URL that ends with
    /// `?protocol=resp2`. `TCP_NODELAY` and keep-alive are switched on.
    ///
    /// # Errors
    ///
    /// As for [`Locker::connect`], and [`Error::Invalid`] for a setting that is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn connect_client(self, client: Client) -> Result<Locker, Error> {
        let client = topology::with_resp3(&client)?;
        self.on_one_server(&client)?.connected().await
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
        self.on_a_quorum(urls)?.connected().await
    }

    /// Makes a locker without Redis; see [`Locker::in_memory`].
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a setting that is not usable, or if the system refuses a thread.
    pub fn in_memory(self) -> Result<Locker, Error> {
        let handle = topology::memory(self.check()?)?;
        Ok(Locker { handle })
    }

    pub(crate) fn connect_blocking(self, url: &str) -> Result<Locker, Error> {
        let client = topology::client(url)?;
        self.on_one_server(&client)?.connected_blocking()
    }

    pub(crate) fn connect_client_blocking(self, client: &Client) -> Result<Locker, Error> {
        let client = topology::with_resp3(client)?;
        self.on_one_server(&client)?.connected_blocking()
    }

    pub(crate) fn quorum_blocking(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        self.on_a_quorum(urls)?.connected_blocking()
    }

    fn on_one_server(self, client: &Client) -> Result<Locker, Error> {
        let handle = topology::one_server(self.check()?, client)?;
        Ok(Locker { handle })
    }

    fn on_a_quorum(self, urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Locker, Error> {
        let handle = topology::quorum(self.check()?, urls)?;
        Ok(Locker { handle })
    }

    fn check(self) -> Result<Settings, Error> {
        let refuse = |problem: &str| Err(Error::invalid(None, problem));
        if self.command_timeout < Duration::from_millis(1) {
            return refuse("command_timeout must be at least 1ms");
        }
        if self.command_timeout > LONGEST_TIMEOUT {
            return refuse("command_timeout must be at most 24 hours");
        }
        if self.flush_timeout > LONGEST_TIMEOUT {
            return refuse("flush_timeout must be at most 24 hours");
        }
        Ok(Settings {
            owner: match self.owner {
                Some(label) => Owner::new(label)?,
                None => Owner::of_this_process(),
            },
            prefix: self.prefix,
            command_timeout: self.command_timeout,
            flush_timeout: self.flush_timeout,
        })
    }
}
