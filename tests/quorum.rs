//! A quorum of real servers, all of them well: the same locks as on one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redlease::{Error, Locker, LostReason, Released};
use testkit::{DEADLINE, Server, Servers, eventually, unique_key};

#[tokio::test]
async fn a_guard_has_its_key_on_every_server_and_a_release_frees_them_all() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let key = unique_key();
    let guard = locker.mutex(&key).lock().await.unwrap();
    eventually("the key is on every server", || servers.with_key(&key) == 3).await;
    for value in servers.values(&key) {
        assert_eq!(value.as_deref(), Some(guard.value()));
    }
    assert!(guard.fencing_token() > 0);
    guard.renew().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    eventually("every server is free", || servers.with_key(&key) == 0).await;
}

#[tokio::test]
async fn a_cycle_costs_each_server_one_request_a_step() {
    const CYCLES: u64 = 50;
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key()).ttl(DEADLINE);
    let cycle = async || {
        let guard = lock.lock().await.unwrap();
        eventually("the key is everywhere", || {
            servers.with_key(lock.key()) == 3
        })
        .await;
        // The slowest server's answer is in, too.
        guard.renew().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        // The slowest server is told behind the scenes.
        eventually("all are free", || servers.with_key(lock.key()) == 0).await;
    };
    // So that the locker knows whether the servers echo its renewals.
    let often = lock.clone().renew_every(Duration::from_millis(20));
    let guard = often.lock().await.unwrap();
    eventually("some renewals", || {
        servers.0.iter().all(|server| server.calls("pexpire") > 5)
    })
    .await;
    guard.release().await.unwrap();
    cycle().await;
    let before: Vec<_> = servers.0.iter().map(|s| s.calls("evalsha")).collect();
    for _ in 0..CYCLES {
        cycle().await;
    }
    locker.close(DEADLINE).await.unwrap();
    for (server, before) in servers.0.iter().zip(before) {
        let calls = server.calls("evalsha") - before;
        // A release that finds a request under way is followed by a second one, now and then.
        assert!(calls <= 3 * CYCLES + CYCLES / 4, "{calls}");
    }
}

#[tokio::test]
async fn p1_two_lockers_exclude_each_other() {
    let servers = Servers::start(3);
    let first = Locker::quorum(servers.urls()).await.unwrap();
    let second = Locker::quorum(servers.urls()).await.unwrap();
    let key = unique_key();
    let guard = first.mutex(&key).lock().await.unwrap();
    assert!(second.mutex(&key).try_lock().await.unwrap().is_none());
    let lock = second.mutex(&key);
    let waiting = tokio::spawn(async move { lock.lock().await });
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    let next = tokio::time::timeout(DEADLINE, waiting).await;
    let next = next.unwrap().unwrap().unwrap();
    assert!(next.fencing_token() > token);
}

#[tokio::test]
async fn the_lock_of_another_client_on_a_majority_is_respected() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    for server in &servers.0[..2] {
        let () = server.command(&["SET", lock.key(), "another", "NX", "PX", "60000"]);
    }
    assert!(lock.try_lock().await.unwrap().is_none());
    let holder = lock.holder().await.unwrap().unwrap();
    assert_eq!(holder.value, b"another");
    assert!(holder.ttl.is_some());
    eventually("what the attempt set is undone", || {
        servers.0[2].get(lock.key()).is_none()
    })
    .await;
    let () = servers.0[0].command(&["DEL", lock.key()]);
    assert!(
        lock.try_lock().await.unwrap().is_some(),
        "a minority is none"
    );
}

#[tokio::test]
async fn p10_a_dropped_guard_frees_every_server_before_the_last_handle_is_gone() {
    let servers = Servers::start(3);
    for _ in 0..20 {
        let key = unique_key();
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let guard = locker.mutex(&key).lock().await.unwrap();
        eventually("the key is everywhere", || servers.with_key(&key) == 3).await;
        drop(locker);
        drop(guard);
        assert_eq!(servers.with_key(&key), 0);
    }
}

#[tokio::test]
async fn p10_a_cancelled_acquire_leaves_no_key() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let key = unique_key();
    for server in &servers.0[1..] {
        server.freeze();
    }
    let lock = locker.mutex(&key).ttl(Duration::from_secs(60));
    let task = tokio::spawn(async move { lock.lock().await.map(drop) });
    eventually("the first server has granted", || {
        servers.0[0].get(&key).is_some()
    })
    .await;
    task.abort();
    eventually("the first server is free", || {
        servers.0[0].get(&key).is_none()
    })
    .await;
    for server in &servers.0[1..] {
        server.thaw();
    }
    // What the others were sent runs now: the acquire, and behind it the release.
    eventually("all have run what they were sent", || {
        servers.0[1..].iter().all(|server| {
            let calls = server.calls("evalsha") + server.calls("eval");
            calls >= 2 && server.get(&key).is_none()
        })
    })
    .await;
}

#[tokio::test]
async fn a_lost_race_leaves_no_key_on_a_frozen_server() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
    for server in &servers.0[..2] {
        let () = server.command(&["SET", lock.key(), "another"]);
    }
    servers.0[2].freeze();
    assert!(lock.try_lock().await.unwrap().is_none());
    servers.0[2].thaw();
    eventually("the frozen one ran the release, too", || {
        let calls = servers.0[2].calls("evalsha") + servers.0[2].calls("eval");
        calls >= 2 && servers.0[2].get(lock.key()).is_none()
    })
    .await;
}

#[tokio::test]
async fn p4_force_release_takes_the_lock_everywhere_and_the_holder_hears_of_it() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker
        .mutex(unique_key())
        .renew_every(Duration::from_millis(20));
    let guard = lock.lock().await.unwrap();
    assert!(lock.force_release().await.unwrap());
    tokio::time::timeout(DEADLINE, guard.lost().cancelled())
        .await
        .unwrap();
    assert!(matches!(guard.lost_reason(), Some(LostReason::Removed)));
    drop(guard);
    assert!(lock.holder().await.unwrap().is_none());
    assert!(!lock.force_release().await.unwrap());
    eventually("no repair has brought it back", || {
        servers.with_key(lock.key()) == 0
    })
    .await;
}

#[tokio::test]
async fn a_majority_in_other_hands_is_a_theft() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    for server in &servers.0[1..] {
        let () = server.command(&["SET", lock.key(), "thief"]);
    }
    assert!(matches!(guard.renew().await, Err(Error::Lost(_))));
    assert!(matches!(guard.lost_reason(), Some(LostReason::Stolen)));
    eventually("what was left of it is given up", || {
        servers.0[0].get(lock.key()).is_none()
    })
    .await;
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
}

#[tokio::test]
async fn a_release_tells_the_truth() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    let () = servers.0[0].command(&["DEL", lock.key()]);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    for server in &servers.0[..2] {
        let () = server.command(&["DEL", lock.key()]);
    }
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
    eventually("the last one is freed, too", || {
        servers.with_key(lock.key()) == 0
    })
    .await;
}

#[tokio::test]
async fn sets_of_servers_that_are_none_are_refused() {
    let none: [&str; 0] = [];
    assert!(matches!(
        Locker::quorum(none).await,
        Err(Error::Invalid { .. })
    ));
    let two = ["redis://127.0.0.1:1/", "redis://127.0.0.1:2/"];
    let error = Locker::quorum(two).await.unwrap_err().to_string();
    assert!(error.contains("at least 3 servers, not 2"), "{error}");
    let twice = [two[0], two[1], "redis://127.0.0.1:2/1"];
    let error = Locker::quorum(twice).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:2 is twice"), "{error}");
}

#[tokio::test]
async fn an_even_number_of_servers_is_warned_of() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || Sink(Arc::clone(&sink)))
        .finish();
    let servers = Servers::start(4);
    let locker = {
        let _default = tracing::subscriber::set_default(subscriber);
        Locker::quorum(servers.urls()).await.unwrap()
    };
    let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    assert!(
        text.contains("WARN") && text.contains("even number"),
        "{text}"
    );
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn messages_name_all_servers_and_what_each_said() {
    let mut servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    for server in &mut servers.0[1..] {
        server.kill();
    }
    let lock = locker.mutex("k").outage_limit(Duration::ZERO);
    let error = lock.try_lock().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("redis at 3 servers (127.0.0.1:"), "{text}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    for server in &servers.0[1..] {
        assert!(
            cause.contains(&format!("127.0.0.1:{}", server.port)),
            "{cause}"
        );
    }
}

#[tokio::test]
async fn a_majority_that_refuses_for_good_is_a_refusal_and_a_minority_is_not() {
    let open = Server::start();
    let closed = [
        Server::with(&["--requirepass", "x"]),
        Server::with(&["--requirepass", "x"]),
    ];
    let urls = [open.url(), closed[0].url(), closed[1].url()];
    let error = Locker::quorum(&urls).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let second = Server::start();
    let urls = [open.url(), second.url(), closed[0].url()];
    let locker = Locker::quorum(&urls).await.unwrap();
    let guard = locker.mutex("k").lock().await.unwrap();
    guard.renew().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[test]
fn the_blocking_api_has_it_too() {
    let servers = Servers::start(3);
    let locker = redlease::blocking::Locker::quorum(servers.urls()).unwrap();
    let key = unique_key();
    let guard = locker.mutex(&key).lock().unwrap();
    assert_eq!(
        locker.mutex(&key).holder().unwrap().unwrap().value,
        guard.value().as_bytes()
    );
    guard.renew().unwrap();
    assert_eq!(guard.release().unwrap(), Released::Freed);
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn p2_one_server_under_two_names_counts_once() {
    let mut servers = Servers::start(2);
    let again = format!("redis+unix://{}", servers.0[0].socket().display());
    let urls = [servers.0[0].url(), again, servers.0[1].url()];
    let locker = Locker::quorum(urls).await.unwrap();
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    guard.renew().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    servers.0[1].kill();
    let lock = lock.outage_limit(Duration::ZERO);
    let error = lock.try_lock().await.expect_err("one server of two");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("another name"), "{cause}");
}

#[tokio::test]
async fn the_token_does_not_fire_because_of_a_release_that_others_wait_for() {
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker
        .mutex(unique_key())
        .ttl(Duration::from_secs(3))
        .renew_every(Duration::from_millis(100));
    let guard = lock.lock().await.unwrap();
    let token = guard.lost();
    let renewals = || servers.0.iter().map(|s| s.calls("pexpire")).min();
    eventually("the driver's thread has renewed it", || {
        renewals() >= Some(1)
    })
    .await;
    let next = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await.unwrap() }
    });
    tokio::task::yield_now().await;
    let release = std::pin::pin!(guard.release());
    let blocked = async {
        // The request was carried out, and the caller's only thread is busy.
        while servers.with_key(lock.key()) > 0 {
            tokio::task::yield_now().await;
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    let (released, ()) = tokio::join!(release, blocked);
    assert_eq!(released.unwrap(), Released::Freed);
    assert!(!token.is_cancelled(), "it fired because of the release");
    drop(next.await.unwrap());
}
