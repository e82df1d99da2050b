//! How a lock behaves when many want it, on your own Redis.
//!
//! `cargo run --release --example contention` starts processes that contend for one key, and
//! prints a table. It uses `REDIS_URL` if that is set, else a private redis-server from the PATH.

mod latency;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::Redis;
use worker::{Hold, Load};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--worker") {
        return worker::run(&arguments[1..]);
    }
    let seconds = match arguments.first() {
        Some(seconds) => seconds.parse()?,
        None => 3,
    };
    let redis = Redis::find();
    let Some(url) = redis.url() else {
        println!("Processes cannot contend in memory: set REDIS_URL, or install redis-server.");
        return Ok(());
    };
    println!();
    println!(
        "{:34} {:>10} {:>7} {:>7} {:>7} {:>7} {:>6} {:>8} {:>6}",
        "", "cycles/s", "mean", "p99", "local", "foreign", "Jain", "requests", "held"
    );
    for case in cases() {
        let row = measure(&url, &redis.prefix(), &case, Duration::from_secs(seconds))?;
        println!("{:34} {row}", case.name);
    }
    println!();
    println!("mean, p99: from one holder's release to the next one's lock, ms");
    println!("local:     the median of those within a process");
    println!("foreign:   the median of those from one process to another; a bare request and its");
    println!(
        "           answer (PING, idle connection) take {:.3} ms here",
        bare_request(&url)?.as_secs_f64() * 1e3
    );
    println!("Jain:      fairness over all tasks; 1 is fair, 1/tasks is one task taking all");
    println!(
        "requests:  scripts that Redis ran for each lock that was acquired, from 20 % to 80 %"
    );
    println!("           of the time");
    println!("held:      share of the time in which somebody had the lock");
    println!();
    latency::print(&url, &redis.prefix())
}

struct Case {
    name: &'static str,
    processes: usize,
    load: Load,
}

fn cases() -> Vec<Case> {
    let millis = Duration::from_millis;
    let case = |name, processes, tasks, section, pause, handover| Case {
        name,
        processes,
        load: Load {
            tasks,
            section,
            pause,
            handover,
            waits: false,
        },
    };
    let none = Duration::ZERO;
    let four_by_four = || {
        let name = "4 processes, 4 tasks, 5 ms section";
        case(name, 4, 4, millis(5), millis(10), millis(10))
    };
    let mut awaited = four_by_four();
    awaited.name = "the same, each release awaited";
    awaited.load.waits = true;
    vec![
        case(
            "1 process, 1 task, empty section",
            1,
            1,
            none,
            none,
            millis(10),
        ),
        case(
            "1 process, 64 tasks, empty section",
            1,
            64,
            none,
            none,
            millis(10),
        ),
        case("the same without hand-over", 1, 64, none, none, none),
        four_by_four(),
        awaited,
        case(
            "2 processes, 1 task, 5 ms section",
            2,
            1,
            millis(5),
            none,
            millis(10),
        ),
        case(
            "8 processes, 1 task, 5 ms section",
            8,
            1,
            millis(5),
            none,
            millis(10),
        ),
        case(
            "24 processes, 1 task, 5 ms section",
            24,
            1,
            millis(5),
            none,
            millis(10),
        ),
    ]
}

/// Runs the processes of a case, and returns its row of the table.
fn measure(
    url: &str,
    prefix: &str,
    case: &Case,
    length: Duration,
) -> Result<String, Box<dyn Error>> {
    let key = format!("{prefix}contention:{}:{}", case.processes, case.load.tasks);
    let mut workers = (0..case.processes)
        .map(|_| Worker::start(url, &key, &case.load, length))
        .collect::<Result<Vec<_>, _>>()?;
    for worker in &mut workers {
        worker.expect("ready")?;
    }
    for worker in &mut workers {
        worker.go()?;
    }
    // The steady state: without the first, who finds nobody, and the last.
    std::thread::sleep(length / 5);
    let (from, before) = (worker::now(), scripts_run(url)?);
    std::thread::sleep(length * 3 / 5);
    let (until, after) = (worker::now(), scripts_run(url)?);
    let mut counts = Vec::new();
    let mut holds = Vec::new();
    for (process, worker) in workers.iter_mut().enumerate() {
        worker.collect(process, &mut counts, &mut holds)?;
    }
    let acquired = if holds.is_empty() {
        // Empty sections are counted only, and are all alike.
        counts.iter().sum::<u64>() as f64 * (until - from) as f64 / length.as_nanos() as f64
    } else {
        let within = |hold: &&Hold| (from..until).contains(&hold.from);
        holds.iter().filter(within).count() as f64
    };
    let requests = (after - before) as f64 / acquired;
    Ok(row(&counts, holds, requests, length))
}

fn row(counts: &[u64], mut holds: Vec<Hold>, requests: f64, length: Duration) -> String {
    let cycles: u64 = counts.iter().sum();
    holds.sort_by_key(|hold| hold.from);
    let (mut local, mut foreign) = (Vec::new(), Vec::new());
    for pair in holds.windows(2) {
        let gap = pair[1].from.saturating_sub(pair[0].until) as f64 / 1e6;
        match pair[0].process == pair[1].process {
            true => local.push(gap),
            false => foreign.push(gap),
        }
    }
    let mut gaps = [&local[..], &foreign[..]].concat();
    let held: u64 = holds.iter().map(|hold| hold.until - hold.from).sum();
    let span = match (holds.first(), holds.last()) {
        (Some(first), Some(last)) => (last.until - first.from) as f64,
        _ => f64::NAN,
    };
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let waits = if counts.len() > 1 && held > 0 {
        format!(
            "{mean:7.3} {:>7} {:>7} {:>7}",
            quantile(&mut gaps, 99),
            quantile(&mut local, 50),
            quantile(&mut foreign, 50),
        )
    } else {
        format!("{:>7} {:>7} {:>7} {:>7}", "-", "-", "-", "-")
    };
    let share = if held > 0 && counts.len() > 1 {
        format!("{:5.1}%", held as f64 / span * 100.0)
    } else {
        format!("{:>6}", "-")
    };
    format!(
        "{:10.0} {waits} {:6.3} {:8.2} {share}",
        cycles as f64 / length.as_secs_f64(),
        jain(counts),
        requests,
    )
}

/// So many per cent of the figures are smaller than this.
fn quantile(figures: &mut [f64], percent: usize) -> String {
    figures.sort_by(f64::total_cmp);
    match figures.get(figures.len() * percent / 100) {
        Some(figure) => format!("{figure:.3}"),
        None => "-".to_owned(),
    }
}

/// The median of what a request and its answer take on an idle machine: the least that a hand-off
/// between processes can take.
fn bare_request(url: &str) -> Result<Duration, Box<dyn Error>> {
    const TRIES: usize = 101;
    let mut connection = redis::Client::open(url)?.get_connection()?;
    let mut times = Vec::new();
    for _ in 0..TRIES {
        std::thread::sleep(Duration::from_millis(5));
        let sent = Instant::now();
        redis::cmd("PING").exec(&mut connection)?;
        times.push(sent.elapsed());
    }
    times.sort();
    Ok(times[TRIES / 2])
}

/// Jain's fairness index.
fn jain(counts: &[u64]) -> f64 {
    let sum: f64 = counts.iter().map(|&count| count as f64).sum();
    let squares: f64 = counts.iter().map(|&count| (count as f64).powi(2)).sum();
    sum * sum / (counts.len() as f64 * squares)
}

/// How many scripts the server has run so far.
fn scripts_run(url: &str) -> Result<u64, Box<dyn Error>> {
    let mut connection = redis::Client::open(url)?.get_connection()?;
    let mut info = redis::cmd("INFO");
    let stats: String = info.arg("commandstats").query(&mut connection)?;
    let calls = |line: &str| {
        let rest = line.strip_prefix("cmdstat_eval")?;
        let (_, rest) = rest.split_once(":calls=")?;
        rest.split(',').next()?.parse::<u64>().ok()
    };
    Ok(stats.lines().filter_map(calls).sum())
}

/// A process of this program that contends; ended with the value.
struct Worker {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(url: &str, key: &str, load: &Load, length: Duration) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--worker")
            .args([url, key])
            .args(load.arguments())
            .arg(length.as_micros().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    fn expect(&mut self, word: &str) -> Result<(), Box<dyn Error>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.trim() == word {
            Ok(())
        } else {
            Err(format!("a worker said {line:?} instead of {word:?}").into())
        }
    }

    fn go(&mut self) -> std::io::Result<()> {
        match &mut self.child.stdin {
            Some(input) => input.write_all(b"go\n"),
            None => Ok(()),
        }
    }

    fn collect(
        &mut self,
        process: usize,
        counts: &mut Vec<u64>,
        holds: &mut Vec<Hold>,
    ) -> Result<(), Box<dyn Error>> {
        for line in (&mut self.output).lines() {
            let line = line?;
            match line.split_once(' ') {
                Some(("count", count)) => counts.push(count.parse()?),
                _ => holds.push(Hold::parse(process, &line).ok_or("a worker is not understood")?),
            }
        }
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err("a worker failed".into())
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
