//! Whether a server is a master.

use redis::Value;
use tokio::time::Instant;

use crate::backend::redis::connection::{Connection, Failure, no_answer};
use crate::backend::redis::error_class::is_forbidden;
use crate::error::Fault;

/// Fails, for now, if the server is not a master. A replica answers whoever only reads, and what it
/// says of a lock means nothing (P13).
pub(super) async fn check(connection: &Connection, until: Instant) -> Result<(), Fault> {
    let is_master = match connection.send(&redis::cmd("ROLE"), until).await {
        Ok(reply) => is_of_a_master(&reply),
        Err(Failure::Fault(fault)) if is_forbidden(&fault) => says_so(connection, until).await?,
        Err(failure) => return Err(failure.into_fault(connection.server())),
    };
    match is_master {
        true => Ok(()),
        false => Err(no_answer(connection.server(), "it is not a master now")),
    }
}

/// The same, for a user without the right to ask for the role alone.
async fn says_so(connection: &Connection, until: Instant) -> Result<bool, Fault> {
    let mut info = redis::cmd("INFO");
    info.arg("replication");
    match connection.send(&info, until).await {
        Ok(reply) => Ok(is_said_of_a_master(&reply)),
        Err(Failure::Fault(fault)) if is_forbidden(&fault) => {
            let text = "the user may run neither ROLE nor INFO, so nobody knows whether the server \
                        is the master";
            Err(connection.refusal(text.to_owned()))
        }
        Err(failure) => Err(failure.into_fault(connection.server())),
    }
}

fn is_of_a_master(role: &Value) -> bool {
    match role {
        Value::Array(parts) => match parts.first() {
            Some(Value::BulkString(role)) => role == b"master",
            _ => false,
        },
        _ => false,
    }
}

fn is_said_of_a_master(info: &Value) -> bool {
    let info: String = redis::from_redis_value_ref(info).unwrap_or_default();
    info.lines().any(|line| line.trim_end() == "role:master")
}
