//! Credentials that are asked for whenever a connection is opened, as tokens that expire need it.

#[path = "common/waiters.rs"]
mod waiters;

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redlease::{Builder, Credentials, Error, Locker, Released, blocking};
use testkit::*;
use waiters::*;

const SHORT: Duration = Duration::from_secs(1);

/// What a service that issues tokens does now.
#[derive(Clone)]
enum Behaviour {
    Issue(String),
    Fail,
    Hang,
    Panic,
    Block(Duration),
}

#[derive(Debug, PartialEq)]
struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service has no token")
    }
}

impl std::error::Error for NoToken {}

/// A service that issues tokens for the user `ann`.
#[derive(Clone)]
struct Service {
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<AtomicUsize>,
}

impl Service {
    fn issuing(token: &str) -> Self {
        Self {
            behaviour: Arc::new(Mutex::new(Behaviour::Issue(token.to_owned()))),
            asked: Arc::default(),
        }
    }

    fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn builder(&self) -> Builder {
        let service = self.clone();
        Locker::builder().credentials(move || service.clone().token())
    }

    async fn token(self) -> Result<Credentials, NoToken> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // It takes its time, on the runtime of the connection.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let behaviour = self.behaviour.lock().clone();
        match behaviour {
            Behaviour::Issue(token) => Ok(Credentials::new(token).user("ann")),
            Behaviour::Fail => Err(NoToken),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Panic => panic!("on purpose"),
            Behaviour::Block(time) => {
                std::thread::sleep(time);
                Err(NoToken)
            }
        }
    }
}

fn set_token(server: &Server, token: &str) {
    let password = format!(">{token}");
    let mut words = vec!["ACL", "SETUSER", "ann", "on", "resetpass", &password];
    words.extend(["~*", "+@all"]);
    if server.has_channel_rights() {
        words.push("&*");
    }
    server.command::<()>(&words);
}

/// A server on which `ann` needs a token, if it knows users.
fn server_with(token: &str) -> Option<Server> {
    let server = Server::with_command("ACL")?;
    set_token(&server, token);
    Some(server)
}

fn kill_connections(server: &Server) {
    for kind in ["normal", "pubsub"] {
        server.command::<i64>(&["CLIENT", "KILL", "TYPE", kind]);
    }
}

fn cause(error: &Error) -> &(dyn std::error::Error + 'static) {
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    error.source().expect("a cause")
}

#[tokio::test]
async fn p13_a_token_that_changes_while_the_locker_lives_costs_no_guard() {
    let Some(server) = server_with("first") else {
        return;
    };
    for query in ["", "?protocol=2"] {
        set_token(&server, "first");
        let service = Service::issuing("first");
        let url = format!("redis://127.0.0.1:{}/{query}", server.port);
        let locker = service.builder().connect(&url).await.unwrap();
        let ttl = Duration::from_secs(10);
        let lock = |key: String| locker.mutex(key).ttl(ttl).renew_every(ttl / 20);
        let guard = lock(unique_key()).lock().await.unwrap();
        let other = connect(&server).await.mutex(unique_key()).lock().await;
        let other = other.unwrap();
        let waiter = wait_for(&lock(other.key().to_owned()));
        until_queued(&server, other.key(), 1).await;
        for token in ["second", "third"] {
            let before = service.asked();
            set_token(&server, token);
            service.becomes(Behaviour::Issue(token.to_owned()));
            kill_connections(&server);
            let killed = Instant::now();
            eventually("both runtimes ask again", || service.asked() >= before + 2).await;
            // Longer than the lease lasts without a renewal.
            eventually("a lease later", || killed.elapsed() > ttl + ttl / 5).await;
            assert!(
                !guard.is_lost(),
                "{token}{query}: {:?}",
                guard.lost_reason()
            );
            assert!(!guard.lost().is_cancelled(), "{token}{query}");
        }
        assert_eq!(other.release().await.unwrap(), Released::Freed);
        let granted = within(ttl, "the waiter's turn", waiter).await.unwrap();
        for guard in [guard, granted] {
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        }
    }
}

#[tokio::test]
async fn credentials_are_asked_for_at_each_opening_and_not_in_between() {
    let Some(server) = server_with("token") else {
        return;
    };
    let service = Service::issuing("token");
    let locker = service.builder().connect(server.url()).await.unwrap();
    assert_eq!(
        service.asked(),
        2,
        "the caller's connection and the driver's"
    );
    for _ in 0..10 {
        drop(locker.mutex(unique_key()).lock().await.unwrap());
    }
    assert_eq!(service.asked(), 2);
    let proxy = Proxy::before(server.port);
    proxy.refuse_hello();
    service.builder().connect(proxy.url()).await.unwrap();
    assert_eq!(service.asked(), 4, "once, though RESP2 is the second try");
}

#[tokio::test]
async fn what_the_provider_says_counts_not_the_url() {
    let Some(server) = server_with("token") else {
        return;
    };
    server.command::<()>(&["ACL", "SETUSER", "default", "resetpass", ">secret"]);
    let service = Service::issuing("token");
    for query in ["", "?protocol=2"] {
        let url = format!("redis://bob:wrong@127.0.0.1:{}/3{query}", server.port);
        let locker = service.builder().connect(&url).await.unwrap();
        drop(locker.mutex(unique_key()).lock().await.unwrap());
        let builder = Locker::builder();
        let builder = builder.credentials(async || Ok::<_, NoToken>(Credentials::new("secret")));
        builder.connect(&url).await.expect("the default user");
        let builder = Locker::builder();
        let builder = builder.credentials(async || Ok::<_, NoToken>(Credentials::new("wrong")));
        let error = builder.connect(&url).await.expect_err("a wrong password");
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn p13_a_provider_without_an_answer_is_an_outage() {
    let Some(server) = server_with("token") else {
        return;
    };
    for (behaviour, says) in [
        (Behaviour::Fail, "the service has no token"),
        (Behaviour::Panic, "on purpose"),
        (Behaviour::Hang, "in time"),
    ] {
        let service = Service::issuing("token");
        service.becomes(behaviour);
        let builder = || service.builder().command_timeout(SHORT);
        let error = builder().connect(server.url()).await.expect_err(says);
        let text = cause(&error).to_string();
        assert!(text.contains(says), "{text}");
        let of_the_service = cause(&error).downcast_ref::<NoToken>();
        assert_eq!(of_the_service.is_some(), says == "the service has no token");
        let locker = builder().connect_lazily(server.url()).unwrap();
        let lock = locker.mutex(unique_key()).outage_limit(SHORT);
        let error = lock.lock().await.expect_err(says);
        cause(&error);
        let waiter = wait_for(&locker.mutex(unique_key()).outage_limit(DEADLINE));
        let before = service.asked();
        eventually("it is asked again", || service.asked() > before + 1).await;
        service.becomes(Behaviour::Issue("token".to_owned()));
        assert_eq!(done(waiter).await.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn p4_a_provider_that_blocks_its_thread_delays_no_renewal_and_no_token() {
    let Some(server) = server_with("token") else {
        return;
    };
    let service = Service::issuing("token");
    let locker = service.builder().connect(server.url()).await.unwrap();
    let ttl = Duration::from_secs(3);
    let renewed = locker.mutex(unique_key()).ttl(ttl).lock().await.unwrap();
    let lock = locker.mutex(unique_key()).ttl(ttl / 2).auto_renew(false);
    let expiring = lock.lock().await.unwrap();
    service.becomes(Behaviour::Block(ttl * 2));
    let before = service.asked();
    kill_connections(&server);
    eventually("it blocks for the driver", || service.asked() > before).await;
    eventually("the lease is over", || expiring.is_lost()).await;
    let over = Instant::now();
    eventually("the token", || expiring.lost().is_cancelled()).await;
    assert!(over.elapsed() < ttl / 4, "{:?}", over.elapsed());
    service.becomes(Behaviour::Issue("token".to_owned()));
    let renewal = Instant::now();
    eventually("a lease later", || renewal.elapsed() > ttl).await;
    assert!(!renewed.is_lost(), "{:?}", renewed.lost_reason());
}

#[tokio::test]
async fn every_server_of_a_quorum_gets_them() {
    let servers = Servers::start(3);
    if Server::with_command("ACL").is_none() {
        return;
    }
    let service = Service::issuing("token");
    for server in &servers.0 {
        set_token(server, "token");
        server.command::<()>(&["ACL", "SETUSER", "default", "resetpass", ">secret"]);
    }
    let locker = service.builder().quorum(servers.urls()).await.unwrap();
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[test]
fn the_blocking_api_takes_a_provider_that_blocks() {
    let Some(server) = server_with("token") else {
        return;
    };
    let builder = blocking::Locker::builder().credentials(async || {
        std::thread::sleep(Duration::from_millis(20));
        Ok::<_, NoToken>(Credentials::new("token").user("ann"))
    });
    let locker = builder.connect(server.url()).unwrap();
    let guard = locker.mutex(unique_key()).lock().unwrap();
    assert_eq!(guard.release().unwrap(), Released::Freed);
}

#[tokio::test]
async fn a_runtime_ends_although_its_provider_hangs() {
    let Some(server) = server_with("token") else {
        return;
    };
    let service = Service::issuing("token");
    let builder = service.builder().command_timeout(Duration::from_secs(3600));
    let locker = builder.connect_lazily(server.url()).unwrap();
    service.becomes(Behaviour::Hang);
    let asked = service.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let lock = locker.mutex(unique_key());
        runtime.spawn(async move { lock.lock().await.map(drop) });
        eventually_blocking("it hangs", || asked.asked() > 0);
        drop(runtime);
    });
    eventually("the runtime has ended", || thread.is_finished()).await;
}

#[test]
fn no_password_is_shown() {
    let credentials = Credentials::new("hidden").user("ann");
    let builder = Locker::builder().credentials(async || Err::<Credentials, _>("no"));
    let twin = blocking::Builder::from(builder.clone());
    let shown = format!("{credentials:?} {builder:?} {twin:?}");
    assert!(shown.contains("ann"), "{shown}");
    assert!(!shown.contains("hidden"), "{shown}");
}
