//! Which servers a locker keeps its locks on, and what it is made of then.

use std::io;
use std::sync::Arc;

use redis::{Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisError};
use tokio::runtime::Runtime;

use crate::backend::memory::Memory;
use crate::backend::quorum::{Member, Quorum};
use crate::backend::redis::{Role, Server};
use crate::backend::{Backend, Signals};
use crate::clock::Clock;
use crate::driver::{self, Driver, Settings, Share};
use crate::error::Error;
use crate::events::emit;
use crate::fault::Cause;
use crate::keys::Keys;

const FEWEST_SERVERS: usize = 3;

pub(crate) fn memory(settings: Settings) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = driver::runtime().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone(), Some(runtime.handle().id())));
    let backend = Memory::new(clock.clone(), Arc::clone(&keys) as _);
    start(Arc::new(backend), runtime, keys, clock, settings)
}

pub(crate) fn one_server(settings: Settings, client: &Client) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = driver::runtime().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone(), Some(runtime.handle().id())));
    let signals = Arc::clone(&keys) as _;
    let node = node(client, &clock, signals, Role::Alone, &settings)?;
    start(Arc::new(node), runtime, keys, clock, settings)
}

pub(crate) fn quorum(
    settings: Settings,
    urls: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Arc<Share>, Error> {
    let clock = Clock::system();
    let runtime = driver::runtime().map_err(no_thread)?;
    let keys = Arc::new(Keys::new(clock.clone(), Some(runtime.handle().id())));
    let mut members: Vec<Arc<dyn Member>> = Vec::new();
    for url in urls {
        let client = client(url.as_ref())?;
        let signals = Arc::clone(&keys) as _;
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
        Arc::new(Quorum::new(members)),
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
    let node = Server::new(
        client,
        clock.clone(),
        signals,
        role,
        &settings.prefix,
        limit,
    );
    node.map_err(bad_url)
}

/// Parses a URL, and refuses what the connection would only fail on later. The client asks for
/// RESP3 unless the URL asks for RESP2: that redis-rs takes both for the same.
pub(crate) fn client(url: &str) -> Result<Client, Error> {
    let info = url.into_connection_info().map_err(bad_url)?;
    if !matches!(info.addr(), ConnectionAddr::Tcp(..)) && !info.addr().is_supported() {
        return Err(Error::invalid(
            None,
            "this kind of redis url is not supported here",
        ));
    }
    let client = Client::open(info).map_err(bad_url)?;
    if asks_for_resp2(url) {
        Ok(client)
    } else {
        with_resp3(&client)
    }
}

/// The same client, asking for RESP3.
pub(crate) fn with_resp3(client: &Client) -> Result<Client, Error> {
    let info = client.get_connection_info().clone();
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
    runtime: Runtime,
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
