//! A Redis Cluster.

mod moving;
mod view;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::launch::Launch;
use crate::replication::{Switch, replicated};
use crate::server::Server;
use crate::slots::{SLOTS, key_in, slot_of};
use crate::wait::{eventually_agreed, eventually_all, eventually_blocking};

pub use moving::Move;
use view::{Agreed, Line, agreement, view};

/// How long a node tries to take over when it is told to; it may come to nothing. It begins anew
/// when it is told again.
const ATTEMPT: Duration = Duration::from_secs(5);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many masters there are. Defaults to 3.
    pub masters: u16,
    /// How many replicas each master has. Defaults to 1.
    pub replicas: u16,
    /// How long a node is silent until another takes it for down. Defaults to 2 s.
    pub node_timeout: Duration,
    /// Whether all nodes refuse while any slot has no master (`cluster-require-full-coverage`).
    /// Defaults to true, as in the server.
    pub full_coverage: bool,
    /// Further arguments, TLS and environment, for all nodes.
    pub launch: Launch,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            masters: 3,
            replicas: 1,
            node_timeout: Duration::from_secs(2),
            full_coverage: true,
            launch: Launch::default(),
        }
    }
}

/// The nodes of a cluster. All of them end with the value.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes: first those that are masters at the beginning.
    pub nodes: Vec<Server>,
    /// The name that each node has in the cluster.
    ids: Vec<String>,
}

impl Cluster {
    /// Starts 3 masters with a replica each, and waits until they serve all slots.
    pub fn start() -> Self {
        Self::with(&ClusterOptions::default())
    }

    /// The same, of other sizes.
    pub fn with(options: &ClusterOptions) -> Self {
        let nodes = start_nodes(options);
        let id = |node: &Server| node.command(&["CLUSTER", "MYID"]);
        let ids = nodes.iter().map(id).collect();
        let started = Self { nodes, ids };
        started.found(usize::from(options.masters));
        eventually_blocking("the cluster serves all slots", || started.is_settled());
        started
    }

    /// The URLs of the nodes over TCP.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }

    /// The number of the master of a key's slot.
    pub fn master_of(&self, key: &str) -> usize {
        self.master_of_slot(slot_of(key))
    }

    /// The number of the running node that is master of a slot by what it says itself: of several
    /// that say so, the one that was appointed last. Waits while there is none.
    pub fn master_of_slot(&self, slot: u16) -> usize {
        let mut owner = None;
        eventually_blocking("a node is master of the slot", || {
            owner = self.owner(slot);
            owner.is_some()
        });
        owner.expect("it was waited for")
    }

    /// A key of its own in some slot of a master.
    pub fn key_at(&self, master: usize) -> String {
        let slots = self.slots_of(master);
        key_in(*slots.first().expect("a master that has slots"))
    }

    /// The slots that a node has as master, by what it says itself.
    pub fn slots_of(&self, node: usize) -> Vec<u16> {
        let line = self.itself(node).filter(Line::is_master);
        let ranges = line.into_iter().flat_map(|line| line.slots);
        ranges.flatten().collect()
    }

    /// The running replicas of a node, by what they say themselves.
    pub fn replicas_of(&self, master: usize) -> Vec<usize> {
        let follows = |&node: &usize| {
            let line = self.itself(node);
            line.is_some_and(|line| line.master == self.ids[master])
        };
        (0..self.nodes.len()).filter(follows).collect()
    }

    /// Waits until the running replicas have all that a master has written by now.
    pub async fn replicated(&self, master: usize) {
        let replicas = self.replicas_of(master);
        let replicas: Vec<_> = replicas.iter().map(|&node| &self.nodes[node]).collect();
        replicated(&self.nodes[master], &replicas).await;
    }

    /// Makes a replica the master in place of its master, which stays up (`CLUSTER FAILOVER`).
    pub async fn failover(&self, replica: usize) -> Switch {
        let mut asked: Option<Instant> = None;
        eventually_agreed("the replica takes over", || {
            if asked.is_none_or(|asked| asked.elapsed() > ATTEMPT) {
                let answer = self.nodes[replica].query::<()>(&["CLUSTER", "FAILOVER"]);
                asked = answer.ok().map(|()| Instant::now());
            }
            !self.slots_of(replica).is_empty()
        })
        .await;
        Switch {
            master: replica,
            at: Instant::now(),
        }
    }

    /// Waits until another running node than this one is master of a slot, and serves it.
    pub async fn switched(&self, slot: u16, from: usize) -> Switch {
        let mut master = from;
        eventually_agreed("another node serves the slot", || {
            master = self.owner(slot).unwrap_or(from);
            master != from && self.serves(master)
        })
        .await;
        Switch {
            master,
            at: Instant::now(),
        }
    }

    /// Waits until all running nodes agree on who has which slot, all slots are served, and each
    /// replica follows its master.
    pub async fn settled(&self) {
        eventually_all("the cluster serves all slots", || self.is_settled()).await;
    }

    /// The master of a slot, as [`Self::master_of_slot`].
    fn owner(&self, slot: u16) -> Option<usize> {
        let own = (0..self.nodes.len()).filter_map(|node| Some((self.itself(node)?, node)));
        let owners = own.filter(|(line, _)| line.is_master() && line.has(slot));
        let last = owners.max_by_key(|(line, _)| line.epoch);
        last.map(|(_, node)| node)
    }

    /// What a running node says about itself.
    fn itself(&self, node: usize) -> Option<Line> {
        let mut lines = view(&self.nodes[node]).into_iter();
        lines.find(|line| line.flags.contains("myself"))
    }

    fn serves(&self, node: usize) -> bool {
        let state = self.nodes[node].info(&["CLUSTER", "INFO"], "cluster_state");
        state.is_some_and(|state| state == "ok")
    }

    fn is_settled(&self) -> bool {
        let numbers = 0..self.nodes.len();
        let running: Vec<_> = numbers.filter(|&node| self.nodes[node].runs()).collect();
        let views = running
            .iter()
            .map(|&node| agreement(view(&self.nodes[node])));
        let views: HashSet<_> = views.collect();
        let is_whole = |view: &Vec<Agreed>| {
            let slots = view
                .iter()
                .flat_map(|(_, _, slots)| slots.clone())
                .flatten();
            view.len() == running.len() && slots.count() == usize::from(SLOTS)
        };
        let is_in_order = |&node: &usize| {
            let server = &self.nodes[node];
            self.serves(node) && (server.is_master() || server.follows())
        };
        views.len() == 1 && views.iter().all(is_whole) && running.iter().all(is_in_order)
    }

    /// Makes a cluster of nodes that do not know each other. By hand: redis-cli takes longer.
    fn found(&self, masters: usize) {
        let (lowest, replicas) = self.nodes.split_at(masters);
        let share = usize::from(SLOTS).div_ceil(masters);
        for (number, node) in lowest.iter().enumerate() {
            let end = usize::from(SLOTS).min((number + 1) * share);
            let slot = |slot: usize| u16::try_from(slot).expect("a slot");
            node.own_slots(slot(number * share)..=slot(end - 1));
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let epoch = (number + 1).to_string();
            node.command::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
        }
        for (number, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[..number] {
                let port = other.known_port().to_string();
                node.command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port]);
            }
        }
        eventually_blocking("the nodes know each other", || {
            let mut views = self.nodes.iter().map(view);
            views.all(|view| view.len() == self.nodes.len() && view.iter().all(Line::is_met))
        });
        for (number, replica) in replicas.iter().enumerate() {
            let master = &self.ids[number % masters];
            replica.command::<()>(&["CLUSTER", "REPLICATE", master]);
        }
    }
}

fn start_nodes(options: &ClusterOptions) -> Vec<Server> {
    let timeout = options.node_timeout.as_millis().to_string();
    let full_coverage = if options.full_coverage { "yes" } else { "no" };
    let launch = options.launch.clone().and(&[
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        &timeout,
        "--cluster-require-full-coverage",
        full_coverage,
        "--cluster-replica-validity-factor",
        "0",
        "--repl-diskless-sync",
        "yes",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    let count = options.masters * (1 + options.replicas);
    Launch::start_all(vec![launch; usize::from(count)])
}
