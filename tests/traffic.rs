//! What locks cost the server: requests, reads from sockets, keys.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::{Commands, Connection};
use redlease::{LockGuard, Locker, LostReason, Released};
use testkit::{DEADLINE, Server, eventually, left_out, unique_key};

async fn locker(server: &Server) -> Locker {
    Locker::connect(server.url()).await.expect("a locker")
}

fn info(connection: &mut Connection, section: &str) -> String {
    let reply = redis::cmd("INFO").arg(section).query(connection);
    reply.expect("an INFO")
}

/// How often each command was called, by clients and by scripts.
fn calls(connection: &mut Connection) -> BTreeMap<String, i64> {
    let stats = info(connection, "commandstats");
    let lines = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let count = rest.split(',').next()?.parse().ok()?;
        Some((name.to_owned(), count))
    });
    lines.collect()
}

/// How often each command was called between two counts.
fn between(before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let counts = after.iter().map(|(name, count)| {
        let earlier = before.get(name).copied().unwrap_or_default();
        (name.clone(), count - earlier)
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Lets a locker learn what it has to: whether the server tells us of our own writes by scripts, so
/// that there is a look for each until that is known. The server learns the scripts.
async fn introduce(server: &Server, locker: &Locker) {
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
    let often = lock.renew_every(Duration::from_millis(50));
    let guard = often.lock().await.unwrap();
    eventually("some renewals", || server.calls("pexpire") > 5).await;
    guard.release().await.unwrap();
}

/// How often a request of ours was preceded by the wish to be told of changes: the heartbeats of
/// waiters, the renewals and looks of the driver.
fn tracked(calls: &BTreeMap<String, i64>) -> i64 {
    // Before Redis 7 the subcommand is not told.
    let names = ["client|caching", "client"];
    names.iter().filter_map(|&name| calls.get(name)).sum()
}

/// The requests of ours among the calls: what is not ours is what scripts call, and the counting.
fn requests(calls: &BTreeMap<String, i64>) -> i64 {
    const BY_SCRIPTS: [&str; 9] = [
        "del", "get", "info", "pexpire", "pttl", "set", "publish", "exists", "zpopmin",
    ];
    let ours = calls
        .iter()
        .filter(|(name, _)| !BY_SCRIPTS.contains(&name.as_str()));
    ours.map(|(_, count)| count).sum()
}

#[tokio::test]
async fn an_uncontended_cycle_is_two_requests() {
    const CYCLES: i64 = 200;
    let server = Server::start();
    let mut connection = server.client();
    let locker = locker(&server).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
    // Whatever a locker sends once is sent by now.
    for _ in 0..3 {
        lock.lock().await.unwrap().release().await.unwrap();
        drop(lock.lock().await.unwrap());
    }
    drop(lock.lock().await.unwrap());
    eventually("the last drop", || !server.exists(lock.key())).await;
    let before = calls(&mut connection);
    for _ in 0..CYCLES {
        let guard = lock.lock().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    let spent = between(&before, &calls(&mut connection));
    // A cycle that the machine stretches to more than 50 ms is looked at.
    let looks = tracked(&spent);
    assert!(looks < CYCLES / 10, "{spent:?}");
    assert_eq!(requests(&spent), 2 * CYCLES + 2 * looks, "{spent:?}");
    assert_eq!(
        spent.get("evalsha"),
        Some(&(2 * CYCLES + looks)),
        "{spent:?}"
    );
}

#[tokio::test]
async fn a_dropped_guard_is_one_request_too() {
    const CYCLES: i64 = 100;
    let server = Server::start();
    let mut connection = server.client();
    let locker = locker(&server).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
    for _ in 0..3 {
        drop(lock.lock().await.unwrap());
    }
    locker
        .mutex(unique_key())
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    while connection.exists(lock.key()).unwrap() {
        tokio::task::yield_now().await;
    }
    let before = calls(&mut connection);
    for _ in 0..CYCLES {
        // Its own key each time: a waiter behind a dropped guard might ask twice.
        let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
        drop(lock.lock().await.unwrap());
    }
    locker.close(DEADLINE).await.unwrap();
    let spent = between(&before, &calls(&mut connection));
    let looks = tracked(&spent);
    assert!(looks < CYCLES / 10, "{spent:?}");
    assert_eq!(
        spent.get("evalsha"),
        Some(&(2 * CYCLES + looks)),
        "{spent:?}"
    );
}

#[tokio::test]
async fn an_idle_guard_is_three_requests_per_ttl() {
    let server = Server::start();
    let mut connection = server.client();
    let locker = locker(&server).await;
    let ttl = Duration::from_millis(1500);
    let lock = locker.mutex(unique_key()).ttl(ttl);
    introduce(&server, &locker).await;
    let before = calls(&mut connection);
    let guard = lock.lock().await.unwrap();
    let began = Instant::now();
    tokio::time::sleep(3 * ttl + ttl / 6).await;
    let spent = between(&before, &calls(&mut connection));
    let elapsed = began.elapsed();
    assert_eq!(guard.lost_reason(), None);
    // The acquire, and what is due: one more or less for the noise of the machine, and the first
    // look.
    let due = i64::try_from(elapsed.as_millis() / (ttl.as_millis() / 3)).unwrap();
    let renewals = spent["evalsha"] - 2;
    assert!(
        (due - 1..=due + 1).contains(&renewals),
        "{renewals} of {due}: {spent:?}"
    );
}

/// Also on servers that tell a client of what its own scripts write, in spite of NOLOOP.
#[tokio::test]
async fn fifty_idle_guards_are_fifty_requests_a_second() {
    const GUARDS: usize = 50;
    const MOST: f64 = 60.0;
    let server = Server::start();
    let mut connection = server.client();
    let locker = locker(&server).await;
    let ttl = Duration::from_secs(3);
    let mut guards: Vec<LockGuard> = Vec::new();
    for _ in 0..GUARDS {
        let lock = locker.mutex(unique_key()).ttl(ttl);
        guards.push(lock.lock().await.unwrap());
    }
    // What the locker has to learn of the server it has learnt with the first renewals.
    eventually("three renewals of each", || {
        server.calls("pexpire") > 3 * GUARDS as u64
    })
    .await;
    let before = calls(&mut connection);
    let began = Instant::now();
    tokio::time::sleep(3 * ttl).await;
    let spent = between(&before, &calls(&mut connection));
    let seconds = began.elapsed().as_secs_f64();
    let scripts = ["evalsha", "eval"].map(|name| spent.get(name).copied().unwrap_or_default());
    let rate = scripts.iter().sum::<i64>() as f64 / seconds;
    assert!(rate <= MOST, "{rate} requests a second: {spent:?}");
    assert!(guards.iter().all(|guard| !guard.is_lost()));
}

#[tokio::test]
async fn answers_about_our_own_keys_cost_nothing() {
    let server = Server::start();
    let mut connection = server.client();
    let locker = locker(&server).await;
    let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
    // The background thread has its connection when it has released something.
    drop(lock.lock().await.unwrap());
    eventually("the drop", || !server.exists(lock.key())).await;
    let earlier = server.calls("pttl");
    let guard = lock.lock().await.unwrap();
    eventually("its only look", || server.calls("pttl") > earlier).await;
    let before = calls(&mut connection);
    for _ in 0..100 {
        assert!(lock.try_lock().await.unwrap().is_none());
        assert!(!guard.is_lost());
        guard.ensure_held().unwrap();
        assert!(guard.remaining() > Duration::ZERO);
        assert!(!guard.lost().is_cancelled());
    }
    let spent = between(&before, &calls(&mut connection));
    assert_eq!(requests(&spent), 0, "{spent:?}");
}

#[tokio::test]
async fn ten_thousand_cycles_leave_only_fence_keys() {
    const KEYS: usize = 20;
    let server = Server::start();
    let locker = locker(&server).await;
    let prefix = unique_key();
    let mut tasks = Vec::new();
    for number in 0..KEYS {
        let lock = locker.mutex(format!("{prefix}:{number}"));
        tasks.push(tokio::spawn(async move {
            for cycle in 0..10_000 / KEYS {
                let guard = lock.lock().await.unwrap();
                match cycle % 2 {
                    0 => drop(guard),
                    _ => assert_eq!(guard.release().await.unwrap(), Released::Freed),
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    locker.close(DEADLINE).await.unwrap();
    let keys: Vec<String> = server.command(&["KEYS", "*"]);
    assert_eq!(keys.len(), KEYS, "{keys:?}");
    for key in &keys {
        assert!(key.ends_with(":fence"), "{key}");
        let pttl: i64 = server.command(&["PTTL", key]);
        assert!(pttl > 0, "{key} stays for ever");
    }
}

#[tokio::test]
async fn a_thousand_guards_are_held_and_renewed_in_batches() {
    const GUARDS: usize = 1000;
    let server = Server::start();
    let mut connection = server.client();
    let locker = locker(&server).await;
    introduce(&server, &locker).await;
    let ttl = Duration::from_secs(3);
    let tasks: Vec<_> = (0..GUARDS)
        .map(|_| {
            let lock = locker.mutex(unique_key()).ttl(ttl);
            tokio::spawn(async move { lock.lock().await.unwrap() })
        })
        .collect();
    let mut guards: Vec<LockGuard> = Vec::new();
    for task in tasks {
        guards.push(task.await.unwrap());
    }
    let reads = |connection: &mut Connection| -> Option<i64> {
        let stats = info(connection, "stats");
        let mut lines = stats.lines();
        let count = lines.find_map(|line| line.strip_prefix("total_reads_processed:"))?;
        Some(count.trim().parse().expect("a number"))
    };
    let calls_before = calls(&mut connection);
    let reads_before = reads(&mut connection);
    let began = Instant::now();
    tokio::time::sleep(5 * ttl).await;
    let rounds = began.elapsed().as_secs_f64() / (ttl / 3).as_secs_f64();
    let reads_after = reads(&mut connection);
    let spent = between(&calls_before, &calls(&mut connection));
    let lost = guards.iter().filter(|guard| guard.is_lost()).count();
    assert_eq!(lost, 0, "of {GUARDS}");
    let renewals = spent["evalsha"];
    let most = (rounds + 2.0) * GUARDS as f64;
    assert!(renewals as f64 <= most, "{renewals} of at most {most}");
    if let Some((before, after)) = reads_before.zip(reads_after) {
        let reads = after - before;
        assert!(reads * 5 < renewals, "{renewals} renewals in {reads} reads");
    } else {
        left_out("reads from sockets: the server does not count them");
    }
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

/// Leases that come due together are renewed together; one that is not ours any more is told of as
/// if it had been alone.
#[tokio::test]
async fn p4_of_leases_that_are_renewed_together_only_the_stolen_and_the_removed_are_lost() {
    const GUARDS: usize = 40;
    let ttl = Duration::from_secs(60);
    let server = Server::start();
    // Nobody is told of a change: the renewal finds it.
    let url = format!("{}?protocol=resp2", server.url());
    let locker = Locker::connect(url).await.expect("a locker");
    let mut guards = Vec::new();
    for _ in 0..GUARDS {
        let lock = locker.mutex(unique_key()).ttl(ttl);
        let lock = lock.renew_every(Duration::from_secs(2));
        guards.push(lock.lock().await.unwrap());
    }
    let mut connection = server.client();
    eventually("all were looked at for the first time", || {
        server.calls("pttl") >= GUARDS as u64
    })
    .await;
    let before = calls(&mut connection);
    let () = server.command(&["SET", guards[7].key(), "thief"]);
    let () = server.command(&["PERSIST", guards[8].key()]);
    let () = server.command(&["DEL", guards[39].key()]);
    tokio::time::timeout(DEADLINE, async {
        guards[7].lost().cancelled_owned().await;
        guards[39].lost().cancelled_owned().await;
    })
    .await
    .expect("both are lost");
    let spent = || between(&before, &calls(&mut server.client()));
    eventually("all others were extended", || {
        spent().get("pexpire").copied().unwrap_or_default() >= GUARDS as i64 - 2
    })
    .await;
    assert!(server.command::<i64>(&["PTTL", guards[8].key()]) > 0);
    let reasons: Vec<_> = guards.iter().map(LockGuard::lost_reason).collect();
    for (number, reason) in reasons.into_iter().enumerate() {
        let expected = match number {
            7 => Some(LostReason::Stolen),
            39 => Some(LostReason::Removed),
            _ => None,
        };
        assert_eq!(reason, expected, "{number}");
    }
}

#[tokio::test]
async fn leases_that_come_due_together_are_renewed_in_few_requests() {
    const GUARDS: usize = 160;
    let server = Server::start();
    let locker = locker(&server).await;
    introduce(&server, &locker).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..GUARDS {
        let lock = locker.mutex(unique_key()).ttl(Duration::from_secs(60));
        let lock = lock.renew_every(Duration::from_secs(1));
        tasks.spawn(async move { lock.lock().await.unwrap() });
    }
    let guards = tasks.join_all().await;
    let mut connection = server.client();
    // The first looks, and a renewal.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = calls(&mut connection);
    eventually("all were extended twice more", || {
        let spent = between(&before, &calls(&mut server.client()));
        spent.get("pexpire").copied().unwrap_or_default() >= 2 * GUARDS as i64
    })
    .await;
    let spent = between(&before, &calls(&mut connection));
    let (extended, asked) = (spent["pexpire"], spent["evalsha"]);
    assert!(
        asked * 2 < extended,
        "{asked} requests for {extended}: {spent:?}"
    );
    assert!(guards.iter().all(|guard| !guard.is_lost()));
}
