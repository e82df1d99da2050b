//! What an uncontended cycle costs, counted and not timed: requests, the commands of each script,
//! allocations. A change of these numbers is to be a decision.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::Connection;
use redlease::{Lock, Locker, Released};
use testkit::{DEADLINE, Server, Servers, unique_key};

/// What one cycle leaves to be done once: scripts made known, connections opened, subscriptions.
const WARM_UP: usize = 20;

/// A lock that is held for longer is looked at.
const YOUTH: Duration = Duration::from_millis(50);
/// So often a machine may stretch a cycle to more than that.
const TRIES: usize = 100;

async fn cycle(lock: &Lock) {
    let guard = lock.lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

async fn warm(lock: &Lock) {
    for _ in 0..WARM_UP {
        cycle(lock).await;
    }
}

type Calls = BTreeMap<String, u64>;

/// How often each command was called, by clients and by scripts, but not by the counting.
fn calls(connection: &mut Connection) -> Calls {
    let mut info = redis::cmd("INFO");
    let stats: String = info.arg("commandstats").query(connection).expect("an INFO");
    let lines = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let count = rest.split(',').next()?.parse().ok()?;
        Some((name.to_owned(), count))
    });
    lines.filter(|(name, _)| name != "info").collect()
}

/// What `server` was asked between two counts: `del 1, evalsha 2, …`.
fn between(before: &Calls, after: &Calls) -> String {
    let counts = after.iter().filter_map(|(name, count)| {
        let spent = count - before.get(name).copied().unwrap_or_default();
        (spent > 0).then(|| format!("{name} {spent}"))
    });
    counts.collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn the_commands_of_each_script_are_these() {
    let server = Server::start();
    let mut counting = server.client();
    let locker = Locker::connect(server.url()).await.unwrap();
    let lock = locker.mutex(unique_key());
    warm(&lock).await;
    let guard = lock.lock().await.unwrap();
    guard.renew().await.unwrap();
    guard.release().await.unwrap();

    let mut tries = 0..TRIES;
    let (before, acquired, renewed, released) = loop {
        tries.next().expect("one cycle in time");
        let before = calls(&mut counting);
        let began = Instant::now();
        let guard = lock.lock().await.unwrap();
        let acquired = calls(&mut counting);
        guard.renew().await.unwrap();
        let renewed = calls(&mut counting);
        guard.release().await.unwrap();
        if began.elapsed() < YOUTH {
            break (before, acquired, renewed, calls(&mut counting));
        }
    };

    assert_eq!(between(&before, &acquired), "evalsha 1, set 2");
    assert_eq!(
        between(&acquired, &renewed),
        "evalsha 1, exists 1, get 1, pexpire 1, pttl 1"
    );
    assert_eq!(
        between(&renewed, &released),
        "del 1, evalsha 1, exists 1, get 1"
    );
}

#[tokio::test]
async fn a_quorum_asks_each_server_twice_a_cycle_and_the_commands_are_these() {
    let servers = Servers::start(3);
    let mut counting: Vec<_> = servers.0.iter().map(Server::client).collect();
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let mut spent = Vec::new();
    for round in 0..TRIES {
        let before = calls_of(&mut counting);
        let began = Instant::now();
        let guard = lock.lock().await.unwrap();
        let acquired = answered(&mut counting, &before).await;
        guard.release().await.unwrap();
        let in_time = began.elapsed() < YOUTH;
        let released = answered(&mut counting, &acquired).await;
        if round >= WARM_UP && in_time {
            for server in 0..counting.len() {
                spent.push(between(&before[server], &acquired[server]));
                spent.push(between(&acquired[server], &released[server]));
            }
            break;
        }
    }
    assert!(!spent.is_empty(), "no cycle in time");
    for pair in spent.chunks(2) {
        assert_eq!(pair[0], "evalsha 1, set 3");
        assert_eq!(pair[1], "del 1, evalsha 1, exists 1, get 1");
    }
}

#[tokio::test]
async fn a_release_that_overtakes_the_answers_of_a_minority_costs_no_second_one() {
    const CYCLES: u64 = 100;
    let servers = Servers::start(3);
    let mut counting: Vec<_> = servers.0.iter().map(Server::client).collect();
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    warm(&lock).await;
    let before = answered(&mut counting, &[]).await;
    for _ in 0..CYCLES {
        cycle(&lock).await;
    }
    // So that the last releases have run.
    locker.close(DEADLINE).await.unwrap();
    for (before, after) in before.iter().zip(calls_of(&mut counting)) {
        let spent = |name: &str| {
            let count = |calls: &Calls| calls.get(name).copied().unwrap_or_default();
            count(&after) - count(before)
        };
        assert_eq!(spent("evalsha"), 2 * CYCLES);
        // A machine that pauses gives one up now and then, and sends a clean-up behind it.
        assert!(spent("eval") <= CYCLES / 50, "{}", spent("eval"));
    }
}

fn calls_of(servers: &mut [Connection]) -> Vec<Calls> {
    servers.iter_mut().map(calls).collect()
}

/// Waits for the minority, which a guard does not. Returns the counts after it.
async fn answered(servers: &mut [Connection], before: &[Calls]) -> Vec<Calls> {
    let scripts = |calls: &Calls| calls.get("evalsha").copied();
    loop {
        let after = calls_of(servers);
        let mut pairs = before.iter().zip(&after);
        if pairs.all(|(before, after)| scripts(before) != scripts(after)) {
            // The answers are in the sockets now: the runtime reads them.
            tokio::time::sleep(Duration::from_millis(5)).await;
            return after;
        }
        tokio::task::yield_now().await;
    }
}

/// How often the server has read from its clients.
fn reads(connection: &mut Connection) -> u64 {
    let mut info = redis::cmd("INFO");
    let stats: String = info.arg("stats").query(connection).expect("an INFO");
    let mut lines = stats.lines();
    let count = lines.find_map(|line| line.strip_prefix("total_reads_processed:"));
    count.expect("a figure").parse().expect("a number")
}

#[test]
fn requests_of_tasks_that_are_ready_together_are_written_together() {
    // More than a task of tokio may do at a time.
    const TASKS: usize = 400;
    const CYCLES: usize = 20;
    const PATIENCE: Duration = Duration::from_secs(60);
    let server = Server::start();
    let mut counting = server.client();
    // Where a task that is woken by another runs right after that one.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let before = runtime.block_on(async {
        let builder = Locker::builder().command_timeout(PATIENCE);
        let locker = builder.connect(server.url()).await.unwrap();
        warm(&locker.mutex(unique_key())).await;
        let before = reads(&mut counting);
        let tasks = (0..TASKS).map(|_| {
            let lock = locker.mutex(unique_key()).ttl(PATIENCE);
            tokio::spawn(async move {
                for _ in 0..CYCLES {
                    cycle(&lock).await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        before
    });
    let requests = 2 * TASKS * CYCLES;
    let reads = reads(&mut counting) - before;
    assert!(
        reads * 24 < requests as u64,
        "{reads} reads of {requests} requests"
    );
}

/// Allocations of the caller's thread, which does the whole of a cycle; the driver sleeps.
fn allocations_of_a_cycle(runtime: &tokio::runtime::Runtime, lock: &Lock) -> u64 {
    const CYCLES: u64 = 1_000;
    runtime.block_on(warm(lock));
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..CYCLES {
                cycle(lock).await;
            }
        });
    });
    counted.count_total.div_ceil(CYCLES)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

#[test]
fn a_cycle_allocates_no_more_than_this() {
    let server = Server::start();
    let runtime = runtime();
    let locker = runtime.block_on(Locker::connect(server.url())).unwrap();
    let count = allocations_of_a_cycle(&runtime, &locker.mutex(unique_key()));
    assert!(count <= 24, "{count} allocations");
}

#[test]
fn a_cycle_of_a_quorum_allocates_no_more_than_this() {
    let servers = Servers::start(3);
    let runtime = runtime();
    let locker = runtime.block_on(Locker::quorum(servers.urls())).unwrap();
    let count = allocations_of_a_cycle(&runtime, &locker.mutex(unique_key()));
    assert!(count <= 90, "{count} allocations");
}

#[test]
fn a_cycle_in_memory_allocates_no_more_than_this() {
    let runtime = runtime();
    let count = allocations_of_a_cycle(&runtime, &Locker::in_memory().mutex(unique_key()));
    assert!(count <= 8, "{count} allocations");
}
