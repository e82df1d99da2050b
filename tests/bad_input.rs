//! Input and servers that are of no use: a clear error, and nothing written.

use std::error::Error as _;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use redlease::{Error, Lock, Locker, Released, blocking};
use testkit::{DEADLINE, Proxy, Server, eventually, unique_key};
use tokio::time::timeout;

async fn locker(server: &Server) -> Locker {
    Locker::connect(server.url()).await.expect("a locker")
}

/// Every way to acquire ends with an error of this kind; returns its text.
async fn refused(lock: &Lock, kind: fn(&Error) -> bool) -> Vec<String> {
    let outcomes = [
        lock.lock().await.map(Some),
        lock.try_lock().await,
        lock.try_lock_for(Duration::from_millis(50)).await,
    ];
    let errors = outcomes.into_iter().map(|outcome| {
        let error = outcome.expect_err("an error");
        assert!(kind(&error), "{error:?}");
        error.to_string()
    });
    errors.collect()
}

fn is_invalid(error: &Error) -> bool {
    matches!(error, Error::Invalid { .. })
}

fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Refused { .. })
}

fn is_unavailable(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. })
}

#[tokio::test]
async fn an_empty_key_is_refused_behind_a_prefix_too() {
    let server = Server::start();
    let builder = Locker::builder().prefix("app:");
    let locker = builder.connect(server.url()).await.unwrap();
    let lock = locker.mutex("");
    for text in refused(&lock, is_invalid).await {
        assert!(text.contains("key must not be empty"), "{text}");
    }
    assert!(lock.holder().await.is_err_and(|error| is_invalid(&error)));
    let forced = lock.force_release().await;
    assert!(forced.is_err_and(|error| is_invalid(&error)));
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
}

#[tokio::test]
async fn options_out_of_range_are_named_and_nothing_is_written() {
    let server = Server::start();
    let locker = locker(&server).await;
    let scripts = || server.calls("evalsha") + server.calls("eval");
    let before = scripts();
    let second = Duration::from_secs(1);
    let lock = || locker.mutex("k");
    let bad: Vec<(&str, Lock)> = vec![
        ("key", locker.mutex("")),
        ("ttl", lock().ttl(Duration::ZERO)),
        ("ttl", lock().ttl(Duration::from_micros(9_999))),
        ("ttl", lock().ttl(Duration::MAX)),
        ("ttl", lock().ttl(Duration::from_millis(u64::MAX))),
        ("ttl", lock().ttl(Duration::from_millis(i64::MAX as u64))),
        ("renew_every", lock().ttl(second).renew_every(second)),
        ("renew_every", lock().ttl(second).renew_every(2 * second)),
        ("renew_every", lock().renew_every(Duration::ZERO)),
        ("renew_every", lock().renew_every(Duration::MAX)),
        ("max_hold", lock().max_hold(Duration::ZERO)),
        ("max_hold", lock().max_hold(Duration::MAX)),
        ("handover_for", lock().handover_for(Duration::MAX)),
        ("outage_limit", lock().outage_limit(Duration::MAX)),
    ];
    for (name, lock) in bad {
        for text in refused(&lock, is_invalid).await {
            assert!(text.contains(name), "{text}");
        }
        assert!(lock.holder().await.is_err_and(|error| is_invalid(&error)));
    }
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
    assert_eq!(scripts(), before);
}

#[tokio::test]
async fn the_longest_options_work() {
    let server = Server::start();
    let locker = locker(&server).await;
    let century = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let lock = locker.mutex(unique_key());
    let lock = lock.ttl(century).max_hold(century).outage_limit(century);
    let guard = lock.try_lock_for(century).await.unwrap().expect("a guard");
    assert!(guard.remaining() > century / 2);
    guard.renew().await.unwrap();
    guard.release().await.unwrap();
    assert!(!server.exists(lock.key()));
}

#[tokio::test]
async fn settings_out_of_range_are_named() {
    let server = Server::start();
    let bad = [
        (
            "command_timeout",
            Locker::builder().command_timeout(Duration::MAX),
        ),
        (
            "command_timeout",
            Locker::builder().command_timeout(Duration::ZERO),
        ),
        (
            "flush_timeout",
            Locker::builder().flush_timeout(Duration::MAX),
        ),
        ("owner", Locker::builder().owner("")),
        ("owner", Locker::builder().owner("two\nlines")),
    ];
    for (name, builder) in bad {
        let error = builder.connect(server.url()).await.expect_err("an error");
        assert!(is_invalid(&error), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let locker = locker(&server).await;
    locker
        .close(Duration::MAX)
        .await
        .expect("nothing to wait for");
}

#[tokio::test]
async fn a_url_that_is_not_one_is_invalid() {
    for url in [
        "",
        "redis",
        "http://127.0.0.1/",
        "127.0.0.1:6379",
        "redis://",
    ] {
        let error = Locker::connect(url).await.expect_err("an error");
        assert!(is_invalid(&error), "{url}: {error:?}");
        assert!(error.to_string().contains("url"), "{url}: {error}");
        let error = blocking::Locker::connect(url).expect_err("an error");
        assert!(is_invalid(&error), "{url}: {error:?}");
    }
}

#[cfg(not(any(feature = "tls", feature = "tls-aws-lc-rs")))]
#[tokio::test]
async fn a_url_with_tls_names_the_feature_that_is_missing() {
    use redlease::redis::{Client, ConnectionAddr, IntoConnectionInfo};
    let check = |error: Error| {
        assert!(is_invalid(&error), "{error:?}");
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    };
    for url in ["rediss://127.0.0.1/", "valkeys://127.0.0.1/"] {
        check(Locker::connect(url).await.expect_err("an error"));
        check(Locker::quorum([url; 3]).await.expect_err("an error"));
        check(blocking::Locker::connect(url).expect_err("an error"));
    }
    let address = ConnectionAddr::TcpTls {
        host: "localhost".to_owned(),
        port: 6380,
        insecure: false,
        tls_params: None,
    };
    let client = Client::open(address.into_connection_info().unwrap()).unwrap();
    let error = Locker::builder().connect_client(client).await;
    check(error.expect_err("an error"));
}

#[tokio::test]
async fn a_closed_port_and_an_unknown_host_are_unavailable() {
    let port = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let closed = format!("redis://127.0.0.1:{port}/");
    let began = Instant::now();
    for (part, url) in [
        (port.to_string(), closed.as_str()),
        (
            "no-such-host.invalid".to_owned(),
            "redis://no-such-host.invalid/",
        ),
        ("no-such.sock".to_owned(), "unix:///nowhere/no-such.sock"),
    ] {
        let error = Locker::connect(url).await.expect_err("an error");
        assert!(is_unavailable(&error), "{url}: {error:?}");
        assert!(error.to_string().contains(&part), "{url}: {error}");
        assert!(error.source().is_some(), "{url}: {error:?}");
    }
    assert!(began.elapsed() < DEADLINE);
}

#[tokio::test]
async fn a_server_that_is_not_redis_is_refused() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let connect = timeout(DEADLINE, Locker::connect(&url)).await;
    let error = connect.expect("in time").expect_err("an error");
    assert!(is_refused(&error), "{error:?}");
    assert!(error.source().is_some());
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_shown() {
    let server = Server::with(&["--requirepass", "right"]);
    let with = |password: &str| format!("redis://:{password}@127.0.0.1:{}/", server.port);
    for url in [with("wr0ng"), server.url()] {
        let error = Locker::connect(&url).await.expect_err("an error");
        assert!(is_refused(&error), "{url}: {error:?}");
        let source = error.source().expect("what the server said").to_string();
        for text in [error.to_string(), source] {
            assert!(!text.contains("wr0ng"), "{text}");
        }
    }
    let locker = Locker::connect(with("right")).await.unwrap();
    assert!(locker.mutex("k").try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn a_user_without_the_right_to_scripts_is_refused() {
    let Some(server) = Server::with_command("ACL") else {
        return;
    };
    server.add_user("ann", &["~*", "&*", "+@all", "-evalsha", "-eval"]);
    let url = format!("redis://ann:pw@127.0.0.1:{}/", server.port);
    let error = Locker::connect(url).await.expect_err("an error");
    assert!(is_refused(&error), "{error:?}");
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
}

#[tokio::test]
async fn a_user_without_the_right_to_the_key_is_refused() {
    let Some(server) = Server::with_command("ACL") else {
        return;
    };
    server.add_user("ann", &["~mine:*", "&*", "+@all"]);
    let url = format!("redis://ann:pw@127.0.0.1:{}/", server.port);
    let locker = Locker::connect(url).await.unwrap();
    refused(&locker.mutex("yours"), is_refused).await;
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
}

#[tokio::test]
async fn a_key_that_holds_a_hash_is_refused_and_stays() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    server.command::<i64>(&["HSET", &key, "redisson", "1"]);
    let lock = locker.mutex(&key).outage_limit(10 * DEADLINE);
    for text in refused(&lock, is_refused).await {
        assert!(text.contains(&key), "{text}");
    }
    assert!(lock.holder().await.is_err_and(|error| is_refused(&error)));
    assert_eq!(server.command::<String>(&["TYPE", &key]), "hash");
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 1);
    assert!(lock.force_release().await.unwrap());
    assert!(lock.try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn what_others_put_beside_a_key_does_not_keep_its_holder_from_letting_go() {
    let server = Server::start();
    let locker = locker(&server).await;
    let beside = |key: &str, what: &str| format!("{{{key}}}:{what}");
    for (kind, queue, waiters) in [
        ("a queue of another type", "LPUSH %q x", ""),
        ("records of another type", "ZADD %q 1 x", "LPUSH %w x"),
        ("a record of another form", "ZADD %q 1 x", "HSET %w x y"),
    ] {
        for handover in [Duration::ZERO, Duration::from_nanos(1)] {
            let lock = locker.mutex(unique_key()).handover_for(handover);
            let guard = lock.lock().await.unwrap();
            // Who waits in this process has the end of the stretch ask who else does.
            let behind = lock.clone();
            let behind = tokio::spawn(async move { behind.lock().await.unwrap() });
            tokio::task::yield_now().await;
            for words in [queue, waiters].iter().filter(|words| !words.is_empty()) {
                let words = words.replace("%q", &beside(lock.key(), "lock-queue"));
                let words = words.replace("%w", &beside(lock.key(), "lock-waiters"));
                let words: Vec<&str> = words.split(' ').collect();
                server.command::<i64>(&words);
            }
            let value = guard.value().to_owned();
            let released = guard.release().await;
            assert_eq!(released.unwrap(), Released::Freed, "{kind}");
            let heir = timeout(DEADLINE, behind).await.unwrap().unwrap();
            assert_eq!(heir.value() == value, !handover.is_zero(), "{kind}");
            assert_eq!(heir.release().await.unwrap(), Released::Freed, "{kind}");
            assert!(!server.exists(lock.key()), "{kind}");
        }
    }
}

#[tokio::test]
async fn a_counter_of_another_type_keeps_no_holder_from_letting_go() {
    let server = Server::start();
    let (here, there) = (locker(&server).await, locker(&server).await);
    let key = unique_key();
    let guard = here.mutex(&key).lock().await.unwrap();
    let waiter = there.mutex(&key);
    let waiter = tokio::spawn(async move { waiter.lock().await });
    let queue = format!("{{{key}}}:lock-queue");
    eventually("it waits in Redis", || {
        server.command::<u64>(&["ZCARD", &queue]) == 1
    })
    .await;
    let counter = format!("{{{key}}}:fence");
    server.command::<u64>(&["DEL", &counter]);
    server.command::<u64>(&["LPUSH", &counter, "x"]);
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(!server.exists(&key));
    let outcome = timeout(DEADLINE, waiter).await.unwrap().unwrap();
    assert!(outcome.is_err_and(|error| is_refused(&error)));
}

#[tokio::test]
async fn any_key_has_its_neighbours_in_its_cluster_slot() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    server.own_all_slots();
    eventually("the cluster is up", || {
        let info: String = server.command(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok")
    })
    .await;
    let locker = locker(&server).await;
    for key in ["plain", "a{b}c", "a}b", "{}x", "{}x{y}", "}", "{a", "{{a}}"] {
        let guard = locker.mutex(key).try_lock().await.unwrap();
        let released = guard.expect("it is free").release().await;
        assert_eq!(released.unwrap(), Released::Freed, "{key}");
    }
}

/// A server that takes connections and never says anything.
fn silent_server() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn connecting_to_a_server_that_never_answers_ends_after_the_command_timeout() {
    let (_listener, url) = silent_server();
    let limit = Duration::from_millis(300);
    let began = Instant::now();
    let connect = Locker::builder().command_timeout(limit).connect(&url);
    let error = timeout(DEADLINE, connect)
        .await
        .unwrap()
        .expect_err("an error");
    assert!(is_unavailable(&error), "{error:?}");
    assert!(began.elapsed() >= limit);
}

#[tokio::test]
async fn a_server_that_stops_answering_is_put_up_with_for_the_time_told() {
    let server = Server::start();
    let builder = Locker::builder().command_timeout(Duration::from_millis(500));
    let locker = builder.connect(server.url()).await.unwrap();
    let limit = Duration::from_millis(300);
    let lock = locker.mutex(unique_key()).outage_limit(limit);
    server.freeze();
    let began = Instant::now();
    let outcome = timeout(DEADLINE, lock.lock()).await.expect("it ends");
    let error = outcome.expect_err("an error");
    assert!(is_unavailable(&error), "{error:?}");
    assert!(began.elapsed() >= limit);
    server.thaw();
    locker.close(DEADLINE).await.unwrap();
    assert!(!server.exists(lock.key()), "P10");
}

#[tokio::test]
async fn a_server_that_takes_connections_and_never_answers_is_put_up_with_for_the_time_told() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let builder = Locker::builder().command_timeout(Duration::from_millis(500));
    let locker = builder.connect(proxy.url()).await.unwrap();
    let limit = Duration::from_millis(300);
    let lock = locker.mutex(unique_key()).outage_limit(limit);
    // The connection breaks; whoever opens a new one hears nothing on it.
    proxy.hold();
    proxy.cut();
    let began = Instant::now();
    for outcome in [lock.lock().await.map(Some), lock.try_lock().await] {
        let error = outcome.expect_err("an error");
        assert!(is_unavailable(&error), "{error:?}");
    }
    assert!(began.elapsed() >= 2 * limit && began.elapsed() < DEADLINE);
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
}
