//! The ways that lead to a server: a proxy for each worker, so that each can be cut off by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use testkit::Proxy;

pub struct Links {
    /// The server's port.
    pub target: Arc<AtomicU16>,
    lanes: Vec<Proxy>,
}

impl Links {
    /// To each server. Those who wait for a quorum queue at the server that is the first by name:
    /// in each lane the names are in the order of the servers.
    pub fn to(servers: &[u16], lanes: usize) -> Vec<Self> {
        let target = |&server| Self {
            target: Arc::new(AtomicU16::new(server)),
            lanes: Vec::new(),
        };
        let mut links: Vec<Self> = servers.iter().map(target).collect();
        for _ in 0..lanes {
            let mut lane: Vec<_> = servers.iter().map(|&port| Proxy::before(port)).collect();
            lane.sort_by_key(Proxy::server);
            for ((proxy, links), &server) in lane.into_iter().zip(&mut links).zip(servers) {
                proxy.lead_to(server);
                links.lanes.push(proxy);
            }
        }
        links
    }

    pub fn lane(&self, lane: usize) -> &Proxy {
        &self.lanes[lane]
    }

    /// Leads new connections to another server; those that are there stay.
    pub fn lead_to(&self, server: u16) {
        self.target.store(server, Ordering::SeqCst);
        self.lanes.iter().for_each(|lane| lane.lead_to(server));
    }

    /// Breaks the connections of all lanes.
    pub fn cut(&self) {
        self.lanes.iter().for_each(Proxy::cut);
    }
}
