//! Connections to a server: how they are opened, shared and replaced, on real servers.

#[path = "common/waiters.rs"]
mod waiters;

use std::error::Error as _;
use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redlease::{Error, Locker, Released, blocking};
use testkit::*;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};
use waiters::*;

/// Runs a future on a runtime of its own that ends with it.
fn elsewhere<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(future)
    });
    thread.join().expect("no panic")
}

/// A locker without a connection for the present runtime.
fn locker_from_elsewhere(url: String) -> Locker {
    let builder = Locker::builder().command_timeout(Duration::from_millis(500));
    elsewhere(async move { builder.connect(url).await.expect("a locker") })
}

fn is_unavailable(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. })
}

fn run<T: redis::FromRedisValue>(connection: &mut redis::Connection, words: &[&str]) -> T {
    let (command, arguments) = words.split_first().expect("a command");
    let reply = redis::cmd(command).arg(arguments).query(connection);
    reply.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// How many connections a server has taken.
fn taken(connection: &mut redis::Connection) -> u64 {
    let stats: String = run(connection, &["INFO", "stats"]);
    let prefix = "total_connections_received:";
    let line = stats.lines().find_map(|line| line.strip_prefix(prefix));
    line.expect("the count").parse().expect("a number")
}

/// How many scripts a server was asked to run.
fn scripts_run(connection: &mut redis::Connection) -> u64 {
    let stats: String = run(connection, &["INFO", "commandstats"]);
    let lines = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval"));
    let counts = lines.map(|line| {
        let count = line.split_once("calls=").expect("a count").1;
        let count = count.split(',').next().expect("a count");
        count.parse::<u64>().expect("a number")
    });
    counts.sum()
}

/// The numbers of the connections of lockers, with the last command of each.
fn clients(connection: &mut redis::Connection) -> Vec<(String, String)> {
    let list: String = run(connection, &["CLIENT", "LIST"]);
    let field = |line: &str, name: &str| {
        let mut words = line.split(' ');
        words.find_map(|word| word.strip_prefix(name).map(str::to_owned))
    };
    let lines = list.lines();
    let clients = lines.filter_map(|line| Some((field(line, "id=")?, field(line, "cmd=")?)));
    clients
        .filter(|(_, command)| !command.starts_with("client"))
        .collect()
}

#[tokio::test]
async fn p13_a_future_that_nobody_polls_keeps_nobody_from_a_connection() {
    let server = Server::start();
    let locker = locker_from_elsewhere(server.url());
    let held = {
        let lock = locker.mutex(unique_key());
        elsewhere(async move { lock.lock().await.unwrap() })
    };
    let lock = |key: String| locker.mutex(key).outage_limit(Duration::from_secs(2));
    let unpolled = lock(unique_key());
    let mut unpolled = Box::pin(unpolled.lock());
    begin(&mut unpolled);
    let other = lock(unique_key());
    assert!(other.holder().await.unwrap().is_none());
    let guard = other.lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    assert!(!other.force_release().await.unwrap());
    drop(unpolled.await.unwrap());
}

#[tokio::test]
async fn p13_a_caller_that_gives_up_does_not_end_the_opening() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = locker_from_elsewhere(proxy.url());
    let mut control = server.client();
    let before = taken(&mut control);
    let lock = locker.mutex(unique_key());
    for _ in 0..20 {
        let mut impatient = Box::pin(lock.lock());
        begin(&mut impatient);
    }
    lock.lock().await.unwrap().release().await.unwrap();
    assert_eq!(taken(&mut control) - before, 1);
}

#[tokio::test]
async fn p4_connecting_needs_a_connection_for_the_driver_too() {
    let server = Server::start();
    let mut control = server.client();
    // One for the control, one more.
    run::<()>(&mut control, &["CONFIG", "SET", "maxclients", "2"]);
    let connect = timeout(DEADLINE, Locker::connect(server.url())).await;
    let error = connect.expect("in time").expect_err("one is too few");
    assert!(is_unavailable(&error), "{error:?}");
    assert!(error.source().is_some());
    eventually("its connection is closed", || {
        clients(&mut control).is_empty()
    })
    .await;
    // The blocking API has no other connection than the driver's.
    let url = server.url();
    let locker = std::thread::spawn(move || blocking::Locker::connect(url));
    drop(locker.join().expect("no panic").expect("one is enough"));
    eventually("its connection is closed", || {
        clients(&mut control).is_empty()
    })
    .await;
    run::<()>(&mut control, &["CONFIG", "SET", "maxclients", "1"]);
    let url = server.url();
    let locker = std::thread::spawn(move || blocking::Locker::connect(url));
    let error = locker.join().expect("no panic").expect_err("none is left");
    assert!(is_unavailable(&error), "{error:?}");
    run::<()>(&mut control, &["CONFIG", "SET", "maxclients", "3"]);
    Locker::connect(server.url()).await.expect("two are enough");
}

#[tokio::test]
async fn p4_a_quorum_needs_a_majority_that_takes_both_connections() {
    let servers: Vec<Server> = (0..3).map(|_| Server::start()).collect();
    let mut controls: Vec<_> = servers.iter().map(Server::client).collect();
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    for control in &mut controls[..2] {
        run::<()>(control, &["CONFIG", "SET", "maxclients", "2"]);
    }
    let connect = timeout(DEADLINE, Locker::quorum(&urls)).await;
    let error = connect.expect("in time").expect_err("a minority");
    assert!(is_unavailable(&error), "{error:?}");
    run::<()>(&mut controls[0], &["CONFIG", "SET", "maxclients", "10"]);
    Locker::quorum(&urls).await.expect("a majority");
}

#[tokio::test]
async fn p13_a_renewal_goes_over_the_callers_connection_if_the_drivers_cannot_be_opened() {
    let server = Server::start();
    let mut control = server.client();
    let locker = Locker::connect(server.url()).await.unwrap();
    let (ttl, renew_every) = (Duration::from_secs(6), Duration::from_secs(3));
    let lock = locker.mutex(unique_key()).ttl(ttl);
    let lock = lock.renew_every(renew_every);
    let guard = lock.lock().await.unwrap();
    let mut others = Vec::new();
    for _ in 0..9 {
        let lock = locker.mutex(unique_key()).ttl(ttl).renew_every(renew_every);
        others.push(lock.lock().await.unwrap());
    }
    let clients = clients(&mut control);
    assert_eq!(clients.len(), 2, "{clients:?}");
    let of_driver = clients
        .iter()
        .find(|(_, command)| !command.starts_with("eval"));
    let (id, _) = of_driver.expect("it has sent no script yet");
    // The control's and the caller's are there; no other one is let in.
    run::<()>(&mut control, &["CONFIG", "SET", "maxclients", "2"]);
    run::<i64>(&mut control, &["CLIENT", "KILL", "ID", id]);
    let before = scripts_run(&mut control);
    let until = Instant::now() + ttl;
    while Instant::now() < until {
        assert!(!guard.is_lost(), "P13");
        sleep(Duration::from_millis(10)).await;
    }
    let run_meanwhile = scripts_run(&mut control) - before;
    // Each is renewed twice, a few times more if a request is cut off. A storm makes thousands. That
    // nothing can be opened concerns no lease.
    assert!(
        run_meanwhile <= 200,
        "{run_meanwhile} scripts for ten guards"
    );
    // P4: the connection that reads the key for the driver hears of a theft, long before the
    // renewal after this one.
    let old = ttl - renew_every / 3;
    eventually("the last renewal is old", || guard.remaining() < old).await;
    eventually("a renewal", || guard.remaining() > old).await;
    run::<()>(&mut control, &["SET", lock.key(), "thief"]);
    within(renew_every / 2, "the loss", guard.lost().cancelled()).await;
    // What the driver has to release goes the same way.
    let keys: Vec<String> = others.iter().map(|other| other.key().to_owned()).collect();
    drop(others);
    let of_others = [vec!["EXISTS"], keys.iter().map(String::as_str).collect()].concat();
    let gone = eventually("the keys go", || run::<i64>(&mut control, &of_others) == 0);
    within(ttl / 3, "the release", gone).await;
}

#[tokio::test]
async fn p13_a_renewal_goes_over_the_callers_connection_if_the_drivers_is_silent() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let builder = Locker::builder().command_timeout(Duration::from_millis(300));
    let locker = builder.connect(proxy.url()).await.unwrap();
    let ttl = Duration::from_secs(3);
    let mut guards = Vec::new();
    for _ in 0..3 {
        guards.push(locker.mutex(unique_key()).ttl(ttl).lock().await.unwrap());
    }
    // One of the two is the driver's. New ones are as silent.
    (1..100).for_each(|number| proxy.hold_connection(number));
    let lock = locker.mutex(unique_key());
    if lock.holder().await.is_err() {
        proxy.hold_connection(0);
        proxy.let_go(1);
        while lock.holder().await.is_err() {}
    }
    let until = Instant::now() + 2 * ttl;
    while Instant::now() < until {
        assert!(!guards.iter().any(|guard| guard.is_lost()), "P13");
        sleep(Duration::from_millis(10)).await;
    }
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn p13_an_opening_that_hangs_costs_no_lease() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let builder = Locker::builder().command_timeout(DEADLINE);
    let (url, ttl) = (proxy.url(), Duration::from_secs(3));
    // The caller's runtime ends, so the driver has no other connection than its own.
    let guard = elsewhere(async move {
        let locker = builder.connect(url).await.unwrap();
        locker.mutex(unique_key()).ttl(ttl).lock().await.unwrap()
    });
    // The one that the driver opens next.
    proxy.hold_connection(2);
    server.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    server.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let until = Instant::now() + 2 * ttl;
    while Instant::now() < until {
        assert!(!guard.is_lost(), "P13");
        sleep(Duration::from_millis(10)).await;
    }
    assert!(proxy.waiting() > 0, "it did not hang");
}

#[tokio::test]
async fn a_server_that_does_not_take_hello_is_used_with_resp2() {
    let server = Server::start();
    for error in [
        "ERR unknown command 'HELLO'",
        "ERR unknown command `HELLO`, with args beginning with: `3`, ",
        "ERR unknown command 'hello'",
        "unknown command",
        "ERR unsupported command",
        "NOPROTO unsupported protocol version",
        "ERR syntax error",
        "ERR wrong number of arguments for 'hello' command",
        "upstream failure",
        // It hangs up.
        "",
    ] {
        let proxy = Proxy::before(server.port);
        proxy.answer("HELLO", error);
        // Nor does such a server know what came after RESP3.
        proxy.answer("CLIENT", error);
        let locker = Locker::connect(proxy.url()).await;
        let locker = locker.unwrap_or_else(|e| panic!("{error:?}: {e}: {:?}", e.source()));
        let guard = locker.mutex(unique_key()).try_lock().await.unwrap();
        let released = guard.expect("it is free").release().await;
        assert_eq!(released.unwrap(), Released::Freed, "{error:?}");
    }
}

#[tokio::test]
async fn what_hello_says_of_the_user_or_the_servers_state_is_believed() {
    let server = Server::start();
    for (error, is_refused) in [
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            true,
        ),
        (
            "NOAUTH HELLO must be called with the client already authenticated",
            true,
        ),
        (
            "NOPERM this user has no permissions to run the 'hello' command",
            true,
        ),
        ("LOADING Redis is loading the dataset in memory", false),
        ("BUSY Redis is busy running a script.", false),
        ("MASTERDOWN Link with MASTER is down", false),
        ("ERR max number of clients reached", false),
    ] {
        let proxy = Proxy::before(server.port);
        proxy.answer("HELLO", error);
        let fault = Locker::connect(proxy.url()).await.expect_err("an error");
        assert_eq!(
            matches!(fault, Error::Refused { .. }),
            is_refused,
            "{fault:?}"
        );
        assert_eq!(is_unavailable(&fault), !is_refused, "{fault:?}");
        let said = fault.source().expect("what the server said").to_string();
        let word = error.split(' ').next_back().expect("a word");
        assert!(said.contains(word), "{said}");
    }
}

#[tokio::test]
async fn a_passing_refusal_of_resp3_is_forgotten() {
    let server = Server::start();
    for error in ["upstream failure", ""] {
        let proxy = Proxy::before(server.port);
        proxy.answer("HELLO", error);
        let locker = Locker::connect(proxy.url()).await.unwrap();
        proxy.let_pass("HELLO");
        let before = server.calls("hello");
        let locker = elsewhere(async move {
            drop(locker.mutex(unique_key()).lock().await.unwrap());
            locker
        });
        assert!(
            server.calls("hello") > before,
            "a new connection tries RESP3"
        );
        drop(locker);
    }
}

#[tokio::test]
async fn a_url_that_asks_for_resp2_gets_it() {
    let server = Server::start();
    for query in ["?protocol=2", "?protocol=resp2"] {
        let url = format!("{}{query}", server.url());
        let locker = Locker::connect(&url).await.unwrap();
        let blocking = std::thread::spawn(move || blocking::Locker::connect(url).unwrap());
        drop(locker.mutex(unique_key()).lock().await.unwrap());
        drop(blocking.join().expect("no panic"));
    }
    assert_eq!(server.calls("hello"), 0);
    let url = format!("{}?protocol=resp3", server.url());
    Locker::connect(url).await.unwrap();
    assert!(server.calls("hello") > 0);
}

#[tokio::test]
async fn a_url_with_resp2_keeps_its_user_password_and_database() {
    let server = Server::start();
    let user = ["ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all"];
    server.command::<()>(&user);
    server.command::<()>(&["CONFIG", "SET", "requirepass", "secret"]);
    let port = server.port;
    let mut control = redis::Client::open(format!("redis://:secret@127.0.0.1:{port}/3"))
        .unwrap()
        .get_connection()
        .unwrap();
    for who in ["ann:pw@", ":secret@"] {
        let url = format!("redis://{who}127.0.0.1:{port}/3?protocol=resp2");
        let locker = Locker::connect(url).await.unwrap();
        let lock = locker.mutex(unique_key());
        let _guard = lock.lock().await.unwrap();
        assert_eq!(
            run::<i64>(&mut control, &["EXISTS", lock.key()]),
            1,
            "{who}"
        );
    }
    for (who, database) in [
        ("ann:wrong@", "3"),
        (":wrong@", "3"),
        ("", "3"),
        ("", ""),
        ("ann:pw@", "99"),
    ] {
        let url = format!("redis://{who}127.0.0.1:{port}/{database}?protocol=resp2");
        let error = Locker::connect(url).await.expect_err("an error");
        assert!(
            matches!(error, Error::Refused { .. }),
            "{who}/{database}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_user_without_the_right_to_ping_can_lock() {
    let server = Server::start();
    let user = [
        "ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all", "-ping",
    ];
    server.command::<()>(&user);
    let silent = Proxy::before(server.port);
    silent.swallow_pushes();
    for place in [
        server.url(),
        format!("{}?protocol=resp2", server.url()),
        silent.url(),
    ] {
        let url = place.replace("127.0.0.1", "ann:pw@127.0.0.1");
        let (a, b) = (
            Locker::connect(&url).await.unwrap(),
            Locker::connect(&url).await.unwrap(),
        );
        let key = unique_key();
        let guard = a.mutex(&key).ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&b.mutex(&key).ttl(TTL));
        until_queued(&server, &key, 1).await;
        guard.release().await.unwrap();
        let guard = within(Duration::from_secs(3), "its turn", waiter)
            .await
            .unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed, "{place}");
    }
}

#[tokio::test]
async fn a_member_that_became_a_replica_is_reopened_with_rests() {
    let servers: Vec<Server> = (0..3).map(|_| Server::start()).collect();
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    let locker = Locker::quorum(&urls).await.unwrap();
    let held = locker
        .mutex(unique_key())
        .renew_every(Duration::from_millis(50));
    let held = held.lock().await.unwrap();
    let mut control = servers[2].client();
    let port = servers[0].port.to_string();
    run::<()>(&mut control, &["REPLICAOF", "127.0.0.1", &port]);
    let before = taken(&mut control);
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!held.is_lost());
    let taken = taken(&mut control) - before;
    assert!(taken > 0, "it is looked after");
    // For each of two runtimes: six that come closer together, and then some two a second.
    assert!(taken <= 60, "{taken} connections to a replica in 5 s");
}

#[tokio::test]
async fn a_server_that_hangs_up_at_once_is_reopened_with_rests() {
    let server = Server::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let second = Server::start();
    let urls = [url, server.url(), second.url()];
    let locker = Locker::quorum(&urls).await.unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        sleep(Duration::from_millis(20)).await;
    }
    // Each opening tries it without RESP3 as well.
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken <= 100, "{taken} connections in 5 s");
}

#[tokio::test]
async fn p13_a_request_over_a_connection_that_was_closed_while_idle_is_sent_again() {
    let server = Server::start();
    for query in ["", "?protocol=resp2"] {
        let locker = Locker::connect(format!("{}{query}", server.url()))
            .await
            .unwrap();
        let lock = locker.mutex(unique_key()).ttl(TTL);
        // Nothing is awaited after this, so the connection's task has not seen it yet.
        let hang_up = || {
            for kind in ["normal", "pubsub"] {
                server.command::<i64>(&["CLIENT", "KILL", "TYPE", kind]);
            }
        };
        hang_up();
        assert!(lock.holder().await.unwrap().is_none(), "{query}");
        hang_up();
        assert!(!lock.force_release().await.unwrap(), "{query}");
        hang_up();
        let guard = lock.try_lock().await.unwrap().expect("it is free");
        hang_up();
        guard.renew().await.unwrap();
        hang_up();
        assert_eq!(
            lock.holder().await.unwrap().unwrap().value,
            guard.value().as_bytes()
        );
        hang_up();
        assert_eq!(guard.release().await.unwrap(), Released::Freed, "{query}");
    }
}

#[tokio::test]
async fn p13_what_a_proxy_says_in_words_of_its_own_is_tried_again() {
    let server = Server::start();
    for error in [
        "upstream failure",
        "ERR no server connection available",
        "ERR Connection timed out",
    ] {
        let proxy = Proxy::before(server.port);
        let locker = Locker::connect(proxy.url()).await.unwrap();
        let lock = locker
            .mutex(unique_key())
            .renew_every(Duration::from_millis(100));
        let guard = lock.lock().await.unwrap();
        for command in ["EVALSHA", "EVAL"] {
            proxy.answer(command, error);
        }
        let limit = Duration::from_millis(200);
        let outcome = locker
            .mutex(unique_key())
            .outage_limit(limit)
            .try_lock()
            .await;
        assert!(
            outcome.is_err_and(|error| is_unavailable(&error)),
            "{error}"
        );
        let other = locker.mutex(unique_key());
        let waiter = wait_for(&other);
        sleep(Duration::from_millis(300)).await;
        for command in ["EVALSHA", "EVAL"] {
            proxy.let_pass(command);
        }
        drop(done(waiter).await);
        assert!(!guard.is_lost(), "{error}");
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn p13_a_connection_that_breaks_while_it_is_opened_is_not_a_refusal() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            // The beginning of an answer to HELLO.
            let _ = client.write_all(b"%7\r\n$6\r\nserver\r\n$5\r\nre").await;
        }
    });
    let outcome = Locker::connect(format!("redis://127.0.0.1:{port}/")).await;
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn p13_a_blocked_thread_of_the_runtime_delays_no_requests_of_the_others() {
    const BLOCK: Duration = Duration::from_secs(8);
    let server = Server::start();
    let locker = Locker::connect(server.url()).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let asking = (0..4).map(|_| {
        let (locker, asked) = (locker.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            let lock = locker.mutex(unique_key());
            let mut longest = Duration::ZERO;
            while asked.load(Ordering::Relaxed) < usize::MAX / 2 {
                let began = Instant::now();
                // A thread that is blocked may take the connection along, for a time-out.
                let _ = lock.holder().await;
                longest = longest.max(began.elapsed());
                asked.fetch_add(1, Ordering::Relaxed);
            }
            longest
        })
    });
    let asking: Vec<_> = asking.collect();
    eventually("some answers", || asked.load(Ordering::Relaxed) > 100).await;
    // A task that begins requests and goes on in the same breath, as with `join!`.
    let end = Arc::clone(&asked);
    let blocks = tokio::spawn(async move {
        let locks: Vec<_> = (0..8).map(|_| locker.mutex(unique_key())).collect();
        let mut requests: Vec<_> = locks.iter().map(|lock| Box::pin(lock.holder())).collect();
        for request in &mut requests {
            begin(request);
        }
        std::thread::sleep(BLOCK);
        end.store(usize::MAX / 2, Ordering::Relaxed);
    });
    blocks.await.unwrap();
    for task in asking {
        let longest = task.await.unwrap();
        assert!(longest < BLOCK * 3 / 4, "{longest:?}");
    }
}
