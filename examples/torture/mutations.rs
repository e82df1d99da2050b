//! Breaks the crate in several ways, one at a time, and demands that each is caught.
//!
//! A mutation is a `--cfg redlease_mutation="name"`, never a Cargo feature, so no published build
//! can hold one. It is meant for this package alone: this program, under another name, stands in
//! as the compiler of the workspace's crates and adds the flag, so that the dependencies are built
//! once.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What begins the name of this program when it stands in as the compiler.
const COMPILER: &str = "torture-mutation-";
/// Each must be caught within a minute: several short runs, each with seeds of its own.
const BUDGET: Duration = Duration::from_secs(60);

struct Mutation {
    name: &'static str,
    what: &'static str,
    /// The faults under which it shows, and over how many servers.
    faults: &'static str,
    servers: usize,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "deadline_from_reply",
        what: "the deadline counts from the reply",
        faults: "delay,cut-replies",
        servers: 1,
    },
    Mutation {
        name: "lost_by_flag",
        what: "is_lost looks at a flag alone",
        faults: "pause-workers",
        servers: 1,
    },
    Mutation {
        name: "plain_del",
        what: "a release is a plain DEL",
        faults: "pause-workers,cut-requests",
        servers: 1,
    },
    Mutation {
        name: "renewal_creates",
        what: "a renewal creates a key that is gone",
        faults: "freeze,delay,cut-requests",
        servers: 1,
    },
    Mutation {
        name: "grant_from_arrival",
        what: "a grant's lease counts from the message's arrival",
        faults: "delay,cut-replies",
        servers: 1,
    },
    Mutation {
        name: "no_clean_up",
        what: "a cancelled acquire is not cleaned up",
        faults: "none",
        servers: 1,
    },
    Mutation {
        name: "quorum_no_owner_check",
        what: "a quorum takes a number for its own wherever it finds it",
        faults: "lag",
        servers: 3,
    },
    Mutation {
        name: "one_heartbeat",
        what: "a waiter asks once, and then relies on being told",
        faults: "kill-workers,client-kill,freeze",
        servers: 1,
    },
];

/// Whether this process was called as the compiler.
pub fn is_compiler() -> bool {
    mutation_of_name().is_some()
}

fn mutation_of_name() -> Option<String> {
    let name = PathBuf::from(std::env::args_os().next()?);
    let name = name.file_name()?.to_str()?.strip_prefix(COMPILER)?;
    Some(name.to_owned())
}

/// Calls the real compiler, which cargo names first, with the flag.
pub fn compile(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let (Some((compiler, arguments)), Some(mutation)) =
        (arguments.split_first(), mutation_of_name())
    else {
        return Err("no compiler is named".into());
    };
    let status = Command::new(compiler)
        .args(arguments)
        .args(["--cfg", &format!("redlease_mutation=\"{mutation}\"")])
        .status()?;
    std::process::exit(status.code().unwrap_or(1))
}

/// Builds and runs them all; an error names those that were not caught.
pub fn run_all(only: &[String]) -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from("target/mutations");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let mut missed = Vec::new();
    for mutation in MUTATIONS {
        if !only.is_empty() && !only.iter().any(|name| name == mutation.name) {
            continue;
        }
        let program = build(mutation.name, &folder)?;
        println!("{}: {}", mutation.name, mutation.what);
        match catch(&program, mutation)? {
            Some((after, violation)) => {
                println!("  caught after {:.0} s: {violation}", after.as_secs_f64());
            }
            None => {
                println!("  NOT CAUGHT");
                missed.push(mutation.name);
            }
        }
    }
    if missed.is_empty() {
        println!("all were caught");
        Ok(())
    } else {
        Err(format!("not caught: {}", missed.join(", ")).into())
    }
}

fn build(name: &str, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let compiler = folder.join(format!("{COMPILER}{name}"));
    let _ = std::fs::remove_file(&compiler);
    std::fs::copy(std::env::current_exe()?, &compiler)?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--release", "--example", "torture"])
        .arg("--target-dir")
        .arg(folder)
        .env("RUSTC_WORKSPACE_WRAPPER", &compiler)
        .status()?;
    if !status.success() {
        return Err(format!("{name} does not build").into());
    }
    let program = folder.join(name);
    std::fs::copy(folder.join("release/examples/torture"), &program)?;
    Ok(program)
}

/// Runs a broken build until a run finds something; after how long, and what.
fn catch(
    program: &Path,
    mutation: &Mutation,
) -> Result<Option<(Duration, String)>, Box<dyn Error>> {
    let mut spent = Duration::ZERO;
    for seed in 1_u64.. {
        let seconds = 10.min(BUDGET.saturating_sub(spent).as_secs());
        if seconds == 0 {
            break;
        }
        let start = Instant::now();
        let output = Command::new(program)
            .args([
                "--seconds",
                &seconds.to_string(),
                "--seed",
                &seed.to_string(),
            ])
            .args(["--servers", &mutation.servers.to_string()])
            .args(["--fault", mutation.faults])
            .output()?;
        spent += Duration::from_secs(seconds).max(start.elapsed());
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let violations = output
            .lines()
            .filter_map(|line| line.strip_prefix("VIOLATION "));
        if let Some(violation) = violations.min_by_key(|line| !line.starts_with("P1:")) {
            return Ok(Some((spent, violation.to_owned())));
        }
    }
    Ok(None)
}
