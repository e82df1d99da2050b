//! What connecting finds out about a server: that it has only a part of the keys, or may lose locks.

#[path = "common/said.rs"]
mod said;
#[path = "common/waiters.rs"]
mod waiters;

use std::error::Error as _;
use std::ops::RangeInclusive;

use redlease::{Error, Locker, blocking};
use testkit::*;
use waiters::*;

const EVICTION: &str = "may evict locks";
const REPLICA: &str = "is a replica that takes writes";

/// Servers of one cluster, of which each has these slots.
async fn cluster(shares: &[&[RangeInclusive<u16>]]) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        let server = Server::with(&["--cluster-enabled", "yes"]);
        let slots = share.iter().flat_map(Clone::clone);
        let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
        let mut words = vec!["CLUSTER", "ADDSLOTS"];
        words.extend(slots.iter().map(String::as_str));
        server.command::<()>(&words);
        let epoch = (number + 1).to_string();
        server.command::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
        if let Some(first) = servers.first() {
            let port = first.port.to_string();
            server.command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port]);
        }
        servers.push(server);
    }
    let known = format!("cluster_size:{}", shares.len());
    for server in &servers {
        eventually("the cluster is up", || {
            let info: String = server.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains(&known)
        })
        .await;
    }
    servers
}

fn assert_names_cluster(error: &Error) {
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let why = error.source().expect("a cause").to_string();
    assert!(why.contains("`Locker::cluster`"), "{why}");
}

#[tokio::test]
async fn a_server_of_a_cluster_with_several_masters_is_refused_when_connecting() {
    for shares in [
        [&[0..=8191][..], &[8192..=16383]],
        [&[0..=5000, 12000..=16383], &[5001..=11999]],
        [&[0..=0], &[1..=16383]],
    ] {
        let servers = cluster(&shares).await;
        for server in &servers {
            for query in ["", "?protocol=2"] {
                let url = format!("{}{query}", server.url());
                let error = Locker::connect(&url).await.expect_err("a part of the keys");
                assert_names_cluster(&error);
            }
            let url = server.url();
            let twin = tokio::task::spawn_blocking(move || blocking::Locker::connect(url));
            assert_names_cluster(&twin.await.unwrap().expect_err("a part of the keys"));
            let lazily = Locker::builder().connect_lazily(server.url()).unwrap();
            for _ in 0..3 {
                let outcome = lazily.mutex(unique_key()).lock().await;
                assert_names_cluster(&outcome.expect_err("a part of the keys"));
            }
        }
    }
}

#[tokio::test]
async fn a_server_of_a_cluster_that_has_all_keys_of_the_prefix_is_used() {
    let servers = cluster(&[&[0..=8191], &[8192..=16383]]).await;
    let slot: u16 = servers[0].command(&["CLUSTER", "KEYSLOT", "{app}"]);
    let (with, without) = match slot {
        0..=8191 => (&servers[0], &servers[1]),
        _ => (&servers[1], &servers[0]),
    };
    let builder = || Locker::builder().prefix("{app}:");
    let locker = builder().connect(with.url()).await.unwrap();
    for _ in 0..5 {
        drop(locker.mutex(unique_key()).lock().await.unwrap());
    }
    let error = builder().connect(without.url()).await;
    assert_names_cluster(&error.expect_err("none of the keys"));
}

fn name(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

#[tokio::test]
async fn a_server_that_may_evict_locks_is_warned_of_once() {
    said::listen();
    for (policy, limit, times) in [
        ("allkeys-lru", "100mb", 1),
        ("volatile-ttl", "100mb", 1),
        ("noeviction", "100mb", 0),
        ("allkeys-lru", "0", 0),
    ] {
        let arguments = ["--maxmemory", limit, "--maxmemory-policy", policy];
        let server = Server::with(&arguments);
        if !server.has_hello() {
            return;
        }
        let locker = connect(&server).await;
        let lock = locker.mutex(unique_key());
        for _ in 0..3 {
            for kind in ["normal", "pubsub"] {
                server.command::<i64>(&["CLIENT", "KILL", "TYPE", kind]);
            }
            drop(lock.lock().await.unwrap());
        }
        let warnings = said::said(&name(&server), EVICTION);
        assert_eq!(warnings.len(), times, "{policy}, {limit}: {warnings:?}");
        let is_named = |warning: &String| warning.contains(policy) && warning.contains(" WARN ");
        assert!(warnings.iter().all(is_named), "{warnings:?}");
        let info = server.calls("info");
        assert_eq!(said::times_said(&name(&server), REPLICA), 0);
        let lazily = Locker::builder().connect_lazily(server.url()).unwrap();
        drop(lazily.mutex(unique_key()).lock().await.unwrap());
        drop(lazily.mutex(unique_key()).lock().await.unwrap());
        assert_eq!(said::times_said(&name(&server), EVICTION), 2 * times);
        assert!(server.calls("info") <= info + 4, "asked once a locker");
    }
}

#[tokio::test]
async fn a_replica_that_takes_writes_is_warned_of() {
    said::listen();
    let master = Server::start();
    let replica = Server::start();
    if !replica.has_hello() {
        return;
    }
    let port = master.port.to_string();
    replica.command::<()>(&["CONFIG", "SET", "replica-read-only", "no"]);
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    let locker = connect(&replica).await;
    let warnings = said::said(&name(&replica), REPLICA);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    drop(locker);
    connect(&master).await;
    assert_eq!(said::times_said(&name(&master), REPLICA), 0);
}

#[tokio::test]
async fn a_user_who_may_not_ask_is_told_nothing_and_connects() {
    said::listen();
    let Some(server) = Server::with_command("ACL") else {
        return;
    };
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "100mb"]);
    server.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    server.add_user("ann", &["~*", "&*", "+@all", "-info"]);
    let url = server.url().replace("127.0.0.1", "ann:pw@127.0.0.1");
    let locker = Locker::connect(url).await.unwrap();
    drop(locker.mutex(unique_key()).lock().await.unwrap());
    assert_eq!(said::times_said(&name(&server), EVICTION), 0);
    assert_eq!(said::times_said(&name(&server), " WARN "), 0);
}
