//! What the public API promises beside the promises of the locks themselves.

#[path = "common/waiters.rs"]
mod waiters;

use std::fmt::Debug;
use std::hash::Hash;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use redlease::{Error, Locker, LostReason, Released, blocking};
use testkit::*;
use waiters::*;

/// Waits that no clock can add up, and some that it only just can.
const ENDLESS: [Duration; 5] = [
    Duration::MAX,
    Duration::from_secs(u64::MAX),
    Duration::from_secs(i64::MAX as u64),
    Duration::from_secs(i64::MAX as u64 / 2),
    Duration::from_secs(1000 * 365 * 24 * 60 * 60),
];

/// The waits that end just before a clock does.
fn almost_endless() -> impl Iterator<Item = Duration> {
    let age = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    let left = Duration::from_secs(i64::MAX as u64 - age as u64);
    (0..3).map(move |less| left - Duration::from_millis(400) * less)
}

#[tokio::test]
async fn a_wait_of_any_length_is_one() {
    let server = Server::start();
    for locker in [connect(&server).await, Locker::in_memory()] {
        for limit in ENDLESS.into_iter().chain(almost_endless()) {
            let lock = locker.mutex(unique_key());
            let guard = lock.try_lock_for(limit).await.unwrap().expect("it is free");
            let waiter = lock.clone();
            let waiter = tokio::spawn(async move { waiter.try_lock_for(limit).await });
            tokio::task::yield_now().await;
            drop(guard);
            let next = done(waiter).await.unwrap();
            assert!(next.is_some(), "{limit:?}");
        }
    }
}

#[test]
fn a_blocking_wait_of_any_length_is_one() {
    let locker = blocking::Locker::in_memory();
    for limit in ENDLESS.into_iter().chain(almost_endless()) {
        let lock = locker.mutex(unique_key());
        let guard = lock.try_lock_for(limit).unwrap().expect("it is free");
        let waiter = lock.clone();
        let waiter = std::thread::spawn(move || waiter.try_lock_for(limit));
        drop(guard);
        assert!(waiter.join().unwrap().unwrap().is_some(), "{limit:?}");
    }
    for limit in ENDLESS.into_iter().chain(almost_endless()) {
        locker.close(limit).unwrap();
    }
}

#[tokio::test]
async fn an_endless_close_outlasts_a_day() {
    let server = Server::start();
    let locker = connect(&server).await;
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    let key = guard.key().to_owned();
    server.freeze();
    tokio::time::pause();
    // Time is paused, so a year goes by while nothing else is to be done.
    let year = tokio::time::sleep(Duration::from_secs(365 * 24 * 60 * 60));
    let closing = async {
        tokio::select! {
            biased;
            closed = locker.close(Duration::MAX) => Some(closed),
            () = year => None,
        }
    };
    let closed = closing.await;
    assert!(closed.is_none(), "{closed:?}");
    server.thaw();
    tokio::time::resume();
    within(DEADLINE, "closed", locker.close(Duration::MAX))
        .await
        .unwrap();
    assert!(!server.exists(&key));
}

#[tokio::test]
async fn cancelling_a_lost_token_touches_nobody_elses() {
    let locker = Locker::in_memory();
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    let before = guard.lost();
    guard.lost().cancel();
    let after = guard.lost();
    assert!(!before.is_cancelled() && !after.is_cancelled());
    assert!(!guard.is_lost());
    guard.run_until_lost(async {}).await.unwrap();
    assert!(lock.force_release().await.unwrap());
    within(DEADLINE, "an earlier one", before.cancelled()).await;
    within(DEADLINE, "a later one", after.cancelled()).await;
}

#[test]
fn handles_and_errors_go_anywhere() {
    fn goes_anywhere<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>() {}
    fn is_a_value<T: Clone + Debug + Eq + Hash>() {}
    fn is_an_error<T: std::error::Error + Clone + Into<redlease::Error>>() {}
    goes_anywhere::<redlease::Builder>();
    goes_anywhere::<redlease::Locker>();
    goes_anywhere::<redlease::Lock>();
    goes_anywhere::<redlease::LockGuard>();
    goes_anywhere::<blocking::Builder>();
    goes_anywhere::<blocking::Locker>();
    goes_anywhere::<blocking::Lock>();
    goes_anywhere::<blocking::LockGuard>();
    goes_anywhere::<redlease::CancellationToken>();
    goes_anywhere::<redlease::Credentials>();
    goes_anywhere::<redlease::Cause>();
    goes_anywhere::<redlease::Error>();
    goes_anywhere::<redlease::Lost>();
    is_an_error::<redlease::Error>();
    is_an_error::<redlease::Lost>();
    is_a_value::<redlease::Holder>();
    is_a_value::<redlease::LostReason>();
    is_a_value::<redlease::Released>();
}

#[test]
fn futures_go_to_other_threads() {
    fn goes<T: Send + 'static>(_: T) {}
    let builder = Locker::builder;
    goes(builder().connect("redis://127.0.0.1:1/"));
    goes(builder().quorum(vec!["redis://127.0.0.1:1/".to_owned()]));
    let locker = Locker::in_memory();
    let lock = locker.mutex(unique_key());
    goes({
        let lock = lock.clone();
        async move {
            let guard = lock.lock().await?;
            guard.run_until_lost(async {}).await?;
            guard.renew().await?;
            guard.release().await?;
            lock.try_lock().await?;
            lock.try_lock_for(Duration::ZERO).await?;
            lock.holder().await?;
            lock.force_release().await
        }
    });
    goes(async move { locker.close(Duration::ZERO).await });
}

#[tokio::test]
async fn one_locker_serves_both_apis() {
    let server = Server::start();
    let locker = connect(&server).await;
    let twin = blocking::Locker::from(locker.clone());
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let blocking_lock = blocking::Lock::from(lock.clone());
    assert_eq!(blocking_lock.key(), lock.key());

    let guard = blocking_lock.lock().unwrap();
    assert!(lock.try_lock().await.unwrap().is_none());
    let guard = redlease::LockGuard::from(guard);
    let pttl: u64 = server.command(&["PTTL", lock.key()]);
    assert!(pttl > 20_000, "the options went along: {pttl}");
    guard.renew().await.unwrap();
    let lost = guard.lost();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(!server.exists(lock.key()));

    let guard = blocking::LockGuard::from(lock.lock().await.unwrap());
    assert!(twin.mutex(lock.key()).try_lock().unwrap().is_none());
    guard.renew().unwrap();
    assert_eq!(guard.release().unwrap(), Released::Freed);
    assert!(!server.exists(lock.key()));
    assert!(!lost.is_cancelled(), "no loss");

    let held = redlease::Lock::from(blocking_lock).lock().await.unwrap();
    twin.close(DEADLINE).unwrap();
    assert_eq!(held.lost_reason(), Some(LostReason::Closed));
    let back = Locker::from(twin);
    let closed = back.mutex(unique_key()).try_lock().await;
    assert!(matches!(closed, Err(Error::Closed { .. })), "{closed:?}");
}

#[tokio::test]
async fn defaults_of_the_builder_hold_for_each_lock_that_names_no_other() {
    let server = Server::start();
    let second = Duration::from_secs(1);
    let builder = Locker::builder()
        .ttl(50 * second)
        .renew_every(20 * second)
        .max_hold(70 * second)
        .handover_for(30 * second / 1000)
        .outage_limit(3 * second);
    let twin = blocking::Builder::from(builder.clone());
    let asynchronous = builder.connect(server.url()).await.unwrap();
    let url = server.url();
    let twin = tokio::task::spawn_blocking(move || twin.connect(url).unwrap());
    for locker in [asynchronous, twin.await.unwrap().into()] {
        let lock = locker.mutex(unique_key());
        let shown = format!("{lock:?}");
        for option in [
            "ttl: 50s",
            "renew_every: 20s",
            "max_hold: 70s",
            "handover_for: 30ms",
            "outage_limit: 3s",
        ] {
            assert!(shown.contains(option), "{option}: {shown}");
        }
        let guard = lock.lock().await.unwrap();
        let pttl: u64 = server.command(&["PTTL", lock.key()]);
        assert!(pttl > 30_000 && pttl <= 50_000, "{pttl}");
        assert!(guard.remaining() > 30 * second);
        drop(guard);
        let own = locker.mutex(unique_key()).ttl(25 * second);
        let guard = own.lock().await.unwrap();
        let pttl: u64 = server.command(&["PTTL", own.key()]);
        assert!(
            pttl > 10_000 && pttl <= 25_000,
            "its own option wins: {pttl}"
        );
        drop(guard);
        let bad = locker.mutex(unique_key()).ttl(second).lock().await;
        let text = bad.unwrap_err().to_string();
        assert!(text.contains("renew_every must be less than"), "{text}");
    }
}

#[tokio::test]
async fn a_guard_is_lost_by_the_default_of_the_builder() {
    let short = Duration::from_millis(60);
    let locker = Locker::builder().max_hold(short).in_memory().unwrap();
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    within(DEADLINE, "the loss", guard.lost().cancelled()).await;
    assert_eq!(guard.lost_reason(), Some(LostReason::MaxHold));
    let locker = Locker::builder().ttl(short).auto_renew(false).in_memory();
    let guard = locker.unwrap().mutex(unique_key()).lock().await.unwrap();
    within(DEADLINE, "the loss", guard.lost().cancelled()).await;
    assert_eq!(guard.lost_reason(), Some(LostReason::Expired));
}

#[test]
fn bad_defaults_are_refused_when_the_locker_is_made() {
    let builder = Locker::builder;
    let second = Duration::from_secs(1);
    let bad = [
        ("ttl must be at least 10ms", builder().ttl(second / 1000)),
        (
            "ttl must be at most 100 years",
            builder().ttl(Duration::MAX),
        ),
        (
            "renew_every must be less than",
            builder().renew_every(10 * second),
        ),
        (
            "max_hold must not be zero",
            builder().max_hold(Duration::ZERO),
        ),
        (
            "handover_for must be at most",
            builder().handover_for(Duration::MAX),
        ),
        (
            "outage_limit must be at most",
            builder().outage_limit(Duration::MAX),
        ),
    ];
    for (problem, builder) in bad {
        let twin = blocking::Builder::from(builder.clone());
        for made in [builder.in_memory(), twin.in_memory().map(Locker::from)] {
            let Err(error @ Error::Invalid { .. }) = made else {
                panic!("{problem}: {made:?}");
            };
            let text = error.to_string();
            assert!(text.starts_with(&format!("locker: {problem}")), "{text}");
        }
    }
}

#[tokio::test]
async fn debug_shows_what_a_person_looks_for() {
    let server = Server::with(&["--requirepass", "secret"]);
    let url = format!("redis://:secret@127.0.0.1:{}/", server.port);
    let builder = Locker::builder().owner("billing").prefix("locks:");
    let settings = format!("{builder:?}");
    for part in ["billing", "locks:", "command_timeout: 1s", "ttl: 10s"] {
        assert!(settings.contains(part), "{part}: {settings}");
    }
    let locker = builder.connect(&url).await.unwrap();
    let address = format!("127.0.0.1:{}", server.port);
    let shown = format!("{locker:?}");
    let expected =
        format!("Locker {{ server: {address:?}, owner: \"billing\", prefix: \"locks:\", .. }}");
    assert_eq!(shown, expected);
    let lock = locker.mutex("k").ttl(Duration::from_secs(9));
    assert_eq!(
        format!("{lock:?}"),
        "Lock { key: \"locks:k\", ttl: 9s, renew_every: 3s, handover_for: 10ms, \
         outage_limit: 10s }"
    );
    let guard = lock.lock().await.unwrap();
    let shown = format!("{guard:?}");
    let token = format!("fencing_token: {}", guard.fencing_token());
    for part in [
        "LockGuard { key: \"locks:k\"",
        &token,
        "remaining: ",
        "lost: None",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(lock.force_release().await.unwrap());
    within(DEADLINE, "the loss", guard.lost().cancelled()).await;
    let shown = format!("{:?}", blocking::LockGuard::from(guard));
    let lost = "remaining: 0ns, lost: Some(Removed)";
    assert!(
        shown.starts_with("LockGuard {") && shown.contains(lost),
        "{shown}"
    );

    let wrong = Locker::connect(url.replace("secret", "wr0ng")).await;
    let broken = Locker::connect(url.replace("redis://", "redis//")).await;
    for error in [wrong.unwrap_err(), broken.unwrap_err()] {
        let shown = format!("{error:?} {error}");
        assert!(
            !shown.contains("secret") && !shown.contains("wr0ng"),
            "{shown}"
        );
    }
    let lazily = Locker::builder().connect_lazily(&url).unwrap();
    assert!(!format!("{lazily:?}").contains("secret"));
}

#[test]
fn a_client_of_the_crates_own_redis_will_do() {
    let server = Server::start();
    let client = redlease::redis::Client::open(server.url()).unwrap();
    let locker = blocking::Locker::builder().connect_client(client).unwrap();
    let guard = locker.mutex(unique_key()).lock().unwrap();
    assert!(server.exists(guard.key()));
}

#[tokio::test]
async fn errors_are_one_clause_that_names_the_key() {
    let server = Server::start();
    let locker = connect(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key);
    server.command::<i64>(&["LPUSH", &key, "x"]);
    let refused = lock.lock().await.unwrap_err();
    server.command::<i64>(&["DEL", &key]);
    let invalid = lock.clone().ttl(Duration::ZERO).lock().await.unwrap_err();
    let guard = lock.lock().await.unwrap();
    assert!(lock.force_release().await.unwrap());
    within(DEADLINE, "the loss", guard.lost().cancelled()).await;
    let lost = Error::from(guard.ensure_held().unwrap_err());
    server.freeze();
    let unavailable = lock
        .clone()
        .outage_limit(Duration::ZERO)
        .lock()
        .await
        .unwrap_err();
    server.thaw();
    locker.close(DEADLINE).await.unwrap();
    let closed = lock.lock().await.unwrap_err();
    let address = format!("127.0.0.1:{}", server.port);
    let texts = [
        (refused, format!("redis at {address} refuses the request")),
        (invalid, "ttl must be at least 10ms".to_owned()),
        (
            lost,
            "the lease was lost: the key was removed from redis".to_owned(),
        ),
        (unavailable, format!("redis at {address} is unavailable")),
        (closed, "the locker is closed".to_owned()),
    ];
    for (error, text) in texts {
        assert_eq!(error.to_string(), format!("lock {key:?}: {text}"));
        assert_eq!(error.key(), Some(key.as_str()));
    }
}
