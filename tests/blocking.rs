//! The blocking API, on plain threads without a runtime, on a real server.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake};
use std::time::{Duration, Instant};

use redlease::blocking::{LockGuard, Locker};
use redlease::{Error, LostReason, Released};
use testkit::{DEADLINE, Server, eventually_blocking, unique_key};

fn locker(server: &Server) -> Locker {
    Locker::connect(server.url()).expect("a locker")
}

#[test]
fn a_scope_holds_the_lock() {
    let server = Server::start();
    let (one, other) = (locker(&server), locker(&server));
    let key = unique_key();
    {
        let guard = one.mutex(&key).lock().unwrap();
        assert_eq!(server.get(&key).as_deref(), Some(guard.value()));
        assert!(other.mutex(&key).try_lock().unwrap().is_none());
        let holder = other.mutex(&key).holder().unwrap().expect("a holder");
        assert_eq!(holder.value, guard.value().as_bytes());
    }
    let next = other.mutex(&key).try_lock_for(DEADLINE).unwrap();
    assert!(next.is_some());
}

#[test]
fn p1_threads_exclude_each_other() {
    let server = Server::start();
    let lockers = [locker(&server), locker(&server)];
    let key = unique_key();
    let inside = Arc::new(AtomicU32::new(0));
    std::thread::scope(|scope| {
        for number in 0..6 {
            let lock = lockers[number % 2].mutex(&key);
            let inside = Arc::clone(&inside);
            scope.spawn(move || {
                for _ in 0..5 {
                    let _guard = lock.lock().unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "P1");
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
}

#[test]
fn a_guard_outlives_its_ttl_and_tells_of_its_loss() {
    let server = Server::start();
    let locker = locker(&server);
    let key = unique_key();
    let ttl = Duration::from_secs(5);
    let lock = locker.mutex(&key).ttl(ttl);
    let guard = lock.renew_every(ttl / 100).lock().unwrap();
    let first_end = Instant::now() + guard.remaining();
    eventually_blocking("the lease goes beyond its first end", || {
        Instant::now() + guard.remaining() > first_end + ttl / 20
    });
    guard.ensure_held().unwrap();
    guard.renew().unwrap();
    assert!(guard.remaining() > Duration::ZERO && guard.remaining() < ttl);
    server.command::<()>(&["SET", &key, "thief"]);
    eventually_blocking("the token fires", || guard.lost().is_cancelled());
    assert!(guard.is_lost());
    assert!(matches!(guard.lost_reason(), Some(LostReason::Stolen)));
    assert!(matches!(guard.renew(), Err(Error::Lost(_))));
    assert_eq!(guard.release().unwrap(), Released::AlreadyLost);
    assert_eq!(server.get(&key).as_deref(), Some("thief"), "P6");
}

#[test]
fn a_limited_wait_ends() {
    let server = Server::start();
    let (one, other) = (locker(&server), locker(&server));
    let guard = one.mutex(unique_key()).lock().unwrap();
    let limit = Duration::from_millis(100);
    let began = Instant::now();
    for lock in [one.mutex(guard.key()), other.mutex(guard.key())] {
        assert!(lock.try_lock_for(limit).unwrap().is_none());
    }
    assert!(began.elapsed() >= 2 * limit);
    assert_eq!(guard.release().unwrap(), Released::Freed);
}

#[test]
fn run_returns_what_the_routine_returns() {
    let server = Server::start();
    let locker = locker(&server);
    let lock = locker.mutex(unique_key());
    let token = lock.run(|guard| guard.fencing_token()).unwrap();
    assert!(token > 0);
    assert!(!server.exists(lock.key()), "the release was awaited");
    let routine = lock.run(|guard| {
        server.command::<i64>(&["DEL", guard.key()]);
        7
    });
    assert_eq!(routine.unwrap(), 7, "a lost lease does not cost the result");
}

#[test]
fn it_works_inside_a_runtime() {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let locker = locker(&server);
        let guard = locker.mutex(unique_key()).lock().unwrap();
        let key = guard.key().to_owned();
        drop(guard);
        drop(locker);
        assert!(!server.exists(&key));
    });
}

#[test]
fn close_ends_waiters_and_guards() {
    let server = Server::start();
    let locker = locker(&server);
    let guard = locker.mutex(unique_key()).lock().unwrap();
    let lock = locker.mutex(guard.key());
    let waiter = std::thread::spawn(move || lock.lock());
    locker.close(DEADLINE).unwrap();
    let end = waiter.join().unwrap();
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    assert!(guard.is_lost());
    assert!(!server.exists(guard.key()));
}

#[test]
fn force_release_and_options_reach_redis() {
    let server = Server::start();
    let builder = Locker::builder().owner("night shift").prefix("p:");
    let locker = builder.connect(server.url()).unwrap();
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(Duration::from_secs(77));
    let guard = lock.auto_renew(false).lock().unwrap();
    let in_redis = format!("p:{key}");
    assert!(server.get(&in_redis).unwrap().ends_with(":night shift"));
    let pttl: u64 = server.command(&["PTTL", &in_redis]);
    assert!(pttl > 47_000 && pttl <= 77_000, "{pttl}");
    assert!(locker.mutex(&key).force_release().unwrap());
    assert!(!server.exists(&in_redis));
    assert!(matches!(guard.renew(), Err(Error::Lost(_))));
}

/// Calls the blocking API on the thread that wakes it.
struct Caller {
    locker: Locker,
    other: Locker,
    guard: Mutex<Option<LockGuard>>,
    outcomes: mpsc::Sender<(&'static str, Result<(), Error>)>,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        let tell = |what, outcome| self.outcomes.send((what, outcome)).unwrap();
        let free = self.locker.mutex(unique_key());
        let guard = self.guard.lock().unwrap().take().expect("woken once");
        let key = guard.key().to_owned();
        tell("lock", free.lock().map(drop));
        tell("try_lock", free.try_lock().map(drop));
        tell("try_lock_for", free.try_lock_for(DEADLINE).map(drop));
        tell("run", free.run(|_| ()));
        tell("holder", free.holder().map(drop));
        tell("force_release", free.force_release().map(drop));
        tell("renew", guard.renew());
        tell("release", guard.release().map(drop));
        tell("close", self.locker.close(DEADLINE));
        tell("another locker", self.other.mutex(key).lock().map(drop));
    }
}

#[test]
fn a_call_on_the_background_thread_is_an_error_and_no_deadlock() {
    let server = Server::start();
    let locker = locker(&server);
    let held = locker.mutex(unique_key()).lock().unwrap();
    let held_key = held.key().to_owned();
    let (sender, outcomes) = mpsc::channel();
    let caller = Caller {
        locker: locker.clone(),
        other: Locker::in_memory(),
        guard: Mutex::new(Some(held)),
        outcomes: sender,
    };
    let waker = Arc::new(caller).into();
    let lost = locker.mutex(unique_key()).lock().unwrap();
    let mut cancelled = pin!(lost.lost().cancelled_owned());
    let mut context = Context::from_waker(&waker);
    assert!(cancelled.as_mut().poll(&mut context).is_pending());
    server.command::<i64>(&["DEL", lost.key()]);
    let until = Instant::now() + DEADLINE;
    for _ in 0..10 {
        let left = until.saturating_duration_since(Instant::now());
        let (what, outcome) = outcomes.recv_timeout(left).expect("no deadlock");
        let Err(error @ Error::Invalid { .. }) = outcome else {
            panic!("{what}: {outcome:?}");
        };
        assert!(error.to_string().contains("background thread"), "{error}");
    }
    eventually_blocking("a guard that was to be released is", || {
        !server.exists(&held_key)
    });
    assert!(locker.mutex(unique_key()).try_lock().unwrap().is_some());
}
