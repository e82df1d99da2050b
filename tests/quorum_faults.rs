//! A quorum of real servers, some of them dead, frozen, cut off or empty.

use std::error::Error as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redlease::{Error, Lock, Locker, LostReason, Released};
use testkit::{DEADLINE, Proxy, Servers, eventually, unique_key};

const TIMEOUT: Duration = Duration::from_millis(500);
const GIVE_UP: Duration = Duration::from_millis(50);
/// For what must succeed, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Three commands that find no majority, and what a busy machine adds.
const BOUND: Duration = Duration::from_secs(20);

async fn connect(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Locker {
    connect_within(TIMEOUT, urls).await
}

async fn connect_within(
    command_timeout: Duration,
    urls: impl IntoIterator<Item = impl AsRef<str>>,
) -> Locker {
    Locker::builder()
        .command_timeout(command_timeout)
        .flush_timeout(Duration::ZERO)
        .quorum(urls)
        .await
        .unwrap()
}

/// P2 and P13: for each set of dead servers, everything works exactly if a majority lives.
async fn every_pattern_of_dead_servers(count: usize) {
    let mut servers = Servers::start(count);
    for pattern in 0..1_u32 << count {
        let dead = |index: usize| pattern & (1 << index) != 0;
        let works = pattern.count_ones() as usize <= count / 2;
        let command_timeout = if works { PATIENCE } else { TIMEOUT };
        let locker = connect_within(command_timeout, servers.urls()).await;
        let key = unique_key();
        let ttl = 6 * PATIENCE;
        let held = locker.mutex(&key).ttl(ttl).lock().await.unwrap();
        // All are connected then, so that the patterns alone decide.
        eventually("the key is everywhere", || servers.with_key(&key) == count).await;
        for (index, server) in servers.0.iter_mut().enumerate() {
            if dead(index) {
                server.kill();
            }
        }
        let start = Instant::now();
        let fresh = locker.mutex(unique_key()).ttl(ttl).outage_limit(GIVE_UP);
        let acquired = fresh.try_lock().await;
        let renewed = held.renew().await;
        let released = held.release().await;
        assert!(
            start.elapsed() < BOUND,
            "{pattern:b}: {:?}",
            start.elapsed()
        );
        if works {
            let guard = acquired.unwrap().unwrap();
            assert_eq!(
                guard.release().await.unwrap(),
                Released::Freed,
                "{pattern:b}"
            );
            renewed.unwrap();
            assert_eq!(released.unwrap(), Released::Freed, "{pattern:b}");
        } else {
            for error in [
                acquired.unwrap_err(),
                renewed.unwrap_err(),
                released.unwrap_err(),
            ] {
                assert!(
                    matches!(error, Error::Unavailable { .. }),
                    "{pattern:b}: {error}"
                );
            }
        }
        for (index, server) in servers.0.iter_mut().enumerate() {
            if dead(index) {
                server.restart();
            }
        }
    }
}

#[tokio::test]
async fn p2_of_three_servers_any_two_will_do() {
    every_pattern_of_dead_servers(3).await;
}

#[tokio::test]
async fn p2_of_five_servers_any_three_will_do() {
    every_pattern_of_dead_servers(5).await;
}

/// Acquire, renew and release must not wait for a server that does not answer: with a time-out of
/// a minute, one wait would be the end of the test.
async fn a_silent_server_is_not_waited_for(locker: &Locker, silence: impl FnOnce()) {
    cycle(&locker.mutex(unique_key())).await;
    silence();
    let done = tokio::time::timeout(DEADLINE, async {
        for _ in 0..50 {
            cycle(&locker.mutex(unique_key())).await;
        }
    });
    done.await.expect("nobody waited for the silent server");
}

async fn cycle(lock: &Lock) {
    let guard = lock
        .clone()
        .ttl(Duration::from_secs(300))
        .lock()
        .await
        .unwrap();
    guard.renew().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn p2_a_frozen_server_is_not_waited_for() {
    let servers = Servers::start(3);
    let builder = Locker::builder().command_timeout(Duration::from_secs(60));
    let locker = builder.quorum(servers.urls()).await.unwrap();
    a_silent_server_is_not_waited_for(&locker, || servers.0[0].freeze()).await;
    servers.0[0].thaw();
}

#[tokio::test]
async fn p2_a_server_that_is_cut_off_is_not_waited_for() {
    let servers = Servers::start(3);
    let hole = Proxy::before(servers.0[0].port);
    let urls = [hole.url(), servers.0[1].url(), servers.0[2].url()];
    let builder = Locker::builder().command_timeout(Duration::from_secs(60));
    let locker = builder.quorum(urls).await.unwrap();
    a_silent_server_is_not_waited_for(&locker, || hole.hold()).await;
    hole.pass();
}

#[tokio::test]
async fn connecting_takes_a_majority() {
    let mut servers = Servers::start(3);
    servers.0[0].freeze();
    let builder = Locker::builder().command_timeout(Duration::from_secs(300));
    let connecting = builder.clone().quorum(servers.urls());
    let locker = tokio::time::timeout(DEADLINE, connecting).await;
    cycle(&locker.unwrap().unwrap().mutex(unique_key())).await;
    servers.0[1].kill();
    let builder = builder.command_timeout(Duration::from_millis(200));
    let error = builder.quorum(servers.urls()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn p4_without_a_majority_the_lease_is_lost_at_its_deadline_and_not_later() {
    let servers = Servers::start(3);
    let locker = connect(servers.urls()).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(2));
    let guard = lock.lock().await.unwrap();
    guard.renew().await.unwrap();
    for server in &servers.0[..2] {
        server.freeze();
    }
    let start = Instant::now();
    // The TTL, and what a busy machine adds to the wake-up.
    let most = Duration::from_secs(3);
    tokio::time::timeout(DEADLINE, guard.lost().cancelled())
        .await
        .unwrap();
    let took = start.elapsed();
    let lost = guard.ensure_held().unwrap_err();
    assert_eq!(lost.reason(), LostReason::Expired);
    assert!(lost.source().is_some(), "what renewing failed with");
    assert!(took < most, "lost {took:?} after the freeze");
    for server in &servers.0[..2] {
        server.thaw();
    }
}

#[tokio::test]
async fn p2_servers_that_come_back_empty_one_after_the_other_are_repaired() {
    let mut servers = Servers::start(3);
    let locker = connect(servers.urls()).await;
    let lock = locker
        .mutex(unique_key())
        .ttl(Duration::from_secs(300))
        .renew_every(Duration::from_millis(50));
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    for _ in 0..2 {
        for index in 0..3 {
            servers.0[index].restart();
            eventually("the key is back", || {
                guard.ensure_held().unwrap();
                servers.0[index].get(lock.key()).is_some()
            })
            .await;
        }
    }
    guard.ensure_held().unwrap();
    for server in &servers.0 {
        let ttl: i64 = server.command(&["PTTL", lock.key()]);
        assert!(ttl > 0, "{ttl}");
        assert_eq!(server.get(lock.key()).as_deref(), Some(guard.value()));
    }
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    eventually("all are free", || servers.with_key(lock.key()) == 0).await;
}

#[tokio::test]
async fn p7_a_repair_never_takes_the_key_from_somebody_else() {
    let servers = Servers::start(3);
    let locker = connect(servers.urls()).await;
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    let () = servers.0[0].command(&["SET", lock.key(), "another"]);
    let before = servers.0[0].calls("evalsha");
    guard.renew().await.unwrap();
    guard.renew().await.unwrap();
    eventually("it was asked", || {
        servers.0[0].calls("evalsha") >= before + 2
    })
    .await;
    assert_eq!(servers.0[0].get(lock.key()).as_deref(), Some("another"));
}

#[tokio::test]
async fn p10_a_repair_that_a_frozen_server_runs_late_does_not_outlive_the_release() {
    let servers = Servers::start(3);
    let locker = connect(servers.urls()).await;
    for _ in 0..10 {
        let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
        let guard = lock.lock().await.unwrap();
        eventually("the key is everywhere", || {
            servers.with_key(lock.key()) == 3
        })
        .await;
        let () = servers.0[0].command(&["DEL", lock.key()]);
        // The renewal finds the key gone, and the repair is on its way when the server stops.
        guard.renew().await.unwrap();
        servers.0[0].freeze();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        servers.0[0].thaw();
        let lock = lock.clone();
        eventually("all are free, and stay it", || {
            servers.with_key(lock.key()) == 0
        })
        .await;
        cycle(&lock).await;
        eventually("all are free again", || servers.with_key(lock.key()) == 0).await;
    }
}

#[tokio::test]
async fn p10_a_release_reaches_a_server_that_was_frozen_meanwhile() {
    let servers = Servers::start(3);
    let locker = connect(servers.urls()).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(300));
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    servers.0[2].freeze();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    servers.0[2].thaw();
    eventually("the frozen one is free, too", || {
        servers.with_key(lock.key()) == 0
    })
    .await;
}

/// The connection of the request dies without a word. The driver's does not.
#[tokio::test]
async fn p10_a_cancelled_acquire_whose_connection_is_dead_leaves_no_key() {
    let servers = Servers::start(3);
    let proxy = Proxy::before(servers.0[0].port);
    let urls = [proxy.url(), servers.0[1].url(), servers.0[2].url()];
    // A clean-up that began only when a command timed out would be too late for `eventually`.
    let locker = connect_within(2 * DEADLINE, urls).await;
    cycle(&locker.mutex(unique_key())).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(300));
    let key = lock.key().to_owned();
    for server in &servers.0[1..] {
        server.freeze();
    }
    proxy.go_silent_behind(&key);
    let waiting = tokio::spawn(async move { lock.lock().await.map(drop) });
    eventually("the first server has granted", || {
        servers.0[0].get(&key).is_some()
    })
    .await;
    waiting.abort();
    eventually("the first server is free", || {
        servers.0[0].get(&key).is_none()
    })
    .await;
    for server in &servers.0[1..] {
        server.thaw();
    }
}

/// A loser of the race, who gives back what it took, leaves the winner with a bare majority.
#[tokio::test]
async fn a_grant_by_a_bare_majority_is_completed_at_once() {
    let mut servers = Servers::start(3);
    // For the commands to a server that is dead then.
    let locker = connect_within(PATIENCE, servers.urls()).await;
    cycle(&locker.mutex(unique_key())).await;
    // So that nothing but the completion sets the key anywhere.
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(600));
    let lock = lock.auto_renew(false);
    let () = servers.0[0].command(&["SET", lock.key(), "loser"]);
    let refusals = servers.0[0].calls("pttl");
    let guard = lock.lock().await.unwrap();
    eventually("it is refused where another has the key", || {
        servers.0[0].calls("pttl") > refusals
    })
    .await;
    let () = servers.0[0].command(&["DEL", lock.key()]);
    eventually("the key is everywhere", || {
        let values = servers.values(lock.key());
        let is_ours = |value: &Option<String>| value.as_deref() == Some(guard.value());
        values.iter().all(is_ours)
    })
    .await;
    let fence = format!("{{{}}}:fence", lock.key());
    let token = guard.fencing_token().to_string();
    assert_eq!(servers.0[0].get(&fence), Some(token), "P8");

    servers.0[1].kill();
    guard.renew().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    for server in [&servers.0[0], &servers.0[2]] {
        eventually("it is free", || server.get(lock.key()).is_none()).await;
    }
}

#[tokio::test]
async fn a_dead_server_is_not_stormed_with_connections() {
    let servers = Servers::start(2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            drop(connection);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let dead = format!("redis://127.0.0.1:{port}/");
    let urls = [servers.0[0].url(), servers.0[1].url(), dead];
    let locker = Locker::quorum(urls).await.unwrap();
    let start = Instant::now();
    for _ in 0..300 {
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    let elapsed = start.elapsed();
    let connections = connections.load(Ordering::Relaxed);
    // The caller's runtime and the driver's.
    let allowed = 2 * (elapsed.as_millis() as usize / 10 + 1);
    assert!(connections <= allowed, "{connections} in {elapsed:?}");
}
