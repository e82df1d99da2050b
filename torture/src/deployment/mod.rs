//! Servers that appoint masters among them: with sentinels, or as a cluster. The workers reach them
//! without proxies, at the addresses that the servers tell.

mod cluster;
mod sentinels;
mod view;

use std::time::Duration;

use testkit::{Cluster, ClusterOptions, Launch, SentinelOptions, Sentinels, Server};
use tokio::time::sleep;

use crate::engine::Engine;
use crate::faults::{Class, Fault};
use crate::history::{TTLS, key};
use crate::observer::Observer;
use crate::plan::Plan;
use crate::server::PERSISTENT;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long a master may be silent until another is appointed: longer than any safe fault on a
/// busy machine; and in a run whose faults wait for that, about as long as a TTL.
const SAFE: Duration = Duration::from_secs(3);
const UNSAFE: Duration = Duration::from_secs(1);
/// For how long a safe fault silences a master at most.
const SILENCE: Duration = Duration::from_millis(1500);
/// How long a server is away that comes back; it takes time to start.
const ABSENCE: Duration = Duration::from_millis(900);
/// What replicas lack of a master's last writes.
const LAG: Duration = Duration::from_millis(300);

pub enum Deployment {
    Sentinels(Sentinels),
    Cluster(Cluster),
}

impl Deployment {
    /// That of a plan; none if its servers do not know each other.
    pub fn start(plan: &Plan) -> Option<Self> {
        let patience = match plan.class() {
            Class::Safe => SAFE,
            Class::Unsafe => UNSAFE,
        };
        match plan.engine {
            Engine::Server | Engine::Quorum => None,
            Engine::Sentinel => Some(Self::Sentinels(Sentinels::with(&SentinelOptions {
                down_after: patience,
                launch: Launch::with(&PERSISTENT),
                ..SentinelOptions::default()
            }))),
            Engine::Cluster => {
                let cluster = Cluster::with(&ClusterOptions {
                    node_timeout: patience,
                    full_coverage: false,
                    launch: Launch::with(&PERSISTENT),
                    ..ClusterOptions::default()
                });
                let on = |master| (0..TTLS.len()).any(|n| cluster.master_of(&key(n)) == master);
                assert!((0..3).all(on), "each master has a key");
                Some(Self::Cluster(cluster))
            }
        }
    }

    /// The servers that the workers are told of.
    pub fn ports(&self) -> Vec<u16> {
        let servers = match self {
            Self::Sentinels(sentinels) => &sentinels.sentinels,
            Self::Cluster(cluster) => &cluster.nodes,
        };
        servers.iter().map(|server| server.port).collect()
    }

    /// For each key, what watches it at its master, whichever that is.
    pub fn observers(&self) -> Vec<Observer> {
        match self {
            Self::Sentinels(_) => {
                let master = sentinels::follow_master(self.ports());
                vec![Observer::of_server(master)]
            }
            Self::Cluster(_) => {
                let view = |index| view::Slot::new(index, self.ports());
                (0..TTLS.len())
                    .map(|index| Observer::start(view(index)))
                    .collect()
            }
        }
    }

    /// Those that are master of something.
    pub fn masters(&self) -> Vec<&Server> {
        match self {
            Self::Sentinels(sentinels) => vec![&sentinels.servers[sentinels.master()]],
            Self::Cluster(cluster) => {
                let nodes = (0..cluster.nodes.len()).filter(|&n| !cluster.slots_of(n).is_empty());
                nodes.map(|node| &cluster.nodes[node]).collect()
            }
        }
    }

    /// Waits until all servers run and know each other.
    pub async fn settled(&self) {
        match self {
            Self::Sentinels(sentinels) => sentinels.settled().await,
            Self::Cluster(cluster) => cluster.settled().await,
        }
    }

    /// Does what a fault does, and waits until the servers have got over it.
    pub async fn act(
        &mut self,
        fault: Fault,
        length: Duration,
        random: &mut fastrand::Rng,
    ) -> Result<(), Error> {
        let before = self.master_ports();
        match self {
            _ if fault == Fault::ClientKill => {
                for kind in ["normal", "pubsub"] {
                    self.tell(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])?;
                }
            }
            _ if fault == Fault::ScriptFlush => self.tell(&["SCRIPT", "FLUSH"])?,
            Self::Sentinels(sentinels) => sentinels::act(sentinels, fault, length, random).await?,
            Self::Cluster(cluster) => cluster::act(cluster, fault, length, random).await?,
        }
        self.settled().await;
        let is_meant = fault.class() == Class::Unsafe || fault == Fault::ClusterFailover;
        if !is_meant && self.master_ports() != before {
            let name = fault.name();
            return Err(
                format!("{name}: the machine was so slow that a master was replaced").into(),
            );
        }
        Ok(())
    }

    fn master_ports(&self) -> Vec<u16> {
        self.masters().iter().map(|server| server.port).collect()
    }

    fn tell(&self, words: &[&str]) -> redis::RedisResult<()> {
        self.masters()
            .iter()
            .try_for_each(|server| server.query::<redis::Value>(words).map(drop))
    }
}

fn one_of(numbers: &[usize], random: &mut fastrand::Rng) -> usize {
    numbers[random.usize(..numbers.len())]
}

/// Stops servers for a while.
async fn freeze(servers: &[&Server], length: Duration) {
    servers.iter().for_each(|server| server.freeze());
    sleep(length.min(SILENCE)).await;
    servers.iter().for_each(|server| server.thaw());
}

/// Ends a server, which comes back with what it acknowledged.
async fn restart(server: &mut Server, length: Duration) {
    server.kill();
    sleep(length.min(ABSENCE)).await;
    server.restart();
}

/// Stops the replicas of a master, which lack what is written from now on.
async fn leave_behind(master: &Server, replicas: &[&Server]) -> Result<(), Error> {
    replicas.iter().for_each(|replica| replica.freeze());
    // What was sent already waits for them in the system's buffers.
    master.query::<i64>(&["CLIENT", "KILL", "TYPE", "replica"])?;
    sleep(LAG).await;
    Ok(())
}

fn thaw(servers: &[&Server]) {
    servers.iter().for_each(|server| server.thaw());
}
