//! An acquisition that is cut short leaves nothing behind (P10).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use redlease::{Error, LockGuard, Locker};
use testkit::{DEADLINE, Proxy, Server, eventually, eventually_blocking, unique_key};
use tokio::time::timeout;

/// So long that no key goes by itself while a test looks.
const TTL: Duration = Duration::from_secs(600);

/// A clean-up that began only when a command timed out would be too late for `eventually`.
const NO_TIMEOUT: Duration = Duration::from_secs(2 * DEADLINE.as_secs());

/// Polls a future up to `times` times, each time when it is woken; lets what it has sent go its
/// way for a while, and drops it then.
async fn poll_times<F: Future>(future: F, times: usize, linger: Duration) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    let output = poll_fn(|context| {
        if polled == times {
            return Poll::Ready(None);
        }
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled == times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if output.is_none() && !linger.is_zero() {
        tokio::time::sleep(linger).await;
    }
    output
}

/// A locker whose server knows the scripts: a request that it has carried out has set the key.
async fn locker(server: &Server, url: &str) -> Locker {
    locker_within(Duration::from_millis(500), server, url).await
}

/// As [`locker`], with a time-out of its own.
async fn locker_within(command_timeout: Duration, server: &Server, url: &str) -> Locker {
    let builder = Locker::builder().command_timeout(command_timeout);
    let locker = builder.connect(url).await.expect("a locker");
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    guard.renew().await.unwrap();
    guard.release().await.unwrap();
    assert!(server.calls("evalsha") >= 3);
    locker
}

async fn assert_nothing_left(server: &Server, locker: Locker, key: &str, times: usize) {
    let waited = locker.close(DEADLINE).await;
    assert!(waited.is_ok(), "after {times} polls: {waited:?}");
    let what = format!("P10: the key goes after {times} polls");
    eventually(&what, || !server.exists(key)).await;
}

#[tokio::test]
async fn p10_an_acquire_dropped_at_any_await_point_leaves_no_key() {
    let server = Server::start();
    let variants = [(false, 0), (false, 10), (true, 0), (true, 10)];
    for (broken, linger) in variants {
        for times in 0.. {
            let locker = locker(&server, &server.url()).await;
            let key = unique_key();
            let lock = locker.mutex(&key).ttl(TTL);
            if broken {
                // So that the acquire opens a connection on its way.
                server.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let linger = Duration::from_millis(linger);
            let outcome = poll_times(lock.lock(), times, linger).await;
            let done = outcome.is_some();
            assert!(outcome.is_none_or(|outcome| outcome.is_ok()));
            assert_nothing_left(&server, locker, &key, times).await;
            if done {
                assert!(times > 1, "it never waited");
                break;
            }
        }
    }
    // A request may have arrived when nobody looked any more.
    let keys: Vec<String> = server.command(&["KEYS", "*"]);
    assert!(keys.iter().all(|key| key.ends_with(":fence")), "{keys:?}");
}

#[tokio::test]
async fn p10_a_waiter_dropped_at_any_await_point_leaves_no_key() {
    let server = Server::start();
    for times in 0.. {
        let locker = locker(&server, &server.url()).await;
        let key = unique_key();
        server.command::<()>(&["SET", &key, "theirs", "PX", "30"]);
        let lock = locker.mutex(&key).ttl(TTL);
        let outcome = poll_times(lock.lock(), times, Duration::from_millis(40)).await;
        let done = outcome.is_some();
        assert!(outcome.is_none_or(|outcome| outcome.is_ok()));
        locker.close(DEADLINE).await.unwrap();
        // Ours would stay for ten minutes.
        eventually("the foreign key expires", || !server.exists(&key)).await;
        if done {
            break;
        }
    }
}

#[tokio::test]
async fn p10_a_cancelled_local_waiter_lets_the_next_one_through() {
    let server = Server::start();
    let locker = Locker::connect(server.url()).await.unwrap();
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let guard = lock.lock().await.unwrap();
    let cancelled = {
        let lock = lock.clone();
        tokio::spawn(async move { lock.lock().await })
    };
    let patient = {
        let lock = lock.clone();
        tokio::spawn(async move { lock.lock().await })
    };
    tokio::task::yield_now().await;
    cancelled.abort();
    drop(guard);
    let granted = timeout(DEADLINE, patient).await.unwrap().unwrap();
    assert!(granted.is_ok());
}

#[tokio::test]
async fn p10_an_acquire_whose_reply_never_comes_leaves_no_key() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = locker(&server, &proxy.url()).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    let lock = lock.outage_limit(Duration::from_millis(300));
    let before = server.calls("evalsha");
    proxy.swallow_replies();
    let outcome = timeout(DEADLINE, lock.lock()).await.expect("it gives up");
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
    assert!(
        server.calls("evalsha") > before,
        "the server had the request"
    );
    // The clean-up needs no reply to be carried out.
    eventually("the key goes", || !server.exists(&key)).await;
    proxy.pass();
}

#[tokio::test]
async fn p10_a_cancelled_request_that_arrives_late_leaves_no_key() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = locker(&server, &proxy.url()).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    proxy.hold();
    let cut_short = timeout(Duration::from_millis(20), lock.lock()).await;
    assert!(cut_short.is_err());
    assert!(!server.exists(&key));
    let before = server.calls("eval") + server.calls("evalsha");
    proxy.pass();
    eventually("the acquire and both releases arrive", || {
        server.calls("eval") + server.calls("evalsha") >= before + 3
    })
    .await;
    locker.close(DEADLINE).await.unwrap();
    assert!(!server.exists(&key));
}

#[tokio::test]
async fn p10_a_limited_wait_for_a_dead_line_leaves_no_key() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = locker(&server, &proxy.url()).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    proxy.hold();
    let limit = Duration::from_millis(200);
    let outcome = timeout(DEADLINE, lock.try_lock_for(limit)).await.unwrap();
    // Not `None`: nobody said that the lock is taken.
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
    proxy.pass();
    locker.close(DEADLINE).await.unwrap();
    eventually("the key goes", || !server.exists(&key)).await;
}

/// The connection of the request dies without a word: nothing that is sent behind it arrives.
#[tokio::test]
async fn p10_a_cancelled_acquire_whose_connection_is_dead_leaves_no_key() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = locker_within(NO_TIMEOUT, &server, &proxy.url()).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    proxy.go_silent_behind(&key);
    let waiting = tokio::spawn(async move { lock.lock().await.map(drop) });
    eventually("the server has the request", || server.exists(&key)).await;
    waiting.abort();
    eventually("the key goes", || !server.exists(&key)).await;
}

#[tokio::test]
async fn p10_an_acquire_that_times_out_on_a_dead_connection_leaves_no_key() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = locker_within(NO_TIMEOUT, &server, &proxy.url()).await;
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    proxy.go_silent_behind(&key);
    let outcome = lock.try_lock_for(Duration::from_millis(200)).await;
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
    eventually("the key goes", || !server.exists(&key)).await;
}

#[test]
fn p10_an_acquire_that_ends_with_its_runtime_leaves_no_key() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locker = runtime.block_on(locker(&server, &proxy.url()));
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    proxy.swallow_replies();
    let before = server.calls("evalsha");
    runtime.spawn(async move { lock.lock().await.map(LockGuard::release) });
    eventually_blocking("the request arrives", || server.calls("evalsha") > before);
    drop(runtime);
    proxy.pass();
    eventually_blocking("the key goes", || !server.exists(&key));
}

/// What was to go behind the request is lost with its runtime, and the request may have run after
/// the release that was sent at once.
#[test]
fn p10_a_clean_up_that_ends_with_its_runtime_is_sent_again() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locker = runtime.block_on(locker(&server, &proxy.url()));
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(TTL);
    proxy.go_silent_behind(&key);
    let waiting = runtime.spawn(async move { lock.lock().await.map(drop) });
    let mut value = None;
    eventually_blocking("the server has the request", || {
        value = server.get(&key);
        value.is_some()
    });
    waiting.abort();
    eventually_blocking("the key goes", || !server.exists(&key));
    // As if the request ran only now.
    server.command::<()>(&["SET", &key, &value.unwrap()]);
    drop(runtime);
    eventually_blocking("the key goes again", || !server.exists(&key));
}

#[test]
fn p10_a_cancelled_acquire_does_not_hold_up_the_end_of_a_small_runtime() {
    let server = Server::start();
    let key = unique_key();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let began = Instant::now();
    runtime.block_on(async {
        let builder = Locker::builder().flush_timeout(4 * DEADLINE);
        let locker = builder.connect(server.url()).await.unwrap();
        let lock = locker.mutex(&key).ttl(TTL);
        assert!(poll_times(lock.lock(), 1, Duration::ZERO).await.is_none());
    });
    assert!(began.elapsed() < DEADLINE, "the clean-up needs the thread");
    drop(runtime);
    eventually_blocking("the key goes", || !server.exists(&key));
}
