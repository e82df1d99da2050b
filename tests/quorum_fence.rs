//! Fencing tokens over a quorum of real servers (P8).

#[path = "common/lua.rs"]
mod lua;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redlease::{Lock, Locker};

use lua::{RAISE, RESTORE};
use testkit::{Server, Servers, eventually, unique_key};

/// In microseconds.
const HOUR: u64 = 3_600_000_000;

fn in_an_hour() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_micros() as u64 + HOUR
}

fn fence(lock: &Lock) -> String {
    format!("{{{}}}:fence", lock.key())
}

async fn token(lock: &Lock) -> u64 {
    let guard = lock.lock().await.unwrap();
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    token
}

#[tokio::test]
async fn p8_tokens_grow_and_all_servers_agree_on_them() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let mut last = 0;
    for _ in 0..100 {
        let token = token(&lock).await;
        assert!(token > last);
        last = token;
    }
    let last = Some(last.to_string());
    eventually("the counters are equal", || {
        servers
            .0
            .iter()
            .all(|server| server.get(&fence(&lock)) == last)
    })
    .await;
}

#[tokio::test]
async fn p8_a_server_that_lost_its_counter_does_not_hold_the_tokens_back() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let mut last = 0;
    for round in 0..30 {
        let server: &Server = &servers.0[round % 3];
        let () = server.command(&["DEL", &fence(&lock), &format!("{}-owner", fence(&lock))]);
        let token = token(&lock).await;
        assert!(token > last);
        last = token;
    }
}

#[tokio::test]
async fn p8_a_number_that_one_server_granted_is_written_back_to_a_majority() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    // Whichever two answer first, they do not agree.
    let far = in_an_hour();
    for (server, ahead) in servers.0.iter().zip([2_000, 1_000, 0]) {
        let () = server.command(&["SET", &fence(&lock), &(far + ahead).to_string()]);
    }
    let first = token(&lock).await;
    assert!(first > far + 1_000, "{first}");
    let reached = |server: &Server| {
        let counter = server.get(&fence(&lock)).unwrap();
        counter.parse::<u64>().unwrap() >= first
    };
    assert!(servers.0.iter().filter(|server| reached(server)).count() >= 2);
    for silent in 0..3 {
        servers.0[silent].freeze();
        assert!(token(&lock).await > first);
        servers.0[silent].thaw();
    }
}

/// Numbers that are reserved and not used are spent: were they many, the counters would run ahead of
/// the clock, and a majority that forgets them would go back in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_contention_does_not_drive_the_numbers_ahead_of_the_clock() {
    let servers = Servers::start(3);
    let key = unique_key();
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let mut contenders = Vec::new();
    for seconds in 10..13 {
        // Waiters with other options are waiters, and yet nothing is handed over to them.
        let lock = locker.mutex(&key).ttl(Duration::from_secs(seconds));
        contenders.push(tokio::spawn(async move {
            let mut furthest = 0;
            for _ in 0..100 {
                let token = token(&lock).await;
                furthest = furthest.max(token.saturating_sub(in_an_hour() - HOUR));
            }
            furthest
        }));
    }
    for contender in contenders {
        let ahead = contender.await.unwrap();
        assert!(ahead < 20_000, "{ahead} µs ahead of the clock");
    }
}

#[test]
fn p8_a_server_accepts_only_numbers_that_nobody_else_can_have() {
    let server = Server::start();
    let cases = [
        // lock, counter, owner of the counter, accepted
        ("us", "9", "them", true),
        ("us", "9", "us", true),
        ("us", "10", "us", true),
        ("us", "12", "us", true),
        ("us", "13", "us", false),
        ("us", "10", "them", false),
        ("them", "9", "us", false),
        ("them", "12", "us", false),
    ];
    for (lock, counter, owner, accepted) in cases {
        let () = server.command(&["MSET", "lock", lock, "fence", counter, "owner", owner]);
        let reply: i64 = server.command(&[
            "EVAL", RAISE, "3", "lock", "fence", "owner", "us", "10", "12",
        ]);
        let case = format!("{lock} {counter} {owner}");
        assert_eq!(reply == 1, accepted, "{case}");
        if accepted {
            assert_eq!(server.get("fence").unwrap(), "12", "{case}");
            assert_eq!(server.get("owner").unwrap(), "us", "{case}");
        } else {
            assert_eq!(server.get("fence").unwrap(), counter, "{case}");
        }
    }
}

#[test]
fn p7_a_repair_sets_a_free_key_and_never_lowers_the_counter() {
    let server = Server::start();
    let restore = || -> i64 {
        server.command(&[
            "EVAL", RESTORE, "3", "lock", "fence", "owner", "us", "60000", "10", "12",
        ])
    };
    assert_eq!(restore(), 1);
    assert_eq!(server.get("lock").unwrap(), "us");
    assert_eq!(server.get("fence").unwrap(), "12");
    let () = server.command(&["MSET", "lock", "them", "fence", "20"]);
    assert_eq!(restore(), 0);
    assert_eq!(server.get("lock").unwrap(), "them");
    let () = server.command(&["DEL", "lock"]);
    assert_eq!(restore(), 1);
    assert_eq!(server.get("fence").unwrap(), "20");
}

/// The large version, with processes, is the program `torture` with `--servers 3`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_tokens_are_unique_and_grow_while_servers_freeze_and_restart_with_their_data() {
    const CONTENDERS: usize = 4;
    const ACQUISITIONS: usize = 50;
    let persistent = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = Servers((0..3).map(|_| Server::with(&persistent)).collect());
    let key = unique_key();
    let mut contenders = Vec::new();
    for _ in 0..CONTENDERS {
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let lock = locker.mutex(&key).outage_limit(Duration::from_secs(60));
        let lock = lock.ttl(Duration::from_secs(2));
        contenders.push(tokio::spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..ACQUISITIONS {
                let began = Instant::now();
                let guard = lock.lock().await.unwrap();
                tokens.push((guard.fencing_token(), began, Instant::now()));
                // Unknown, if the majority is in trouble: the TTL frees it then.
                let _ = guard.release().await;
            }
            tokens
        }));
    }
    let done = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&done);
    let trouble = std::thread::spawn(move || {
        for index in (0..3).cycle() {
            if flag.load(Ordering::SeqCst) {
                return;
            }
            let server = &mut servers.0[index];
            if fastrand::bool() {
                server.freeze();
                std::thread::sleep(Duration::from_millis(50));
                server.thaw();
            } else {
                server.restart();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut all = Vec::new();
    for contender in contenders {
        all.extend(contender.await.unwrap());
    }
    done.store(true, Ordering::SeqCst);
    trouble.join().unwrap();
    all.sort_unstable_by_key(|&(token, ..)| token);
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let mut earliest_end = None;
    for (token, began, ended) in all.into_iter().rev() {
        assert!(
            earliest_end.is_none_or(|end| began < end),
            "{token} came after a larger one"
        );
        earliest_end = Some(earliest_end.map_or(ended, |end: Instant| end.min(ended)));
    }
}
