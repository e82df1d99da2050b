//! Whether a server is one that locks are safe on, as far as it tells when the locker connects.

use std::sync::Arc;

use tokio::time::Instant;

use crate::backend::redis::connection::{Connection, Failure};
use crate::backend::redis::reach::one_of_a_cluster;
use crate::error::Fault;
use crate::events::emit;
use crate::key;

/// Fails if the server is one of several masters of a cluster, of which each has some of the keys.
pub(super) async fn check_has_all_keys(
    connection: &Connection,
    prefix: &str,
    until: Instant,
) -> Result<(), Fault> {
    let [first, middle, last] = key::spread(prefix);
    let ask = async |key: String| {
        let answer = connection.send(redis::cmd("EXISTS").arg(key), until).await;
        match answer {
            Err(Failure::Redirected(to, _)) if !to.is_once => Err(one_of_a_cluster(connection)),
            // What else there is to say, the check of the rights or an acquire says.
            _ => Ok(()),
        }
    };
    tokio::try_join!(ask(first), ask(middle), ask(last)).map(drop)
}

/// What a server tells of itself that endangers locks. A user may not have the right to hear it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dangers {
    /// The policy by which locks may be evicted.
    eviction: Option<String>,
    is_writable_replica: bool,
}

impl Dangers {
    pub(super) async fn of(connection: &Connection, until: Instant) -> Self {
        // With RESP2 it may be a proxy that hangs up at what it does not know.
        if !connection.speaks_resp3() {
            return Self::default();
        }
        let info = async |section: &str| {
            let answer = connection
                .send(redis::cmd("INFO").arg(section), until)
                .await;
            let text = answer.ok().map(redis::from_redis_value::<String>);
            text.and_then(Result::ok).unwrap_or_default()
        };
        let (memory, replication) = tokio::join!(info("memory"), info("replication"));
        Self::told_by(&memory, &replication)
    }

    fn told_by(memory: &str, replication: &str) -> Self {
        let policy = field(memory, "maxmemory_policy");
        let has_limit = field(memory, "maxmemory").is_some_and(|limit| limit != "0");
        Self {
            eviction: policy
                .filter(|policy| has_limit && *policy != "noeviction")
                .map(str::to_owned),
            is_writable_replica: field(replication, "role") == Some("slave")
                && field(replication, "slave_read_only") == Some("0"),
        }
    }

    pub(super) fn tell(self, server: &Arc<str>) {
        if let Some(policy) = self.eviction {
            let server = Arc::clone(server);
            emit(move || {
                tracing::warn!(
                    %server,
                    policy,
                    "redis may evict locks that are held when its memory is full: set its \
                     maxmemory-policy to noeviction"
                );
            });
        }
        if self.is_writable_replica {
            let server = Arc::clone(server);
            emit(move || {
                tracing::warn!(
                    %server,
                    "redis is a replica that takes writes: its master knows nothing of the locks, \
                     and can overwrite them at any time: connect to the master"
                );
            });
        }
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = info.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(known, _)| *known == name)?;
    Some(value.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_with_a_limit_and_a_policy_evicts() {
        for (memory, policy) in [
            ("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n", None),
            ("maxmemory:100\r\nmaxmemory_policy:noeviction\r\n", None),
            (
                "maxmemory:100\r\nmaxmemory_policy:volatile-ttl\r\n",
                Some("volatile-ttl"),
            ),
            (
                "maxmemory:100\r\nmaxmemory_policy:allkeys-lfu\r\n",
                Some("allkeys-lfu"),
            ),
            ("", None),
        ] {
            let dangers = Dangers::told_by(memory, "");
            assert_eq!(dangers.eviction.as_deref(), policy, "{memory}");
            assert!(!dangers.is_writable_replica);
        }
    }

    #[test]
    fn only_a_replica_that_is_not_read_only_takes_writes() {
        for (replication, is_writable) in [
            ("role:slave\r\nslave_read_only:0\r\n", true),
            ("role:slave\r\nslave_read_only:1\r\n", false),
            ("role:master\r\n", false),
            ("", false),
        ] {
            let dangers = Dangers::told_by("", replication);
            assert_eq!(dangers.is_writable_replica, is_writable, "{replication}");
        }
    }
}
