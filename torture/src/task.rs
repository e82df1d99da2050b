//! What a task does, over and over: wait for a lock in one of several ways, hold it for a while,
//! write under it, and give it up in one of several ways.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redlease::{Error, Lock, LockGuard};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::history::{TTLS, key, now};
use crate::worker::{Slot, Worker, tell};

pub async fn run(worker: Arc<Worker>, index: usize) {
    let arguments = &worker.arguments;
    let seed = arguments.seed ^ ((arguments.lane * 64 + index) as u64) << 32;
    let mut random = fastrand::Rng::with_seed(seed ^ arguments.life as u64);
    let Ok(mut resource) = Resource::connect(&arguments.resource).await else {
        return;
    };
    while !worker.stop.is_cancelled() {
        let number = worker.next_number();
        let chosen = random.usize(..TTLS.len());
        let ttl = Duration::from_millis(TTLS[chosen]);
        let lock = worker.locker.mutex(key(chosen)).ttl(ttl);
        // One that will be forgotten must end by itself.
        let is_forgotten = random.u32(..600) == 0;
        let lock = match is_forgotten {
            true => lock.max_hold(ttl),
            false => lock,
        };
        let way = Way::choose(&mut random);
        tell(&format!("call {number} {chosen} {} {}", now(), way.name()));
        let guard = wait(&worker, lock, way, &mut random).await;
        let Some(guard) = guard else {
            tell(&format!("none {number} {}", now()));
            continue;
        };
        let slot = worker.observe(number, guard);
        let section = Section {
            worker: &worker,
            slot: &slot,
            number,
            key: chosen,
        };
        section.work(&mut resource, &mut random, ttl).await;
        if is_forgotten {
            std::mem::forget(worker.take(&slot, "forgotten"));
        } else {
            give_up(&worker, &slot, &mut random).await;
            tell(&format!("over {number} {}", now()));
        }
        sleep(Duration::from_micros(random.u64(..8_000))).await;
    }
}

/// A way to wait for a lock.
#[derive(Clone, Copy)]
enum Way {
    Lock,
    TryLockFor,
    TryLock,
    /// Cancelled in the middle: early, when a request is under way.
    CancelEarly,
    Cancel,
    /// On a runtime that is shut down while the guard lives.
    OwnRuntime,
}

impl Way {
    fn choose(random: &mut fastrand::Rng) -> Self {
        match random.u32(..200) {
            0..90 => Self::Lock,
            90..150 => Self::TryLockFor,
            150..169 => Self::TryLock,
            169..189 => Self::CancelEarly,
            189..199 => Self::Cancel,
            _ => Self::OwnRuntime,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::TryLockFor => "try-lock-for",
            Self::TryLock => "try-lock",
            Self::CancelEarly => "cancelled-early",
            Self::Cancel => "cancelled",
            Self::OwnRuntime => "own-runtime",
        }
    }
}

async fn wait(
    worker: &Worker,
    lock: Lock,
    way: Way,
    random: &mut fastrand::Rng,
) -> Option<LockGuard> {
    let millis = Duration::from_millis;
    let limit = Duration::from_micros(random.u64(..300_000));
    let attempt = async {
        match way {
            Way::Lock => lock.lock().await.map(Some),
            Way::TryLockFor => lock.try_lock_for(limit).await,
            Way::TryLock => {
                let answer = lock.try_lock().await;
                if matches!(answer, Ok(None)) {
                    sleep(millis(2)).await;
                }
                answer
            }
            Way::CancelEarly => Ok(timeout(limit / 100, lock.lock()).await.ok().transpose()?),
            Way::Cancel => Ok(timeout(limit, lock.lock()).await.ok().transpose()?),
            Way::OwnRuntime => Ok(on_a_runtime_of_its_own(lock.clone()).await),
        }
    };
    let answer = tokio::select! {
        answer = attempt => answer,
        () = worker.stop.cancelled() => Ok(None),
    };
    match answer {
        Ok(guard) => guard,
        Err(error) => {
            let kind = match &error {
                Error::Unavailable { .. } => "unavailable".to_owned(),
                Error::Refused { source, .. } => format!("refused: {source}").replace('\n', " "),
                _ => error.to_string().replace('\n', " "),
            };
            tell(&format!("error {kind}"));
            sleep(millis(20)).await;
            None
        }
    }
}

async fn on_a_runtime_of_its_own(lock: Lock) -> Option<LockGuard> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .ok()?;
        let limit = Duration::from_millis(200);
        runtime.block_on(lock.try_lock_for(limit)).ok().flatten()
    };
    tokio::task::spawn_blocking(work).await.ok().flatten()
}

async fn give_up(worker: &Arc<Worker>, slot: &Arc<Slot>, random: &mut fastrand::Rng) {
    match random.u32(..3000) {
        0 => {
            tell(&format!("end {} {} aborted", slot.number, now()));
            std::process::abort();
        }
        1..1200 => {
            if let Some(guard) = worker.take(slot, "released") {
                let _ = guard.release().await;
            }
        }
        1200..1500 => {
            if let Some(guard) = worker.take(slot, "release-cut-short") {
                let limit = Duration::from_micros(random.u64(..3_000));
                let _ = timeout(limit, guard.release()).await;
            }
        }
        1500..1600 => {
            let guard = worker.take(slot, "panicked");
            let task = tokio::spawn(async move {
                let _guard = guard;
                std::panic::resume_unwind(Box::new("as it is meant to"));
            });
            let _ = task.await;
        }
        _ => drop(worker.take(slot, "dropped")),
    }
}

/// The time under a lock.
struct Section<'a> {
    worker: &'a Worker,
    slot: &'a Slot,
    number: u64,
    key: usize,
}

impl Section<'_> {
    async fn work(&self, resource: &mut Resource, random: &mut fastrand::Rng, ttl: Duration) {
        // Mostly short, so that the lock often changes hands; now and then up to three TTLs. These
        // few take a third of the time of all keys.
        let length = match random.u32(..1000) {
            0..950 => Duration::from_micros(random.u64(..4_000)),
            950..996 => Duration::from_micros(random.u64(..60_000)),
            _ => ttl.mul_f64(3.0 * random.f64()),
        };
        self.ask(resource, "log", 0).await;
        let unfenced = self.ask(resource, "read-unfenced", 0).await;
        let fenced = self.ask(resource, "read", 0).await;
        tokio::select! {
            () = sleep(length) => self.linger().await,
            () = self.worker.stop.cancelled() => {}
        }
        if let Some(value) = fenced {
            // A careless holder: it does not ask whether it is lost. The token stops it.
            self.ask(resource, "write", value + 1).await;
        }
        if let Some(value) = unfenced
            && self.slot.is_held()
        {
            self.ask(resource, "write-unfenced", value + 1).await;
        }
        self.ask(resource, "log", 0).await;
    }

    async fn linger(&self) {
        let until = || self.worker.linger_until.load(Ordering::Relaxed);
        while now() < until() && self.slot.is_held() {
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn ask(&self, resource: &mut Resource, verb: &str, value: u64) -> Option<u64> {
        let arguments = &self.worker.arguments;
        let Self { key, number, .. } = self;
        let token = self.slot.token;
        let (lane, life) = (arguments.lane, arguments.life);
        let line = format!("{verb} {key} {token} {value} {lane} {life} {number}\n");
        resource.ask(&line).await
    }
}

struct Resource {
    lines: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    writer: tokio::net::unix::OwnedWriteHalf,
}

impl Resource {
    async fn connect(path: &Path) -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        Ok(Self {
            lines: BufReader::new(reader).lines(),
            writer,
        })
    }

    async fn ask(&mut self, line: &str) -> Option<u64> {
        self.writer.write_all(line.as_bytes()).await.ok()?;
        self.lines.next_line().await.ok()??.parse().ok()
    }
}
