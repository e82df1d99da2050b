//! Where the connections of one [`Connections`](super::connections::Connections) lead.

use std::fmt;
use std::future::ready;

use redis::ConnectionAddr;
use tokio::time::Instant;

use crate::backend::Answer;

/// What an engine that knows of several servers decides about the connections to one of them.
pub(crate) trait Place: Send + Sync + fmt::Debug + 'static {
    /// The address to connect to now, if it is not always the same.
    fn address(&self, _until: Instant) -> Answer<'_, Option<ConnectionAddr>> {
        Box::pin(ready(Ok(None)))
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
