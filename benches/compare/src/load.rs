//! A load, as one process runs it.

use std::time::Duration;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::contender::{Client, Lock, TTL};

/// What each task of each process does until the slice is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cycles {
    pub tasks: usize,
    /// The key that all tasks want; without one, each task has its own.
    pub key: Option<String>,
    /// How long a task holds the lock.
    pub section: Duration,
    /// How long it rests before it wants the lock again.
    pub pause: Duration,
    /// Whether to report the time of each acquisition, and not only their number.
    pub timed: bool,
}

/// One acquisition, by the clock that all processes share, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Held {
    pub asked: u64,
    pub from: u64,
    pub until: u64,
}

/// What one process did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// For each task, the cycles that it completed within the slice.
    pub counts: Vec<u64>,
    /// All acquisitions, those that ended after the slice included.
    pub acquired: u64,
    pub held: Vec<Held>,
    /// CPU time of the process, user and system, from the start of the load to its end.
    pub cpu: Duration,
    /// Resident memory that a held guard added, in bytes.
    pub resident: f64,
    pub lost: u64,
}

pub async fn run<C: Client>(
    client: C,
    cycles: &Cycles,
    slice: (u64, u64),
    process: usize,
) -> Result<Report> {
    let (start, end) = slice;
    tokio::time::sleep(Duration::from_nanos(start.saturating_sub(now()))).await;
    let cpu = cpu_time();
    let tasks: Vec<_> = (0..cycles.tasks)
        .map(|number| {
            let own = || format!("own:{process}:{number}");
            let key = cycles.key.clone().unwrap_or_else(own);
            tokio::spawn(task(client.lock(&key, TTL), cycles.clone(), end))
        })
        .collect();
    let mut report = Report::default();
    for task in tasks {
        let (count, acquired, held) = task.await??;
        report.counts.push(count);
        report.acquired += acquired;
        report.held.extend(held);
    }
    report.cpu = cpu_time() - cpu;
    Ok(report)
}

async fn task<L: Lock>(mut lock: L, cycles: Cycles, end: u64) -> Result<(u64, u64, Vec<Held>)> {
    let (mut count, mut acquired) = (0, 0);
    let mut times = Vec::new();
    let mut asked = now();
    while asked < end {
        let guard = lock.acquire().await?;
        acquired += 1;
        let from = if cycles.timed { now() } else { 0 };
        if !cycles.section.is_zero() {
            tokio::time::sleep(cycles.section).await;
        }
        if cycles.timed {
            let until = now();
            times.push(Held { asked, from, until });
        }
        lock.release(guard).await?;
        if !cycles.pause.is_zero() {
            tokio::time::sleep(cycles.pause).await;
        }
        asked = now();
        count += u64::from(asked < end);
    }
    Ok((count, acquired, times))
}

pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of this process, all threads, user and system.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
