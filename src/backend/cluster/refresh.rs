//! Asking the servers of a cluster who has which slots.
//!
//! All masters are asked at once, also those to which no connection is open: the others may be the
//! only ones that know of a change. If none of them answered last, so are the user's servers.
//! Servers that learn of a change at different times disagree for a while, and one that the others
//! took for dead goes on telling what was. So what most of them say is entered, of those who answer
//! soon after the first. Nobody waits here for one that hangs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::backend::cluster::map::Map;
use crate::backend::cluster::{Cluster, host_of};
use crate::backend::fan_out::FanOut;
use crate::backend::redis::connection::Failure;
use crate::backend::redis::connections::Connections;
use crate::backend::redis::error_class::has_no_cluster;
use crate::error::Fault;

/// How long the servers are waited for.
const LIMIT: Duration = Duration::from_millis(500);
/// How long the others are waited for when one has told of all slots.
const FOR_THE_OTHERS: Duration = Duration::from_millis(30);
/// How long after an answer nobody is asked again.
const REST: Duration = Duration::from_millis(50);
/// After this long, it is asked again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

impl Cluster {
    /// Asks who has which slots whenever what is known may be out of date, for as long as the present
    /// runtime lives: the driver's, which no user blocks (N2). A panic, of a waker of the caller's own
    /// for instance, does not end it for good.
    pub(crate) async fn keep_up(self: Arc<Self>) {
        loop {
            let _ = tokio::spawn(Arc::clone(&self).ask_when_outdated()).await;
            sleep(AFTER_PANIC).await;
            self.is_outdated.notify_one();
        }
    }

    async fn ask_when_outdated(self: Arc<Self>) {
        loop {
            self.is_outdated.notified().await;
            match self.ask().await {
                Ok(map) => {
                    self.enter(map);
                    *self.fault.lock() = None;
                }
                Err(fault) => *self.fault.lock() = Some(fault),
            }
            self.changes.send_replace(());
            sleep(REST).await;
        }
    }

    async fn ask(&self) -> Result<Map, Fault> {
        let mut until = Instant::now() + LIMIT;
        let mut asked = FanOut::new();
        for (number, connections) in self.to_be_asked().into_iter().enumerate() {
            asked.ask(number, slots(connections, until));
        }
        let mut maps = Vec::new();
        let mut fault = None;
        while let Ok(Some((_, answer))) = timeout_at(until, asked.next()).await {
            match answer {
                Ok(map) => {
                    if map.is_whole() {
                        until = until.min(Instant::now() + FOR_THE_OTHERS);
                    }
                    maps.push(map);
                }
                // What one refuses for good says more than that another does not answer.
                Err(failed) if failed.permanent => fault = Some(failed),
                Err(failed) => {
                    fault.get_or_insert(failed);
                }
            }
        }
        // A connection that stays silent is to be found out, and opened anew.
        asked.finish_behind();
        most_agreed(maps).ok_or_else(|| fault.unwrap_or_else(|| self.unknown()))
    }

    fn to_be_asked(&self) -> Vec<Arc<Connections>> {
        let mut servers = self.table.read().connections.clone();
        let is_any_live = servers.iter().any(|known| known.answering().is_some());
        if !is_any_live {
            let seeds = self.seeds.iter().flat_map(|seed| self.connections(seed));
            servers.extend(seeds);
        }
        servers
    }
}

/// What one server tells of the slots.
async fn slots(connections: Arc<Connections>, until: Instant) -> Result<Map, Fault> {
    let connection = connections.open(until).await?;
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let answer = match connection.send(&command, until).await {
        Ok(answer) => answer,
        Err(Failure::Fault(fault)) if has_no_cluster(&fault) => {
            let text = "the server is not one of a Redis Cluster: connect with `Locker::connect`";
            return Err(connection.refusal(text.to_owned()));
        }
        Err(failure) => return Err(failure.into_fault(connection.server())),
    };
    let map = Map::read(&answer, host_of(connection.server()));
    map.ok_or_else(|| connection.unexpected(&answer))
}

/// What most servers say, of those that know of most slots. `None` if no slot has a server.
fn most_agreed(maps: Vec<Map>) -> Option<Map> {
    let mut votes: HashMap<Map, usize> = HashMap::new();
    for map in maps {
        *votes.entry(map).or_default() += 1;
    }
    let known = votes.into_iter().filter(|(map, _)| map.covered() > 0);
    let most = known.max_by_key(|(map, votes)| (map.is_whole(), *votes, map.covered()));
    most.map(|(map, _)| map)
}
