//! A process of a load: this program again, told over its standard input what to do.
//!
//! Each contender's processes are new in each slice, so that neither CPU time nor memory of one
//! is counted to another.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::contender::{Client, Contender, Lock, Store, TTL};
use crate::floor::Floor;
use crate::hold::{self, Hold};
use crate::load::{self, Cycles, Report};
use crate::peers::{AsyncRedisLock, Rslock, RslockEager};

/// What takes this much longer than its slice is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Cycles on a key of its own, before the load: so that scripts are known and connections open.
const WARM_UP: usize = 50;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Load {
    Cycles(Cycles),
    Hold(Hold),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub contender: Contender,
    pub store: Store,
    pub load: Load,
    /// The number of this process among those of the load.
    pub process: usize,
    /// Threads of its runtime.
    pub threads: usize,
}

/// The beginning and the end of a slice, on the clock that all processes share.
type Slice = (u64, u64);

/// A process that contends; killed with the value.
pub struct Worker {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(task: &Task) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut worker = Self { child, output };
        worker.say(task)?;
        Ok(worker)
    }

    /// Waits until it is connected and warm.
    pub fn wait_ready(&mut self) -> Result<()> {
        let line = read_line(&mut self.output)?;
        ensure!(line == "ready", "a worker said {line:?}");
        Ok(())
    }

    pub fn go(&mut self, slice: Slice) -> Result<()> {
        self.say(&slice)
    }

    pub fn collect(mut self) -> Result<Report> {
        let line = read_line(&mut self.output)?;
        let report = serde_json::from_str(&line).context("a worker failed")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "a worker ended with {status}");
        Ok(report)
    }

    fn say(&mut self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(what)?;
        line.push('\n');
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(line.as_bytes())?;
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a worker process does.
pub fn main() -> Result<()> {
    let task: Task = hear()?;
    let mut builder = match task.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if task.threads > 1 {
        builder.worker_threads(task.threads);
    }
    let runtime = builder.enable_all().build()?;
    let report = runtime.block_on(async {
        match (task.contender, &task.load) {
            (Contender::Floor, Load::Hold(hold)) => {
                let client = Floor::connect(&task.store).await?;
                begin().await?;
                hold::bare(client, hold).await
            }
            (Contender::Redlease, Load::Hold(hold)) => {
                hold::run(connect::<redlease::Locker>(&task).await?, hold).await
            }
            (Contender::AsyncRedisLock, Load::Hold(hold)) => {
                hold::run(connect::<AsyncRedisLock>(&task).await?, hold).await
            }
            (Contender::Rslock | Contender::RslockEager, Load::Hold(_)) => {
                bail!("rslock does not renew a guard")
            }
            (Contender::Floor, Load::Cycles(load)) => cycles::<Floor>(&task, load).await,
            (Contender::Redlease, Load::Cycles(load)) => {
                cycles::<redlease::Locker>(&task, load).await
            }
            (Contender::Rslock, Load::Cycles(load)) => cycles::<Rslock>(&task, load).await,
            (Contender::RslockEager, Load::Cycles(load)) => {
                cycles::<RslockEager>(&task, load).await
            }
            (Contender::AsyncRedisLock, Load::Cycles(load)) => {
                cycles::<AsyncRedisLock>(&task, load).await
            }
        }
    })?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn cycles<C: Client>(task: &Task, cycles: &Cycles) -> Result<Report> {
    let client = C::connect(&task.store).await?;
    let mut lock = client.lock(&format!("warm-up:{}", task.process), TTL);
    for _ in 0..WARM_UP {
        let guard = lock.acquire().await?;
        lock.release(guard).await?;
    }
    let slice = begin().await?;
    let length = Duration::from_nanos(slice.1.saturating_sub(slice.0));
    let run = load::run(client, cycles, slice, task.process);
    let limit = length + PATIENCE;
    tokio::time::timeout(limit, run)
        .await
        .context("it is stuck")?
}

async fn connect<C: Client>(task: &Task) -> Result<C> {
    let client = C::connect(&task.store).await?;
    begin().await?;
    Ok(client)
}

/// Says that this process is ready, and waits for its slice. An end of the input ends it.
async fn begin() -> Result<Slice> {
    let mut output = stdout();
    output.write_all(b"ready\n")?;
    output.flush()?;
    tokio::task::spawn_blocking(hear).await?
}

fn hear<T: DeserializeOwned>() -> Result<T> {
    Ok(serde_json::from_str(&read_line(&mut stdin().lock())?)?)
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.truncate(line.trim_end().len());
    Ok(line)
}
