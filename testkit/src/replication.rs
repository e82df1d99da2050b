//! Masters and their replicas, whoever appoints them: sentinels or a cluster.

use std::time::Instant;

use redis::Value;

use crate::server::Server;
use crate::wait::eventually;

/// Another server has become master.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Switch {
    /// Its number among the servers.
    pub master: usize,
    /// When that could be learned first: at the latest look before this one it could not.
    pub at: Instant,
}

impl Server {
    /// Whether it says that it is a master.
    pub(crate) fn is_master(&self) -> bool {
        self.role().first().is_some_and(|role| role == "master")
    }

    /// Whether it is a replica that follows its master.
    pub(crate) fn follows(&self) -> bool {
        self.followed().is_some()
    }

    /// The port of the master that it follows.
    pub(crate) fn followed(&self) -> Option<u16> {
        match &self.role()[..] {
            [_, _, port, state, ..] if state == "connected" => port.parse().ok(),
            _ => None,
        }
    }

    /// The answer to ROLE; what is no word or number in it is left empty.
    fn role(&self) -> Vec<String> {
        let answer: Vec<Value> = self.query(&["ROLE"]).unwrap_or_default();
        let word = |value| redis::from_redis_value(value).unwrap_or_default();
        answer.into_iter().map(word).collect()
    }

    /// How much it has written, or has taken over from its master.
    fn offset(&self) -> Option<u64> {
        let offset = self.info(&["INFO", "replication"], "master_repl_offset")?;
        offset.parse().ok()
    }
}

/// Waits until the replicas have all that the master has written by now.
pub(crate) async fn replicated(master: &Server, replicas: &[&Server]) {
    let written = master.offset().expect("the offset of a master");
    eventually("the replicas have what the master wrote", || {
        let mut replicas = replicas.iter();
        replicas.all(|replica| replica.follows() && replica.offset() >= Some(written))
    })
    .await;
}
