//! How a locker is set up, and what it is made of then.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError,
};

use crate::backend::cluster::Cluster;
use crate::backend::memory::Memory;
use crate::backend::quorum::{Hints, Member, Quorum};
use crate::backend::redis::connections::Connections;
use crate::backend::redis::place::Fixed;
use crate::backend::redis::reach::Reach;
use crate::backend::redis::{Role, Server};
use crate::backend::sentinel::{Deployment, Sentinels};
use crate::backend::{Backend, Signals};
use crate::clock::Clock;
use crate::driver::{Driver, Settings, Share, ThreadRuntime};
use crate::error::{Cause, Error};
use crate::events::emit;
use crate::holder::Owner;
use crate::keys::Keys;
use crate::options::Options;
use crate::tls::{self, Certificates};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
const FEWEST_SERVERS: usize = 3;

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

    /// Keeps the locks on the server of a URL. No I/O, nor in the others.
    pub(crate) fn on_server(self, url: &str) -> Result<Arc<Share>, Error> {
        let certificates = self.certificates.clone();
        one_server(self.check()?, &client(url, &certificates)?)
    }

    pub(crate) fn on_client(self, client: &Client) -> Result<Arc<Share>, Error> {
        let info = client.get_connection_info().clone();
        let info = self.certificates.apply(info)?;
        one_server(self.check()?, &with_resp3(info)?)
    }

    pub(crate) fn on_quorum(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Arc<Share>, Error> {
        let certificates = self.certificates.clone();
        quorum(self.check()?, &certificates, urls)
    }

    pub(crate) fn on_cluster(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Arc<Share>, Error> {
        let certificates = self.certificates.clone();
        cluster(self.check()?, &certificates, urls)
    }

    pub(crate) fn on_master(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: &str,
    ) -> Result<Arc<Share>, Error> {
        let urls: Vec<_> = urls.into_iter().collect();
        let certificates = self.certificates.clone();
        let has_tls = |url: &str| url.starts_with("rediss:");
        let any_has = has_tls(master) || urls.iter().any(|url| has_tls(url.as_ref()));
        // They are for those that have TLS. If none has, that is a mistake, and is told.
        let parse = |url: &str| match any_has && !has_tls(url) {
            true => client(url, &Certificates::default()),
            false => client(url, &certificates),
        };
        master_of(self.check()?, Deployment::new(urls, master, parse)?)
    }

    pub(crate) fn in_this_process(self) -> Result<Arc<Share>, Error> {
        memory(self.check()?)
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
            options: self.options,
        })
    }
}

fn memory(settings: Settings) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = ThreadRuntime::new().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone()));
    let backend = Memory::new(clock.clone(), Arc::clone(&keys) as _);
    start(Arc::new(backend), runtime, keys, clock, settings)
}

fn one_server(settings: Settings, client: &Client) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = ThreadRuntime::new().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone()));
    let signals = Arc::clone(&keys) as _;
    let node = node(client, &clock, signals, Role::Alone, &settings)?;
    start(Arc::new(node), runtime, keys, clock, settings)
}

fn cluster(
    settings: Settings,
    certificates: &Certificates,
    urls: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Arc<Share>, Error> {
    let refuse = |problem: &str| Err(Error::invalid(None, problem));
    let mut seeds = Vec::new();
    for url in urls {
        let client = client(url.as_ref(), certificates)?;
        let info = client.get_connection_info();
        if matches!(info.addr(), ConnectionAddr::Unix(_)) {
            return refuse("a cluster is not reached over a unix socket");
        }
        if info.redis_settings().db() != 0 {
            return refuse("a cluster has no databases: leave the number out of the url");
        }
        seeds.push(client);
    }
    if seeds.is_empty() {
        return refuse("a cluster needs the url of at least one of its servers");
    }
    let clock = Clock::system();
    let runtime = ThreadRuntime::new().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone()));
    let signals = Arc::clone(&keys) as _;
    let cluster = Cluster::new(seeds, signals, settings.command_timeout).map_err(bad_url)?;
    runtime.handle().spawn(Arc::clone(&cluster).keep_up());
    let reach = Reach::Cluster(cluster);
    let server = Server::new(reach, clock.clone(), Role::Alone, &settings.prefix);
    start(Arc::new(server), runtime, keys, clock, settings)
}

/// The server that sentinels name as the master.
fn master_of(settings: Settings, deployment: Deployment) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = ThreadRuntime::new().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone()));
    let (signals, limit) = (Arc::clone(&keys) as _, settings.command_timeout);
    let (sentinels, connections) = Sentinels::new(deployment, signals, limit).map_err(bad_url)?;
    runtime.handle().spawn(sentinels.keep_up());
    let reach = Reach::One(connections);
    let node = Server::new(reach, clock.clone(), Role::Alone, &settings.prefix);
    start(Arc::new(node), runtime, keys, clock, settings)
}

fn quorum(
    settings: Settings,
    certificates: &Certificates,
    urls: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = ThreadRuntime::new().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone()));
    let hints = Hints::new(Arc::clone(&keys) as _);
    let mut members: Vec<Arc<dyn Member>> = Vec::new();
    for url in urls {
        let client = client(url.as_ref(), certificates)?;
        let signals = Arc::clone(&hints) as _;
        let node = node(&client, &clock, signals, Role::Member, &settings)?;
        let server = node.server();
        if members.iter().any(|member| member.server() == server) {
            let problem = format!("the server {server} is twice in the quorum");
            return Err(Error::invalid(None, problem));
        }
        members.push(Arc::new(node));
    }
    if members.len() < FEWEST_SERVERS {
        let problem = format!(
            "a quorum needs at least {FEWEST_SERVERS} servers, not {}",
            members.len()
        );
        return Err(Error::invalid(None, problem));
    }
    if members.len().is_multiple_of(2) {
        let servers = members.len();
        emit(move || {
            tracing::warn!(
                servers,
                "a quorum of an even number of servers puts up with no more failures than one \
                 server less"
            );
        });
    }
    start(
        Arc::new(Quorum::new(members, &hints)),
        runtime,
        keys,
        clock,
        settings,
    )
}

fn node(
    client: &Client,
    clock: &Clock,
    signals: Arc<dyn Signals>,
    role: Role,
    settings: &Settings,
) -> Result<Server, Error> {
    let limit = settings.command_timeout;
    let connections = Connections::new(client, Box::new(Fixed), signals, limit).map_err(bad_url)?;
    let reach = Reach::One(Arc::new(connections));
    Ok(Server::new(reach, clock.clone(), role, &settings.prefix))
}

/// Parses a URL, and refuses what the connection would only fail on later. The client asks for
/// RESP3 unless the URL asks for RESP2: that redis-rs takes both for the same.
fn client(url: &str, certificates: &Certificates) -> Result<Client, Error> {
    tls::check_url(url)?;
    let info = url.into_connection_info().map_err(bad_url)?;
    if !matches!(info.addr(), ConnectionAddr::Tcp(..)) && !info.addr().is_supported() {
        return Err(Error::invalid(
            None,
            "this kind of redis url is not supported here",
        ));
    }
    let info = certificates.apply(info)?;
    if asks_for_resp2(url) {
        Client::open(info).map_err(bad_url)
    } else {
        with_resp3(info)
    }
}

/// A client that asks for RESP3.
fn with_resp3(info: ConnectionInfo) -> Result<Client, Error> {
    let settings = info.redis_settings().clone();
    let settings = settings.set_protocol(ProtocolVersion::RESP3);
    Client::open(info.set_redis_settings(settings)).map_err(bad_url)
}

fn asks_for_resp2(url: &str) -> bool {
    let url = redis::parse_redis_url(url);
    let protocol = url.iter().flat_map(|url| url.query_pairs());
    let protocol = protocol.filter(|(name, _)| name == "protocol").last();
    protocol.is_some_and(|(_, version)| version == "2" || version == "resp2")
}

fn start(
    backend: Arc<dyn Backend>,
    runtime: ThreadRuntime,
    keys: Arc<Keys>,
    clock: Clock,
    settings: Settings,
) -> Result<Arc<Share>, Error> {
    let driver = Driver::start(runtime, backend, keys, clock, settings);
    let driver = driver.map_err(no_thread)?;
    Ok(Arc::new(Share::new(driver)))
}

fn no_thread(error: io::Error) -> Error {
    Error::Invalid {
        key: None,
        problem: "the system refuses a thread".to_owned(),
        source: Some(Cause::new(error)),
    }
}

fn bad_url(error: RedisError) -> Error {
    Error::Invalid {
        key: None,
        problem: "the redis url is not usable".to_owned(),
        source: Some(Cause::new(error)),
    }
}
