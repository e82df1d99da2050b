//! What a server of a cluster answers that does not serve a key.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// The server that another names in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirection {
    /// Empty, if it is the host that was asked.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Only this request is to be sent there: the slot is moving.
    pub(crate) is_once: bool,
}

impl Redirection {
    pub(super) fn of(error: &RedisError) -> Option<Self> {
        let is_once = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => true,
            ErrorKind::Server(ServerErrorKind::Moved) => false,
            _ => return None,
        };
        let (address, _slot) = error.redirect_node()?;
        // The host may be an IPv6 address without brackets.
        let (host, port) = address.rsplit_once(':')?;
        Some(Self {
            // A server that does not know the host of another says so by a question mark.
            host: host.trim_matches('?').to_owned(),
            port: port.parse().ok()?,
            is_once,
        })
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn redirection(line: &str) -> Option<Redirection> {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        match reply.expect("a reply") {
            Value::ServerError(error) => Redirection::of(&error.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_server_that_is_named_is_read_from_the_answer() {
        for (line, host, is_once) in [
            ("MOVED 3999 127.0.0.1:6381", "127.0.0.1", false),
            ("ASK 3999 127.0.0.1:6381", "127.0.0.1", true),
            ("MOVED 1 :6381", "", false),
            ("MOVED 1 ?:6381", "", false),
            ("MOVED 1 ::1:6381", "::1", false),
            ("ASK 1 redis-1.example:6381", "redis-1.example", true),
        ] {
            let port = 6381;
            let host = host.to_owned();
            let expected = Redirection {
                host,
                port,
                is_once,
            };
            assert_eq!(redirection(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn what_names_no_server_is_no_redirection() {
        for line in [
            "MOVED 1",
            "MOVED 1 nowhere",
            "MOVED 1 a:b",
            "ASK",
            "ERR MOVED 1 a:1",
        ] {
            assert_eq!(redirection(line), None, "{line}");
        }
    }
}
