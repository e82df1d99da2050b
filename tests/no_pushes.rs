//! Without pushes, because Redis sends none or a proxy swallows them: heartbeats alone serve.

#[path = "common/waiters.rs"]
mod waiters;

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use redlease::Locker;
use testkit::*;
use tokio::time::sleep;
use waiters::*;

/// More than a heartbeat where pushes are counted on, far less than a renewal.
const A_HEARTBEAT: Duration = Duration::from_secs(3);

/// What `tracing` was told, by any thread of this program.
static SAID: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(|| {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(|| Log)
        .init();
    Mutex::default()
});

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SAID.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How often it was said that a server tells nothing.
fn times_said(server: &str) -> usize {
    let said = SAID.lock();
    let lines = String::from_utf8_lossy(&said).into_owned();
    let about = format!("server={server} ");
    let lines = lines.lines();
    lines
        .filter(|line| line.contains("no pushes") && line.contains(&about))
        .count()
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
    LazyLock::force(&SAID);
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    proxy.refuse_hello();
    take_turns(&server, &proxy.url(), &proxy.server()).await;
    assert_eq!(times_said(&proxy.server()), 2, "once a locker");
}

#[tokio::test]
async fn something_on_the_way_swallows_every_push() {
    LazyLock::force(&SAID);
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    proxy.swallow_pushes();
    take_turns(&server, &proxy.url(), &proxy.server()).await;
    assert_eq!(times_said(&proxy.server()), 2, "once a locker");
}

#[tokio::test]
async fn p11_pushes_that_stop_to_come_are_noticed() {
    LazyLock::force(&SAID);
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
    LazyLock::force(&SAID);
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
