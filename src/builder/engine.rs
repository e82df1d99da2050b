//! What a locker is made of, for each engine.

use std::io;
use std::sync::Arc;

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError,
};

use crate::backend::cluster::Cluster;
use crate::backend::memory::Memory;
use crate::backend::quorum::{Hints, Member, Quorum};
use crate::backend::redis::connections::Connections;
use crate::backend::redis::place::Fixed;
use crate::backend::redis::reach::Reach;
use crate::backend::redis::settings::OpeningOptions;
use crate::backend::redis::{Role, Server};
use crate::backend::sentinel::{Deployment, Sentinels};
use crate::backend::{Backend, Signals};
use crate::builder::Builder;
use crate::clock::Clock;
use crate::driver::{Driver, Settings, Share, ThreadRuntime};
use crate::error::{Cause, Error};
use crate::events::emit;
use crate::keys::Keys;
use crate::tls::{self, Certificates};

const FEWEST_SERVERS: usize = 3;

impl Builder {
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
        let any_has = tls::is_wanted(master) || urls.iter().any(|url| tls::is_wanted(url.as_ref()));
        // They are for those that have TLS. If none has, that is a mistake, and is told.
        let parse = |url: &str| match any_has && !tls::is_wanted(url) {
            true => client(url, &Certificates::default()),
            false => client(url, &certificates),
        };
        master_of(self.check()?, Deployment::new(urls, master, parse)?)
    }

    pub(crate) fn in_this_process(self) -> Result<Arc<Share>, Error> {
        memory(self.check()?)
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
    let cluster = Cluster::new(seeds, signals, opening(&settings)).map_err(bad_url)?;
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
    let (signals, options) = (Arc::clone(&keys) as _, opening(&settings));
    let sentinels = Sentinels::new(deployment, signals, options);
    let (sentinels, connections) = sentinels.map_err(bad_url)?;
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
    let connections = Connections::new(client, Box::new(Fixed), signals, opening(settings));
    let connections = connections.map_err(bad_url)?;
    let reach = Reach::One(Arc::new(connections));
    Ok(Server::new(reach, clock.clone(), role, &settings.prefix))
}

fn opening(settings: &Settings) -> OpeningOptions {
    OpeningOptions {
        limit: settings.command_timeout,
        credentials: settings.credentials.clone(),
    }
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
