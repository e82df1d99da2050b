//! What an error means: for the request, and for the connection that it came over.

use std::error::Error as _;
use std::io;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::fault::Fault;

/// What an error means for the request and for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No retry can help.
    Permanent,
    /// The connection is of no more use; a new one may be.
    Reopen,
    /// The same connection may serve later.
    Retry,
}

impl Verdict {
    pub(crate) fn on_opening(error: &RedisError) -> Self {
        match error.kind() {
            // A reply that was cut off in the middle: the connection broke (P13).
            ErrorKind::Parse if mentions(error, "end of input") => Self::Reopen,
            // Not a Redis server: what it said made no sense.
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Permanent,
            ErrorKind::AuthenticationFailed if mentions(error, "LOADING") => Self::Retry,
            _ => Self::on_request(error),
        }
    }

    pub(crate) fn on_request(error: &RedisError) -> Self {
        use ServerErrorKind as Kind;

        match error.kind() {
            ErrorKind::Io => match io_kind(error) {
                Some(io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                    Self::Permanent
                }
                _ => Self::Reopen,
            },
            ErrorKind::Parse => Self::Reopen,
            ErrorKind::Server(Kind::ReadOnly | Kind::MasterDown) => Self::Reopen,
            ErrorKind::Server(
                Kind::BusyLoading | Kind::ClusterDown | Kind::TryAgain | Kind::Moved | Kind::Ask,
            ) => Self::Retry,
            ErrorKind::InvalidClientConfig if mentions(error, "No address found") => Self::Retry,
            // Servers before version 7 report what a script's command ran into as plain text.
            _ if mentions(error, "READONLY") || mentions(error, "MASTERDOWN") => Self::Reopen,
            _ if PASSING.iter().any(|word| mentions(error, word)) => Self::Retry,
            _ => Self::Permanent,
        }
    }
}

/// States that a server gets out of by itself or by an operator's hand.
const PASSING: [&str; 8] = [
    "OOM",
    "BUSY",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "max number of clients reached",
    "UNBLOCKED",
];

/// Whether the key holds something that is not a string, and so not ours.
pub(crate) fn is_wrong_type(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| mentions(error, "WRONGTYPE"))
}

/// Whether the server does not know RESP3, in the words of Redis, its forks and its proxies.
pub(crate) fn lacks_resp3(error: &RedisError) -> bool {
    error.kind() == ErrorKind::RESP3NotSupported
        || mentions(error, "NOPROTO")
        || (mentions(error, "unknown command") && mentions(error, "HELLO"))
}

pub(crate) fn mentions(error: &RedisError, word: &str) -> bool {
    error.code() == Some(word) || error.detail().is_some_and(|detail| detail.contains(word))
}

fn io_kind(error: &RedisError) -> Option<io::ErrorKind> {
    error
        .source()?
        .downcast_ref::<io::Error>()
        .map(io::Error::kind)
}
