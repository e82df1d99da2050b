//! What others can write beside a lock, and say on its channels: it is not taken at its word.

#[path = "common/waiters.rs"]
mod waiters;

use std::error::Error as _;
use std::time::Duration;

use redlease::{Error, Lock};
use testkit::*;
use waiters::*;

/// Where the only waiter hears of its grant.
fn channel_of(server: &Server, key: &str) -> String {
    let waiters = format!("{{{key}}}:lock-waiters");
    let records: Vec<String> = server.command(&["HVALS", &waiters]);
    records[0].rsplit(' ').next().unwrap().to_owned()
}

fn waiter_of(server: &Server, key: &str) -> String {
    let queue = format!("{{{key}}}:lock-queue");
    server.command::<Vec<String>>(&["ZRANGE", &queue, "0", "0"])[0].clone()
}

/// Waits until scripts have run that were sent after the call.
async fn until_later(server: &Server) {
    let before = scripts(server);
    eventually("two heartbeats", || scripts(server) > before + 1).await;
}

fn hold_by_a_foreigner(server: &Server, lock: &Lock) {
    server.command::<()>(&["SET", lock.key(), "foreign", "PX", "60000"]);
}

#[tokio::test]
async fn p6_a_forged_grant_releases_nothing_of_others() {
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL);
    hold_by_a_foreigner(&server, &lock);
    let waiter = wait_for(&lock);
    until_queued(&server, lock.key(), 1).await;
    let other = unique_key();
    server.command::<()>(&["SET", &other, "theirs", "PX", "60000"]);
    let channel = channel_of(&server, lock.key());
    for (value, key) in [("foreign", lock.key()), ("theirs", &*other)] {
        let message = format!("1\n1\n1\n3000\n{value}\n{key}");
        assert_eq!(server.command::<u64>(&["PUBLISH", &channel, &message]), 1);
    }
    until_later(&server).await;
    assert_eq!(server.get(lock.key()).as_deref(), Some("foreign"));
    assert_eq!(server.get(&other).as_deref(), Some("theirs"));
    waiter.abort();
}

#[tokio::test]
async fn p3_a_grant_from_the_future_or_for_years_is_not_believed() {
    const YEARS: u64 = 9_000_000_000_000_000_000;
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL);
    hold_by_a_foreigner(&server, &lock);
    let waiter = wait_for(&lock);
    until_queued(&server, lock.key(), 1).await;
    let (channel, value) = (
        channel_of(&server, lock.key()),
        waiter_of(&server, lock.key()),
    );
    for (fence, count, stamp, life) in [
        (1, 1, YEARS, 3_000),
        (1, 1, 1, YEARS),
        (1, 1, YEARS, YEARS),
        (u64::MAX, 1, 1, 3_000),
        (1, u64::MAX, 1, 3_000),
        (1 << 53, 1, 1, 3_000),
        (1, 0, 1, 3_000),
    ] {
        let message = format!("{fence}\n{count}\n{stamp}\n{life}\n{value}\n{}", lock.key());
        assert_eq!(server.command::<u64>(&["PUBLISH", &channel, &message]), 1);
    }
    until_later(&server).await;
    assert!(!waiter.is_finished(), "the lock is a foreigner's");
    waiter.abort();
}

#[tokio::test]
async fn p3_a_record_with_a_forged_stamp_grants_no_more_than_there_is() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let guard = here.mutex(&key).ttl(TTL).lock().await.unwrap();
    let waiter = wait_for(&there.mutex(&key).ttl(TTL).renew_every(TTL / 2));
    until_queued(&server, &key, 1).await;
    let (waiters, value) = (format!("{{{key}}}:lock-waiters"), waiter_of(&server, &key));
    let record: String = server.command(&["HGET", &waiters, &value]);
    let mut fields: Vec<&str> = record.split(' ').collect();
    fields[4] = "9000000000000000000";
    server.command::<u64>(&["HSET", &waiters, &value, &fields.join(" ")]);
    guard.release().await.unwrap();
    let heir = within(DEADLINE, "its turn", waiter).await.unwrap();
    assert!(heir.remaining() <= TTL, "{:?}", heir.remaining());
}

#[tokio::test]
async fn p8_a_counter_of_no_use_is_named_and_gives_no_number() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    for counter in [
        "9007199254740992",
        "9007199254740991",
        "inf",
        "-3",
        "1.5",
        "x",
        "",
    ] {
        let key = unique_key();
        let fence = format!("{{{key}}}:fence");
        server.command::<()>(&["SET", &fence, counter]);
        let lock = here.mutex(&key).ttl(TTL);
        for outcome in [
            lock.try_lock().await,
            lock.lock().await.map(Some),
            lock.try_lock_for(TTL).await,
        ] {
            let error = outcome.expect_err(counter);
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            let why = error.source().expect("a cause").to_string();
            assert!(why.contains(&fence), "{why}");
        }
        assert!(!server.exists(&key), "P10");
        server.command::<u64>(&["DEL", &fence]);
        // Who holds lets go, and who waits is told.
        let guard = lock.lock().await.unwrap();
        let lock = there.mutex(&key).ttl(TTL);
        let waiter = tokio::spawn(async move { lock.lock().await });
        until_queued(&server, &key, 1).await;
        server.command::<()>(&["SET", &fence, counter]);
        guard.release().await.unwrap();
        let outcome = within(TTL / 2, "an answer", waiter).await.unwrap();
        assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
        eventually("nothing is held", || !server.exists(&key)).await;
        assert_eq!(server.get(&fence).as_deref(), Some(counter));
    }
}

#[tokio::test]
async fn p8_a_quorum_takes_no_number_from_counters_of_no_use() {
    let servers = testkit::Servers::start(3);
    let locker = redlease::Locker::quorum(servers.urls()).await.unwrap();
    let key = unique_key();
    let fence = format!("{{{key}}}:fence");
    let lock = locker.mutex(&key).ttl(TTL);
    servers.0[0].command::<()>(&["SET", &fence, "inf"]);
    let first = lock.lock().await.unwrap();
    let token = first.fencing_token();
    first.release().await.unwrap();
    let second = lock.lock().await.unwrap();
    assert!(second.fencing_token() > token && second.fencing_token() < 1 << 53);
    second.release().await.unwrap();
    servers.0[1].command::<()>(&["SET", &fence, "9007199254740992"]);
    let error = lock.try_lock().await.expect_err("two of three");
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let why = error.source().expect("a cause").to_string();
    assert!(why.contains(&fence), "{why}");
    eventually("nothing is held", || servers.with_key(&key) == 0).await;
}

#[tokio::test]
async fn p9_a_waiter_gets_the_lock_behind_more_dead_ones_than_one_call_drops() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    for held_while_they_are_dropped in [false, true] {
        let key = unique_key();
        let guard = here.mutex(&key).ttl(TTL).lock().await.unwrap();
        let script = "for i = 1, 50000 do redis.call('ZADD', KEYS[1], i, 'dead-' .. i) \
                      redis.call('HSET', KEYS[2], 'dead-' .. i, '1 400 1000 1 1 redlease:c') end";
        let (queue, waiters) = (
            format!("{{{key}}}:lock-queue"),
            format!("{{{key}}}:lock-waiters"),
        );
        server.command::<()>(&["EVAL", script, "2", &queue, &waiters]);
        let waiter = wait_for(&there.mutex(&key).ttl(TTL));
        if held_while_they_are_dropped {
            until_queued(&server, &key, 1).await;
        }
        guard.release().await.unwrap();
        let heir = within(DEADLINE, "its turn", waiter).await.unwrap();
        assert!(!heir.is_lost());
        heir.release().await.unwrap();
        assert!(!server.exists(&queue) && !server.exists(&waiters));
    }
}

#[tokio::test]
async fn p10_a_grant_to_one_of_ours_that_has_left_goes_on_at_once() {
    let server = Server::start();
    let (here, there) = (connect(&server).await, connect(&server).await);
    let key = unique_key();
    let guard = here.mutex(&key).ttl(TTL).lock().await.unwrap();
    let ghost = wait_for(&there.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    let (queue, waiters) = (
        format!("{{{key}}}:lock-queue"),
        format!("{{{key}}}:lock-waiters"),
    );
    let value = waiter_of(&server, &key);
    let record: String = server.command(&["HGET", &waiters, &value]);
    ghost.abort();
    until_queued(&server, &key, 0).await;
    // As a heartbeat does that runs after the leave.
    let fresh = {
        let time: Vec<u64> = server.command(&["TIME"]);
        let rest = record.split_once(' ').unwrap().1;
        format!("{} {rest}", time[0] * 1_000 + time[1] / 1_000)
    };
    server.command::<u64>(&["HSET", &waiters, &value, &fresh]);
    server.command::<u64>(&["ZADD", &queue, "1", &value]);
    guard.release().await.unwrap();
    // Not when its life of three seconds is over.
    let free = eventually("it is free", || !server.exists(&key));
    within(Duration::from_millis(1_500), "it is free", free).await;
}
