//! A locker behind sentinels: who the master is, and what becomes of locks in a failover.

use std::time::{Duration, Instant};

use redlease::{Builder, Error, Locker, LostReason, Released, blocking};
use testkit::{DEADLINE, MASTER, Sentinels, Server, eventually, unique_key};
use tokio::time::timeout;

/// Nothing is renewed within [`DEADLINE`], so who is told of a loss was told of the failover.
const TTL: Duration = Duration::from_secs(180);
/// Much longer than a switch takes, and less than the sentinels take to demote the old master.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Puts up with a busy machine.
fn builder() -> Builder {
    let builder = Locker::builder().command_timeout(Duration::from_secs(4));
    builder.outage_limit(TTL)
}

async fn locker_of(set: &Sentinels) -> Locker {
    let locker = builder().sentinel(set.urls(), MASTER).await;
    locker.expect("a locker")
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Acquires a lock that nobody has.
async fn acquire(locker: &Locker) {
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let guard = timeout(DEADLINE, lock.lock()).await.expect("in time");
    drop(guard.expect("a guard"));
}

/// Whether it takes this server for the master.
fn leads_to(locker: &Locker, server: &Server) -> bool {
    format!("{locker:?}").contains(&format!("{MASTER} at 127.0.0.1:{}\"", server.port))
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome.expect_err("an error") {
        Error::Refused { source, server, .. } => format!("{server}: {source}"),
        other => panic!("{other:?}"),
    }
}

fn unavailable<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome.expect_err("an error") {
        Error::Unavailable { source, server, .. } => format!("{server}: {source}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn locks_are_kept_on_the_master() {
    let set = Sentinels::start();
    let locker = locker_of(&set).await;
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    assert_eq!(
        set.servers[0].get(guard.key()).as_deref(),
        Some(guard.value())
    );
    assert!(leads_to(&locker, &set.servers[0]), "{locker:?}");
    assert_eq!(guard.release().await.unwrap(), Released::Freed);

    let urls = set.urls();
    let blocking = tokio::task::spawn_blocking(move || {
        let locker = blocking::Locker::sentinel(urls, format!("redis://{MASTER}/3"))?;
        locker.mutex("in another database").lock().map(drop)
    });
    blocking.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_is_refused_in_words() {
    let set = Sentinels::start();
    let told = refused(builder().sentinel(set.urls(), "mistress").await);
    assert!(told.contains("\"mistress\""), "{told}");
    for sentinel in &set.sentinels {
        let said = format!(
            "127.0.0.1:{}: it knows no master of that name",
            sentinel.port
        );
        assert!(told.contains(&said), "{told}");
    }
}

#[tokio::test]
async fn sentinels_that_cannot_be_reached_are_named() {
    let urls = ["redis://127.0.0.1:1/", "redis://127.0.0.1:2/"];
    let told = unavailable(Locker::sentinel(urls, MASTER).await);
    for what in [MASTER, "127.0.0.1:1: ", "127.0.0.1:2: ", "refused"] {
        assert!(told.contains(what), "{told}");
    }
    // One that cannot be reached may know the name.
    let set = Sentinels::start();
    let urls = [set.urls().remove(0), "redis://127.0.0.1:1/".to_owned()];
    let told = unavailable(builder().sentinel(urls, "mistress").await);
    assert!(told.contains("it knows no master of that name"), "{told}");
}

#[tokio::test]
async fn bad_input_is_invalid_in_words() {
    let one = ["redis://127.0.0.1:26379/"];
    let problem = |outcome: Result<Locker, Error>| match outcome.expect_err("an error") {
        Error::Invalid { problem, .. } => problem,
        other => panic!("{other:?}"),
    };
    let lazily = |urls: &[&str], master: &str| Locker::builder().sentinel_lazily(urls, master);
    for (urls, master, says) in [
        (&[][..], MASTER, "at least one sentinel is needed"),
        (
            // The port is that of sentinels.
            &["redis://127.0.0.1/", one[0]],
            MASTER,
            "127.0.0.1:26379 is named twice",
        ),
        (&["redis://127.0.0.1/2"], MASTER, "no databases"),
        (&["mymaster"], "redis://127.0.0.1/", "url is not usable"),
        (&one, "", "not the name of a master"),
        (&one, "my master", "not the name of a master"),
        (&one, "ann:secret@mymaster", "named by a url"),
        (&one, "redis://mymaster:6379/", "no port"),
        (&one, "unix:///tmp/mymaster", "in place of the host"),
    ] {
        let problem = problem(lazily(urls, master));
        assert!(problem.contains(says), "{urls:?}, {master:?}: {problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }
}

#[tokio::test]
async fn the_credentials_of_the_sentinels_and_of_the_master_are_used() {
    let set = Sentinels::start();
    for server in &set.servers {
        let () = server.command(&[
            "ACL",
            "SETUSER",
            "locks",
            "on",
            ">two words",
            "~*",
            "&*",
            "+@all",
        ]);
        let () = server.command(&["ACL", "SETUSER", "default", "-evalsha", "-eval"]);
    }
    for sentinel in &set.sentinels {
        let () = sentinel.command(&[
            "ACL",
            "SETUSER",
            "watcher",
            "on",
            ">one",
            "resetchannels",
            "&+switch-master",
            "+sentinel|get-master-addr-by-name",
            "+subscribe",
            "+ping",
        ]);
    }
    let urls: Vec<_> = set
        .sentinels
        .iter()
        .map(|sentinel| format!("redis://watcher:one@127.0.0.1:{}/", sentinel.port))
        .collect();
    let master = format!("redis://locks:two%20words@{MASTER}/");
    // `SENTINEL MASTER` is forbidden, too.
    let locker = builder().sentinel(&urls, &master).await.expect("a locker");
    acquire(&locker).await;
    let switch = set.failover(set.master()).await;
    eventually("it follows", || {
        leads_to(&locker, &set.servers[switch.master])
    })
    .await;
    acquire(&locker).await;

    let told = refused(builder().sentinel(&urls, MASTER).await);
    assert!(told.contains("no permissions"), "{told}");
    let wrong: Vec<_> = urls.iter().map(|url| url.replace("one", "two")).collect();
    let told = refused(builder().sentinel(wrong, &master).await);
    assert!(told.contains("invalid username-password"), "{told}");
}

#[tokio::test]
async fn a_replica_is_not_taken_for_the_master() {
    let set = Sentinels::start();
    // They go on naming it, as it is up; it knows better.
    let port = set.servers[1].port.to_string();
    for sentinel in &set.sentinels {
        sentinel.freeze();
    }
    let () = set.servers[0].command(&["REPLICAOF", "127.0.0.1", &port]);
    let () = set.servers[0].command(&["CONFIG", "SET", "replica-read-only", "no"]);
    for sentinel in &set.sentinels {
        sentinel.thaw();
    }
    let told = unavailable(builder().sentinel(set.urls(), MASTER).await);
    assert!(told.contains("not a master"), "{told}");
    // A user without the right to ask for the role alone.
    let () = set.servers[0].command(&["ACL", "SETUSER", "default", "-role"]);
    let told = unavailable(builder().sentinel(set.urls(), MASTER).await);
    assert!(told.contains("not a master"), "{told}");
    let () = set.servers[0].command(&["ACL", "SETUSER", "default", "-info"]);
    let told = refused(builder().sentinel(set.urls(), MASTER).await);
    assert!(told.contains("neither ROLE nor INFO"), "{told}");
}

/// What a guard hears whose key is, and one whose key is not, on the new master. Without a fault, the
/// old one is demoted by hand.
async fn fail_over(set: &mut Sentinels, fault: Option<fn(&mut Sentinels, usize)>) {
    let locker = locker_of(set).await;
    let old = set.master();
    let lock = |key| locker.mutex(key).ttl(TTL);
    let kept = lock(unique_key()).lock().await.unwrap();
    let lost = lock(unique_key()).lock().await.unwrap();
    set.lose_on_replicas(lost.key()).await;
    // A waiter goes on at the new master.
    let waits_for = lock(kept.key().to_owned());
    let waiter = tokio::spawn(async move { waits_for.lock().await });

    if let Some(fault) = fault {
        fault(set, old);
    }
    let switched = async {
        match fault {
            Some(_) => set.switched(old).await,
            None => set.failover(old).await,
        }
    };
    let watch = async {
        timeout(TTL, lost.lost().cancelled())
            .await
            .expect("it is told");
        Instant::now()
    };
    let (switch, told, acquired) = tokio::join!(switched, watch, async {
        loop {
            let guard = lock(unique_key()).lock().await.unwrap();
            let at = Instant::now();
            // Before, the old master may grant locks.
            let mut others = set.servers.iter().enumerate().filter(|(n, _)| *n != old);
            if others.any(|(_, server)| leads_to(&locker, server) && server.exists(guard.key())) {
                return at;
            }
        }
    });
    let told_after = told.saturating_duration_since(switch.at);
    let acquired_after = acquired.saturating_duration_since(switch.at);
    println!(
        "told {:.1} ms, first acquire {:.1} ms after the new master was named",
        ms(told_after),
        ms(acquired_after)
    );
    assert_eq!(lost.lost_reason(), Some(LostReason::Removed));
    assert!(told_after < AT_ONCE, "{told_after:?}");
    assert!(acquired_after < AT_ONCE, "{acquired_after:?}");
    assert!(!kept.is_lost(), "{:?}", kept.lost_reason());
    let new = &set.servers[switch.master];
    let () = new.command(&["PEXPIRE", kept.key(), "12000"]);
    eventually("it is renewed at the new master", || {
        new.command::<i64>(&["PTTL", kept.key()]) > 12_000
    })
    .await;
    assert_eq!(kept.release().await.unwrap(), Released::Freed);
    let waiter = timeout(DEADLINE, waiter).await.expect("in time");
    drop(waiter.unwrap().expect("a guard"));
    assert_eq!(lost.release().await.unwrap(), Released::AlreadyLost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_master_is_followed() {
    let mut set = Sentinels::start();
    fail_over(&mut set, Some(|set, old| set.servers[old].kill())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_master_is_followed() {
    let mut set = Sentinels::start();
    fail_over(&mut set, Some(|set, old| set.servers[old].freeze())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_master_is_left_at_once() {
    let mut set = Sentinels::start();
    fail_over(&mut set, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_cut_off_from_its_sentinels_is_left_at_once() {
    let mut set = Sentinels::start();
    fail_over(&mut set, Some(|set, old| set.cut_off(old))).await;
    assert!(set.servers.iter().all(Server::runs));
}
