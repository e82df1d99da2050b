//! Rounds of slices: in each round every contender has its turn, so that whatever else the
//! machine does disturbs all of them alike. Figures are compared within a round.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::{Cluster, ClusterOptions, Launch, Mode, Proxy, Server};

use crate::contender::{Contender, Store};
use crate::counts::Counts;
use crate::load::{Held, Report, now};
use crate::worker::{Load, Task, Worker};

/// From the word "go" to the start of a slice: all processes have heard it by then.
const HEAD_START: Duration = Duration::from_millis(10);

/// A load, and who carries it.
#[derive(Clone)]
pub struct Case {
    pub contenders: Vec<Contender>,
    pub servers: usize,
    /// Whether each server has its share of the slots of a cluster.
    pub is_cluster: bool,
    /// What a link to a server takes in each direction, if it is not the loopback.
    pub delay: Option<Duration>,
    /// Whether the first server's process is stopped while the load runs.
    pub frozen: bool,
    pub processes: usize,
    pub load: Load,
    pub slice: Duration,
    pub rounds: usize,
    pub threads: usize,
}

/// What one contender did in one slice.
pub struct Sample {
    pub slice: Duration,
    /// For each task of all processes, the cycles that it completed within the slice.
    pub counts: Vec<u64>,
    pub acquired: u64,
    /// All acquisitions by their time, if the load reports them.
    pub held: Vec<Held>,
    pub cpu: Duration,
    pub resident: f64,
    pub lost: u64,
    pub requests: u64,
    pub server_micros: u64,
}

/// For each contender, one sample a round.
pub type Samples = BTreeMap<Contender, Vec<Sample>>;

/// Runs a case on servers of its own.
pub fn run(case: &Case) -> Result<Samples> {
    let servers = if case.is_cluster {
        Cluster::with(&ClusterOptions {
            masters: u16::try_from(case.servers)?,
            replicas: 0,
            ..ClusterOptions::default()
        })
        .nodes
    } else {
        (0..case.servers)
            .map(|_| Launch::default().start())
            .collect::<io::Result<Vec<_>>>()?
    };
    let links: Option<Vec<Proxy>> = case.delay.map(|delay| {
        let link = |server: &Server| {
            let link = Proxy::before(server.port);
            link.set(Mode::Delay(delay), Mode::Delay(delay));
            link
        };
        servers.iter().map(link).collect()
    });
    let urls: Vec<String> = match &links {
        None => servers.iter().map(Server::url).collect(),
        Some(links) => links.iter().map(Proxy::url).collect(),
    };
    let mut samples = Samples::new();
    for round in 0..case.rounds {
        let mut order = case.contenders.clone();
        let turn = round % order.len();
        order.rotate_left(turn);
        for contender in order {
            let sample = slice(case, contender, &servers, &urls)
                .with_context(|| format!("{} in round {round}", contender.name()))?;
            samples.entry(contender).or_default().push(sample);
        }
    }
    Ok(samples)
}

fn slice(case: &Case, contender: Contender, servers: &[Server], urls: &[String]) -> Result<Sample> {
    let mut load = case.load.clone();
    if let Load::Cycles(cycles) = &mut load
        && let Some(key) = &mut cycles.key
    {
        // What one leaves behind does not meet another.
        *key = format!("{key}:{contender:?}");
    }
    let mut workers = (0..case.processes)
        .map(|process| {
            Worker::start(&Task {
                contender,
                store: Store {
                    urls: urls.to_vec(),
                    is_cluster: case.is_cluster,
                },
                load: load.clone(),
                process,
                threads: case.threads,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    for worker in &mut workers {
        worker.wait_ready()?;
    }
    let before = servers.iter().map(Counts::of).collect::<Result<Vec<_>>>()?;
    if case.frozen {
        servers[0].freeze();
    }
    let start = now() + HEAD_START.as_nanos() as u64;
    let end = start + case.slice.as_nanos() as u64;
    for worker in &mut workers {
        worker.go((start, end))?;
    }
    let reports = workers
        .into_iter()
        .map(Worker::collect)
        .collect::<Result<Vec<_>>>()?;
    if case.frozen {
        servers[0].thaw();
    }
    let (mut requests, mut server_micros) = (0, 0);
    for (server, before) in servers.iter().zip(&before) {
        let spent = Counts::of(server)?.requests_since(before, contender.sends_set());
        requests += spent.0;
        server_micros += spent.1;
    }
    let mut sample = sample(case.slice, reports)?;
    sample.requests = requests;
    sample.server_micros = server_micros;
    Ok(sample)
}

fn sample(slice: Duration, reports: Vec<Report>) -> Result<Sample> {
    let mut sample = Sample {
        slice,
        counts: Vec::new(),
        acquired: 0,
        held: Vec::new(),
        cpu: Duration::ZERO,
        resident: 0.0,
        lost: 0,
        requests: 0,
        server_micros: 0,
    };
    for report in reports {
        sample.counts.extend(report.counts);
        sample.acquired += report.acquired;
        sample.held.extend(report.held);
        sample.cpu += report.cpu;
        sample.resident += report.resident;
        sample.lost += report.lost;
    }
    sample.held.sort_by_key(|held| held.from);
    let alone = |pair: &[Held]| pair[0].until <= pair[1].from;
    ensure!(sample.held.windows(2).all(alone), "two holders at once");
    Ok(sample)
}
