//! Where the connections of one [`Connections`](super::connections::Connections) lead.

use std::fmt;
use std::future::{Future, pending, ready};
use std::pin::Pin;
use std::sync::Arc;

use redis::ConnectionAddr;
use tokio::time::Instant;

use crate::backend::Answer;

/// What an engine that knows of several servers decides about the connections to one of them.
pub(crate) trait Place: Send + Sync + fmt::Debug + 'static {
    /// The address to connect to now, if it is not always the same.
    fn address(&self, _until: Instant) -> Answer<'_, Option<ConnectionAddr>> {
        Box::pin(ready(Ok(None)))
    }

    /// The name in messages of a server that has the place.
    fn name_of(&self, address: &ConnectionAddr) -> Arc<str> {
        text_of(address).into()
    }

    /// The name in messages of the server that has the place now, or of the place if none is known
    /// to have it. `None` if it is always the same server.
    fn present(&self) -> Option<Arc<str>> {
        None
    }

    /// Ends when another server has the place than when it was called.
    fn moved(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(pending())
    }

    /// Whether a server that is not a master now is of no use.
    fn is_of_a_master(&self) -> bool {
        false
    }

    /// A hash tag of the server's own in a cluster. A message to a channel that has it goes to this
    /// server, not to all.
    fn tag(&self) -> Option<String> {
        None
    }
}

/// One server, whatever becomes of it.
#[derive(Debug)]
pub(crate) struct Fixed;

impl Place for Fixed {}

/// An address that is reached as `model` is: with the same settings of TLS, or with none.
pub(crate) fn like(model: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match model {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    }
}

/// An address in messages.
pub(crate) fn text_of(address: &ConnectionAddr) -> String {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            format!("{host}:{port}")
        }
        ConnectionAddr::Unix(path) => path.display().to_string(),
        other => format!("{other:?}"),
    }
}
