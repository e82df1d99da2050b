//! Lockers that are made before their Redis is there.

#[path = "common/waiters.rs"]
mod waiters;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use redlease::{Error, Locker, blocking};
use testkit::*;
use waiters::*;

const SHORT: Duration = Duration::from_millis(200);

fn url_of(listener: &TcpListener) -> String {
    format!("redis://{}/", listener.local_addr().expect("its address"))
}

/// Whether anybody has connected so far.
fn was_called(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).expect("a socket");
    listener.accept().is_ok()
}

fn clients(server: &Server) -> usize {
    let list: String = server.command(&["CLIENT", "LIST"]);
    // One is the question's own.
    list.lines().count() - 1
}

#[test]
fn making_one_sends_nothing_and_needs_no_runtime() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let url = url_of(&listener);
    let others = ["redis://127.0.0.1:1/", "redis://127.0.0.1:2/", &url];
    let client = || redis::Client::open(url.as_str()).expect("a client");
    let lockers = [
        Locker::builder().connect_lazily(&url).unwrap(),
        Locker::builder().connect_client_lazily(client()).unwrap(),
        Locker::builder().quorum_lazily(others).unwrap(),
        blocking::Locker::builder()
            .connect_lazily(&url)
            .unwrap()
            .into(),
        blocking::Locker::builder()
            .connect_client_lazily(client())
            .unwrap()
            .into(),
        blocking::Locker::builder()
            .quorum_lazily(others)
            .unwrap()
            .into(),
    ];
    for locker in lockers {
        drop(locker.mutex(unique_key()));
        drop(locker);
    }
    assert!(!was_called(&listener));
    // The listener would have told.
    let builder = blocking::Locker::builder().command_timeout(Duration::from_millis(20));
    assert!(builder.connect(&url).is_err());
    assert!(was_called(&listener));
}

#[test]
fn what_cannot_work_is_invalid_at_once() {
    let url = "redis://127.0.0.1:1/";
    let good = Locker::builder;
    let bad: [(&str, Result<Locker, Error>); 7] = [
        ("no url", good().connect_lazily("127.0.0.1:6379")),
        ("another scheme", good().connect_lazily("http://127.0.0.1/")),
        ("no url in a quorum", good().quorum_lazily([url, "x", "y"])),
        (
            "two servers",
            good().quorum_lazily([url, "redis://127.0.0.1:2/"]),
        ),
        ("one server thrice", good().quorum_lazily([url; 3])),
        (
            "a setting",
            good().command_timeout(Duration::ZERO).connect_lazily(url),
        ),
        ("an option", good().ttl(Duration::ZERO).connect_lazily(url)),
    ];
    for (what, made) in bad {
        assert!(
            matches!(made, Err(Error::Invalid { .. })),
            "{what}: {made:?}"
        );
    }
}

#[tokio::test]
async fn the_first_acquire_waits_for_a_server_that_comes_later() {
    let mut server = Server::start();
    server.kill();
    let locker = Locker::builder().connect_lazily(server.url()).unwrap();
    let lock = locker
        .mutex(unique_key())
        .ttl(TTL)
        .outage_limit(2 * DEADLINE);
    let first = wait_for(&lock);
    let again = lock.clone();
    let limited = tokio::spawn(async move { again.try_lock_for(Duration::MAX).await });
    tokio::time::sleep(SHORT).await;
    assert!(!first.is_finished() && !limited.is_finished());
    server.restart();
    let guard = done(first).await;
    assert_eq!(server.get(lock.key()).as_deref(), Some(guard.value()));
    drop(guard);
    assert!(done(limited).await.unwrap().is_some());
}

#[tokio::test]
async fn a_quorum_may_come_later_and_one_server_never() {
    let mut servers = Servers::start(3);
    servers.0.iter_mut().for_each(Server::kill);
    let urls: Vec<String> = servers.0.iter().map(Server::url).collect();
    let locker = Locker::builder().quorum_lazily(urls).unwrap();
    let lock = locker
        .mutex(unique_key())
        .ttl(TTL)
        .outage_limit(2 * DEADLINE);
    let waiter = wait_for(&lock);
    servers.0[0].restart();
    tokio::time::sleep(SHORT).await;
    assert!(!waiter.is_finished());
    servers.0[2].restart();
    let guard = done(waiter).await;
    for server in [&servers.0[0], &servers.0[2]] {
        assert_eq!(server.get(lock.key()).as_deref(), Some(guard.value()));
    }
    drop(guard);
}

#[test]
fn a_blocking_one_waits_too() {
    let mut server = Server::start();
    server.kill();
    let builder = blocking::Locker::builder().outage_limit(2 * DEADLINE);
    let lock = builder
        .connect_lazily(server.url())
        .unwrap()
        .mutex(unique_key());
    let waiter = lock.clone();
    let waiter = std::thread::spawn(move || waiter.lock());
    std::thread::sleep(SHORT);
    assert!(!waiter.is_finished());
    server.restart();
    let guard = waiter.join().unwrap().unwrap();
    assert_eq!(server.get(lock.key()).as_deref(), Some(guard.value()));
}

#[tokio::test]
async fn p13_a_server_that_stays_away_is_unavailable_and_never_taken() {
    let mut server = Server::start();
    server.kill();
    let builder = Locker::builder().outage_limit(SHORT);
    let lock = builder
        .connect_lazily(server.url())
        .unwrap()
        .mutex(unique_key());
    let began = Instant::now();
    let outcomes = [
        lock.lock().await.map(Some),
        lock.try_lock().await,
        lock.outage_limit(2 * DEADLINE).try_lock_for(SHORT).await,
    ];
    assert!(began.elapsed() >= 3 * SHORT);
    for outcome in outcomes {
        let is_unavailable = matches!(outcome, Err(Error::Unavailable { .. }));
        assert!(is_unavailable, "{outcome:?}");
    }
}

#[tokio::test]
async fn close_ends_those_who_wait_for_the_first_connection() {
    let mut server = Server::start();
    server.kill();
    let builder = Locker::builder().outage_limit(2 * DEADLINE);
    let locker = builder.connect_lazily(server.url()).unwrap();
    let mut waiters = Vec::new();
    for _ in 0..2 {
        let lock = locker.mutex("one and the same");
        waiters.push(tokio::spawn(async move { lock.lock().await }));
    }
    tokio::time::sleep(SHORT).await;
    within(DEADLINE, "closed", locker.close(DEADLINE))
        .await
        .unwrap();
    for waiter in waiters {
        let outcome = done(waiter).await;
        assert!(matches!(outcome, Err(Error::Closed { .. })), "{outcome:?}");
    }
}

/// How often a command was called that only the check of the rights calls.
fn checks(server: &Server) -> u64 {
    server.calls("hdel")
}

async fn cycle(locker: &Locker) {
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn what_connecting_finds_out_is_found_out_once() {
    let server = Server::start();
    let locker = Locker::builder().connect_lazily(server.url()).unwrap();
    let before = checks(&server);
    cycle(&locker).await;
    let checked = checks(&server);
    assert!(checked > before, "it is checked at the first acquire");
    eventually("the background thread has its connection, too", || {
        clients(&server) == 2
    })
    .await;
    for _ in 0..5 {
        cycle(&locker).await;
    }
    assert_eq!(checks(&server), checked, "and not again");
    let locker = connect(&server).await;
    let checked = checks(&server);
    cycle(&locker).await;
    assert_eq!(checks(&server), checked, "it was checked when it connected");
}

#[tokio::test]
async fn it_tells_who_holds_a_lock_before_it_ever_held_one() {
    let server = Server::start();
    let guard = connect(&server)
        .await
        .mutex(unique_key())
        .lock()
        .await
        .unwrap();
    let locker = Locker::builder().connect_lazily(server.url()).unwrap();
    let lock = locker.mutex(guard.key());
    let holder = lock.holder().await.unwrap().expect("a holder");
    assert_eq!(holder.value, guard.value().as_bytes());
    assert!(lock.force_release().await.unwrap());
    assert!(lock.try_lock().await.unwrap().is_some());
}
