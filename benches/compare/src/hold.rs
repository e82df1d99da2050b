//! Many guards held and renewed at once, against a loop of as many bare renewals.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::contender::{Lock, Renewing};
use crate::floor::{Floor, Renewals};
use crate::load::{Report, cpu_time};

/// How many acquire at once.
const TASKS: usize = 50;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hold {
    pub guards: usize,
    pub ttl: Duration,
    /// How long they are watched.
    pub watch: Duration,
}

/// Acquires the guards, lets a TTL pass, and watches what holding them costs.
pub async fn run<C: Renewing>(client: C, hold: &Hold) -> Result<Report> {
    let before = resident();
    let mut tasks = JoinSet::new();
    for first in 0..TASKS {
        let client = client.clone();
        let (guards, ttl) = (hold.guards, hold.ttl);
        tasks.spawn(async move {
            let mut own = Vec::new();
            for number in (first..guards).step_by(TASKS) {
                own.push(
                    client
                        .lock(&format!("held:{number}"), ttl)
                        .acquire()
                        .await?,
                );
            }
            anyhow::Ok(own)
        });
    }
    let mut guards = Vec::with_capacity(hold.guards);
    while let Some(own) = tasks.join_next().await {
        guards.extend(own??);
    }
    tokio::time::sleep(hold.ttl).await;
    let cpu = cpu_time();
    tokio::time::sleep(hold.watch).await;
    let cpu = cpu_time() - cpu;
    let resident = resident() - before;
    let lost = guards.iter().filter(|guard| C::is_lost(guard)).count() as u64;
    Ok(Report {
        cpu,
        lost,
        resident: resident / hold.guards as f64,
        ..Report::default()
    })
}

/// The same number of renewals without a lock: each key every third of the TTL.
pub async fn bare(client: Floor, hold: &Hold) -> Result<Report> {
    let mut renewals = Renewals::start(client, hold.guards, hold.ttl).await?;
    let mut tick = tokio::time::interval(hold.ttl / 3);
    let mut report = Report::default();
    let warm_up = 3;
    let rounds = (3.0 * hold.watch.as_secs_f64() / hold.ttl.as_secs_f64()).round() as u32;
    let mut cpu = cpu_time();
    for round in 0..warm_up + rounds {
        if round == warm_up {
            cpu = cpu_time();
        }
        tick.tick().await;
        report.lost += renewals.renew().await?;
    }
    report.cpu = cpu_time() - cpu;
    Ok(report)
}

/// Resident memory of this process, in bytes; 0 where the system does not tell.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|word| word.parse().ok());
    pages.unwrap_or(0.0) * rustix::param::page_size() as f64
}
