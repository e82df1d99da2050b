//! Keys that were locked once leave nothing behind but fencing counters that expire.
//!
//! `REDLEASE_KEYS` says how many keys; 20,000 unless told, and 100,000 in a release build.

#[path = "common/waiters.rs"]
mod waiters;

use redlease::Locker;
use testkit::*;
use waiters::*;

const PARTS: usize = 5;

fn keys() -> usize {
    let default = if cfg!(debug_assertions) {
        20_000
    } else {
        100_000
    };
    let given = std::env::var("REDLEASE_KEYS").ok();
    given.map_or(default, |keys| keys.parse().expect("a number of keys"))
}

/// The memory that this process uses, in bytes, where the system tells it so.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

async fn lock_each(locker: &Locker, name: &str, count: usize) {
    const TASKS: usize = 16;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (locker, name) = (locker.clone(), name.to_owned());
            tokio::spawn(async move {
                for number in (task..count).step_by(TASKS) {
                    let lock = locker.mutex(format!("{name}:{number}")).ttl(TTL);
                    let guard = lock.lock().await.unwrap();
                    if number % 2 == 0 {
                        drop(guard);
                    } else {
                        guard.release().await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        within(60 * DEADLINE, "the task ends", task).await.unwrap();
    }
}

// One test in this program, so that no other one uses memory meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distinct_keys_leave_only_expiring_counters_and_nothing_in_the_process() {
    let server = Server::start();
    let locker = connect(&server).await;
    let part = keys() / PARTS;
    let mut least_growth = u64::MAX;
    for number in 0..PARTS {
        let before = memory();
        lock_each(&locker, &number.to_string(), part).await;
        if let (Some(before), Some(after)) = (before, memory()) {
            least_growth = least_growth.min(after.saturating_sub(before));
        }
    }
    locker.close(DEADLINE).await.unwrap();
    let size: usize = server.command(&["DBSIZE"]);
    assert_eq!(size, PARTS * part, "a counter for each, and nothing else");
    let fences: Vec<String> = server.command(&["KEYS", "*:fence"]);
    assert_eq!(fences.len(), size);
    let keyspace: String = server.command(&["INFO", "keyspace"]);
    assert!(keyspace.contains(&format!("expires={size}")), "{keyspace}");
    // What is kept for each key grows in every part; what an allocator sets aside does not.
    // Where the memory is not told, the least growth is none.
    let grown = if least_growth == u64::MAX {
        0
    } else {
        least_growth
    };
    assert!(grown < 48 * part as u64, "{grown} bytes for {part} keys");
}
