//! What Redis tells without being asked: waiters and holders know long before they would ask. What
//! cannot be without RESP3 is left out where the server has no HELLO.

#[path = "common/waiters.rs"]
mod waiters;

use std::time::{Duration, Instant};

use redlease::{LockGuard, LostReason, blocking};
use testkit::*;
use tokio::time::sleep;
use waiters::*;

/// Half of the time between two heartbeats, and far less than until the next renewal.
const SOON: Duration = Duration::from_millis(500);
/// Far less than until the next renewal.
const BEFORE_RENEWAL: Duration = Duration::from_secs(3);

/// Waits until a waiter has just sent a heartbeat, so that the next is far away.
async fn until_after_a_heartbeat(server: &Server) {
    let before = scripts(server);
    eventually("a heartbeat", || scripts(server) > before).await;
}

#[tokio::test]
async fn a_foreign_del_gives_us_the_lock_long_before_the_next_heartbeat() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let () = server.command(&["SET", &key, "foreign", "NX", "PX", "60000"]);
    let waiter = wait_for(&locker.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    until_after_a_heartbeat(&server).await;
    let () = server.command(&["DEL", &key]);
    let guard = within(SOON, "the lock", waiter).await.unwrap();
    assert_eq!(server.get(&key).as_deref(), Some(guard.value()));
}

#[tokio::test]
async fn p9_the_key_of_a_crashed_holder_is_ours_soon_after_it_expired() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    // Between two heartbeats, so that neither of them finds it.
    let life = Duration::from_millis(1_400);
    let start = Instant::now();
    let () = server.command(&["SET", &key, "foreign", "NX", "PX", "1400"]);
    let guard = done(wait_for(&locker.mutex(&key).ttl(TTL))).await;
    let waited = start.elapsed();
    assert!(waited >= life, "P1: after {waited:?}");
    assert!(waited < life + SOON, "after {waited:?}");
    assert!(!guard.is_lost());
}

#[derive(Clone, Copy, Debug)]
enum Theft {
    Del,
    Steal,
    Hash,
    Flush,
}

const THEFTS: [Theft; 4] = [Theft::Del, Theft::Steal, Theft::Hash, Theft::Flush];

impl Theft {
    fn commit(self, server: &Server, key: &str) {
        match self {
            Self::Del => server.command(&["DEL", key]),
            Self::Steal => server.command(&["SET", key, "thief", "PX", "60000"]),
            Self::Hash => {
                let () = server.command(&["DEL", key]);
                server.command(&["HSET", key, "thief", "1"])
            }
            Self::Flush => server.command(&["FLUSHALL"]),
        }
    }

    fn is(self, reason: Option<LostReason>) -> bool {
        match self {
            Self::Del | Self::Flush => matches!(reason, Some(LostReason::Removed)),
            Self::Steal => matches!(reason, Some(LostReason::Stolen)),
            Self::Hash => matches!(reason, Some(LostReason::Removed | LostReason::Stolen)),
        }
    }
}

async fn expect_loss(server: &Server, guard: LockGuard, theft: Theft) {
    let what = format!("the token after {theft:?}");
    theft.commit(server, guard.key());
    within(BEFORE_RENEWAL, &what, guard.lost().cancelled()).await;
    let reason = guard.lost_reason();
    assert!(theft.is(reason), "{theft:?}: {reason:?}");
    assert!(guard.is_lost());
}

#[tokio::test]
async fn p4_a_theft_fires_the_token_at_once() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = connect(&server).await;
    for theft in THEFTS {
        let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
        expect_loss(&server, guard, theft).await;
    }
}

#[tokio::test]
async fn p4_a_theft_fires_the_token_of_a_guard_that_was_renewed() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = connect(&server).await;
    for theft in THEFTS {
        let lock = locker.mutex(unique_key()).ttl(TTL);
        let guard = lock.clone().lock().await.unwrap();
        guard.renew().await.unwrap();
        expect_loss(&server, guard, theft).await;
        let lock = lock.renew_every(TTL / 100);
        let guard = match theft {
            Theft::Del | Theft::Flush => lock.lock().await.unwrap(),
            Theft::Steal | Theft::Hash => continue,
        };
        // By the driver, this time.
        until_after_a_heartbeat(&server).await;
        expect_loss(&server, guard, theft).await;
    }
}

#[tokio::test]
async fn p4_a_theft_fires_the_token_of_a_guard_that_is_not_renewed() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = connect(&server).await;
    for theft in THEFTS {
        let lock = locker.mutex(unique_key()).ttl(TTL).auto_renew(false);
        expect_loss(&server, lock.lock().await.unwrap(), theft).await;
    }
}

#[tokio::test]
async fn p4_a_theft_fires_the_token_of_a_guard_that_was_granted_by_push() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let (a, b) = (connect(&server).await, connect(&server).await);
    for theft in THEFTS {
        for wait in [0, 100] {
            let key = unique_key();
            let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
            let waiter = wait_for(&b.mutex(&key).ttl(TTL));
            until_queued(&server, &key, 1).await;
            first.release().await.unwrap();
            let guard = done(waiter).await;
            sleep(Duration::from_millis(wait)).await;
            expect_loss(&server, guard, theft).await;
        }
    }
}

#[tokio::test]
async fn p4_a_theft_fires_the_token_of_a_guard_that_was_handed_over() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = connect(&server).await;
    for theft in THEFTS {
        for in_background in [false, true] {
            let lock = locker.mutex(unique_key()).ttl(TTL);
            let first = lock.lock().await.unwrap();
            let value = first.value().to_owned();
            let (second, third) = (wait_for(&lock), wait_for(&lock));
            tokio::task::yield_now().await;
            // The first goes through Redis, on whose connection differs; the second does not.
            if in_background {
                drop(first);
            } else {
                first.release().await.unwrap();
            }
            drop(done(second).await);
            let guard = done(third).await;
            assert_eq!(guard.value(), value, "handed over");
            // What the two connections heard of each other is dealt with.
            sleep(Duration::from_millis(50)).await;
            expect_loss(&server, guard, theft).await;
        }
    }
}

#[test]
fn p4_a_theft_fires_the_token_of_a_blocking_guard() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = blocking::Locker::connect(server.url()).unwrap();
    for theft in THEFTS {
        let guard = locker.mutex(unique_key()).ttl(TTL).lock().unwrap();
        let start = Instant::now();
        theft.commit(&server, guard.key());
        while !guard.lost().is_cancelled() {
            assert!(start.elapsed() < BEFORE_RENEWAL, "late: {theft:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(theft.is(guard.lost_reason()), "{theft:?}");
    }
}

#[tokio::test]
async fn p4_a_forced_release_fires_the_token_of_our_own_guard() {
    let server = Server::start();
    let locker = connect(&server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let guard = lock.lock().await.unwrap();
    assert!(lock.force_release().await.unwrap());
    within(BEFORE_RENEWAL, "the token", guard.lost().cancelled()).await;
}

/// How many keys the server remembers that it is to tell somebody of.
fn tracked(server: &Server) -> u64 {
    let stats: String = server.command(&["INFO", "stats"]);
    let mut lines = stats.lines();
    let count = lines.find_map(|line| line.strip_prefix("tracking_total_keys:"));
    count.map_or(0, |count| count.trim().parse().expect("a number"))
}

#[tokio::test]
async fn the_server_remembers_the_key_of_a_lock_that_is_held_for_long_and_of_no_short_cycle() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let locker = connect(&server).await;
    let began = Instant::now();
    for _ in 0..10 {
        let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
        guard.release().await.unwrap();
    }
    // On a machine that is slow enough, none of them was short.
    if began.elapsed() < Duration::from_millis(50) {
        assert_eq!(tracked(&server), 0);
    }
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
    eventually("it is looked at", || tracked(&server) == 1).await;
    guard.release().await.unwrap();
    eventually("it is forgotten", || tracked(&server) == 0).await;
}

/// Renewals enough for a connection to know whether the server echoes them.
const RENEWALS: usize = 5;

#[tokio::test]
async fn p4_a_theft_fires_the_token_of_a_guard_that_was_renewed_many_times() {
    let server = Server::start();
    let locker = connect(&server).await;
    for theft in THEFTS {
        let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
        for _ in 0..RENEWALS {
            guard.renew().await.unwrap();
        }
        expect_loss(&server, guard, theft).await;
    }
}

/// Shortens the life of a guard's key, and waits until it is long again.
fn expect_repair(server: &Server, key: &str) {
    let () = server.command(&["PEXPIRE", key, "5000"]);
    let start = Instant::now();
    while server.command::<u64>(&["PTTL", key]) < 25_000 {
        assert!(start.elapsed() < SOON, "it is not repaired");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_life_was_shortened_is_repaired_long_before_the_next_renewal() {
    let server = Server::start();
    let locker = connect(&server).await;
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
    for _ in 0..RENEWALS {
        expect_repair(&server, guard.key());
        guard.renew().await.unwrap();
    }
    assert!(!guard.is_lost());
}

#[test]
fn the_drivers_connection_hears_of_changes_after_many_renewals() {
    let server = Server::start();
    let locker = blocking::Locker::connect(server.url()).unwrap();
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().unwrap();
    for _ in 0..RENEWALS {
        guard.renew().unwrap();
        expect_repair(&server, guard.key());
    }
    let start = Instant::now();
    Theft::Steal.commit(&server, guard.key());
    while !guard.lost().is_cancelled() {
        assert!(start.elapsed() < BEFORE_RENEWAL, "late");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn a_change_that_leaves_the_key_ours_is_looked_at_and_loses_nothing() {
    let server = Server::start();
    let locker = connect(&server).await;
    let earlier = server.calls("pttl");
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
    eventually("the first look", || server.calls("pttl") > earlier).await;
    let (before, writes) = (scripts(&server), server.calls("pexpire"));
    let () = server.command(&["PEXPIRE", guard.key(), "60000"]);
    eventually("it was looked at", || scripts(&server) > before).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(server.calls("pexpire"), writes + 1, "only the foreign one");
    assert_eq!(scripts(&server), before + 1, "one look");
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn p11_a_waiter_has_a_free_lock_though_its_connections_are_killed_all_the_time() {
    let server = Server::start();
    let locker = connect(&server).await;
    let held = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
    let url = server.url();
    let killer = tokio::spawn(async move {
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        loop {
            for kind in ["normal", "pubsub"] {
                let mut kill = redis::cmd("CLIENT");
                kill.arg("KILL").arg("TYPE").arg(kind);
                let () = kill.query_async(&mut connection).await.unwrap();
            }
            sleep(Duration::from_millis(200)).await;
        }
    });
    // Pings of this test may be cut, too.
    let client = || redis::Client::open(server.url()).unwrap().get_connection();
    let command = |words: [&str; 3]| {
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let mut command = redis::cmd(words[0]);
            words[1..]
                .iter()
                .filter(|w| !w.is_empty())
                .for_each(|word| {
                    command.arg(*word);
                });
            if let Ok(mut connection) = client()
                && command.exec(&mut connection).is_ok()
            {
                return;
            }
        }
        panic!("{words:?} never ran");
    };
    for round in 0..4 {
        let key = unique_key();
        command(["SET", &key, "foreign"]);
        let waiter = wait_for(&locker.mutex(&key).ttl(TTL));
        sleep(Duration::from_millis(300 + 37 * round)).await;
        assert!(!waiter.is_finished());
        command(["DEL", &key, ""]);
        let guard = within(BEFORE_RENEWAL, "the lock", waiter).await.unwrap();
        drop(guard);
    }
    assert!(!held.is_lost(), "P13: {:?}", held.lost_reason());
    killer.abort();
}

#[tokio::test]
async fn pushes_count_again_after_a_grant_went_to_a_connection_that_was_killed() {
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let a = connect(&server).await;
    let id = || -> i64 {
        let list: String = server.command(&["CLIENT", "LIST"]);
        let ids = list
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("id="));
        ids.map(|id| id.parse::<i64>().unwrap()).max().unwrap()
    };
    let newest_of_a = id();
    let b = connect(&server).await;
    let key = unique_key();
    for _ in 0..10 {
        let first = a.mutex(&key).ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&b.mutex(&key).ttl(TTL));
        until_queued(&server, &key, 1).await;
        let list: String = server.command(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
        let mut connection = server.client();
        for line in list.lines() {
            let id = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix("id="));
            let id: i64 = id.unwrap().parse().unwrap();
            if id > newest_of_a {
                let mut kill = redis::cmd("CLIENT");
                let () = kill
                    .arg("KILL")
                    .arg("ID")
                    .arg(id)
                    .query(&mut connection)
                    .unwrap();
            }
        }
        // Before the waiter is back: the grant goes to the old channel.
        first.release().await.unwrap();
        done(waiter).await.release().await.unwrap();
    }
    let () = server.command(&["SET", &key, "foreign"]);
    let waiter = wait_for(&b.mutex(&key).ttl(TTL));
    until_queued(&server, &key, 1).await;
    let before = scripts(&server);
    sleep(Duration::from_millis(1_500)).await;
    let beats = scripts(&server) - before;
    assert!(beats < 8, "{beats} heartbeats: it polls");
    waiter.abort();
}
