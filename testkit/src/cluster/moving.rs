//! Slots that move from one master to another.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::cluster::Cluster;
use crate::server::Server;
use crate::wait::eventually;

/// How many keys are moved by one command.
const BATCH: &str = "100";

/// One slot on its way from a master to another, step by step. A test can stop after each.
#[derive(Debug)]
pub struct Move<'a> {
    cluster: &'a Cluster,
    slot: u16,
    /// The number of the master that gives the slot away.
    pub from: usize,
    /// The number of the master that gets it.
    pub to: usize,
}

impl Cluster {
    /// A move of a slot to another master. Nothing has happened yet.
    pub fn move_slot(&self, slot: u16, to: usize) -> Move<'_> {
        Move {
            cluster: self,
            slot,
            from: self.master_of_slot(slot),
            to,
        }
    }

    /// Moves so many slots from one master to another as an operator does, with redis-cli.
    pub async fn reshard(&self, from: usize, to: usize, slots: u16) {
        let (from, to) = (&self.ids[from], &self.ids[to]);
        let slots = slots.to_string();
        let words = [
            "--cluster-from",
            from,
            "--cluster-to",
            to,
            "--cluster-slots",
            &slots,
        ];
        self.redis_cli("reshard", &[&words[..], &["--cluster-yes"]].concat())
            .await;
    }

    /// Gives all masters their share of the slots as an operator does, with redis-cli. Further
    /// arguments tell it what that is (`--cluster-weight`).
    pub async fn rebalance(&self, arguments: &[&str]) {
        self.redis_cli("rebalance", arguments).await;
    }

    /// Runs `redis-cli --cluster` to its end; panics with what it says if it fails.
    async fn redis_cli(&self, job: &str, arguments: &[&str]) {
        let node = self.nodes.iter().find(|node| node.runs());
        let node = node.expect("a node that runs");
        let output = node.folder().join("redis-cli.out");
        let file = File::create(&output).expect("a file in the node's folder");
        let mut child = Command::new("redis-cli")
            .args([
                "--cluster",
                job,
                &format!("127.0.0.1:{}", node.known_port()),
            ])
            .args(arguments)
            .args(tls_arguments(node))
            .current_dir(node.folder())
            .stdin(Stdio::null())
            .stderr(file.try_clone().expect("a second handle"))
            .stdout(file)
            .spawn()
            .expect("redis-cli on the PATH (apt-get install -y redis-tools)");
        let mut status = None;
        eventually("redis-cli ends", || {
            status = child.try_wait().expect("our own child");
            status.is_some()
        })
        .await;
        let said = std::fs::read_to_string(output).unwrap_or_default();
        assert!(
            status.is_some_and(|s| s.success()),
            "redis-cli {job}: {said}"
        );
    }
}

impl Move<'_> {
    /// Lets the new master take requests for the slot that are ASKING.
    pub fn import(&self) {
        self.set(self.to, &["IMPORTING", &self.cluster.ids[self.from]]);
    }

    /// Lets the old master send requests for keys that it does not have to the new one (ASK).
    pub fn migrate(&self) {
        self.set(self.from, &["MIGRATING", &self.cluster.ids[self.to]]);
    }

    /// Moves some keys.
    pub fn move_these(&self, keys: &[&str]) {
        let (from, to) = (&self.cluster.nodes[self.from], &self.cluster.nodes[self.to]);
        let port = to.known_port().to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        from.command(&[&words[..], keys].concat())
    }

    /// Moves all keys of the slot.
    pub fn move_keys(&self) {
        let from = &self.cluster.nodes[self.from];
        let slot = self.slot.to_string();
        loop {
            let keys: Vec<String> = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, BATCH]);
            if keys.is_empty() {
                return;
            }
            self.move_these(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    /// Makes the new master the slot's owner: the two know it at once, the others are told.
    pub fn assign(&self) {
        let owner = &self.cluster.ids[self.to];
        self.set(self.to, &["NODE", owner]);
        self.set(self.from, &["NODE", owner]);
    }

    /// Goes all steps.
    pub fn run(&self) {
        self.import();
        self.migrate();
        self.move_keys();
        self.assign();
    }

    /// Ends a move that was begun without making it: the old master keeps the slot. Keys that were
    /// moved stay at the new one.
    pub fn give_up(&self) {
        self.set(self.from, &["STABLE"]);
        self.set(self.to, &["STABLE"]);
    }

    fn set(&self, node: usize, words: &[&str]) {
        let slot = self.slot.to_string();
        let set = ["CLUSTER", "SETSLOT", &slot];
        self.cluster.nodes[node].command(&[&set[..], words].concat())
    }
}

/// How redis-cli reaches a node where nodes reach each other with TLS: with the node's own
/// certificate.
fn tls_arguments(node: &Server) -> Vec<String> {
    if node.known_port() == node.port {
        return Vec::new();
    }
    let file = |name: &str| -> String {
        let (_, file): (String, String) = node.command(&["CONFIG", "GET", name]);
        file
    };
    let files = [
        ("--cacert", "tls-ca-cert-file"),
        ("--cert", "tls-cert-file"),
        ("--key", "tls-key-file"),
    ];
    let files = files.map(|(argument, name)| [argument.to_owned(), file(name)]);
    let tls = std::iter::once("--tls".to_owned());
    tls.chain(files.into_iter().flatten()).collect()
}
