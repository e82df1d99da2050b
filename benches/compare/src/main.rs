//! redlease beside the least that a lock on Redis costs and beside its peers, on redis-servers
//! that this program starts on free loopback ports.

#![allow(unreachable_pub, reason = "the modules of a program")]

mod chart;
mod contender;
mod counts;
mod figure;
mod floor;
mod hold;
mod load;
mod measure;
mod ours;
mod peers;
mod scenario;
mod table;
mod worker;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use scenario::{Scale, Scenario};
use table::{Row, Setting};
use testkit::Launch;

/// Compares redlease with bare redis-rs, rslock and async-redis-lock, all in one run: the
/// contenders take turns in short slices, and figures are compared within a round.
///
/// Starts its own redis-servers on free loopback ports. Wants a release build and an idle machine.
#[derive(Parser)]
#[command(name = "compare", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// What to measure; everything, if nothing is named
    scenarios: Vec<Scenario>,

    /// A smoke run of a few seconds, whose figures say nothing
    #[arg(long)]
    quick: bool,

    /// How many rounds; what takes long and varies little has three at most
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// The length of a slice in milliseconds; some scenarios take a multiple
    #[arg(long, default_value_t = 1000)]
    slice: u64,

    /// Threads of each process' runtime; with 1, it is a current-thread runtime
    #[arg(long, default_value_t = threads())]
    threads: usize,

    /// Writes benchmarks.md and benchmarks.svg into this folder
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// A process of a load; this program starts it
    #[command(hide = true)]
    Worker,
}

/// The settings of a smoke run: all that is run is run once, and shortly.
const QUICK: (usize, Duration) = (1, Duration::from_millis(50));

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Role::Worker) = arguments.role {
        return worker::main();
    }
    let (rounds, slice) = match arguments.quick {
        true => QUICK,
        false => (
            arguments.rounds.max(1),
            Duration::from_millis(arguments.slice),
        ),
    };
    let scale = Scale {
        slice,
        rounds,
        threads: arguments.threads,
        quick: arguments.quick,
    };
    let scenarios = match &arguments.scenarios[..] {
        [] => Scenario::value_variants(),
        some => some,
    };
    let setting = setting(scale)?;
    println!("{}; {}\n\n{}", setting.versions, setting.run, table::head());
    let start = Instant::now();
    let mut rows = Vec::new();
    for &scenario in scenarios {
        for entry in scenario.entries(scale) {
            let samples = measure::run(&entry.case)
                .with_context(|| format!("{}: {}", scenario.title(), entry.label))?;
            for figure in &entry.figures {
                let row = Row::new(scenario, &entry, figure, &samples);
                println!("{}", row.line());
                rows.push(row);
            }
        }
    }
    println!("\n{:.0} s", start.elapsed().as_secs_f64());
    match &arguments.write {
        Some(folder) => write(folder, &setting, &rows),
        None => Ok(()),
    }
}

fn write(folder: &Path, setting: &Setting, rows: &[Row]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let command = "cargo run --release -p compare -- --write docs";
    let page = table::page(setting, command, rows);
    std::fs::write(folder.join("benchmarks.md"), page)?;
    std::fs::write(folder.join("benchmarks.svg"), chart::draw(setting, rows))?;
    println!("wrote {}/benchmarks.md and .svg", folder.display());
    Ok(())
}

fn setting(scale: Scale) -> Result<Setting> {
    let rounds = match scale.rounds {
        1 => "1 round".to_owned(),
        rounds => format!("medians of {rounds} rounds"),
    };
    let runtime = match scale.threads {
        1 => "current-thread runtimes".to_owned(),
        threads => format!("runtimes of {threads} threads"),
    };
    let mut run = format!(
        "{rounds}, slices of {} ms, {runtime}",
        scale.slice.as_millis()
    );
    if scale.quick {
        run.push_str("; a smoke run: the figures say nothing");
    }
    if cfg!(debug_assertions) {
        run.push_str("; a debug build: the figures say nothing");
    }
    Ok(Setting {
        versions: format!(
            "{} cores, loopback, {}; redlease {}, rslock {}, async-redis-lock {}",
            threads(),
            Launch::default().start()?.version()?,
            version("redlease")?,
            version("rslock")?,
            version("async-redis-lock")?,
        ),
        run,
    })
}

/// The version of a package that this program was built with.
fn version(package: &str) -> Result<&'static str> {
    let lock = include_str!("../../../Cargo.lock");
    let name = format!("name = \"{package}\"\nversion = \"");
    let found = lock
        .split_once(&name)
        .and_then(|(_, rest)| rest.split_once('"'));
    Ok(found
        .with_context(|| format!("{package} is not in Cargo.lock"))?
        .0)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
