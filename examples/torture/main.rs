//! Breaks locks on purpose, and checks what they promise.
//!
//! `cargo run --release --example torture -- --seconds 60 --servers 3 --seed 7 --fault mix` starts
//! worker processes and redis-servers, disturbs them, records what happens and checks it. It
//! ends with a table, and with an error if anything was found.
//!
//! * `--servers N`: 1, or a quorum of 3 or 5. A quorum suffers the same faults, mostly a minority of
//!   it, at times a majority or all. A worker can lose all servers or some of them.
//! * `--fault NAME`: one fault, several (`freeze,cut`), `none`, `mix` (all safe ones, two at a
//!   time) or `unsafe` (those under which Redis forgets the lock: the checker must see it; but not
//!   `lag`, which needs the counters that the others lose).
//! * `clock-rate` and `clock-step`, which need Debian's `faketime`, are in neither.
//! * `--page FILE.html`: also draws the run, best one of ten seconds; the SVG is put beside it.
//! * `--list`: names the faults.
//! * `--mutations [NAME …]`: breaks the crate itself in several ways, one after another; each must be
//!   caught.

#![allow(unreachable_pub, reason = "the modules of a program")]

mod acts;
mod checker;
mod clock;
mod faults;
mod history;
mod majority;
mod minority;
mod mutations;
mod observer;
mod picture;
mod probe;
mod proxy;
mod pulse;
mod report;
mod resource;
mod server;
mod target;
mod task;
mod worker;
mod workers;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use faults::{Class, Fault};
use history::{History, MS, now};
use observer::Observer;
use proxy::Proxies;
use report::Outcome;
use resource::Resource;
use server::Server;
use target::{Node, Target};
use workers::Workers;

const WORKERS: usize = 8;
/// The end of a run is without faults, so that the checker sees everything recover.
const CALM: u64 = 3000 * MS;
/// How long the workers may take to end: an unreachable server is put up with for this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to do, from the command line.
#[derive(Clone, Debug)]
struct Plan {
    seconds: u64,
    servers: usize,
    seed: u64,
    faults: Vec<Fault>,
    /// How many faults may be under way at once.
    at_once: u64,
    title: String,
    page: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if mutations::is_compiler() {
        return mutations::compile(&arguments);
    }
    match arguments.first().map(String::as_str) {
        Some("--worker") => return worker::run(&arguments[1..]),
        Some("--mutations") => return mutations::run_all(&arguments[1..]),
        Some("--list") => {
            for fault in Fault::ALL {
                println!("{:15} {:?}", fault.name(), fault.class());
            }
            return Ok(());
        }
        _ => {}
    }
    let plan = Plan::parse(&arguments)?;
    // Starting a server blocks a thread; the proxies need others.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run(&plan))?;
    outcome.print(&plan);
    if outcome.problems(&plan).is_empty() {
        Ok(())
    } else {
        Err("the run has found violations".into())
    }
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut plan = Self {
            seconds: 10,
            servers: 1,
            seed: 7,
            faults: Vec::new(),
            at_once: 1,
            title: "none".to_owned(),
            page: None,
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{pair:?} lacks a value").into());
            };
            match name.as_str() {
                "--seconds" => plan.seconds = value.parse()?,
                "--seed" => plan.seed = value.parse()?,
                "--page" => plan.page = Some(value.into()),
                "--servers" if ["1", "3", "5"].contains(&value.as_str()) => {
                    plan.servers = value.parse()?;
                }
                "--servers" => return Err("there can be 1, 3 or 5 servers".into()),
                "--fault" => plan.title.clone_from(value),
                other => return Err(format!("{other:?} is not known; see main.rs").into()),
            }
        }
        plan.at_once = if plan.title == "mix" { 2 } else { 1 };
        plan.faults = plan.named()?;
        Ok(plan)
    }

    /// The faults that the title names.
    fn named(&self) -> Result<Vec<Fault>, String> {
        let is_possible = |fault: &Fault| self.servers > 1 || !fault.needs_several();
        let of_class = |class| {
            let all = Fault::ALL.iter().copied();
            let is_apart = |f: &Fault| f.needs_counters() || f.needs_clocks();
            let fits = |f: &Fault| f.class() == class && is_possible(f) && !is_apart(f);
            all.filter(fits).collect()
        };
        let one = |name: &str| {
            let fault = Fault::ALL.iter().copied().find(|f| f.name() == name);
            let fault = fault.ok_or(format!("there is no fault {name:?}"))?;
            match is_possible(&fault) {
                true => Ok(fault),
                false => Err(format!("{name} is a fault of several servers")),
            }
        };
        match self.title.as_str() {
            "none" => Ok(Vec::new()),
            "mix" => Ok(of_class(Class::Safe)),
            "unsafe" => Ok(of_class(Class::Unsafe)),
            names => names.split(',').map(one).collect(),
        }
    }

    fn needs_clocks(&self) -> bool {
        self.faults.iter().any(|fault| fault.needs_clocks())
    }

    fn class(&self) -> Class {
        let is_unsafe = |fault: &Fault| fault.class() == Class::Unsafe;
        match self.faults.iter().any(is_unsafe) {
            true => Class::Unsafe,
            false => Class::Safe,
        }
    }

    /// Whether a run without an overlap shows that the checker is blind.
    fn must_overlap(&self) -> bool {
        self.class() == Class::Unsafe && self.faults != [Fault::Lag]
    }
}

async fn run(plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let history = Arc::new(History::default());
    let resource = Arc::new(Resource::default());
    let socket = folder.path().join("resource");
    resource.serve(tokio::net::UnixListener::bind(&socket)?, &history);
    tokio::spawn(pulse::of_driver(Arc::clone(&history)));
    let mut nodes = Vec::new();
    for number in 0..plan.servers {
        let folder = folder.path().join(format!("server-{number}"));
        let server = match plan.needs_clocks() {
            true => Server::start_with_clock(folder)?,
            false => Server::start(folder)?,
        };
        nodes.push(Node {
            proxies: Proxies::start(WORKERS, server.port).await?,
            server: tokio::sync::Mutex::new(server),
        });
    }
    let observers: Vec<_> = nodes
        .iter()
        .map(|node| Observer::start(Arc::clone(&node.proxies.target)))
        .collect();
    let ports = |lane| nodes.iter().map(|node| node.proxies.port(lane)).collect();
    let ports: Vec<Vec<u16>> = (0..WORKERS).map(ports).collect();
    let workers = Workers::start(ports, plan.seed, socket, &history)?;
    let target = Target {
        nodes,
        workers: Arc::clone(&workers),
        history: Arc::clone(&history),
        folder: folder.path().to_owned(),
        troubles: std::sync::Mutex::default(),
    };
    let from = now();
    let until = from + plan.seconds * 1000 * MS;
    let calm_from = until.saturating_sub(CALM).max(from);
    let measure = async {
        while now() < until {
            tokio::time::sleep(Duration::from_secs(1)).await;
            workers.measure();
        }
    };
    let second = match plan.at_once {
        1 => &[][..],
        _ => &plan.faults,
    };
    let probe = async {
        match &target.nodes[..] {
            [only] => probe::run(Arc::clone(&only.proxies.target), until).await,
            // A key that is deleted on one server after another is given back by right, as long
            // as a majority has it.
            _ => Vec::new(),
        }
    };
    let (first, second, (), probed) = tokio::join!(
        target.disturb(&plan.faults, plan.seed, calm_from),
        target.disturb(second, plan.seed + 1, calm_from),
        measure,
        probe,
    );
    first.and(second).map_err(|error| error.to_string())?;
    let end = now();
    let usage = workers.measure();
    let finishing = Arc::clone(&workers);
    let hung = tokio::task::spawn_blocking(move || finishing.finish(PATIENCE)).await?;
    // What was forgotten, or left by a killed worker, is gone after a TTL and a waiter's life.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let mut left = Vec::new();
    for node in &target.nodes {
        left.extend(left_over(&*node.server.lock().await)?);
    }
    // For each key, the runs of each server.
    let mut seen = vec![Vec::new(); history::TTLS.len()];
    for observer in observers {
        for (seen, runs) in seen.iter_mut().zip(observer.finish()) {
            seen.push(runs);
        }
    }
    let runs: Vec<_> = seen.iter().map(|servers| majority::of(servers)).collect();
    let tally = match resource.tally.lock() {
        Ok(tally) => *tally,
        Err(_) => return Err("the resource has failed".into()),
    };
    let mut findings = history.with(|record| checker::check(record, &runs, plan.class(), end));
    findings.violations.extend(probed);
    if plan.servers > 1 && plan.class() == Class::Safe {
        findings.violations.extend(leaks(&history, &seen, end));
    }
    let troubles = match target.troubles.lock() {
        Ok(troubles) => troubles.clone(),
        Err(_) => return Err("the faults have failed".into()),
    };
    let mut minority =
        history.with(|record| minority::check(record, &troubles, &findings.overlaps));
    if plan.class() == Class::Unsafe {
        minority.violations.clear();
    }
    if let Some(page) = &plan.page {
        history.with(|record| picture::draw(record, &findings, plan, (from, end), page))?;
    }
    let (lives, errors) =
        history.with(|record| (record.lives.len(), std::mem::take(&mut record.errors)));
    Ok(Outcome {
        findings,
        minority,
        tally,
        hung,
        left,
        usage,
        lives,
        errors,
        disturbances: history.with(|record| record.disturbances.len()),
        length: end - from,
    })
}

/// P10 at each server of a quorum by itself.
fn leaks(history: &History, seen: &[Vec<Vec<observer::Run>>], end: u64) -> Vec<String> {
    let mut violations = Vec::new();
    for server in 0..seen[0].len() {
        let runs: Vec<_> = seen.iter().map(|servers| servers[server].clone()).collect();
        let leaks = history.with(|record| checker::leaks(record, &runs, end));
        violations.extend(
            leaks
                .into_iter()
                .map(|leak| format!("{leak}, on server {server}")),
        );
    }
    violations
}

/// What should not be on the server when nobody holds or waits.
fn left_over(server: &Server) -> redis::RedisResult<Vec<String>> {
    let mut left: Vec<String> = server.command(&["KEYS", "torture:*"])?;
    for key in server.command::<Vec<String>>(&["KEYS", "{torture:*"])? {
        let millis: i64 = server.command(&["PTTL", &key])?;
        if report::is_left_over(&key, millis) {
            left.push(key);
        }
    }
    Ok(left)
}
