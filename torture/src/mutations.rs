//! Breaks the crate in several ways, one at a time, and demands that each is caught.
//!
//! A mutation is a patch in `mutations/`, whose first lines say what it breaks and under which
//! faults that shows. It is applied to a copy of the workspace, so that the crate itself has no
//! line of it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::report::NOTHING_PROVEN;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Each must be caught within a minute: several short runs, each with seeds of its own.
const BUDGET: Duration = Duration::from_secs(60);

struct Mutation {
    name: String,
    patch: PathBuf,
    what: String,
    /// The faults under which it shows, and the argument that says over what.
    faults: String,
    over: String,
}

/// Builds and runs them all, or those that are named; an error names those that were not caught.
pub fn run(only: &[String]) -> Result<()> {
    let copy = Copy::new()?;
    let mut missed = Vec::new();
    for mutation in named(only)? {
        println!("{}: {}", mutation.name, mutation.what);
        let program = copy.broken(&mutation, || copy.build(&mutation.name))??;
        match catch(&program, &mutation)? {
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

/// Applies and compiles each; an error names those with which that fails.
pub fn check() -> Result<()> {
    let copy = Copy::new()?;
    let mut stale = Vec::new();
    for mutation in named(&[])? {
        let outcome = copy
            .broken(&mutation, || copy.cargo(&["check", "-p", "redlease"]))
            .and_then(|compiled| compiled);
        match outcome {
            Ok(()) => println!("{}: applies and compiles", mutation.name),
            Err(error) => {
                println!("{}: STALE: {error}", mutation.name);
                stale.push(mutation.name);
            }
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    let stale = stale.join(", ");
    Err(format!("stale: {stale}; CONTRIBUTING.md says how to make a patch anew").into())
}

fn named(only: &[String]) -> Result<Vec<Mutation>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutations");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        all.push(Mutation::read(entry?.path())?);
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    for name in only {
        if !all.iter().any(|mutation| mutation.name == *name) {
            return Err(format!("there is no {name}.patch in {}", folder.display()).into());
        }
    }
    all.retain(|mutation| only.is_empty() || only.contains(&mutation.name));
    Ok(all)
}

impl Mutation {
    fn read(patch: PathBuf) -> Result<Self> {
        let text = std::fs::read_to_string(&patch)?;
        let find = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let missing = |name: &str| format!("{} has no line \"{name}: …\"", patch.display());
        let field = |name: &str| find(name).ok_or_else(|| missing(name));
        let over = match find("Engine") {
            Some(engine) => format!("--engine={engine}"),
            None => format!("--servers={}", field("Servers")?),
        };
        let name = patch.file_stem().unwrap_or_default();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            what: field("What")?.to_owned(),
            faults: field("Faults")?.to_owned(),
            over,
            patch,
        })
    }
}

/// A copy of the workspace. It stays where it is from run to run, so that its dependencies are
/// built once.
struct Copy {
    folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new() -> Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .canonicalize()?;
        let target = workspace.join("target/mutations");
        let copy = Self {
            folder: target.join("source"),
            target,
        };
        let _ = std::fs::remove_dir_all(&copy.folder);
        copy_folder(&workspace, &copy.folder)?;
        Ok(copy)
    }

    /// Does something while the copy has the fault.
    fn broken<T>(&self, mutation: &Mutation, f: impl FnOnce() -> T) -> Result<T> {
        self.apply(mutation, &[])?;
        let outcome = f();
        self.apply(mutation, &["--reverse"])?;
        Ok(outcome)
    }

    fn apply(&self, mutation: &Mutation, how: &[&str]) -> Result<()> {
        let output = Command::new("git")
            .arg("apply")
            .args(how)
            .arg(&mutation.patch)
            .current_dir(&self.folder)
            // The copy lies within a repository, to which it does not belong.
            .env("GIT_CEILING_DIRECTORIES", &self.target)
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
        }
    }

    fn build(&self, name: &str) -> Result<PathBuf> {
        self.cargo(&["build", "--release", "-p", "torture"])?;
        let program = self.target.join(name);
        std::fs::copy(self.target.join("release/torture"), &program)?;
        Ok(program)
    }

    fn cargo(&self, arguments: &[&str]) -> Result<()> {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(arguments)
            .args(["--quiet", "--target-dir"])
            .arg(&self.target)
            // A fault may leave something unused.
            .env("RUSTFLAGS", "--cap-lints allow")
            .current_dir(&self.folder)
            .status()?;
        match status.success() {
            true => Ok(()),
            false => Err("it does not compile".into()),
        }
    }
}

/// Copies all but what is hidden and what was built.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &to.join(name))?,
            false => {
                std::fs::copy(entry.path(), to.join(name))?;
            }
        }
    }
    Ok(())
}

/// Runs a broken build until a run finds something; after how long, and what.
fn catch(program: &Path, mutation: &Mutation) -> Result<Option<(Duration, String)>> {
    let mut spent = Duration::ZERO;
    for seed in 1_u64.. {
        let seconds = 10.min(BUDGET.saturating_sub(spent).as_secs());
        if seconds == 0 {
            break;
        }
        let start = Instant::now();
        let output = Command::new(program)
            .arg(format!("--seconds={seconds}"))
            .arg(format!("--seed={seed}"))
            .arg(&mutation.over)
            .arg(format!("--fault={}", mutation.faults))
            .output()?;
        spent += Duration::from_secs(seconds).max(start.elapsed());
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let violations = output
            .lines()
            .filter_map(|line| line.strip_prefix("VIOLATION "))
            // The last run is short, and a busy machine slow.
            .filter(|line| !line.ends_with(NOTHING_PROVEN));
        if let Some(violation) = violations.min_by_key(|line| !line.starts_with("P1:")) {
            return Ok(Some((spent, violation.to_owned())));
        }
    }
    Ok(None)
}
