//! The end of a guard, wherever it comes: no key is left.

use std::cell::RefCell;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redlease::{LockGuard, Locker, Released, blocking};
use testkit::{DEADLINE, Proxy, Server, eventually, eventually_blocking, unique_key};
use tokio::time::timeout;

/// So long that no key goes by itself while a test looks.
const TTL: Duration = Duration::from_secs(600);

async fn locker(server: &Server) -> Locker {
    Locker::connect(server.url()).await.expect("a locker")
}

async fn held(locker: &Locker) -> LockGuard {
    locker.mutex(unique_key()).ttl(TTL).lock().await.unwrap()
}

#[tokio::test]
async fn p9_a_released_lock_is_free_at_once() {
    let server = Server::start();
    let (one, other) = (locker(&server).await, locker(&server).await);
    let guard = held(&one).await;
    let lock = other.mutex(guard.key()).ttl(TTL);
    assert!(lock.try_lock().await.unwrap().is_none());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(lock.try_lock().await.unwrap().is_some());
}

#[tokio::test]
async fn p9_a_waiter_gets_a_dropped_guards_lock() {
    let server = Server::start();
    let (one, other) = (locker(&server).await, locker(&server).await);
    let guard = held(&one).await;
    let lock = other.mutex(guard.key()).ttl(TTL);
    let waiter = tokio::spawn(async move { lock.lock().await });
    drop(guard);
    let granted = timeout(DEADLINE, waiter).await.unwrap().unwrap();
    assert!(granted.is_ok());
}

#[tokio::test]
async fn a_release_tells_the_truth() {
    let server = Server::start();
    let locker = locker(&server).await;
    let guard = held(&locker).await;
    server.command::<()>(&["DEL", guard.key()]);
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);

    let guard = held(&locker).await;
    let key = guard.key().to_owned();
    server.command::<()>(&["SET", &key, "thief"]);
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
    assert_eq!(server.get(&key).as_deref(), Some("thief"), "P6");
}

#[tokio::test]
async fn a_release_that_is_not_answered_is_an_error_and_goes_on_in_the_background() {
    let server = Server::start();
    let builder = Locker::builder().command_timeout(Duration::from_millis(500));
    let locker = builder.connect(server.url()).await.unwrap();
    let guard = held(&locker).await;
    let key = guard.key().to_owned();
    server.freeze();
    let release = timeout(DEADLINE, guard.release()).await.expect("in time");
    assert!(
        matches!(release, Err(redlease::Error::Unavailable { .. })),
        "{release:?}"
    );
    server.thaw();
    eventually("the key goes", || !server.exists(&key)).await;
}

#[tokio::test]
async fn a_cancelled_release_goes_on_in_the_background() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    let locker = Locker::connect(proxy.url()).await.unwrap();
    let guard = held(&locker).await;
    let key = guard.key().to_owned();
    proxy.hold();
    let cut_short = timeout(Duration::from_millis(20), guard.release()).await;
    assert!(cut_short.is_err());
    proxy.pass();
    eventually("the key goes", || !server.exists(&key)).await;
}

#[tokio::test]
async fn p12_a_guard_dropped_in_a_task_frees_the_key() {
    let server = Server::start();
    let locker = locker(&server).await;
    let guard = held(&locker).await;
    let key = guard.key().to_owned();
    tokio::spawn(async move { drop(guard) }).await.unwrap();
    eventually("the key goes", || !server.exists(&key)).await;
}

#[tokio::test]
async fn p12_drop_does_not_wait_for_redis() {
    let server = Server::start();
    let builder = Locker::builder().flush_timeout(4 * DEADLINE);
    let locker = builder.connect(server.url()).await.unwrap();
    let guard = held(&locker).await;
    let key = guard.key().to_owned();
    server.freeze();
    let began = Instant::now();
    drop(guard);
    assert!(began.elapsed() < DEADLINE, "it waited");
    server.thaw();
    eventually("the key goes", || !server.exists(&key)).await;
}

#[test]
fn p12_a_guard_dropped_on_a_plain_thread_and_after_the_runtime_frees_the_key() {
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locker = runtime.block_on(locker(&server));
    let on_thread = runtime.block_on(held(&locker));
    let key = on_thread.key().to_owned();
    std::thread::spawn(move || drop(on_thread)).join().unwrap();
    eventually_blocking("the key goes", || !server.exists(&key));

    let after = runtime.block_on(held(&locker));
    let key = after.key().to_owned();
    drop(runtime);
    drop(after);
    eventually_blocking("the key goes", || !server.exists(&key));
}

#[test]
fn p12_a_guard_dropped_by_the_end_of_its_runtime_frees_the_key() {
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locker = runtime.block_on(locker(&server));
    let guard = runtime.block_on(held(&locker));
    let key = guard.key().to_owned();
    runtime.spawn(async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    drop(runtime);
    eventually_blocking("the key goes", || !server.exists(&key));
}

#[test]
fn p12_a_guard_dropped_while_unwinding_frees_the_key() {
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locker = runtime.block_on(locker(&server));
    let guard = runtime.block_on(held(&locker));
    let key = guard.key().to_owned();
    let panicked = std::thread::spawn(move || {
        let _guard = guard;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    eventually_blocking("the key goes", || !server.exists(&key));

    let guard = runtime.block_on(held(&locker));
    let key = guard.key().to_owned();
    let panicked = runtime.spawn(async move {
        let _guard = guard;
        panic!("on purpose");
    });
    assert!(runtime.block_on(panicked).is_err());
    eventually_blocking("the key goes", || !server.exists(&key));
}

#[test]
fn p12_a_guard_dropped_with_its_threads_locals_frees_the_key() {
    thread_local!(static GUARD: RefCell<Option<LockGuard>> = const { RefCell::new(None) });
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let locker = runtime.block_on(locker(&server));
    let guard = runtime.block_on(held(&locker));
    let key = guard.key().to_owned();
    let thread = std::thread::spawn(move || GUARD.set(Some(guard)));
    thread.join().unwrap();
    eventually_blocking("the key goes", || !server.exists(&key));
}

#[test]
fn p12_the_last_handle_waits_for_the_release_and_no_longer_than_told() {
    let server = Server::start();
    let locker = blocking::Locker::connect(server.url()).unwrap();
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().unwrap();
    let key = guard.key().to_owned();
    drop(locker);
    drop(guard);
    assert!(!server.exists(&key), "confirmed when drop returns");

    let builder = blocking::Locker::builder().flush_timeout(Duration::from_millis(100));
    let locker = builder.connect(server.url()).unwrap();
    let guard = locker.mutex(unique_key()).ttl(TTL).lock().unwrap();
    server.freeze();
    let began = Instant::now();
    drop(locker);
    drop(guard);
    assert!(began.elapsed() < DEADLINE);
    server.thaw();
}

#[tokio::test]
async fn close_fails_waiters_releases_guards_and_waits_for_it() {
    let server = Server::start();
    let locker = locker(&server).await;
    let guard = held(&locker).await;
    let behind = locker.mutex(guard.key()).ttl(TTL);
    let behind = tokio::spawn(async move { behind.lock().await });
    let foreign = unique_key();
    server.command::<()>(&["SET", &foreign, "theirs"]);
    let polling = locker.mutex(&foreign).ttl(TTL);
    let polling = tokio::spawn(async move { polling.lock().await });
    tokio::task::yield_now().await;

    locker.close(DEADLINE).await.expect("confirmed");
    assert!(!server.exists(guard.key()));
    assert!(guard.is_lost() && guard.lost().is_cancelled());
    let reason = guard.lost_reason();
    assert!(matches!(reason, Some(redlease::LostReason::Closed)));
    for waiter in [behind, polling] {
        let end = timeout(DEADLINE, waiter).await.unwrap().unwrap();
        assert!(
            matches!(end, Err(redlease::Error::Closed { .. })),
            "{end:?}"
        );
    }
    let late = locker.mutex(unique_key()).lock().await;
    assert!(matches!(late, Err(redlease::Error::Closed { .. })));
    locker.close(DEADLINE).await.expect("twice is harmless");
}

#[tokio::test]
async fn close_takes_waiters_off_the_queue_in_redis() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    server.command::<()>(&["SET", &key, "theirs"]);
    let waiting = locker.mutex(&key).ttl(TTL);
    let waiter = tokio::spawn(async move { waiting.lock().await });
    let queue = format!("{{{key}}}:lock-queue");
    eventually("it waits", || server.exists(&queue)).await;
    locker.close(DEADLINE).await.expect("confirmed");
    assert!(!server.exists(&queue), "a grant would go to nobody");
    let end = timeout(DEADLINE, waiter).await.unwrap().unwrap();
    assert!(matches!(end, Err(redlease::Error::Closed { .. })));
}

/// Where the child finds its server, and what it is to do.
const URL: &str = "REDLEASE_TEST_URL";
const PART: &str = "REDLEASE_TEST_PART";

/// Runs [`child`] in a process of its own; returns what it printed, and whether it ended well.
fn run_child(server: &Server, part: &str) -> (String, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(URL, server.url())
        .env(PART, part)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_string(&mut output).unwrap();
    (output, child.wait().unwrap().success())
}

/// Not a test by itself: the `main` of the child processes.
#[test]
fn child() {
    let (Ok(url), Ok(part)) = (std::env::var(URL), std::env::var(PART)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let acquire = async {
        let locker = Locker::connect(&url).await.unwrap();
        let guard = locker.mutex("child").ttl(TTL).lock().await.unwrap();
        println!("held");
        guard
    };
    match part.as_str() {
        "async" => runtime.block_on(async {
            let _guard = acquire.await;
        }),
        "after the runtime" => {
            let _guard = runtime.block_on(acquire);
            drop(runtime);
        }
        "task" => runtime.block_on(async {
            let guard = acquire.await;
            tokio::spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
        }),
        "one thread" => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let _guard = acquire.await;
            }),
        "blocking" => {
            let locker = blocking::Locker::connect(&url).unwrap();
            let _guard = locker.mutex("child").ttl(TTL).lock().unwrap();
            println!("held");
        }
        "crash" => {
            let locker = blocking::Locker::connect(&url).unwrap();
            let lock = locker.mutex("child").ttl(Duration::from_millis(500));
            let _guard = lock.lock().unwrap();
            println!("held");
            std::process::abort();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn p12_the_last_statement_of_main_frees_the_key() {
    let server = Server::start();
    for part in [
        "async",
        "after the runtime",
        "task",
        "one thread",
        "blocking",
    ] {
        let (output, well) = run_child(&server, part);
        assert!(output.contains("held"), "{part}: {output}");
        assert!(well, "{part}: {output}");
        assert!(!server.exists("child"), "{part}");
    }
}

#[test]
fn p9_a_crashed_holders_lock_is_free_after_its_ttl() {
    let server = Server::start();
    let (output, well) = run_child(&server, "crash");
    assert!(output.contains("held") && !well, "{output}");
    let locker = blocking::Locker::connect(server.url()).unwrap();
    let granted = locker.mutex("child").try_lock_for(DEADLINE).unwrap();
    assert!(granted.is_some());
}
