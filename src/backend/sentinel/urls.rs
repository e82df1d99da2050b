//! What users say about their sentinels and their master.

use std::sync::Arc;

use redis::{Client, ConnectionAddr, ProtocolVersion};

use crate::backend::redis::place::text_of;
use crate::error::Error;

/// The port of a sentinel, if none is said.
const SENTINEL_PORT: u16 = 26379;

/// Where the sentinels are, and what they are asked for.
pub(crate) struct Deployment {
    pub(super) sentinels: Vec<Client>,
    pub(super) master: Arc<str>,
    /// How to connect to the master, but for its address.
    pub(super) template: Client,
}

impl Deployment {
    /// `parse` makes a client of a URL. A master that is only a name is connected to without
    /// credentials, in plain text.
    pub(crate) fn new(
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: &str,
        parse: impl Fn(&str) -> Result<Client, Error>,
    ) -> Result<Self, Error> {
        let mut sentinels = Vec::new();
        let mut names = Vec::new();
        for url in urls {
            let client = sentinel(url.as_ref(), &parse(url.as_ref())?)?;
            let name = text_of(client.get_connection_info().addr());
            if names.contains(&name) {
                return Err(Error::invalid(
                    None,
                    format!("the sentinel {name} is named twice"),
                ));
            }
            names.push(name);
            sentinels.push(client);
        }
        if sentinels.is_empty() {
            return Err(Error::invalid(None, "at least one sentinel is needed"));
        }
        let (master, template) = if master.contains("://") {
            let template = parse(master)?;
            (name_in(master, &template)?, template)
        } else if master.contains(['@', '/']) {
            // Not quoted: there may be a password in it.
            return Err(Error::invalid(
                None,
                "a master with credentials or a database is named by a url, such as \
                 redis://user:password@mymaster/1",
            ));
        } else {
            (master.to_owned(), parse("redis://master/")?)
        };
        if master.is_empty() || master.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(
                None,
                format!("{master:?} is not the name of a master"),
            ));
        }
        Ok(Self {
            sentinels,
            master: master.into(),
            template,
        })
    }
}

/// The name of the master, which stands in its URL in place of a host.
fn name_in(url: &str, client: &Client) -> Result<String, Error> {
    let has_port = redis::parse_redis_url(url).is_some_and(|url| url.port().is_some());
    match client.get_connection_info().addr() {
        _ if has_port => Err(Error::invalid(
            None,
            "the url of a master has its name in place of the host, and no port: the sentinels \
             tell its address",
        )),
        ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => {
            Ok(name.clone())
        }
        _ => Err(Error::invalid(
            None,
            "the url of a master has its name in place of the host",
        )),
    }
}

/// A client for a sentinel. It is asked for nothing that takes RESP3, which it may not speak.
fn sentinel(url: &str, client: &Client) -> Result<Client, Error> {
    let mut info = client.get_connection_info().clone();
    if info.redis_settings().db() != 0 {
        let name = text_of(info.addr());
        let problem = format!("the sentinel {name} has no databases: name that of the master");
        return Err(Error::invalid(None, problem));
    }
    if redis::parse_redis_url(url).is_some_and(|url| url.port().is_none()) {
        let mut address = info.addr().clone();
        if let ConnectionAddr::Tcp(_, port) | ConnectionAddr::TcpTls { port, .. } = &mut address {
            *port = SENTINEL_PORT;
        }
        info = info.set_addr(address);
    }
    let settings = info.redis_settings().clone();
    let settings = settings
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let client = Client::open(info.set_redis_settings(settings));
    client.map_err(|error| Error::invalid(None, error.to_string()))
}
