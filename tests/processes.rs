//! Waiters in processes of their own, that are killed and stopped.
//!
//! This program runs itself again as such a process: see [`child`].

#![cfg(unix)]

#[path = "common/waiters.rs"]
mod waiters;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redlease::blocking::Locker;
use testkit::*;
use waiters::*;

const CHILD: &str = "REDLEASE_TEST_CHILD";
/// A waiter that is gone counts for so long.
const WAITER_TTL: Duration = Duration::from_secs(3);
/// For a slow machine; with it still less than the TTL.
const SLACK: Duration = Duration::from_secs(20);
/// A heartbeat that is late on a busy machine costs its waiter the place: so many may be out of
/// order. By chance it would be nearly all.
const OUT_OF_ORDER: usize = 5;
const WAITERS: usize = 100;

/// What each process does: waits, says in the list `log` what happens to it, and holds as long as
/// it is told. Does nothing when it runs as a test.
#[test]
fn child() {
    let Ok(order) = std::env::var(CHILD) else {
        return;
    };
    let [name, url, key, ttl, hold] = order.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{order:?}");
    };
    let mut redis = redis::Client::open(url).unwrap().get_connection().unwrap();
    let mut say = |what: &str| {
        let line = format!("{name} {what}");
        let () = redis::cmd("RPUSH")
            .arg("log")
            .arg(line)
            .query(&mut redis)
            .unwrap();
    };
    let ttl = Duration::from_millis(ttl.parse().unwrap());
    let guard = Locker::connect(url)
        .unwrap()
        .mutex(key)
        .ttl(ttl)
        .lock()
        .unwrap();
    // Its state before it is told, so that what was held when it was said was held before.
    if guard.is_lost() {
        return say("lost");
    }
    say("held");
    let until = Instant::now() + Duration::from_millis(hold.parse().unwrap());
    while Instant::now() < until {
        if guard.is_lost() {
            return say("lost");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    say("leaves");
    guard.release().unwrap();
}

/// A process that ends with the value.
struct Process(Child);

impl Process {
    fn start(server: &Server, name: &str, key: &str, ttl: Duration, hold: Duration) -> Self {
        let (ttl, hold) = (ttl.as_millis(), hold.as_millis());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--test-threads=1"])
            .env(CHILD, format!("{name} {} {key} {ttl} {hold}", server.url()))
            .stdout(Stdio::null())
            .spawn()
            .expect("this program runs");
        Self(child)
    }

    /// Ends it as `kill -9` does.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log(server: &Server) -> Vec<String> {
    server.command(&["LRANGE", "log", "0", "-1"])
}

async fn until_said(server: &Server, line: &str) {
    eventually(line, || log(server).iter().any(|said| said == line)).await;
}

/// The length of the longest part that is in ascending order, gaps allowed.
fn in_order(numbers: &[usize]) -> usize {
    let mut longest: Vec<usize> = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        let before = (0..index).filter(|&i| numbers[i] < *number);
        longest.push(1 + before.map(|i| longest[i]).max().unwrap_or(0));
    }
    longest.into_iter().max().unwrap_or(0)
}

const SHORT: Duration = Duration::from_millis(1);

#[tokio::test]
async fn p9_a_waiter_killed_at_the_head_delays_the_next_by_its_life_at_most() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let first = locker.mutex(&key).ttl(TTL).lock().await.unwrap();
    let mut head = Process::start(&server, "head", &key, TTL, SHORT);
    until_queued(&server, &key, 1).await;
    let next = wait_for(&connect(&server).await.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 2).await;
    head.kill();
    first.release().await.unwrap();
    let guard = within(WAITER_TTL + SLACK, "the next has it", next)
        .await
        .unwrap();
    assert!(!guard.is_lost());
    assert!(log(&server).is_empty());
}

#[tokio::test]
async fn p9_the_lock_of_a_holder_that_is_killed_is_free_after_its_ttl() {
    let server = Server::start();
    let key = unique_key();
    let ttl = Duration::from_secs(4);
    let mut holder = Process::start(&server, "holder", &key, ttl, TTL);
    until_said(&server, "holder held").await;
    let next = wait_for(&connect(&server).await.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    holder.kill();
    let asked = Instant::now();
    let left: u64 = server.command(&["PTTL", &key]);
    let guard = within(ttl + SLACK, "the next has it", next).await.unwrap();
    // Redis counts whole milliseconds.
    let waited = asked.elapsed() + Duration::from_millis(2);
    assert!(
        waited >= Duration::from_millis(left),
        "P1: {waited:?} of {left} ms"
    );
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn p3_a_process_stopped_until_its_grant_expired_wakes_up_without_the_lock() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let first = locker.mutex(&key).ttl(TTL).lock().await.unwrap();
    let stopped = Process::start(&server, "stopped", &key, TTL, SHORT);
    until_queued(&server, &key, 1).await;
    let next = wait_for(&connect(&server).await.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 2).await;
    let value = first.value().to_owned();
    freeze(&stopped.0);
    first.release().await.unwrap();
    let granted = server.get(&key).expect("granted");
    assert_ne!(granted, value);
    let guard = within(WAITER_TTL + SLACK, "the next has it", next)
        .await
        .unwrap();
    assert_ne!(
        guard.value(),
        granted,
        "the stopped one had been granted it"
    );
    thaw(&stopped.0);
    // It finds the old grant on its connection, and waits again.
    until_queued(&server, &key, 1).await;
    assert!(log(&server).is_empty(), "P1: {:?}", log(&server));
    assert!(!guard.is_lost());
    guard.release().await.unwrap();
    until_said(&server, "stopped leaves").await;
}

#[tokio::test]
async fn p3_a_holder_stopped_until_its_lease_expired_wakes_up_lost() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let first = locker.mutex(&key).ttl(TTL).lock().await.unwrap();
    let stopped = Process::start(&server, "stopped", &key, Duration::from_secs(3), TTL);
    until_queued(&server, &key, 1).await;
    first.release().await.unwrap();
    until_said(&server, "stopped held").await;
    let next = wait_for(&locker.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    freeze(&stopped.0);
    let guard = within(WAITER_TTL + SLACK, "the next has it", next)
        .await
        .unwrap();
    thaw(&stopped.0);
    until_said(&server, "stopped lost").await;
    assert_eq!(log(&server), ["stopped held", "stopped lost"]);
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn of_many_waiting_processes_half_are_killed_and_the_others_have_it_in_order() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let first = locker.mutex(&key).ttl(10 * TTL).lock().await.unwrap();
    let mut processes = Vec::new();
    for number in 0..WAITERS {
        let name = number.to_string();
        processes.push((
            name.clone(),
            Process::start(&server, &name, &key, TTL, SHORT),
        ));
        // One after the other, so that the order is known.
        until_queued(&server, &key, number as u64 + 1).await;
    }
    let mut numbers: Vec<usize> = (0..WAITERS).collect();
    fastrand::shuffle(&mut numbers);
    for &number in &numbers[..WAITERS / 2] {
        processes[number].1.kill();
    }
    numbers.drain(..WAITERS / 2);
    numbers.sort_unstable();
    first.release().await.unwrap();
    let count = |what: &str| {
        log(&server)
            .iter()
            .filter(|line| line.ends_with(what))
            .count()
    };
    eventually("all others have had it", || {
        count(" leaves") == numbers.len()
    })
    .await;
    let log = log(&server);
    let holders: Vec<usize> = log
        .chunks(2)
        .map(|lines| {
            let name = lines[0].strip_suffix(" held").expect("somebody holds");
            assert_eq!(lines[1], format!("{name} leaves"), "P1: {log:?}");
            name.parse().expect("a number")
        })
        .collect();
    let mut sorted = holders.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, numbers);
    assert!(
        in_order(&holders) + OUT_OF_ORDER >= holders.len(),
        "{holders:?}"
    );
    drop(processes);
    let () = server.command(&["DEL", "log"]);
    assert_eq!(until_only_fences_are_left(&server).await, 1);
}
