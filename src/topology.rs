//! Which servers a locker keeps its locks on, and what it is made of then.

use std::sync::Arc;

use redis::{Client, ConnectionAddr, IntoConnectionInfo};

use crate::acquire::queue::Queues;
use crate::acquire::wakeup::Wakeups;
use crate::backend::Backend;
use crate::backend::memory::Memory;
use crate::backend::node::{Node, Role};
use crate::backend::quorum::{Member, Quorum};
use crate::engine::{Engine, Settings};
use crate::error::Error;
use crate::events::emit;
use crate::fault::Cause;
use crate::handle::Handle;
use crate::hold::Context;
use crate::lease::clock::Clock;

const FEWEST_SERVERS: usize = 3;

pub(crate) fn memory(settings: Settings) -> Result<Arc<Handle>, Error> {
    let clock = Clock::system();
    let wakeups = Arc::new(Wakeups::default());
    let backend = Memory::new(clock.clone(), Arc::clone(&wakeups) as _);
    start(Arc::new(backend), wakeups, clock, settings)
}

pub(crate) fn one_server(settings: Settings, client: &Client) -> Result<Arc<Handle>, Error> {
    let clock = Clock::system();
    let wakeups = Arc::new(Wakeups::default());
    let signals = Arc::clone(&wakeups) as _;
    let node = Node::new(
        client,
        clock.clone(),
        signals,
        Role::Alone,
        &settings.prefix,
    )
    .map_err(bad_url)?;
    start(Arc::new(node), wakeups, clock, settings)
}

pub(crate) fn quorum(
    settings: Settings,
    urls: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Arc<Handle>, Error> {
    let clock = Clock::system();
    let wakeups = Arc::new(Wakeups::default());
    let mut members: Vec<Arc<dyn Member>> = Vec::new();
    for url in urls {
        let client = client(url.as_ref())?;
        let signals = Arc::clone(&wakeups) as _;
        let node = Node::new(
            &client,
            clock.clone(),
            signals,
            Role::Member,
            &settings.prefix,
        )
        .map_err(bad_url)?;
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
    start(Arc::new(Quorum::new(members)), wakeups, clock, settings)
}

/// Parses a URL, and refuses what the connection would only fail on later.
pub(crate) fn client(url: &str) -> Result<Client, Error> {
    let info = url.into_connection_info().map_err(bad_url)?;
    if !matches!(info.addr(), ConnectionAddr::Tcp(..)) && !info.addr().is_supported() {
        return Err(Error::invalid(
            None,
            "this kind of redis url is not supported here",
        ));
    }
    Client::open(info).map_err(bad_url)
}

fn start(
    backend: Arc<dyn Backend>,
    wakeups: Arc<Wakeups>,
    clock: Clock,
    settings: Settings,
) -> Result<Arc<Handle>, Error> {
    let queues = Arc::new(Queues::default());
    let turns = Arc::clone(&queues) as _;
    let engine = Engine::start(backend, wakeups, clock, settings, turns);
    let engine = engine.map_err(|error| Error::Invalid {
        key: None,
        problem: "the system refuses a thread".to_owned(),
        source: Some(Cause::new(error)),
    })?;
    Ok(Arc::new(Handle::new(Context { engine, queues })))
}

fn bad_url(error: redis::RedisError) -> Error {
    Error::Invalid {
        key: None,
        problem: "the redis url is not usable".to_owned(),
        source: Some(Cause::new(error)),
    }
}
