//! One worker process: its tasks contend for the locks, and a thread of its own asks each guard
//! all the time whether it is lost, whatever the tasks' runtime is doing.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use redlease::{CancellationToken, LockGuard, Locker, LostReason};
use testkit::MASTER;
use tokio::runtime::{self, Handle};

use crate::engine::Engine;
use crate::history::{MS, now};
use crate::{pulse, task};

const TASKS: usize = 4;
const THREADS: usize = 2;
const SAMPLE_EVERY: Duration = Duration::from_millis(2);
/// How often a "no" of `is_lost` is written down; the last one before another answer always is.
const NOTE_EVERY: u64 = 8 * MS;

#[derive(Args, Debug)]
pub struct Arguments {
    #[arg(long)]
    pub engine: Engine,
    /// The proxies that lead to the servers; or the servers, or sentinels, themselves
    #[arg(long, value_delimiter = ',')]
    pub ports: Vec<u16>,
    /// The socket of the resource that the locks guard
    #[arg(long)]
    pub resource: PathBuf,
    #[arg(long)]
    pub lane: usize,
    /// How many processes this lane had before
    #[arg(long)]
    pub life: usize,
    #[arg(long)]
    pub seed: u64,
}

impl Arguments {
    pub fn to_words(&self) -> [String; 6] {
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).collect();
        [
            format!("--engine={}", self.engine.name()),
            format!("--ports={}", ports.join(",")),
            format!("--resource={}", self.resource.display()),
            format!("--lane={}", self.lane),
            format!("--life={}", self.life),
            format!("--seed={}", self.seed),
        ]
    }
}

/// A guard under observation. Whoever gives it up takes it out.
pub struct Slot {
    pub number: u64,
    pub token: u64,
    guard: Mutex<Option<LockGuard>>,
}

impl Slot {
    pub fn take(&self) -> Option<LockGuard> {
        self.guard.lock().ok()?.take()
    }

    /// Whether the guard is there and not lost.
    pub fn is_held(&self) -> bool {
        let guard = self.guard.lock();
        guard.is_ok_and(|guard| guard.as_ref().is_some_and(|guard| !guard.is_lost()))
    }
}

/// What the tasks of a worker share.
pub struct Worker {
    pub arguments: Arguments,
    pub locker: Locker,
    pub stop: CancellationToken,
    slots: Mutex<HashMap<u64, Arc<Slot>>>,
    numbers: AtomicU64,
    /// Until when the holders of locks go on with their sections, unless they are lost.
    pub linger_until: AtomicU64,
    /// Where the falls of tokens are noticed: no task can block it.
    witness: Handle,
}

pub fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let witness = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let stop = CancellationToken::new();
    let locker = runtime.block_on(connect(&arguments));
    let worker = Arc::new(Worker {
        arguments,
        locker,
        stop,
        slots: Mutex::default(),
        numbers: AtomicU64::new(0),
        linger_until: AtomicU64::new(0),
        witness: witness.handle().clone(),
    });
    let listening = Arc::clone(&worker);
    let blocked = runtime.handle().clone();
    std::thread::spawn(move || listening.listen(&blocked));
    let sampling = Arc::clone(&worker);
    std::thread::spawn(move || sampling.sample());
    let witnessing = worker.witness.clone();
    std::thread::spawn(move || pulse::of_worker(&witnessing));
    runtime.block_on(async {
        let tasks: Vec<_> = (0..TASKS)
            .map(|index| tokio::spawn(task::run(Arc::clone(&worker), index)))
            .collect();
        for task in tasks {
            task.await?;
        }
        let _ = worker.locker.close(Duration::from_secs(2)).await;
        Ok::<_, tokio::task::JoinError>(())
    })?;
    // Guards that were forgotten, and threads that sample, end here.
    std::process::exit(0)
}

async fn connect(arguments: &Arguments) -> Locker {
    let ports = arguments.ports.iter();
    let urls: Vec<_> = ports
        .map(|port| format!("redis://127.0.0.1:{port}/"))
        .collect();
    // A worker may be started in the middle of a fault.
    loop {
        let owner = format!("worker-{}.{}", arguments.lane, arguments.life);
        let builder = Locker::builder().owner(owner);
        let locker = match arguments.engine {
            Engine::Server => builder.connect(&urls[0]).await,
            Engine::Quorum => builder.quorum(&urls).await,
            Engine::Sentinel => builder.sentinel(&urls, MASTER).await,
            Engine::Cluster => builder.cluster(&urls).await,
        };
        match locker {
            Ok(locker) => return locker,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Writes a line of history at once: a killed process must not take it along.
pub fn tell(line: &str) {
    let mut output = std::io::stdout().lock();
    if output.write_all(format!("{line}\n").as_bytes()).is_err() {
        // The driver has gone.
        std::process::exit(3);
    }
}

impl Worker {
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts a guard under observation.
    pub fn observe(self: &Arc<Self>, number: u64, guard: LockGuard) -> Arc<Slot> {
        let got = now();
        tell(&format!(
            "got {number} {got} {} {}",
            guard.fencing_token(),
            guard.value()
        ));
        let lost = guard.lost();
        let slot = Arc::new(Slot {
            number,
            token: guard.fencing_token(),
            guard: Mutex::new(Some(guard)),
        });
        if let Ok(mut slots) = self.slots.lock() {
            slots.insert(number, Arc::clone(&slot));
        }
        let witnessed = Arc::downgrade(&slot);
        self.witness.spawn(async move {
            let given_up = async {
                while witnessed.upgrade().is_some() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::select! {
                () = lost.cancelled() => tell(&format!("fired {number} {}", now())),
                () = given_up => {}
            }
        });
        slot
    }

    /// Ends the observation and gives the guard back.
    pub fn take(&self, slot: &Slot, how: &str) -> Option<LockGuard> {
        let guard = slot.take();
        tell(&format!("end {} {} {how}", slot.number, now()));
        guard
    }

    /// Asks each guard all the time.
    fn sample(&self) {
        // When the guard's last "no" was, its deadline then, and when one was last written down.
        let mut last: HashMap<u64, Sample> = HashMap::new();
        loop {
            std::thread::sleep(SAMPLE_EVERY);
            let slots: Vec<Arc<Slot>> = match self.slots.lock() {
                Ok(slots) => slots.values().cloned().collect(),
                Err(_) => return,
            };
            for slot in slots {
                let sample = last.entry(slot.number).or_default();
                if sample.ask(&slot) {
                    if let Ok(mut slots) = self.slots.lock() {
                        slots.remove(&slot.number);
                    }
                    last.remove(&slot.number);
                }
            }
        }
    }

    /// Takes orders from the driver; its end is ours.
    fn listen(&self, tasks: &Handle) {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if line == "stop" {
                self.stop.cancel();
            } else if let Some(millis) = line.strip_prefix("linger ") {
                let until = now() + millis.parse().unwrap_or(0) * MS;
                self.linger_until.store(until, Ordering::Relaxed);
            } else if let Some(millis) = line.strip_prefix("block ") {
                let block = Duration::from_millis(millis.parse().unwrap_or(0));
                for _ in 0..THREADS {
                    tasks.spawn(async move { std::thread::sleep(block) });
                }
            }
        }
        if !self.stop.is_cancelled() {
            std::process::exit(3);
        }
    }
}

#[derive(Default)]
struct Sample {
    held: u64,
    deadline: u64,
    noted: u64,
    is_lost: bool,
}

impl Sample {
    /// Asks once; says whether the guard has gone.
    fn ask(&mut self, slot: &Slot) -> bool {
        let Ok(guard) = slot.guard.lock() else {
            return true;
        };
        let Some(guard) = guard.as_ref() else {
            self.note(slot.number);
            return true;
        };
        if self.is_lost {
            return false;
        }
        let before = now();
        let is_lost = guard.is_lost();
        let after = now();
        if is_lost {
            self.note(slot.number);
            self.is_lost = true;
            let reason = match guard.lost_reason() {
                Some(LostReason::Expired) => "expired",
                Some(LostReason::Removed) => "removed",
                Some(LostReason::Stolen) => "stolen",
                Some(LostReason::MaxHold) => "max-hold",
                _ => "closed",
            };
            tell(&format!("lost {} {before} {after} {reason}", slot.number));
            return false;
        }
        // The clock may only have been read at `before`, so no later moment is certain; the
        // deadline only grows while the lease is held, and `remaining` is read after `before`.
        let remaining = guard.remaining().as_nanos() as u64;
        self.held = before;
        if remaining > 0 {
            self.deadline = after + remaining;
        }
        if before - self.noted > NOTE_EVERY {
            self.note(slot.number);
        }
        false
    }

    fn note(&mut self, number: u64) {
        if self.held > self.noted {
            self.noted = self.held;
            tell(&format!("held {number} {} {}", self.held, self.deadline));
        }
    }
}
