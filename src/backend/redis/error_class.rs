//! What an error means: for the request, and for the connection that it came over.

use redis::{ErrorKind, RedisError, RetryMethod};

use crate::error::Fault;
use crate::tls;

/// What an error means for the request and for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    /// No retry can help.
    Permanent,
    /// The connection is of no more use; a new one may be.
    Reopen,
    /// The same connection may serve later.
    Retry,
}

impl ErrorClass {
    pub(crate) fn on_opening(error: &RedisError) -> Self {
        match error.kind() {
            _ if was_cut_off(error) => Self::Reopen,
            _ if tls::is_refusal(error) => Self::Permanent,
            // Not a Redis server: what it said made no sense.
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Permanent,
            _ => Self::on_request(error),
        }
    }

    pub(crate) fn on_request(error: &RedisError) -> Self {
        match error.kind() {
            // No right to the socket, or an address of an unknown kind.
            ErrorKind::Io if matches!(error.retry_method(), RetryMethod::NoRetry) => {
                Self::Permanent
            }
            ErrorKind::Io => Self::Reopen,
            ErrorKind::Parse => Self::Reopen,
            ErrorKind::InvalidClientConfig if mentions(error, "No address found") => Self::Retry,
            // It is redis-rs that says so, of the settings.
            ErrorKind::InvalidClientConfig | ErrorKind::Client => Self::Permanent,
            _ if has_code(error, &REFUSALS_BY_CODE) => Self::Permanent,
            // Servers before version 7 report what a script's command ran into as plain text.
            _ if mentions_any(error, &NO_MASTER) => Self::Reopen,
            _ if mentions_any(error, &PASSING) => Self::Retry,
            _ if mentions_any(error, &REFUSALS_IN_WORDS) => Self::Permanent,
            // Proxies have words of their own for a server that they cannot reach.
            _ => Self::Retry,
        }
    }
}

/// It was a master and is a replica, or one that lost its master.
const NO_MASTER: [&str; 2] = ["READONLY", "MASTERDOWN"];

/// States that a server gets out of by itself or by an operator's hand. What is in no list is
/// tried again, too; these are more than that: they come inside the errors of scripts, and
/// say nothing about the protocol.
const PASSING: [&str; 11] = [
    "OOM",
    "BUSY",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "max number of clients",
    "UNBLOCKED",
];

/// What no retry helps against, by the code of the error.
const REFUSALS_BY_CODE: [&str; 6] = [
    // The credentials, or that there are none.
    "NOAUTH",
    "WRONGPASS",
    // The user's rights.
    "NOPERM",
    // Protected mode: the server talks to its own machine only.
    "DENIED",
    // Our keys are in one slot; a proxy that finds them in two does not know hash tags.
    "CROSSSLOT",
    // The type of the key.
    "WRONGTYPE",
];

/// What no retry helps against, where the code is only `ERR`.
const REFUSALS_IN_WORDS: [&str; 16] = [
    // The credentials, before Redis 6: the wrong ones, or some where none are wanted.
    "invalid password",
    "no password is set",
    "without any password configured",
    // The credentials or the rights, inside the error of a script.
    "NOPERM",
    "permissions to",
    "can't run this command",
    "can't access at least one of the keys",
    // The type of the key, inside the error of a script.
    "WRONGTYPE",
    // The database of the URL.
    "DB index is out of range",
    "invalid DB index",
    "SELECT is not allowed in cluster mode",
    // A server or proxy without scripts, or one on which they were renamed.
    "unknown command",
    "unsupported command",
    "wrong number of arguments",
    // What a script of ours raised itself, or met in a key: it would do so again.
    "Error running script",
    "user_script",
];

/// In which words a server does not know a command.
const UNKNOWN_COMMAND: [&str; 2] = ["unknown command", "unsupported command"];

/// Whether the user may not send the command, or the server does not know it.
pub(crate) fn is_forbidden(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| has_code(error, &["NOPERM"]) || mentions_any(error, &UNKNOWN_COMMAND))
}

/// Whether the user may send the command, and not read or write one of its keys.
pub(crate) fn is_about_a_key(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    // "access one of the keys used as arguments" before version 7.2, "access a key" since then.
    error.is_some_and(|error| {
        has_code(error, &["NOPERM"]) && mentions_any(error, &["access a key", "one of the keys"])
    })
}

/// Whether a server that was asked about the slots of its cluster is in none.
pub(crate) fn has_no_cluster(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| {
        mentions(error, "cluster support disabled") || mentions_any(error, &UNKNOWN_COMMAND)
    })
}

/// Whether the server answered, and does not do what it was asked for.
pub(crate) fn declines(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| is_reply(error) && !is_passing(error))
}

/// Whether the server takes a password alone.
pub(crate) fn wants_no_user_name(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| mentions(error, "wrong number of arguments"))
}

/// An answer to `HELLO` by which a server can be taken for one that does not speak RESP3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// In words that mean it.
    Known,
    /// In other words, or by hanging up: perhaps for another reason.
    Other,
}

impl Refusal {
    /// `None` if the error is not about the protocol.
    pub(crate) fn of_resp3(error: &RedisError) -> Option<Self> {
        match error.kind() {
            ErrorKind::RESP3NotSupported => Some(Self::Known),
            _ if !is_reply(error) => was_cut_off(error).then_some(Self::Other),
            _ if has_code(error, &["NOPROTO"]) => Some(Self::Known),
            _ if mentions_any(error, &UNKNOWN_COMMAND) => Some(Self::Known),
            _ if has_code(error, &REFUSALS_BY_CODE) || is_passing(error) => None,
            _ => Some(Self::Other),
        }
    }
}

/// Whether the error is what a server or proxy answered.
fn is_reply(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

fn is_passing(error: &RedisError) -> bool {
    mentions_any(error, &NO_MASTER) || mentions_any(error, &PASSING)
}

/// Whether the connection ended before the answer did.
fn was_cut_off(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Parse => mentions(error, "end of input"),
        ErrorKind::Io => error.is_connection_dropped() && !error.is_connection_refusal(),
        _ => false,
    }
}

/// Whether the other side may speak another protocol: it hung up, or what it sent made no sense.
pub(crate) fn is_not_understood(fault: &Fault) -> bool {
    let error = fault.cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| {
        was_cut_off(error) || error.kind() == ErrorKind::Parse || tls::is_not_tls(error)
    })
}

fn has_code(error: &RedisError, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code))
}

fn mentions_any(error: &RedisError, words: &[&str]) -> bool {
    words.iter().any(|word| mentions(error, word))
}

/// Whether the error is one of this code, or says these words. Parts of words do not count: an
/// error can quote keys.
pub(crate) fn mentions(error: &RedisError, words: &str) -> bool {
    let says = |detail: &str| {
        let mut places = detail.match_indices(words);
        places.any(|(start, _)| {
            let before = detail[..start].chars().next_back();
            let after = detail[start + words.len()..].chars().next();
            let is_inside = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
            !is_inside(before) && !is_inside(after)
        })
    };
    error.code() == Some(words) || error.detail().is_some_and(says)
}

#[cfg(test)]
mod tests {
    use std::io;

    use redis::Value;

    use super::*;

    fn error(line: &str) -> RedisError {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        match reply.expect("a reply") {
            Value::ServerError(error) => error.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_no_retry_helps_against_is_permanent() {
        for line in [
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "NOPERM No permissions to access a key",
            "DENIED Redis is running in protected mode because protected mode is enabled",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR invalid password",
            "ERR Client sent AUTH, but no password is set",
            "ERR AUTH <password> called without any password configured for the default user",
            "ERR DB index is out of range",
            "ERR invalid DB index",
            "ERR SELECT is not allowed in cluster mode",
            "ERR unknown command `EVALSHA`, with args beginning with: `0`, `TASK`, `ROOM`, ",
            "ERR unknown command 'EVAL'",
            "ERR unsupported command 'EVAL'",
            "ERR wrong number of arguments for 'evalsha' command",
            "ERR Error running script (call to f_0): @user_script:1: user_script:1: attempt to \
             compare nil with number",
            "ERR The user executing the script can't run this command or subcommand",
            "ERR The user executing the script can't access at least one of the keys mentioned in \
             the command arguments",
            "ERR user_script:1: attempt to compare nil with number script: f_0, on @user_script:1.",
        ] {
            assert_eq!(
                ErrorClass::on_request(&error(line)),
                ErrorClass::Permanent,
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_not_known_to_last_is_tried_again() {
        for line in [
            "upstream failure",
            "no upstream host",
            "ERR Connection timed out",
            "ERR no server connection available",
            "ERR",
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots",
            "NOREPLICAS Not enough good replicas to write.",
            "CLUSTERDOWN Hash slot not served",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "ERR max number of clients reached",
            "ERR max number of clients + cluster connections reached",
            "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -OOM command \
             not allowed when used memory > 'maxmemory'.",
        ] {
            assert_eq!(
                ErrorClass::on_request(&error(line)),
                ErrorClass::Retry,
                "{line}"
            );
        }
    }

    #[test]
    fn a_server_that_is_no_master_is_left() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY \
             You can't write against a read only replica.",
        ] {
            assert_eq!(
                ErrorClass::on_request(&error(line)),
                ErrorClass::Reopen,
                "{line}"
            );
        }
    }

    #[test]
    fn a_connection_that_ends_is_replaced_and_one_that_is_forbidden_is_not() {
        for (kind, class, refusal) in [
            (
                io::ErrorKind::BrokenPipe,
                ErrorClass::Reopen,
                Some(Refusal::Other),
            ),
            (
                io::ErrorKind::ConnectionReset,
                ErrorClass::Reopen,
                Some(Refusal::Other),
            ),
            (
                io::ErrorKind::UnexpectedEof,
                ErrorClass::Reopen,
                Some(Refusal::Other),
            ),
            (io::ErrorKind::ConnectionRefused, ErrorClass::Reopen, None),
            (io::ErrorKind::NotFound, ErrorClass::Reopen, None),
            (io::ErrorKind::TimedOut, ErrorClass::Reopen, None),
            (io::ErrorKind::PermissionDenied, ErrorClass::Permanent, None),
        ] {
            let error = RedisError::from(io::Error::from(kind));
            assert_eq!(ErrorClass::on_request(&error), class, "{kind}");
            assert_eq!(Refusal::of_resp3(&error), refusal, "{kind}");
        }
    }
}
