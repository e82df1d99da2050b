//! One process that contends.

#![allow(unreachable_pub, reason = "a module of a program")]

use std::error::Error;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redlease::{Lock, Locker};
use rustix::time::{ClockId, clock_gettime};

const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// What each process does.
pub struct Load {
    pub tasks: usize,
    /// How long a task holds the lock.
    pub section: Duration,
    /// How long it rests before it wants the lock again.
    pub pause: Duration,
    pub handover: Duration,
    /// Whether it waits for its release, instead of dropping the guard.
    pub waits: bool,
}

impl Load {
    pub fn arguments(&self) -> [String; 5] {
        [
            self.tasks.to_string(),
            self.section.as_micros().to_string(),
            self.pause.as_micros().to_string(),
            self.handover.as_micros().to_string(),
            u8::from(self.waits).to_string(),
        ]
    }
}

/// When the lock was held, in nanoseconds of the clock that all processes share.
pub struct Hold {
    pub process: usize,
    pub from: u64,
    pub until: u64,
}

impl Hold {
    /// Reads what a worker wrote.
    pub fn parse(process: usize, line: &str) -> Option<Self> {
        let (from, until) = line.split_once(' ')?;
        Some(Self {
            process,
            from: from.parse().ok()?,
            until: until.parse().ok()?,
        })
    }
}

pub fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [url, key, numbers @ ..] = arguments else {
        return Err("too few arguments".into());
    };
    let numbers = numbers
        .iter()
        .map(|number| number.parse::<u64>())
        .collect::<Result<Vec<_>, _>>()?;
    let [tasks, section, pause, handover, waits, length] = numbers[..] else {
        return Err("too few numbers".into());
    };
    let load = Arc::new(Load {
        tasks: usize::try_from(tasks)?,
        section: Duration::from_micros(section),
        pause: Duration::from_micros(pause),
        handover: Duration::from_micros(handover),
        waits: waits > 0,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(contend(url, key, load, Duration::from_micros(length)))
}

async fn contend(
    url: &str,
    key: &str,
    load: Arc<Load>,
    length: Duration,
) -> Result<(), Box<dyn Error>> {
    // Many processes start at the same time.
    let builder = Locker::builder().command_timeout(CONNECT_WITHIN);
    let locker = builder.connect(url).await?;
    let lock = locker.mutex(key).handover_for(load.handover);
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let end = Instant::now() + length;
    let tasks: Vec<_> = (0..load.tasks)
        .map(|_| tokio::spawn(task(lock.clone(), Arc::clone(&load), end)))
        .collect();
    let mut output = BufWriter::new(std::io::stdout());
    for task in tasks {
        let (count, holds) = task.await??;
        writeln!(output, "count {count}")?;
        for (from, until) in holds {
            writeln!(output, "{from} {until}")?;
        }
    }
    output.flush()?;
    Ok(())
}

async fn task(
    lock: Lock,
    load: Arc<Load>,
    end: Instant,
) -> Result<(u64, Vec<(u64, u64)>), redlease::Error> {
    let mut count = 0;
    let mut holds = Vec::new();
    while Instant::now() < end {
        let guard = lock.lock().await?;
        count += 1;
        if load.section.is_zero() {
            // Millions of these: they are counted, not recorded.
            drop(guard);
            continue;
        }
        let from = now();
        tokio::time::sleep(load.section).await;
        holds.push((from, now()));
        match load.waits {
            true => drop(guard.release().await?),
            false => drop(guard),
        }
        tokio::time::sleep(load.pause).await;
    }
    Ok((count, holds))
}

pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
