//! What the tests, the examples, the torture run and the benchmarks share: redis-servers of their
//! own, single, with sentinels or as a cluster, and a proxy that stands in for a network with faults.
//!
//! What waits long is async, so that the test's own tasks go on; all else blocks for a moment.

#![allow(
    clippy::exhaustive_enums,
    reason = "nobody outside this workspace uses it"
)]
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is how a test says what went wrong"
)]

mod abilities;
mod cluster;
mod haproxy;
mod launch;
mod process;
mod proxy;
mod replication;
mod sentinels;
mod server;
mod servers;
mod slots;
mod tls;
mod wait;

pub use abilities::left_out;
pub use cluster::{Cluster, ClusterOptions, Move};
pub use haproxy::HaProxy;
pub use launch::Launch;
pub use process::{freeze, thaw};
pub use proxy::{Mode, Proxy, runtime};
pub use replication::Switch;
pub use sentinels::{MASTER, SentinelOptions, Sentinels};
pub use server::Server;
pub use servers::Servers;
pub use slots::{key_in, slot_of};
pub use tls::{Authority, Identity, Tls};
pub use wait::{DEADLINE, eventually, eventually_blocking, unique_key};
