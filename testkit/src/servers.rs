//! Several servers, as a quorum has them.

use crate::server::Server;

/// Independent servers.
#[derive(Debug)]
pub struct Servers(pub Vec<Server>);

impl Servers {
    /// Starts so many.
    pub fn start(count: usize) -> Self {
        Self((0..count).map(|_| Server::start()).collect())
    }

    /// Their URLs over TCP.
    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(Server::url).collect()
    }

    /// How many servers have the key.
    pub fn with_key(&self, key: &str) -> usize {
        self.values(key).iter().flatten().count()
    }

    /// What each server has in the key.
    pub fn values(&self, key: &str) -> Vec<Option<String>> {
        self.0.iter().map(|server| server.get(key)).collect()
    }
}
