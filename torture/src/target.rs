//! What the faults are done to, and the plan: which one when, to whom and for how long; seeded and
//! logged.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::{Mode, Proxy};
use tokio::sync::MutexGuard;

use crate::deployment::Deployment;
use crate::faults::{Class, Fault, Kind};
use crate::history::{Disturbance, History, now};
use crate::links::Links;
use crate::server::Server;
use crate::workers::Workers;

/// A server, and the ways that lead to it.
pub struct Node {
    pub server: tokio::sync::Mutex<Server>,
    pub links: Links,
}

pub struct Target {
    /// Servers that do not know each other.
    pub nodes: Vec<Node>,
    /// Those that do.
    pub deployment: Option<tokio::sync::Mutex<Deployment>>,
    pub workers: Arc<Workers>,
    pub history: Arc<History>,
    pub troubles: Mutex<Vec<Trouble>>,
}

/// What a fault meant to the quorum.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub from: u64,
    pub until: u64,
    /// Every worker reached a majority of servers that worked.
    pub spares_a_majority: bool,
}

/// Whom a fault hits, drawn before it begins.
pub struct Scope {
    pub lanes: Vec<usize>,
    /// Servers, in ascending order.
    pub nodes: Vec<usize>,
    /// Ways, as lane and server.
    pub links: Vec<(usize, usize)>,
    pub length: Duration,
}

pub type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Target {
    /// Does one of `faults` after another until `until`.
    pub async fn disturb(&self, faults: &[Fault], seed: u64, until: u64) -> Outcome {
        let mut random = fastrand::Rng::with_seed(seed);
        let pause = |random: &mut fastrand::Rng| Duration::from_millis(random.u64(150..700));
        tokio::time::sleep(pause(&mut random)).await;
        while !faults.is_empty() && now() < until {
            let fault = faults[random.usize(..faults.len())];
            // What one fault draws in its course does not change the next.
            self.carry_out(fault, random.fork(), until).await?;
            tokio::time::sleep(pause(&mut random)).await;
        }
        Ok(())
    }

    async fn carry_out(&self, fault: Fault, mut random: fastrand::Rng, until: u64) -> Outcome {
        let scope = self.scope(fault, &mut random);
        let mut details = Vec::new();
        if self.nodes.len() > 1 {
            let nodes = |lane| {
                let links = scope.links.iter().filter(move |(l, _)| *l == lane);
                links.map(|&(_, node)| node).collect::<Vec<_>>()
            };
            match (fault.kind(), scope.lanes.first()) {
                (Kind::Servers, _) => details.push(format!("servers {:?}", scope.nodes)),
                (Kind::Links, Some(&lane)) => details.push(format!("servers {:?} …", nodes(lane))),
                _ => {}
            }
        }
        match fault {
            Fault::KillWorkers | Fault::Reset | Fault::ClientKill | Fault::ScriptFlush => {}
            _ => details.push(format!("{} ms", scope.length.as_millis())),
        }
        let deployment = self.deployment_for(fault).await;
        let from = now();
        if from > until {
            return Ok(());
        }
        match deployment {
            Some(mut deployment) => self.act_on(&mut deployment, fault, &scope, random).await?,
            None => self.act(fault, &scope, &mut random).await?,
        }
        let until = now();
        if let Ok(mut troubles) = self.troubles.lock() {
            troubles.push(Trouble {
                from,
                until,
                spares_a_majority: self.spares_a_majority(fault, &scope),
            });
        }
        self.history.with(|record| {
            let whom: Vec<Option<usize>> = match fault.kind() {
                Kind::Links | Kind::Workers => scope.lanes.iter().copied().map(Some).collect(),
                _ => vec![None],
            };
            for lane in whom {
                record.disturbances.push(Disturbance {
                    name: fault.name(),
                    detail: details.join(", "),
                    from,
                    until,
                    lane,
                });
            }
        });
        Ok(())
    }

    /// The deployment, for no other fault meanwhile, if the fault is done to it.
    async fn deployment_for(&self, fault: Fault) -> Option<MutexGuard<'_, Deployment>> {
        match (&self.deployment, fault.kind()) {
            (_, Kind::Workers) | (None, _) => None,
            (Some(deployment), _) => Some(deployment.lock().await),
        }
    }

    async fn act_on(
        &self,
        deployment: &mut Deployment,
        fault: Fault,
        scope: &Scope,
        mut random: fastrand::Rng,
    ) -> Outcome {
        if fault.class() == Class::Unsafe {
            for &lane in &scope.lanes {
                self.workers.order(lane, "linger 2000");
            }
        }
        deployment.act(fault, scope.length, &mut random).await
    }

    fn scope(&self, fault: Fault, random: &mut fastrand::Rng) -> Scope {
        // Parts and multiples of the TTLs.
        let length = Duration::from_millis(match random.u32(..3) {
            0 => random.u64(50..300),
            1 => random.u64(300..900),
            _ => random.u64(900..2000),
        });
        let mut lanes: Vec<usize> = (0..self.workers.count()).collect();
        random.shuffle(&mut lanes);
        lanes.truncate(random.usize(1..=self.workers.count() * 3 / 4));
        let minority = self.minority();
        let is_small = random.u32(..6) < if fault.class() == Class::Safe { 4 } else { 2 };
        let hit = match self.nodes.len() {
            few @ (0 | 1) => few,
            // One that lacks what a majority has is no harm.
            all if fault == Fault::Promote => random.usize(minority + 1..=all),
            _ if fault == Fault::Lag => 1,
            _ if is_small => random.usize(1..=minority),
            all => random.usize(minority + 1..=all),
        };
        let nodes = self.some(hit, random);
        // Half of the time a worker loses all servers, else only some.
        let lost = match self.nodes.len() {
            count if count > 1 && (fault == Fault::CutLinks || random.bool()) => {
                random.usize(1..count)
            }
            count => count,
        };
        Scope {
            links: self.links(&lanes, lost, random),
            lanes,
            nodes,
            length,
        }
    }

    /// Ways from each of `lanes` to so many servers.
    pub fn links(
        &self,
        lanes: &[usize],
        lost: usize,
        random: &mut fastrand::Rng,
    ) -> Vec<(usize, usize)> {
        let mut links = Vec::new();
        for &lane in lanes {
            links.extend(self.some(lost, random).into_iter().map(|node| (lane, node)));
        }
        links
    }

    fn some(&self, count: usize, random: &mut fastrand::Rng) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.nodes.len()).collect();
        random.shuffle(&mut nodes);
        nodes.truncate(count);
        nodes.sort_unstable();
        nodes
    }

    /// How many servers may fail without a loss.
    pub fn minority(&self) -> usize {
        self.nodes.len().saturating_sub(1) / 2
    }

    fn spares_a_majority(&self, fault: Fault, scope: &Scope) -> bool {
        let lost = |lane| scope.links.iter().filter(move |(l, _)| *l == lane).count();
        match fault.kind() {
            Kind::Servers => scope.nodes.len() <= self.minority(),
            Kind::Links => scope
                .lanes
                .iter()
                .all(|&lane| lost(lane) <= self.minority()),
            _ => false,
        }
    }

    /// Does something with the proxies on some ways.
    pub fn change(&self, links: &[(usize, usize)], change: impl Fn(&Proxy)) {
        for &(lane, node) in links {
            change(self.nodes[node].links.lane(lane));
        }
    }

    pub fn set(&self, links: &[(usize, usize)], requests: Mode, replies: Mode) {
        self.change(links, |proxy| proxy.set(requests, replies));
    }

    pub fn calm(&self, links: &[(usize, usize)]) {
        self.change(links, Proxy::pass);
    }
}
