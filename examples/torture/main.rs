//! Breaks locks on purpose, and checks what they promise.
//!
//! `cargo run --release --example torture -- --seconds 60 --servers 1 --seed 7 --fault mix` starts
//! worker processes and a redis-server, disturbs them, records what happens and checks it. It
//! ends with a table, and with an error if anything was found.
//!
//! * `--fault NAME`: one fault, several (`freeze,cut`), `none`, `mix` (all safe ones, two at a
//!   time) or `unsafe` (those under which Redis forgets the lock: the checker must see it).
//! * `--page FILE.html`: also draws the run, best one of ten seconds; the SVG is put beside it.
//! * `--list`: names the faults.
//! * `--mutations [NAME …]`: breaks the crate itself in several ways, one after another; each must be
//!   caught.

#![allow(unreachable_pub, reason = "the modules of a program")]

mod checker;
mod faults;
mod history;
mod mutations;
mod observer;
mod picture;
mod probe;
mod proxy;
mod pulse;
mod report;
mod resource;
mod server;
mod task;
mod worker;
mod workers;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use faults::{Class, Fault, Target};
use history::{History, MS, now};
use observer::Observer;
use proxy::Proxies;
use report::Outcome;
use resource::Resource;
use server::Server;
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
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(run(&plan))?;
    outcome.print(&plan);
    if outcome.problems(plan.class()).is_empty() {
        Ok(())
    } else {
        Err("the run has found violations".into())
    }
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut plan = Self {
            seconds: 10,
            seed: 7,
            faults: Vec::new(),
            at_once: 1,
            title: "none".to_owned(),
            page: None,
        };
        let of_class = |class| {
            Fault::ALL
                .iter()
                .copied()
                .filter(move |f| f.class() == class)
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{pair:?} lacks a value").into());
            };
            match name.as_str() {
                "--seconds" => plan.seconds = value.parse()?,
                "--seed" => plan.seed = value.parse()?,
                "--page" => plan.page = Some(value.into()),
                "--servers" if value == "1" => {}
                "--servers" => return Err("there is no lock over several servers yet".into()),
                "--fault" => {
                    plan.title.clone_from(value);
                    plan.faults = match value.as_str() {
                        "none" => Vec::new(),
                        "mix" => of_class(Class::Safe).collect(),
                        "unsafe" => of_class(Class::Unsafe).collect(),
                        names => names
                            .split(',')
                            .map(|name| {
                                let fault = Fault::ALL.iter().find(|f| f.name() == name);
                                fault.copied().ok_or(format!("there is no fault {name:?}"))
                            })
                            .collect::<Result<_, _>>()?,
                    };
                    plan.at_once = if value == "mix" { 2 } else { 1 };
                }
                other => return Err(format!("{other:?} is not known; see main.rs").into()),
            }
        }
        Ok(plan)
    }

    fn class(&self) -> Class {
        if self
            .faults
            .iter()
            .any(|fault| fault.class() == Class::Unsafe)
        {
            Class::Unsafe
        } else {
            Class::Safe
        }
    }
}

async fn run(plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let history = Arc::new(History::default());
    let resource = Arc::new(Resource::default());
    let socket = folder.path().join("resource");
    resource.serve(tokio::net::UnixListener::bind(&socket)?, &history);
    tokio::spawn(pulse::of_driver(Arc::clone(&history)));
    let server = Server::start(folder.path().join("server"))?;
    let proxies = Proxies::start(WORKERS, server.port).await?;
    let observer = Observer::start(Arc::clone(&proxies.target));
    let ports: Vec<u16> = (0..WORKERS).map(|lane| proxies.port(lane)).collect();
    let workers = Workers::start(&ports, plan.seed, socket, &history)?;
    let target = Target {
        server: tokio::sync::Mutex::new(server),
        proxies,
        workers: Arc::clone(&workers),
        history: Arc::clone(&history),
        folder: folder.path().to_owned(),
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
    let (first, second, (), probed) = tokio::join!(
        target.disturb(&plan.faults, plan.seed, calm_from),
        target.disturb(second, plan.seed + 1, calm_from),
        measure,
        probe::run(Arc::clone(&target.proxies.target), until),
    );
    first.or(second).map_err(|error| error.to_string())?;
    let end = now();
    let usage = workers.measure();
    let finishing = Arc::clone(&workers);
    let hung = tokio::task::spawn_blocking(move || finishing.finish(PATIENCE)).await?;
    // What was forgotten, or left by a killed worker, is gone after a TTL and a waiter's life.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let left = left_over(&*target.server.lock().await)?;
    let runs = observer.finish();
    let tally = match resource.tally.lock() {
        Ok(tally) => *tally,
        Err(_) => return Err("the resource has failed".into()),
    };
    let mut findings = history.with(|record| checker::check(record, &runs, plan.class(), end));
    findings.violations.extend(probed);
    if let Some(page) = &plan.page {
        history.with(|record| picture::draw(record, &findings, plan, (from, end), page))?;
    }
    let (lives, errors) =
        history.with(|record| (record.lives.len(), std::mem::take(&mut record.errors)));
    Ok(Outcome {
        findings,
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
