//! Figures of a quorum of real servers: `cargo bench --bench quorum [latency|race|fencing]`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redlease::{Lock, Locker};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Barrier;
use tracing::field::{Field, Visit};

use common::blackhole::BlackHole;
use common::servers::Servers;
use common::{Server, unique_key};

const CYCLES: usize = 2_000;
const ROUNDS: usize = 1_000;
const PROCESSES: usize = 4;
const ACQUISITIONS: usize = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    if let [worker, key, count, urls @ ..] = &arguments[..]
        && worker == "worker"
    {
        let count = count.parse().expect("a number");
        return runtime.block_on(work(key, count, urls));
    }
    let wanted = |name| arguments.iter().all(|a| a.starts_with('-')) || arguments.contains(&name);
    if wanted("latency".to_owned()) {
        runtime.block_on(latency());
    }
    if wanted("race".to_owned()) {
        runtime.block_on(race());
    }
    if wanted("fencing".to_owned()) {
        fencing("healthy", false);
        fencing("killed, restarted with data and frozen at random", true);
    }
}

/// Acquire, renew and release while all servers are well, and while one is silent.
async fn latency() {
    let servers = Servers::start(3);
    let hole = BlackHole::before(servers.0[0].port);
    let direct = Locker::quorum(servers.urls()).await.expect("a locker");
    let urls = [hole.url(), servers.0[1].url(), servers.0[2].url()];
    let through_hole = Locker::quorum(urls).await.expect("a locker");
    cycles(&direct, "warm-up").await;
    cycles(&direct, "all well").await;
    servers.0[0].freeze();
    cycles(&direct, "one of three frozen").await;
    servers.0[0].thaw();
    cycles(&through_hole, "all well, one behind a proxy").await;
    hole.swallow(true);
    cycles(&through_hole, "the one behind the proxy cut off").await;
    hole.swallow(false);
}

async fn cycles(locker: &Locker, what: &str) {
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..CYCLES {
        let lock = locker.lock(unique_key());
        let start = Instant::now();
        let guard = lock.lock().await.expect("a guard");
        times[0].push(start.elapsed());
        let start = Instant::now();
        guard.renew().await.expect("a renewal");
        times[1].push(start.elapsed());
        let start = Instant::now();
        guard.release().await.expect("a release");
        times[2].push(start.elapsed());
    }
    print!("{what}, {CYCLES} cycles:");
    for (name, times) in ["acquire", "renew", "release"].iter().zip(times) {
        print!(" {name} {}", percentiles(times));
    }
    println!();
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p50 {:?} p99 {:?} max {:?};", at(50), at(99), at(100))
}

/// Three contenders that start at the same moment; a round ends when each has had the lock.
async fn race() {
    let servers = Servers::start(3);
    let key = unique_key();
    let inside = Arc::new(AtomicU32::new(0));
    let start = Arc::new(Barrier::new(3));
    let mut racers = Vec::new();
    for _ in 0..3 {
        let locker = Locker::quorum(servers.urls()).await.expect("a locker");
        let (key, inside, start) = (key.clone(), Arc::clone(&inside), Arc::clone(&start));
        racers.push(tokio::spawn(async move {
            let lock = locker.lock(key);
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                start.wait().await;
                let begin = Instant::now();
                once(&lock, &inside).await;
                start.wait().await;
                times.push(begin.elapsed());
            }
            times
        }));
    }
    for racer in racers {
        let times = racer.await.expect("no racer fails");
        println!("three racers, {ROUNDS} rounds: {}", percentiles(times));
    }
}

async fn once(lock: &Lock, inside: &AtomicU32) {
    let guard = lock.lock().await.expect("a guard");
    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
    tokio::task::yield_now().await;
    inside.fetch_sub(1, Ordering::SeqCst);
    guard.release().await.expect("a release");
}

/// One acquisition: when it began and ended by the machine's clock, and its token.
struct Acquisition {
    began: u64,
    ended: u64,
    token: u64,
}

/// Tokens of several processes, with a minority of the servers in trouble all the time.
fn fencing(what: &str, trouble: bool) {
    let persistent = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = Servers((0..3).map(|_| Server::with(&persistent)).collect());
    let key = unique_key();
    let count = (ACQUISITIONS / PROCESSES).to_string();
    let start = Instant::now();
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args(["worker", &key, &count]).args(servers.urls());
            command.stdout(Stdio::piped()).spawn().expect("a process")
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&done);
    let troubles = std::thread::spawn(move || {
        let mut troubles = 0;
        while trouble && !flag.load(Ordering::SeqCst) {
            let server = &mut servers.0[fastrand::usize(..3)];
            let pause = Duration::from_millis(fastrand::u64(20..300));
            if fastrand::bool() {
                server.freeze();
                std::thread::sleep(pause);
                server.thaw();
            } else {
                server.kill();
                std::thread::sleep(pause);
                server.restart();
            }
            std::thread::sleep(Duration::from_millis(fastrand::u64(20..300)));
            troubles += 1;
        }
        // The servers live until the workers are done.
        while !flag.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        troubles
    });
    let mut all = Vec::new();
    let mut written_back = 0;
    for child in children.drain(..) {
        let output = child.wait_with_output().expect("its output");
        assert!(output.status.success(), "a worker failed");
        for line in String::from_utf8(output.stdout).expect("text").lines() {
            let numbers: Vec<u64> = line
                .split(' ')
                .map(|n| n.parse().expect("numbers"))
                .collect();
            match numbers[..] {
                [began, ended, token] => all.push(Acquisition {
                    began,
                    ended,
                    token,
                }),
                [count] => written_back += count,
                _ => panic!("{line}"),
            }
        }
    }
    done.store(true, Ordering::SeqCst);
    let troubles = troubles.join().expect("no trouble with the trouble");
    verify(&mut all);
    let share = 100.0 * (1.0 - written_back as f64 / all.len() as f64);
    println!(
        "fencing, {what}: {} acquisitions by {PROCESSES} processes in {:?}, {troubles} troubles; \
         unique and increasing; {share:.2} % in one round trip",
        all.len(),
        start.elapsed(),
    );
}

/// Tokens are unique, and larger than all of those that were granted before they were asked for.
fn verify(all: &mut [Acquisition]) {
    all.sort_unstable_by_key(|acquisition| acquisition.token);
    assert!(
        all.windows(2).all(|pair| pair[0].token < pair[1].token),
        "a token twice"
    );
    // No acquisition with a smaller token began after one with a larger token had ended.
    let mut earliest_end = u64::MAX;
    for acquisition in all.iter().rev() {
        assert!(
            acquisition.began < earliest_end,
            "a token that does not grow"
        );
        earliest_end = earliest_end.min(acquisition.ended);
    }
}

async fn work(key: &str, count: usize, urls: &[String]) {
    tracing::subscriber::set_global_default(WriteBacks).expect("the first");
    let locker = Locker::quorum(urls).await.expect("a locker");
    let lock = locker.lock(key).give_up_after(Duration::from_secs(60));
    let lock = lock.ttl(Duration::from_secs(2));
    let mut lines = Vec::new();
    for _ in 0..count {
        let began = now();
        let guard = lock.lock().await.expect("a guard");
        let ended = now();
        writeln!(lines, "{began} {ended} {}", guard.fencing_token()).expect("memory");
        // Unknown, if the majority is in trouble: the TTL frees it then.
        let _ = guard.release().await;
    }
    writeln!(lines, "{}", WRITE_BACKS.load(Ordering::Relaxed)).expect("memory");
    std::io::stdout().write_all(&lines).expect("a pipe");
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

static WRITE_BACKS: AtomicU64 = AtomicU64::new(0);

/// Counts the acquisitions that took a second round trip, which the crate tells of as a trace.
struct WriteBacks;

impl tracing::Subscriber for WriteBacks {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().ends_with("quorum::fence")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct IsWriteBack(bool);
        impl Visit for IsWriteBack {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 |=
                    field.name() == "message" && format!("{value:?}").contains("written back");
            }
        }
        let mut visit = IsWriteBack(false);
        event.record(&mut visit);
        WRITE_BACKS.fetch_add(visit.0.into(), Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
