//! What a server can do to a held guard and to an acquire (P13), on a real server.

use std::time::{Duration, Instant};

use redlease::{Error, LockGuard, Locker, Released};
use testkit::{DEADLINE, Server, eventually, left_out, unique_key};
use tokio::time::timeout;

/// Long enough for any of the troubles on a slow machine.
const TTL: Duration = Duration::from_secs(20);
const RENEW_EVERY: Duration = Duration::from_millis(100);

async fn locker(server: &Server) -> Locker {
    let builder = Locker::builder().command_timeout(Duration::from_millis(500));
    builder.connect(server.url()).await.expect("a locker")
}

async fn held(server: &Server) -> (Locker, LockGuard) {
    let locker = locker(server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL).renew_every(RENEW_EVERY);
    let guard = lock.lock().await.unwrap();
    (locker, guard)
}

/// Waits until two renewals were granted: the second was sent after the call.
async fn renewed(guard: &LockGuard) {
    for _ in 0..2 {
        let deadline = Instant::now() + guard.remaining();
        eventually("a renewal", || {
            Instant::now() + guard.remaining() > deadline + RENEW_EVERY / 2
        })
        .await;
    }
}

async fn assert_survived(server: &Server, guard: LockGuard) {
    renewed(&guard).await;
    assert!(!guard.is_lost());
    assert!(!guard.lost().is_cancelled());
    let key = guard.key().to_owned();
    assert_eq!(server.get(&key).as_deref(), Some(guard.value()));
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(!server.exists(&key));
}

#[tokio::test]
async fn p13_a_guard_survives_script_flush() {
    let server = Server::start();
    let (_locker, guard) = held(&server).await;
    server.command::<()>(&["SCRIPT", "FLUSH"]);
    assert_survived(&server, guard).await;
}

#[tokio::test]
async fn p13_an_acquire_survives_script_flush() {
    let server = Server::start();
    let locker = locker(&server).await;
    for _ in 0..3 {
        server.command::<()>(&["SCRIPT", "FLUSH"]);
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        server.command::<()>(&["SCRIPT", "FLUSH"]);
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn p13_a_guard_survives_broken_connections() {
    let server = Server::start();
    let (_locker, guard) = held(&server).await;
    for _ in 0..3 {
        server.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
        renewed(&guard).await;
    }
    server.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_survived(&server, guard).await;
}

#[tokio::test]
async fn p13_a_guard_survives_a_restart_with_the_data() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (_locker, guard) = held(&server).await;
    let deadline = Instant::now() + guard.remaining();
    server.kill();
    // For a while there is nobody to connect to.
    tokio::time::sleep(3 * RENEW_EVERY).await;
    assert!(!guard.is_lost(), "P13: not before the deadline");
    server.restart();
    assert!(Instant::now() < deadline, "the machine is too slow");
    assert_survived(&server, guard).await;
}

#[tokio::test]
async fn p13_a_guard_survives_a_spell_as_a_replica() {
    let server = Server::start();
    let (_locker, guard) = held(&server).await;
    let rejected = server.calls("evalsha");
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    eventually("renewals are refused", || {
        server.calls("evalsha") > rejected + 3
    })
    .await;
    assert!(!guard.is_lost(), "P13: not before the deadline");
    server.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    assert_survived(&server, guard).await;
}

#[tokio::test]
async fn p13_a_replica_is_unavailable_and_an_acquire_outlasts_it() {
    let server = Server::start();
    let locker = locker(&server).await;
    let lock = locker.mutex(unique_key()).ttl(TTL);
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let short = lock.clone().outage_limit(Duration::from_millis(200));
    for outcome in [short.lock().await.map(Some), short.try_lock().await] {
        assert!(
            matches!(outcome, Err(Error::Unavailable { .. })),
            "{outcome:?}"
        );
    }
    let patient = tokio::spawn(async move { lock.outage_limit(DEADLINE).lock().await });
    server.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    let granted = timeout(DEADLINE, patient).await.unwrap().unwrap();
    assert!(granted.is_ok(), "{granted:?}");
}

#[tokio::test]
async fn p13_a_guard_survives_client_pause() {
    let server = Server::start();
    let (_locker, guard) = held(&server).await;
    server.command::<()>(&["CLIENT", "PAUSE", "1000"]);
    assert_survived(&server, guard).await;
}

#[tokio::test]
async fn p13_a_guard_survives_out_of_memory() {
    let server = Server::start();
    let (locker, guard) = held(&server).await;
    server.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    renewed(&guard).await;
    // A new lock is refused for now, which is no contention and not for good.
    let short = locker.mutex(unique_key()).ttl(TTL);
    let short = short.outage_limit(Duration::from_millis(100));
    let outcome = short.try_lock().await;
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
    assert_survived(&server, guard).await;
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(short.try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn p13_a_dropped_guard_is_released_although_the_connection_breaks() {
    let server = Server::start();
    let (_locker, guard) = held(&server).await;
    let key = guard.key().to_owned();
    server.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    drop(guard);
    eventually("the key goes", || !server.exists(&key)).await;
}

#[tokio::test]
async fn p13_a_server_that_went_is_unavailable_and_never_taken() {
    let mut server = Server::start();
    let locker = locker(&server).await;
    server.kill();
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let lock = lock.outage_limit(Duration::from_millis(200));
    let began = Instant::now();
    let outcomes = [
        lock.try_lock().await,
        lock.lock().await.map(Some),
        lock.try_lock_for(Duration::from_millis(100)).await,
    ];
    for outcome in outcomes {
        let error = outcome.expect_err("nobody has it");
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert_eq!(error.key(), Some(lock.key()));
        let text = error.to_string();
        assert!(text.contains(&server.port.to_string()), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "it gave it time"
    );
    server.restart();
    assert!(lock.try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn p13_a_loading_server_is_waited_for() {
    if !Server::start().has_parameter("key-load-delay") {
        return left_out("the server cannot be made to load slowly");
    }
    // It answers whenever it has read two more MB.
    let slow = ["--key-load-delay", "100", "--rdbcompression", "no"];
    let mut server = Server::with(&[&["--appendonly", "yes"], &slow[..]].concat());
    let locker = locker(&server).await;
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap();
    let script = "for i = 1, 10000 do redis.call('SET', 'k' .. i, string.rep('x', 1024)) end";
    server.command::<()>(&["EVAL", script, "0"]);
    server.command::<()>(&["BGREWRITEAOF"]);
    eventually("the rewrite", || {
        let info: String = server.command(&["INFO", "persistence"]);
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
    })
    .await;
    server.restart();
    let lock = locker.mutex(unique_key()).outage_limit(DEADLINE);
    let during = lock.try_lock().await;
    assert!(matches!(during, Ok(Some(_))), "{during:?}");
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn p13_a_cluster_without_slots_is_unavailable_and_one_with_them_works() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL).renew_every(RENEW_EVERY);
    let short = lock.clone().outage_limit(Duration::from_millis(200));
    let outcome = short.try_lock().await;
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
    server.own_all_slots();
    let lock = lock.outage_limit(DEADLINE);
    let guard = timeout(DEADLINE, lock.lock()).await.unwrap().unwrap();

    // The slot is nobody's for a while: not served, which is not lost.
    let slot: i64 = server.command(&["CLUSTER", "KEYSLOT", &key]);
    let slot = slot.to_string();
    let before = server.calls("evalsha");
    server.command::<()>(&["CLUSTER", "DELSLOTS", &slot]);
    tokio::time::sleep(3 * RENEW_EVERY).await;
    assert!(!guard.is_lost(), "P13: not before the deadline");
    server.command::<()>(&["CLUSTER", "ADDSLOTS", &slot]);
    eventually("renewals arrive", || server.calls("evalsha") > before).await;
    assert_survived(&server, guard).await;
}
