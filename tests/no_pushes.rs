//! Without pushes, because Redis sends none or a proxy swallows them: heartbeats alone serve.

#[path = "common/said.rs"]
mod said;
#[path = "common/waiters.rs"]
mod waiters;

use std::time::{Duration, Instant};

use redlease::Locker;
use testkit::*;
use tokio::time::sleep;
use waiters::*;

/// More than a heartbeat where pushes are counted on, far less than a renewal.
const A_HEARTBEAT: Duration = Duration::from_secs(3);

/// How often it was said that a server tells nothing.
fn times_said(server: &str) -> usize {
    said::times_said(server, "no pushes")
}

/// Two lockers give each other the lock, and a foreign client takes and gives it.
async fn take_turns(server: &Server, url: &str, name: &str) {
    let a = Locker::connect(url).await.unwrap();
    let b = Locker::connect(url).await.unwrap();
    let before = times_said(name);
    let key = unique_key();
    let mut guard = a.mutex(&key).ttl(TTL).lock().await.unwrap();
    for turn in 0..6 {
        let locker = if turn % 2 == 0 { &b } else { &a };
        let waiter = wait_for(&locker.mutex(&key).ttl(TTL));
        until_queued(server, &key, 1).await;
        guard.release().await.unwrap();
        guard = within(A_HEARTBEAT, "its turn", waiter).await.unwrap();
        assert!(!guard.is_lost());
    }
    guard.release().await.unwrap();
    let () = server.command(&["SET", &key, "foreign"]);
    let waiter = wait_for(&a.mutex(&key).ttl(TTL));
    until_queued(server, &key, 1).await;
    let () = server.command(&["DEL", &key]);
    let guard = within(A_HEARTBEAT, "the foreign key", waiter)
        .await
        .unwrap();
    // Held while nobody tells anything: a second.
    sleep(Duration::from_secs(1)).await;
    assert!(!guard.is_lost());
    guard.release().await.unwrap();
    // For each of the two lockers once at most; what was said before is of earlier ones.
    assert!(times_said(name) <= before + 2, "said more than once");
    drop((a, b));
    until_only_fences_are_left(server).await;
}

#[tokio::test]
async fn a_server_that_speaks_resp2_only() {
    said::listen();
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    proxy.refuse_hello();
    take_turns(&server, &proxy.url(), &proxy.server()).await;
    assert_eq!(
        times_said(&proxy.server()),
        2,
        "once a locker: {:?}",
        said::said(&proxy.server(), "no pushes")
    );
}

#[tokio::test]
async fn something_on_the_way_swallows_every_push() {
    said::listen();
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    proxy.swallow_pushes();
    take_turns(&server, &proxy.url(), &proxy.server()).await;
    assert_eq!(
        times_said(&proxy.server()),
        2,
        "once a locker: {:?}",
        said::said(&proxy.server(), "no pushes")
    );
}

#[tokio::test]
async fn p11_pushes_that_stop_to_come_are_noticed() {
    said::listen();
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let there = connect(&server).await;
    let here = Locker::connect(proxy.url()).await.unwrap();
    let key = unique_key();
    for round in 0..3 {
        let first = there.mutex(&key).ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&here.mutex(&key).ttl(TTL));
        until_queued(&server, &key, 1).await;
        if round == 1 {
            proxy.swallow_pushes();
        }
        first.release().await.unwrap();
        let second = within(A_HEARTBEAT, "the grant", waiter).await.unwrap();
        second.release().await.unwrap();
        assert_eq!(times_said(&proxy.server()), usize::from(round > 0));
    }
}

#[tokio::test]
async fn users_without_the_rights_for_pushes() {
    said::listen();
    let Some(server) = Server::with_command("ACL") else {
        return;
    };
    let mut users: Vec<(&str, &[&str])> = vec![
        ("nosub", &["&*", "+@all", "-subscribe"]),
        ("nopub", &["&*", "+@all", "-publish"]),
        // Before Redis 7 no single subcommand can be taken away.
        ("notrack", &["&*", "+@all", "-client"]),
    ];
    if server.has_channel_rights() {
        users.push(("nochannels", &["resetchannels", "+@all"]));
    } else {
        left_out("a user without a channel: the server has no rights to channels");
    }
    for (user, rights) in users {
        server.add_user(user, &[&["~*"], rights].concat());
        let name = format!("127.0.0.1:{}", server.port);
        let before = times_said(&name);
        let url = format!("redis://{user}:pw@{name}/");
        take_turns(&server, &url, &name).await;
        let said = times_said(&name) - before;
        assert!((1..=2).contains(&said), "{user}: said {said} times");
    }
}

/// A user without the right to tracking, where users have rights.
fn server_without_tracking() -> Option<(Server, String)> {
    let server = Server::with_command("ACL")?;
    server.add_user("notrack", &["~*", "&*", "+@all", "-client"]);
    let url = format!("redis://notrack:pw@127.0.0.1:{}/", server.port);
    Some((server, url))
}

#[tokio::test]
async fn without_tracking_a_lock_is_handed_over_at_once_and_waiters_ask_seldom() {
    said::listen();
    let Some((server, url)) = server_without_tracking() else {
        return;
    };
    let mut lockers = Vec::new();
    for _ in 0..4 {
        lockers.push(Locker::connect(&url).await.unwrap());
    }
    let key = unique_key();
    let mut guard = lockers[0].mutex(&key).ttl(TTL).lock().await.unwrap();
    let mut waiters = Vec::new();
    for (before, locker) in lockers[1..].iter().enumerate() {
        waiters.push(wait_for(&locker.mutex(&key).ttl(TTL)));
        until_queued(&server, &key, before as u64 + 1).await;
    }
    let before = scripts(&server);
    let time = Duration::from_secs(4);
    sleep(time).await;
    // The first asks five times a second, the other two once. Without grants, each asks 20 times.
    let asked = scripts(&server) - before;
    assert!(asked <= 48, "{asked} requests of three waiters in {time:?}");
    for waiter in waiters {
        guard.release().await.unwrap();
        guard = within(A_HEARTBEAT, "its turn", waiter).await.unwrap();
    }
    let mut times = Vec::new();
    for turn in 0..15 {
        let waiter = wait_for(&lockers[turn % 3].mutex(&key).ttl(TTL));
        until_queued(&server, &key, 1).await;
        sleep(Duration::from_millis(turn as u64 * 7)).await;
        let began = Instant::now();
        guard.release().await.unwrap();
        guard = within(A_HEARTBEAT, "its turn", waiter).await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    // By its next question, it would be 100 ms.
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(50), "{times:?}");
    let name = format!("127.0.0.1:{}", server.port);
    let warnings = said::said(&name, "no pushes");
    assert_eq!(warnings.len(), 4, "once a locker: {warnings:?}");
    for warning in warnings {
        let words = "thefts are noticed at the next renewal";
        assert!(warning.contains(words), "{warning}");
        assert!(!warning.contains("every 50 ms"), "{warning}");
    }
}

#[tokio::test]
async fn without_tracking_the_first_waiter_finds_a_key_that_a_foreign_holder_freed() {
    let Some((server, url)) = server_without_tracking() else {
        return;
    };
    let locker = Locker::connect(&url).await.unwrap();
    for round in 0..6 {
        let key = unique_key();
        let () = server.command(&["SET", &key, "foreign"]);
        let waiter = wait_for(&locker.mutex(&key).ttl(TTL));
        until_queued(&server, &key, 1).await;
        sleep(Duration::from_millis(70 * round)).await;
        let () = server.command(&["DEL", &key]);
        let half_a_heartbeat = Duration::from_millis(500);
        let guard = within(half_a_heartbeat, "the foreign key", waiter).await;
        guard.unwrap().release().await.unwrap();
    }
}
