//! Breaks locks on purpose, and checks what they promise: see `--help`.

#![allow(unreachable_pub, reason = "the modules of a program")]

mod acts;
mod checker;
mod clock;
mod deployment;
mod engine;
mod faults;
mod history;
mod links;
mod majority;
mod minority;
mod mutations;
mod observer;
mod picture;
mod plan;
mod probe;
mod pulse;
mod report;
mod resource;
mod run;
mod server;
mod target;
mod task;
mod worker;
mod workers;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use engine::Engine;
use faults::Fault;
use plan::Plan;

/// Breaks locks on purpose, and checks what they promise.
///
/// Starts worker processes and redis-servers, disturbs them, records what happens and checks it.
/// Ends with a table, and with an error if anything was found.
#[derive(Parser)]
#[command(name = "torture", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// How long; the last 3 seconds are without faults
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// 1, or a quorum of 3 or 5
    ///
    /// A quorum suffers the same faults, mostly a minority of it, at times a majority or all. A
    /// worker can lose all servers or some of them.
    #[arg(long, default_value_t = 1, value_parser = parse_servers, conflicts_with = "engine")]
    servers: usize,

    /// What the locks are on; a quorum is one of 3 servers [default: by --servers]
    ///
    /// With sentinels or as a cluster, the servers appoint masters among them: there are faults of
    /// these (--list names them), and none of the ways between workers and servers. Safe are those
    /// in which no master is replaced by one that lacks what it acknowledged.
    #[arg(long)]
    engine: Option<Engine>,

    /// Which faults, when, to whom and for how long
    #[arg(long, default_value_t = 7)]
    seed: u64,

    /// One fault, several ("freeze,cut"), "none", "mix" or "unsafe"
    ///
    /// "mix" is all safe ones, two at a time. "unsafe" is those under which Redis forgets the
    /// lock: the checker must see it; but not "lag", which needs the counters that the others
    /// lose. "clock-rate" and "clock-step", which need Debian's faketime, are in neither.
    #[arg(long, default_value = "none", value_name = "NAMES")]
    fault: String,

    /// Also draws the run, best one of ten seconds; the SVG is put beside it
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,

    /// Names the faults that can be done to the engine
    #[arg(long)]
    list: bool,

    /// Breaks the crate itself in several ways, one after another; each must be caught
    ///
    /// The ways are the patches in torture/mutations, applied to a copy of the workspace.
    #[arg(long, num_args = 0.., value_name = "NAME")]
    mutations: Option<Vec<String>>,

    /// Says which mutations do not apply to the crate any more, or do not compile
    #[arg(long)]
    check_mutations: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// A process that locks; this program starts it
    #[command(hide = true)]
    Worker(worker::Arguments),
}

fn parse_servers(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("there can be 1, 3 or 5".to_owned()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(Role::Worker(arguments)) = arguments.role {
        return worker::run(arguments);
    }
    let (engine, servers) = match arguments.engine {
        None => (Engine::over(arguments.servers), arguments.servers),
        Some(Engine::Quorum) => (Engine::Quorum, 3),
        Some(engine) => (engine, 1),
    };
    if arguments.list {
        for fault in Fault::ALL.iter().filter(|fault| fault.suits(engine)) {
            println!("{:18} {:?}", fault.name(), fault.class());
        }
        return Ok(());
    }
    if arguments.check_mutations {
        return mutations::check();
    }
    if let Some(names) = arguments.mutations {
        return mutations::run(&names);
    }
    let plan = Plan {
        seconds: arguments.seconds,
        seed: arguments.seed,
        page: arguments.page,
        ..Plan::new(&arguments.fault, engine, servers)?
    };
    // Starting a server blocks a thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run::run(&plan))?;
    outcome.print(&plan);
    if outcome.problems(&plan).is_empty() {
        Ok(())
    } else {
        Err("the run has found violations".into())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_worker_is_told_all_that_it_needs() {
        let told = worker::Arguments {
            engine: Engine::Quorum,
            ports: vec![1, 2, 3],
            resource: "/a b/c".into(),
            lane: 4,
            life: 5,
            seed: 6,
        };
        let words = ["torture", "worker"].map(str::to_owned);
        let heard = Arguments::try_parse_from(words.into_iter().chain(told.to_words())).unwrap();
        let Some(Role::Worker(heard)) = heard.role else {
            panic!("it is a worker");
        };
        assert_eq!(format!("{heard:?}"), format!("{told:?}"));
    }
}
