//! A Redis Cluster: where requests go, and what happens while slots move.

use std::time::{Duration, Instant};

use redlease::{Error, LockGuard, Locker, Released};
use testkit::{Cluster, ClusterOptions, DEADLINE, Server, eventually, key_in, slot_of, unique_key};
use tokio::time::timeout;

/// Three masters alone.
fn three_masters() -> Cluster {
    Cluster::with(&ClusterOptions {
        replicas: 0,
        ..ClusterOptions::default()
    })
}

async fn locker(cluster: &Cluster) -> Locker {
    let locker = Locker::cluster(cluster.urls()).await;
    locker.expect("a locker")
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = timeout(DEADLINE, future).await;
    done.unwrap_or_else(|_| panic!("never: {what}"))
}

fn source_of(error: &Error) -> String {
    let source = std::error::Error::source(error);
    source.map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn each_lock_is_on_the_server_of_its_slot() {
    let cluster = three_masters();
    let locker = Locker::cluster(&cluster.urls()[..1]).await.unwrap();
    for master in 0..3 {
        let key = cluster.key_at(master);
        let guard = locker.mutex(&key).lock().await.unwrap();
        assert!(cluster.nodes[master].exists(&key));
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        assert!(!cluster.nodes[master].exists(&key));
    }
}

/// Braces decide what of a key is hashed.
#[tokio::test]
async fn keys_with_braces_are_locked_refused_and_handed_over() {
    let cluster = three_masters();
    let (one, other) = (locker(&cluster).await, locker(&cluster).await);
    for form in [
        "{}x", "a}b", "}", "{", "x}{y", "{a}b", "a{b", "{{}}", "{}{a}", "}}}", "e}é", "a{b}{c}",
    ] {
        let key = format!("{form}{}", unique_key());
        let guard = one.mutex(&key).lock().await.unwrap();
        assert!(
            other.mutex(&key).try_lock().await.unwrap().is_none(),
            "{key}"
        );
        let lock = other.mutex(&key);
        let waiter = tokio::spawn(async move { lock.lock().await });
        let master = &cluster.nodes[cluster.master_of(&key)];
        eventually("it waits", || queued(master, &key) == 1).await;
        guard.release().await.unwrap();
        drop(in_time("the hand-over", waiter).await.unwrap().unwrap());
    }
}

/// How many wait for the key in Redis, whatever their keys' names are.
fn queued(master: &Server, key: &str) -> usize {
    let keys: Vec<String> = master.command(&["KEYS", "*lock-queue*"]);
    let of_key = keys.iter().filter(|name| name.contains(key));
    of_key
        .map(|name| master.command::<usize>(&["ZCARD", name]))
        .sum()
}

#[tokio::test]
async fn the_blocking_api_reaches_a_cluster() {
    let cluster = three_masters();
    let urls = cluster.urls();
    tokio::task::spawn_blocking(move || {
        let locker = redlease::blocking::Locker::cluster(urls).unwrap();
        let guard = locker.mutex(unique_key()).lock().unwrap();
        assert_eq!(guard.release().unwrap(), Released::Freed);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_locker_starts_before_its_cluster() {
    let cluster = three_masters();
    let locker = Locker::builder().cluster_lazily(cluster.urls()).unwrap();
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn a_seed_that_is_away_is_done_without() {
    let cluster = three_masters();
    let gone = {
        let server = Server::start();
        server.url()
    };
    let urls = [gone, cluster.nodes[0].url()];
    let locker = in_time("a locker", Locker::cluster(urls)).await.unwrap();
    drop(locker.mutex(unique_key()).lock().await.unwrap());
}

#[tokio::test]
async fn a_server_that_is_in_no_cluster_says_what_to_call() {
    let server = Server::start();
    let error = Locker::cluster([server.url()]).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(source_of(&error).contains("`Locker::connect`"), "{error:?}");
}

#[tokio::test]
async fn what_a_cluster_does_not_have_is_invalid() {
    let none: [&str; 0] = [];
    let problems = [
        Locker::cluster(none).await,
        Locker::cluster(["redis://127.0.0.1:7000/1"]).await,
        Locker::cluster(["unix:///nowhere.sock"]).await,
        Locker::cluster(["nonsense"]).await,
    ];
    for problem in problems {
        assert!(matches!(problem, Err(Error::Invalid { .. })), "{problem:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let url = {
        let server = Server::start();
        server.url()
    };
    let error = in_time("an error", Locker::cluster([url]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

/// All requests of a hand-over, and the message about it, stay with the server of the key.
#[tokio::test]
async fn a_hand_over_sends_a_message_to_one_server_only() {
    let cluster = three_masters();
    let known: Vec<redis::Value> = cluster.nodes[0].command(&["COMMAND", "INFO", "spublish"]);
    if known == [redis::Value::Nil] {
        return testkit::left_out("the server has no sharded channels");
    }
    let (one, other) = (locker(&cluster).await, locker(&cluster).await);
    let key = cluster.key_at(1);
    let stats = |node: usize| -> String { cluster.nodes[node].command(&["CLUSTER", "INFO"]) };
    let messages = |node: usize| -> u64 {
        let received = |kind: &str| {
            let prefix = format!("cluster_stats_messages_{kind}_received:");
            let count = stats(node)
                .lines()
                .find_map(|l| Some(l.strip_prefix(&prefix)?.to_owned()));
            count.map_or(0, |count| count.trim().parse::<u64>().unwrap())
        };
        received("publish") + received("publishshard")
    };
    let before: Vec<u64> = (0..3).map(messages).collect();
    for _ in 0..20 {
        let guard = one.mutex(&key).lock().await.unwrap();
        let lock = other.mutex(&key);
        let waiter = tokio::spawn(async move { lock.lock().await });
        eventually("it waits", || queued(&cluster.nodes[1], &key) == 1).await;
        guard.release().await.unwrap();
        drop(in_time("the hand-over", waiter).await.unwrap().unwrap());
    }
    assert!(cluster.nodes[1].calls("spublish") >= 20);
    // A message to the others would be on its way before this one.
    cluster.nodes[1].command::<()>(&["PUBLISH", "last", ""]);
    for node in [0, 2] {
        eventually("the last message", || messages(node) > before[node]).await;
        assert_eq!(messages(node) - before[node], 1, "only the last one");
    }
}

/// Guards of keys that share a slot, with a TTL that several moves outlast.
async fn guards(locker: &Locker, slot: u16, count: usize, ttl: Duration) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for number in 0..count {
        let key = format!("{{{}}}{number}", key_in(slot));
        guards.push(locker.mutex(key).ttl(ttl).lock().await.unwrap());
    }
    guards
}

fn assert_held(guards: &[LockGuard]) {
    for guard in guards {
        assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
    }
}

/// Waits until each lease goes on beyond `moment`.
async fn renewed_beyond(guards: &[LockGuard], moment: Instant) {
    for guard in guards {
        eventually("it is renewed", || {
            assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
            Instant::now() + guard.remaining() > moment
        })
        .await;
    }
}

/// A hundred guards, and a slot that moves with a stop after each step, until all are renewed.
#[tokio::test]
async fn p13_no_guard_is_lost_while_its_slot_moves() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let ttl = Duration::from_millis(1500);
    let slot = slot_of(&cluster.key_at(0));
    let guards = guards(&locker, slot, 100, ttl).await;
    let moving = cluster.move_slot(slot, 2);
    let pause = || async { renewed_beyond(&guards, Instant::now() + ttl - ttl / 10).await };
    moving.import();
    moving.migrate();
    let keys: Vec<String> =
        cluster.nodes[0].command(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1000"]);
    assert!(keys.len() >= 100);
    for some in keys.chunks(40) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        moving.move_these(&some);
        pause().await;
    }
    moving.move_keys();
    pause().await;
    moving.assign();
    pause().await;
    assert_held(&guards);
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    let left: Vec<String> = cluster.nodes[2].command(&["KEYS", "*lock-*"]);
    assert!(left.is_empty(), "{left:?}");
}
