//! What an ACL user must be allowed: said at once where it is missing, and never by a lock that
//! cannot be released.

#[path = "common/waiters.rs"]
mod waiters;

use std::error::Error as _;
use std::time::Duration;

use redlease::{Error, Locker, Released};
use testkit::*;
use waiters::*;

/// The key patterns for the lock `k`.
const PATTERNS: [&str; 4] = ["~k", "~{k}:fence", "~{k}:lock-queue", "~{k}:lock-waiters"];
const COMMANDS: [&str; 16] = [
    "evalsha", "eval", "time", "get", "set", "exists", "pttl", "pexpire", "del", "zadd", "zrem",
    "zrange", "zpopmin", "hset", "hget", "hdel",
];
/// Without these, changes are noticed later.
const OPTIONAL: [&str; 5] = [
    "client|tracking",
    "client|caching",
    "subscribe",
    "publish",
    "ping",
];

/// Makes the user anew with all that locks need, but for what is `missing`.
fn grant(server: &Server, missing: &str) {
    let mut words: Vec<String> = [
        "ACL",
        "SETUSER",
        "ann",
        "reset",
        "on",
        ">pw",
        "resetchannels",
        "&redlease:*",
    ]
    .map(str::to_owned)
    .into();
    words.extend(PATTERNS.iter().map(|&pattern| pattern.to_owned()));
    let commands = COMMANDS.iter().chain(&OPTIONAL);
    words.extend(commands.map(|command| format!("+{command}")));
    words.retain(|word| word.strip_prefix('+').unwrap_or(word) != missing);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    server.command::<()>(&words);
}

fn url_of_ann(server: &Server) -> String {
    format!("redis://ann:pw@127.0.0.1:{}/", server.port)
}

async fn connect_as_ann(server: &Server) -> Result<Locker, Error> {
    Locker::connect(url_of_ann(server)).await
}

fn why(error: &Error) -> String {
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    error.source().expect("a cause").to_string()
}

/// Two lockers take turns by all the ways there are.
async fn all_works(server: &Server) {
    let (a, b) = (connect_as_ann(server).await, connect_as_ann(server).await);
    let (a, b) = (a.unwrap(), b.unwrap());
    let lock = |locker: &Locker| locker.mutex("k").ttl(TTL);
    let first = lock(&a).lock().await.unwrap();
    first.renew().await.unwrap();
    assert!(lock(&b).try_lock().await.unwrap().is_none());
    let holder = lock(&b).holder().await.unwrap().expect("a holder");
    assert_eq!(holder.value, first.value().as_bytes());
    let far = wait_for(&lock(&b));
    until_queued(server, "k", 1).await;
    let near = wait_for(&lock(&a).handover_for(Duration::from_nanos(1)));
    tokio::task::yield_now().await;
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    drop(within(TTL / 2, "granted", far).await.unwrap());
    drop(within(TTL / 2, "granted", near).await.unwrap());
    let cancelled = lock(&a).lock().await.unwrap();
    let waiter = wait_for(&lock(&b));
    until_queued(server, "k", 1).await;
    waiter.abort();
    until_queued(server, "k", 0).await;
    assert!(lock(&b).force_release().await.unwrap());
    within(TTL / 2, "lost", cancelled.lost().cancelled()).await;
    drop((a, b));
    until_only_fences_are_left(server).await;
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough() {
    let server = Server::start();
    grant(&server, "");
    all_works(&server).await;
}

#[tokio::test]
async fn the_rights_that_the_docs_call_optional_are() {
    let server = Server::start();
    for optional in OPTIONAL {
        grant(&server, optional);
        all_works(&server).await;
    }
}

#[tokio::test]
async fn a_command_that_is_missing_is_named_when_connecting() {
    let server = Server::start();
    for command in COMMANDS {
        grant(&server, command);
        let error = connect_as_ann(&server).await.expect_err(command);
        let why = why(&error).to_lowercase();
        assert!(why.contains(command), "{command}: {why}");
    }
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
}

#[tokio::test]
async fn p10_a_locker_made_lazily_is_granted_nothing_while_a_command_is_missing() {
    let server = Server::start();
    for command in COMMANDS {
        grant(&server, command);
        let locker = Locker::builder().connect_lazily(url_of_ann(&server));
        let lock = locker.unwrap().mutex("k").ttl(TTL);
        for outcome in [lock.lock().await.map(Some), lock.try_lock().await] {
            let why = why(&outcome.expect_err(command)).to_lowercase();
            assert!(why.contains(command), "{command}: {why}");
        }
        assert_eq!(server.command::<i64>(&["DBSIZE"]), 0, "{command}");
        grant(&server, "");
        drop(lock.lock().await.expect("the rights are there now"));
        until_only_fences_are_left(&server).await;
        server.command::<()>(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn a_command_is_found_missing_by_a_user_of_all_keys_too() {
    let server = Server::start();
    server.command::<()>(&["CONFIG", "SET", "appendonly", "yes"]);
    for command in COMMANDS {
        grant(&server, command);
        server.command::<()>(&["ACL", "SETUSER", "ann", "~*"]);
        let error = connect_as_ann(&server).await.expect_err(command);
        let why = why(&error).to_lowercase();
        assert!(why.contains(command), "{command}: {why}");
    }
    grant(&server, "");
    server.command::<()>(&["ACL", "SETUSER", "ann", "~*"]);
    let _locker = connect_as_ann(&server).await.unwrap();
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
    let persistence: String = server.command(&["INFO", "persistence"]);
    assert!(
        persistence.contains("rdb_changes_since_last_save:0"),
        "nothing was written"
    );
}

#[tokio::test]
async fn p10_a_key_that_may_not_be_touched_is_found_before_the_lock_is_granted() {
    let server = Server::start();
    for pattern in PATTERNS {
        grant(&server, pattern);
        let locker = connect_as_ann(&server).await.unwrap();
        let lock = locker.mutex("k").ttl(TTL);
        why(&lock.try_lock().await.expect_err(pattern));
        why(&lock.lock().await.expect_err(pattern));
        assert_eq!(server.command::<i64>(&["DBSIZE"]), 0, "{pattern}");
    }
}

#[tokio::test]
async fn p10_a_key_that_may_not_be_touched_is_found_on_every_server_of_a_quorum() {
    let servers = testkit::Servers::start(3);
    for missing in [PATTERNS[2], PATTERNS[3]] {
        let mut urls = Vec::new();
        for server in &servers.0 {
            grant(server, missing);
            server.command::<()>(&["ACL", "SETUSER", "ann", "~{k}:fence-owner"]);
            urls.push(format!("redis://ann:pw@127.0.0.1:{}/", server.port));
        }
        let locker = Locker::quorum(urls).await.unwrap();
        let outcome = locker.mutex("k").ttl(TTL).try_lock().await;
        why(&outcome.expect_err(missing));
        assert_eq!(servers.with_key("k"), 0, "{missing}");
    }
}

#[tokio::test]
async fn connecting_does_not_fail_for_what_is_not_for_good() {
    let server = Server::start();
    let states: [(&[&str], &[&str]); 4] = [
        (
            &["REPLICAOF", "127.0.0.1", "1"],
            &["REPLICAOF", "NO", "ONE"],
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
        ),
        (&["SCRIPT", "FLUSH"], &["PING"]),
    ];
    for (begin, end) in states {
        server.command::<redis::Value>(begin);
        let connected = connect_as_default(&server).await;
        assert!(connected.is_ok(), "{begin:?}: {connected:?}");
        server.command::<redis::Value>(end);
    }
}

async fn connect_as_default(server: &Server) -> Result<Locker, Error> {
    Locker::connect(server.url()).await
}

/// A right that goes while the locker is in use.
fn revoke(server: &Server, command: &str) {
    server.command::<()>(&["ACL", "SETUSER", "ann", &format!("-{command}")]);
}

#[tokio::test]
async fn p11_a_waiter_that_may_not_take_its_turn_hears_of_it() {
    for command in ["zpopmin", "hget"] {
        let server = Server::start();
        grant(&server, "");
        let locker = connect_as_ann(&server).await.unwrap();
        let () = server.command(&["SET", "k", "foreign", "PX", "60000"]);
        let lock = locker.mutex("k").ttl(TTL);
        let waiter = tokio::spawn(async move { lock.lock().await });
        until_queued(&server, "k", 1).await;
        revoke(&server, command);
        server.command::<i64>(&["DEL", "k"]);
        let error = within(TTL / 2, "an answer", waiter).await.unwrap();
        let error = error.expect_err(command);
        why(&error);
    }
}

#[tokio::test]
async fn a_holder_that_may_not_look_who_waits_lets_go_all_the_same() {
    for command in ["zpopmin", "hget"] {
        let server = Server::start();
        grant(&server, "");
        let locker = connect_as_ann(&server).await.unwrap();
        let guard = locker.mutex("k").ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&connect(&server).await.mutex("k").ttl(TTL));
        until_queued(&server, "k", 1).await;
        revoke(&server, command);
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        // By its next heartbeat.
        let guard = within(TTL / 2, "the waiter has it", waiter).await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn a_waiter_behind_what_is_no_queue_hears_of_it() {
    let server = Server::start();
    let locker = connect(&server).await;
    for what in ["lock-queue", "lock-waiters"] {
        let key = unique_key();
        let () = server.command(&["SET", &key, "foreign", "PX", "60000"]);
        let place = format!("{{{key}}}:{what}");
        server.command::<i64>(&["LPUSH", &place, "x"]);
        let outcome = within(DEADLINE, "an answer", locker.mutex(&key).lock()).await;
        why(&outcome.expect_err(what));
    }
}
