//! One run: servers, workers and faults, and then the check of what happened.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::checker::Findings;
use crate::deployment::Deployment;
use crate::engine::Engine;
use crate::faults::Class;
use crate::history::{History, MS, Record, now};
use crate::links::Links;
use crate::minority::Minority;
use crate::observer::Observer;
use crate::plan::Plan;
use crate::report::Outcome;
use crate::resource::Resource;
use crate::server::Server;
use crate::target::{Node, Target};
use crate::workers::Workers;
use crate::{checker, history, majority, minority, observer, picture, probe, pulse, report};

const WORKERS: usize = 8;
/// The end of a run is without faults, so that the checker sees everything recover.
const CALM: u64 = 3000 * MS;
/// How long the workers may take to end: an unreachable server is put up with for this long.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn run(plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let history = Arc::new(History::default());
    let resource = Arc::new(Resource::default());
    let socket = folder.path().join("resource");
    resource.serve(tokio::net::UnixListener::bind(&socket)?, &history);
    testkit::runtime().spawn(pulse::of_traffic(Arc::clone(&history)));
    let nodes = start_nodes(plan)?;
    let deployment = Deployment::start(plan);
    let observers = match &deployment {
        None => {
            let ports = nodes.iter().map(|node| Arc::clone(&node.links.target));
            ports.map(Observer::of_server).collect::<Vec<_>>()
        }
        Some(deployment) => deployment.observers(),
    };
    let ports = |lane| match &deployment {
        None => nodes.iter().map(|n| n.links.lane(lane).port()).collect(),
        Some(deployment) => deployment.ports(),
    };
    let ports: Vec<Vec<u16>> = (0..WORKERS).map(ports).collect();
    let workers = Workers::start(plan.engine, ports, plan.seed, socket, &history)?;
    let target = Target {
        nodes,
        deployment: deployment.map(tokio::sync::Mutex::new),
        workers: Arc::clone(&workers),
        history: Arc::clone(&history),
        troubles: std::sync::Mutex::default(),
    };
    let from = now();
    let probed = disturb(plan, &target, from + plan.seconds * 1000 * MS).await?;
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
    if let Some(deployment) = &target.deployment {
        for master in deployment.lock().await.masters() {
            left.extend(left_over(master)?);
        }
    }
    let seen = seen_by(plan, observers);
    let tally = match resource.tally.lock() {
        Ok(tally) => *tally,
        Err(_) => return Err("the resource has failed".into()),
    };
    let (mut findings, minority) = check(plan, &target, &seen, end)?;
    findings.violations.extend(probed);
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

fn start_nodes(plan: &Plan) -> io::Result<Vec<Node>> {
    let server = |_| match plan.needs_clocks() {
        true => Server::start_with_clock(),
        false => Server::start(),
    };
    let count = if plan.engine.is_deployment() {
        0
    } else {
        plan.servers
    };
    let servers: Vec<_> = (0..count).map(server).collect::<io::Result<_>>()?;
    let ports: Vec<_> = servers.iter().map(|server| server.port).collect();
    let nodes = servers.into_iter().zip(Links::to(&ports, WORKERS));
    let node = |(server, links)| Node {
        links,
        server: tokio::sync::Mutex::new(server),
    };
    Ok(nodes.map(node).collect())
}

/// For each key, the runs of each server, or of its master, whichever that was.
fn seen_by(plan: &Plan, observers: Vec<Observer>) -> Vec<Vec<Vec<observer::Run>>> {
    let finished: Vec<_> = observers.into_iter().map(Observer::finish).collect();
    if plan.engine == Engine::Cluster {
        return finished;
    }
    let mut seen = vec![Vec::new(); history::TTLS.len()];
    for runs in finished {
        for (seen, runs) in seen.iter_mut().zip(runs) {
            seen.push(runs);
        }
    }
    seen
}

/// Carries out the faults of the plan; returns what the probe found meanwhile.
async fn disturb(plan: &Plan, target: &Target, until: u64) -> Result<Vec<String>, Box<dyn Error>> {
    let calm_from = until.saturating_sub(CALM).max(now());
    let measure = async {
        while now() < until {
            tokio::time::sleep(Duration::from_secs(1)).await;
            target.workers.measure();
        }
    };
    let second = match plan.at_once {
        1 => &[][..],
        _ => &plan.faults,
    };
    let probe = async {
        match &target.nodes[..] {
            [only] => probe::run(Arc::clone(&only.links.target), until).await,
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
    if target.deployment.is_some() {
        // The last fault may have gone on into the calm time.
        let ends = |record: &mut Record| record.disturbances.iter().map(|d| d.until).max();
        let calm_until = target.history.with(ends).unwrap_or(0) + CALM;
        tokio::time::sleep(Duration::from_nanos(calm_until.saturating_sub(now()))).await;
    }
    Ok(probed)
}

/// Checks what was `seen`: for each key, by each server's observer.
fn check(
    plan: &Plan,
    target: &Target,
    seen: &[Vec<Vec<observer::Run>>],
    end: u64,
) -> Result<(Findings, Minority), Box<dyn Error>> {
    let history = &target.history;
    let runs: Vec<_> = seen.iter().map(|servers| majority::of(servers)).collect();
    let mut findings = history.with(|record| checker::check(record, &runs, plan.class(), end));
    if plan.class() == Class::Safe {
        findings.violations.extend(match plan.engine {
            Engine::Quorum => leaks(history, seen, end),
            _ => history.with(|record| checker::passed_over(record, &runs, end)),
        });
    }
    if plan.engine.is_deployment() {
        let told = history.with(|record| checker::failed_over(record, &runs, end));
        findings.violations.extend(told);
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
    Ok((findings, minority))
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
fn left_over(server: &testkit::Server) -> redis::RedisResult<Vec<String>> {
    let mut left: Vec<String> = server.query(&["KEYS", "torture:*"])?;
    for key in server.query::<Vec<String>>(&["KEYS", "{torture:*"])? {
        let millis: i64 = server.query(&["PTTL", &key])?;
        if report::is_left_over(&key, millis) {
            left.push(key);
        }
    }
    Ok(left)
}
