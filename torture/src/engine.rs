//! What the locks are on.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// One server.
    Server,
    /// A majority of servers that do not know each other.
    Quorum,
    /// A master with replicas, watched by sentinels.
    Sentinel,
    /// A Redis Cluster.
    Cluster,
}

impl Engine {
    /// That over so many servers that do not know each other.
    pub fn over(servers: usize) -> Self {
        if servers == 1 {
            Self::Server
        } else {
            Self::Quorum
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Quorum => "quorum",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        }
    }

    /// Whether its servers appoint masters among them.
    pub fn is_deployment(self) -> bool {
        matches!(self, Self::Sentinel | Self::Cluster)
    }
}
