//! How a locker is set up.

mod engine;

use std::future::Future;
use std::time::Duration;

use crate::credentials::{Credentials, CredentialsProvider};
use crate::driver::Settings;
use crate::error::Error;
use crate::holder::Owner;
use crate::options::Options;
use crate::tls::Certificates;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Builds a [`Locker`](crate::Locker).
///
/// # Defaults
///
/// | setting | default | meaning |
/// |---|---|---|
/// | [`owner`](Self::owner) | `host/pid` | the label in the key, for people |
/// | [`prefix`](Self::prefix) | none | put before every key |
/// | [`command_timeout`](Self::command_timeout) | 1 s | how long one command to Redis may take |
/// | [`flush_timeout`](Self::flush_timeout) | 1 s | how long the drop of the last handle waits for releases |
/// | `root_certificates` | the system's | by which authorities servers are trusted, with [TLS](crate#tls) |
/// | `client_certificate` | none | what a server knows us by, with TLS |
/// | [`credentials`](Self::credentials) | none | who is asked for them; else they stand in the URL |
///
/// The other settings are the options of [`Lock`](crate::Lock#options), by the same names and with
/// the same defaults. What is set here holds for each lock of the locker that does not set it
/// itself. The values are checked when the locker is made.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), redlease::Error> {
/// let locker = redlease::Locker::builder()
///     .owner("billing")
///     .prefix("locks:")
///     .ttl(Duration::from_secs(30)) // of each lock that sets no other
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
    credentials: Option<CredentialsProvider>,
    options: Options,
    certificates: Certificates,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            owner: None,
            prefix: String::new(),
            command_timeout: COMMAND_TIMEOUT,
            flush_timeout: FLUSH_TIMEOUT,
            credentials: None,
            options: Options::default(),
            certificates: Certificates::default(),
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

    /// Sets who is asked for the credentials of a connection, each time that one is opened, in
    /// place of what the URL or the client says: for passwords that change and for tokens that
    /// expire, such as those of IAM.
    ///
    /// The provider has as long as a connection may take to open, the
    /// [`command_timeout`](Self::command_timeout). One that fails, panics or takes longer counts
    /// as an outage: it is asked again after a short rest, leases are renewed over the connections
    /// that are there, and acquires fail with [`Error::Unavailable`] when it lasts; its error is the
    /// source. A user or password that the server does not take is [`Error::Refused`]. A token that
    /// takes long to get is best kept at hand by the provider.
    ///
    /// It is polled on a thread of its own, so it may block, within the runtime of the connection:
    /// the caller's or the locker's own, which has I/O and time enabled. A connection that is open
    /// is not authenticated anew: where a server ends it when its token expires, the next is opened
    /// with a new token, and no lease is lost by that.
    ///
    /// All servers of a quorum or a cluster get the same. Behind sentinels they are the master's; a
    /// sentinel's stand in its URL.
    ///
    /// None by default: the URL or the client has the credentials.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use redlease::{Credentials, Locker};
    ///
    /// # async fn new_token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # async fn example() -> Result<(), redlease::Error> {
    /// let locker = Locker::builder()
    ///     .credentials(|| async {
    ///         let token = new_token().await?;
    ///         Ok::<_, std::io::Error>(Credentials::new(token).user("billing"))
    ///     })
    ///     .connect("redis://127.0.0.1/")
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn credentials<F, R, E>(mut self, provider: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.credentials = Some(CredentialsProvider::new(provider));
        self
    }

    /// Sets the TTL of each lock that does not set its own; see [`Lock::ttl`](crate::Lock::ttl).
    ///
    /// Defaults to 10 seconds.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.options.ttl = ttl;
        self
    }

    /// Sets how often the watchdog renews the lease of each lock that does not set it itself; see
    /// [`Lock::renew_every`](crate::Lock::renew_every).
    ///
    /// Defaults to a third of the TTL of the lock. Once set, it must fit the TTL of every lock,
    /// also of one that sets its own.
    pub fn renew_every(mut self, interval: Duration) -> Self {
        self.options.renew_every = Some(interval);
        self
    }

    /// Sets after how long each guard is lost whose lock does not set it itself; see
    /// [`Lock::max_hold`](crate::Lock::max_hold).
    ///
    /// Unlimited by default. Once set, a lock can set another limit, of 100 years for instance, but
    /// not none.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.options.max_hold = Some(limit);
        self
    }

    /// Sets whether the watchdog renews the lease of each lock that does not set it itself; see
    /// [`Lock::auto_renew`](crate::Lock::auto_renew).
    ///
    /// Defaults to `true`.
    pub fn auto_renew(mut self, renew: bool) -> Self {
        self.options.auto_renew = renew;
        self
    }

    /// Sets for how long this process passes each lock on among its own waiters that does not set
    /// it itself; see [`Lock::handover_for`](crate::Lock::handover_for).
    ///
    /// Defaults to 10 milliseconds.
    pub fn handover_for(mut self, stretch: Duration) -> Self {
        self.options.handover_for = stretch;
        self
    }

    /// Sets how long an acquire of each lock that does not set it itself puts up with an
    /// unreachable Redis; see [`Lock::outage_limit`](crate::Lock::outage_limit).
    ///
    /// Defaults to 10 seconds.
    pub fn outage_limit(mut self, limit: Duration) -> Self {
        self.options.outage_limit = limit;
        self
    }

    /// Sets the certificate authorities that servers are trusted by, as PEM, in place of the
    /// system's. Needs a `rediss://` URL, or a client with TLS.
    ///
    /// The text may hold several certificates. By default the authorities are those of the system;
    /// with the feature `tls-webpki-roots` those of Mozilla. They take the place of those of a
    /// [`connect_client`](Self::connect_client), together with its client certificate.
    ///
    /// A server is trusted if its certificate is valid now, was issued by one of the authorities,
    /// and names the host of the URL. A host that is an IP address must stand in it as such.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let locker = redlease::Locker::builder()
    ///     .root_certificates(std::fs::read("ca.pem")?)
    ///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?)
    ///     .connect("rediss://redis.internal:6380/")
    ///     .await?;
    /// # Ok(()) }
    /// ```
    #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))))]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.set_roots(pem.into());
        self
    }

    /// Sets the certificate that the server knows us by, and its private key, as PEM. Needs a
    /// `rediss://` URL, or a client with TLS.
    ///
    /// Certificates that lead to the authority may follow it. None by default, which a server with
    /// `tls-auth-clients yes` refuses with [`Error::Refused`]. It takes the place of that of a
    /// [`connect_client`](Self::connect_client), together with its authorities.
    #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))))]
    pub fn client_certificate(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        let (certificate, key) = (certificate_pem.into(), key_pem.into());
        self.certificates.set_client(certificate, key);
        self
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
        self.options.check(None)?;
        Ok(Settings {
            owner: match self.owner {
                Some(label) => Owner::new(label)?,
                None => Owner::of_this_process(),
            },
            prefix: self.prefix,
            command_timeout: self.command_timeout,
            flush_timeout: self.flush_timeout,
            credentials: self.credentials,
            options: self.options,
        })
    }
}
