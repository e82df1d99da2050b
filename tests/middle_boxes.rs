//! What stands between a locker and its server, and ends or forgets connections.

#[path = "common/said.rs"]
mod said;
#[path = "common/waiters.rs"]
mod waiters;

use std::time::{Duration, Instant};

use redlease::{Error, Locker, Released};
use testkit::*;
use tokio::time::sleep;
use waiters::*;

const LEASE: Duration = Duration::from_secs(6);
/// Less than the time between two renewals, and between two heartbeats.
const IDLE: Duration = Duration::from_millis(300);

/// How many connections a server has taken, but for those of this function.
fn taken(server: &Server) -> u64 {
    let stats: String = server.command(&["INFO", "stats"]);
    let prefix = "total_connections_received:";
    let line = stats.lines().find_map(|line| line.strip_prefix(prefix));
    line.expect("the count").parse().expect("a number")
}

#[tokio::test]
async fn p13_a_proxy_that_closes_idle_connections_costs_no_lease_and_no_turn() {
    said::listen();
    let server = Server::start();
    let proxy = HaProxy::before(server.port, IDLE);
    for query in ["", "?protocol=2"] {
        let url = format!("{}{query}", proxy.url());
        let (a, b) = (Locker::connect(&url).await, Locker::connect(&url).await);
        let (a, b) = (a.unwrap(), b.unwrap());
        let key = unique_key();
        let lock = |locker: &Locker| locker.mutex(&key).ttl(LEASE);
        let guard = lock(&a).lock().await.unwrap();
        let lost = guard.lost();
        let waiter = wait_for(&lock(&b));
        until_queued(&server, &key, 1).await;
        let began = Instant::now();
        while began.elapsed() < LEASE * 3 / 2 {
            assert!(!guard.is_lost() && !lost.is_cancelled(), "{query}: P13");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(queued(&server, &key), 1, "{query}: it waits");
        assert_eq!(guard.release().await.unwrap(), Released::Freed, "{query}");
        let next = within(LEASE / 2, "its turn", waiter).await.unwrap();
        assert_eq!(next.release().await.unwrap(), Released::Freed, "{query}");
        // Nothing was under way for longer than the proxy puts up with.
        sleep(3 * IDLE).await;
        let guard = lock(&a).try_lock().await.unwrap().expect("it is free");
        assert_eq!(guard.release().await.unwrap(), Released::Freed, "{query}");
        drop((a, b));
        until_only_fences_are_left(&server).await;
    }
    let server = proxy.server();
    let (opened, closed) = ("connection to redis was opened", "redis was closed");
    assert!(said::times_said(&server, opened) > 4);
    eventually("each end is told", || {
        said::times_said(&server, closed) == said::times_said(&server, opened)
    })
    .await;
    // For each protocol there are two lockers with two runtimes.
    let warnings = said::times_said(&server, "lost again and again");
    assert!((1..=8).contains(&warnings), "{warnings} warnings");
}

#[tokio::test]
async fn p13_a_firewall_that_forgets_connections_costs_no_lease_and_no_turn() {
    let server = Server::start();
    for query in ["", "?protocol=2"] {
        let proxy = Proxy::before(server.port);
        let url = format!("{}{query}", proxy.url());
        let (a, b) = (Locker::connect(&url).await, Locker::connect(&url).await);
        let (a, b) = (a.unwrap(), b.unwrap());
        let key = unique_key();
        let lock = |locker: &Locker| locker.mutex(&key).ttl(2 * LEASE);
        let guard = lock(&a).lock().await.unwrap();
        let lost = guard.lost();
        let waiter = wait_for(&lock(&b));
        until_queued(&server, &key, 1).await;
        let before = proxy.taken();
        proxy.forget_connections();
        let began = Instant::now();
        while began.elapsed() < LEASE * 3 {
            assert!(!guard.is_lost() && !lost.is_cancelled(), "{query}: P13");
            sleep(Duration::from_millis(20)).await;
        }
        assert!(proxy.taken() > before, "{query}: it was noticed");
        assert_eq!(queued(&server, &key), 1, "{query}: it waits");
        proxy.forget_connections();
        // It may not hear in time what became of it.
        match guard.release().await {
            Ok(Released::Freed) | Err(Error::Unavailable { .. }) => {}
            other => panic!("{query}: {other:?}"),
        }
        let next = within(LEASE * 4, "its turn", waiter).await.unwrap();
        assert_eq!(next.release().await.unwrap(), Released::Freed, "{query}");
        drop((a, b));
        until_only_fences_are_left(&server).await;
    }
}

#[tokio::test]
async fn p13_a_proxy_that_refuses_hello_in_its_own_words_is_waited_and_held_behind() {
    let server = Server::start();
    for words in ["ERR hello? who is there", "BADCMD", ""] {
        let proxy = Proxy::before(server.port);
        proxy.answer("HELLO", words);
        let connect = || Locker::connect(proxy.url());
        let (a, b) = (connect().await.unwrap(), connect().await.unwrap());
        let key = unique_key();
        let lock = |locker: &Locker| locker.mutex(&key).ttl(LEASE / 2);
        let guard = lock(&a).lock().await.unwrap();
        let waiter = wait_for(&lock(&b));
        until_queued(&server, &key, 1).await;
        proxy.cut();
        sleep(LEASE).await;
        assert!(!guard.is_lost(), "{words:?}: P13");
        assert_eq!(guard.release().await.unwrap(), Released::Freed, "{words:?}");
        let next = within(LEASE, "its turn", waiter).await.unwrap();
        assert_eq!(next.release().await.unwrap(), Released::Freed, "{words:?}");
    }
}

#[tokio::test]
async fn a_connection_is_told_of_when_it_opens_and_closes() {
    said::listen();
    let server = Server::start();
    let name = format!("127.0.0.1:{}", server.port);
    let opened = || {
        said::said(
            &name,
            "DEBUG redlease::backend::redis::health: a connection",
        )
    };
    let with_resp3 = server.has_hello();
    let locker = connect(&server).await;
    eventually("both are told", || opened().len() == 2).await;
    for line in opened() {
        assert!(line.contains("was opened"), "{line}");
        assert!(line.contains(" connection="), "{line}");
    }
    for kind in ["normal", "pubsub"] {
        server.command::<i64>(&["CLIENT", "KILL", "TYPE", kind]);
    }
    drop(locker.mutex(unique_key()).lock().await.unwrap());
    let closed = || said::said(&name, "was closed");
    eventually("the ends are told", || {
        closed().len() > usize::from(with_resp3)
    })
    .await;
    for line in closed() {
        assert!(line.contains(" cause="), "{line}");
    }
    drop(locker);
    eventually("all are told", || closed().len() * 2 == opened().len()).await;
    assert_eq!(said::times_said(&name, " WARN "), 0);
    let gone = Locker::connect("redis://127.0.0.1:1/").await;
    assert!(gone.is_err());
    let failed = said::said("127.0.0.1:1", "could not be opened");
    assert!(
        failed.iter().any(|line| line.contains("refused")),
        "{failed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_a_server_resets_again_and_again_are_rested_and_warned_of() {
    const WAITERS: u64 = 300;
    said::listen();
    let server = Server::start();
    let holder = connect(&server).await;
    let locker = connect(&server).await;
    // Less than 300 answers, more than what an opening is answered.
    let limit = "pubsub 2048 1024 1";
    server.command::<()>(&["CONFIG", "SET", "client-output-buffer-limit", limit]);
    let lock = |locker: &Locker, key: &str| locker.mutex(key).ttl(3 * LEASE);
    let keys: Vec<String> = (0..WAITERS).map(|_| unique_key()).collect();
    let mut held = Vec::new();
    for key in &keys {
        held.push(lock(&holder, key).lock().await.unwrap());
    }
    let before = taken(&server);
    let began = Instant::now();
    let waiters: Vec<_> = keys
        .iter()
        .map(|key| wait_for(&lock(&locker, key)))
        .collect();
    sleep(LEASE / 2).await;
    assert!(held.iter().all(|guard| !guard.is_lost()), "P13");
    drop(held);
    for waiter in waiters {
        let guard = within(DEADLINE, "its turn", waiter).await.unwrap();
        drop(guard);
    }
    let (count, time) = (taken(&server) - before, began.elapsed());
    // Six that come closer together, and then two a second, for each of two lockers' two runtimes.
    let most = 4 * (6 + 2 * (time.as_secs() + 1));
    assert!(count <= most, "{count} connections in {time:?}");
    let name = format!("127.0.0.1:{}", server.port);
    let warnings = said::said(&name, "lost again and again");
    assert!(
        (1..=4).contains(&warnings.len()),
        "once a runtime: {warnings:?}"
    );
    for warning in warnings {
        for words in [" WARN ", " lost=5 ", " within=", " cause="] {
            assert!(warning.contains(words), "{warning}");
        }
    }
}
