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
    pub fn to(server: u16, lanes: usize) -> Self {
        Self {
            target: Arc::new(AtomicU16::new(server)),
            lanes: (0..lanes).map(|_| Proxy::before(server)).collect(),
        }
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
