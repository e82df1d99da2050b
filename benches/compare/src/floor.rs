//! The floor: `SET key value NX PX ttl`, and a compare-and-delete in Lua, over one multiplexed
//! connection of redis-rs, or over that of its cluster client. No waiting, no renewal, no fencing: whatever a lock adds is above it.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisFuture, Script, Value};

use crate::contender::{Client, Lock, Store};

static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end \
         return 0",
    )
});

const RENEW: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
     return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0";

/// How many renewals go out at once: about what an event loop finds due together.
const BATCH: usize = 100;

#[derive(Clone)]
pub struct Floor {
    connection: Connection,
}

pub struct BareLock {
    connection: Connection,
    key: String,
    value: String,
    ttl: u64,
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}

impl Client for Floor {
    type Lock = BareLock;

    async fn connect(store: &Store) -> Result<Self> {
        let connection = match &store.urls[..] {
            urls if store.is_cluster => {
                let client = redis::cluster::ClusterClient::new(urls.to_vec())?;
                Connection::Cluster(client.get_async_connection().await?)
            }
            [url] => {
                let client = redis::Client::open(url.as_str())?;
                Connection::One(client.get_multiplexed_async_connection().await?)
            }
            _ => bail!("the floor has one server, or a cluster"),
        };
        Ok(Self { connection })
    }

    fn lock(&self, key: &str, ttl: Duration) -> BareLock {
        BareLock {
            connection: self.connection.clone(),
            key: key.to_owned(),
            // As long as a value of redlease.
            value: format!("00000000-0000-4000-8000-000000000000:host/{key}"),
            ttl: ttl.as_millis() as u64,
        }
    }
}

impl Lock for BareLock {
    type Guard = ();

    async fn acquire(&mut self) -> Result<()> {
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(&self.value).arg("NX");
        set.arg("PX").arg(self.ttl);
        let set: Option<()> = set.query_async(&mut self.connection).await?;
        ensure!(set.is_some(), "the floor does not wait");
        Ok(())
    }

    async fn release(&mut self, (): ()) -> Result<()> {
        let mut call = RELEASE.key(&self.key);
        call.arg(&self.value);
        let deleted: u8 = call.invoke_async(&mut self.connection).await?;
        ensure!(deleted == 1, "the key of {} is gone", self.key);
        Ok(())
    }
}

/// Many keys of one connection, renewed in pipelines.
pub struct Renewals {
    connection: Connection,
    script: Script,
    keys: Vec<String>,
    ttl: Duration,
}

impl Renewals {
    /// Sets the keys.
    pub async fn start(floor: Floor, count: usize, ttl: Duration) -> Result<Self> {
        let mut connection = floor.connection;
        let script = Script::new(RENEW);
        script.load_async(&mut connection).await?;
        let keys: Vec<String> = (0..count).map(|number| format!("bare:{number}")).collect();
        for batch in keys.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for key in batch {
                let set = pipe.cmd("SET").arg(key).arg(key);
                set.arg("PX").arg(ttl.as_millis() as u64);
            }
            pipe.exec_async(&mut connection).await?;
        }
        Ok(Self {
            connection,
            script,
            keys,
            ttl,
        })
    }

    /// Renews each key once, and returns how many were lost.
    pub async fn renew(&mut self) -> Result<u64> {
        let mut lost = 0;
        for batch in self.keys.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for key in batch {
                let call = pipe.cmd("EVALSHA").arg(self.script.get_hash()).arg(1);
                call.arg(key).arg(key).arg(self.ttl.as_millis() as u64);
            }
            let renewed: Vec<u64> = pipe.query_async(&mut self.connection).await?;
            lost += batch.len() as u64 - renewed.iter().sum::<u64>();
        }
        Ok(lost)
    }
}
