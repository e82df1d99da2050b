//! Who may hold a lock, and with which number, on a real server.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redlease::{LockGuard, Locker};
use testkit::{DEADLINE, Server, unique_key};
use tokio::time::timeout;

async fn locker(server: &Server) -> Locker {
    Locker::connect(server.url()).await.expect("a locker")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_one_at_a_time() {
    let server = Server::start();
    let key = unique_key();
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let locker = locker(&server).await;
        for _ in 0..3 {
            let lock = locker.mutex(&key).ttl(Duration::from_secs(30));
            let inside = Arc::clone(&inside);
            tasks.push(tokio::spawn(async move {
                for _ in 0..5 {
                    let guard = lock.lock().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "P1");
                    tokio::task::yield_now().await;
                    assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1, "P1");
                    assert!(!guard.is_lost());
                    drop(guard);
                }
            }));
        }
    }
    for task in tasks {
        timeout(DEADLINE, task).await.expect("in time").unwrap();
    }
}

/// An acquisition, from its call to its return, and its number.
#[derive(Clone, Copy, Debug)]
struct Acquired {
    called: Instant,
    returned: Instant,
    fence: u64,
}

fn assert_fences_grow(acquired: &[Acquired]) {
    for a in acquired {
        for b in acquired {
            if a.returned < b.called {
                assert!(a.fence < b.fence, "P8: {a:?} {b:?}");
            }
        }
    }
}

/// P1 at an instant: losing is final, so a guard that is held after another was seen held was
/// held at that time, too.
fn assert_one_held(guards: &[Arc<LockGuard>]) {
    for (number, first) in guards.iter().enumerate() {
        for second in &guards[number + 1..] {
            let both = !first.is_lost() && !second.is_lost() && !first.is_lost();
            assert!(!both, "P1: {first:?} and {second:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p8_hold_while_the_server_freezes_forgets_scripts_and_drops_connections() {
    let server = Arc::new(Server::start());
    let key = unique_key();
    let stop = Arc::new(AtomicBool::new(false));
    let guards: Arc<Mutex<Vec<Arc<LockGuard>>>> = Arc::default();
    let log: Arc<Mutex<Vec<Acquired>>> = Arc::default();
    let mut tasks = Vec::new();
    for number in 0..3_u64 {
        let builder = Locker::builder().command_timeout(Duration::from_millis(500));
        let locker = builder.connect(server.url()).await.unwrap();
        let lock = locker.mutex(&key).ttl(Duration::from_millis(150));
        let lock = lock.outage_limit(DEADLINE);
        let (stop, guards, log) = (Arc::clone(&stop), Arc::clone(&guards), Arc::clone(&log));
        tasks.push(tokio::spawn(async move {
            let mut round = number;
            while !stop.load(Ordering::SeqCst) {
                let called = Instant::now();
                let Some(guard) = lock.try_lock_for(DEADLINE).await.unwrap() else {
                    panic!("nobody let go");
                };
                log.lock().unwrap().push(Acquired {
                    called,
                    returned: Instant::now(),
                    fence: guard.fencing_token(),
                });
                let guard = Arc::new(guard);
                guards.lock().unwrap().push(Arc::clone(&guard));
                // Some hold on far longer than they may.
                round += 1;
                tokio::time::sleep(Duration::from_millis(10 + round * 37 % 170)).await;
                guards
                    .lock()
                    .unwrap()
                    .retain(|held| !Arc::ptr_eq(held, &guard));
            }
        }));
    }
    let watch = {
        let (stop, guards) = (Arc::clone(&stop), Arc::clone(&guards));
        tokio::task::spawn_blocking(move || {
            while !stop.load(Ordering::SeqCst) {
                assert_one_held(&guards.lock().unwrap());
                std::thread::sleep(Duration::from_micros(200));
            }
        })
    };
    for round in 0..12_u64 {
        tokio::time::sleep(Duration::from_millis(70 + round * 53 % 90)).await;
        match round % 3 {
            0 => {
                server.freeze();
                tokio::time::sleep(Duration::from_millis(30 + round * 41 % 250)).await;
                server.thaw();
            }
            1 => server.command::<()>(&["SCRIPT", "FLUSH"]),
            _ => {
                server.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        timeout(DEADLINE, task).await.expect("in time").unwrap();
    }
    watch.await.unwrap();
    let log = log.lock().unwrap();
    assert!(log.len() > 5, "only {} acquisitions", log.len());
    assert_fences_grow(&log);
}

#[tokio::test]
async fn p1_we_and_other_libraries_exclude_each_other() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key);

    let ok: Option<String> = server.command(&["SET", &key, "theirs", "NX", "PX", "60000"]);
    assert!(ok.is_some());
    assert!(lock.try_lock().await.unwrap().is_none());
    let holder = lock.holder().await.unwrap().expect("a holder");
    assert_eq!(holder.value, b"theirs");
    assert_eq!(holder.owner, None);
    assert!(holder.ttl.unwrap() > Duration::from_secs(30));
    assert_eq!(server.get(&key).as_deref(), Some("theirs"));
    server.command::<i64>(&["DEL", &key]);

    let guard = lock.lock().await.unwrap();
    let refused: Option<String> = server.command(&["SET", &key, "theirs", "NX", "PX", "60000"]);
    assert!(refused.is_none());
    assert_eq!(server.command::<String>(&["TYPE", &key]), "string");
    assert_eq!(server.get(&key).as_deref(), Some(guard.value()));
}

#[tokio::test]
async fn a_foreign_key_without_a_ttl_is_waited_for() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    let lock = locker.mutex(&key);
    server.command::<()>(&["SET", &key, "theirs"]);
    let limit = Duration::from_millis(50);
    assert!(lock.try_lock_for(limit).await.unwrap().is_none());
    let holder = lock.holder().await.unwrap().expect("a holder");
    assert_eq!(holder.ttl, None);
    let waiter = tokio::spawn(async move { lock.lock().await });
    server.command::<i64>(&["DEL", &key]);
    let granted = timeout(DEADLINE, waiter).await.unwrap().unwrap();
    assert!(granted.is_ok());
}

#[tokio::test]
async fn a_holder_is_shown_with_its_label() {
    let server = Server::start();
    let builder = Locker::builder().owner("billing").prefix("app:");
    let locker = builder.connect(server.url()).await.unwrap();
    let key = unique_key();
    let lock = locker.mutex(&key).ttl(Duration::from_secs(30));
    assert_eq!(lock.holder().await.unwrap(), None);
    let guard = lock.lock().await.unwrap();
    let holder = lock.holder().await.unwrap().expect("a holder");
    assert_eq!(holder.owner.as_deref(), Some("billing"));
    assert_eq!(holder.value, guard.value().as_bytes());
    assert!(holder.ttl.unwrap() <= Duration::from_secs(30));
    let in_redis = server.get(&format!("app:{key}")).unwrap();
    assert_eq!(in_redis, guard.value());
    assert!(in_redis.ends_with(":billing"), "{in_redis}");
}

#[tokio::test]
async fn p6_every_acquisition_has_a_value_of_its_own() {
    let server = Server::start();
    let locker = locker(&server).await;
    let lock = locker.mutex(unique_key());
    let mut values = std::collections::HashSet::new();
    for _ in 0..20 {
        let guard = lock.lock().await.unwrap();
        assert!(values.insert(guard.value().to_owned()));
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn p8_tokens_grow_from_locker_to_locker() {
    let server = Server::start();
    let lockers = [locker(&server).await, locker(&server).await];
    let key = unique_key();
    let mut last = 0;
    for round in 0..20 {
        let guard = lockers[round % 2].mutex(&key).lock().await.unwrap();
        assert!(guard.fencing_token() > last);
        assert!(guard.fencing_token() < 1 << 53);
        last = guard.fencing_token();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn p8_tokens_grow_although_the_server_lost_its_data() {
    let server = Server::start();
    let locker = locker(&server).await;
    let lock = locker.mutex(unique_key());
    let guard = lock.lock().await.unwrap();
    let before = guard.fencing_token();
    guard.release().await.unwrap();
    server.command::<()>(&["FLUSHALL"]);
    let guard = lock.lock().await.unwrap();
    assert!(guard.fencing_token() > before);
}

#[tokio::test]
async fn p8_tokens_grow_from_a_counter_that_is_ahead_of_the_clock() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    // Sixteen digits, and as close to 2^53 as leaves room for blocks.
    let ahead = 9_007_199_250_000_001_u64;
    let counter = format!("{{{key}}}:fence");
    server.command::<()>(&["SET", &counter, &ahead.to_string()]);
    for step in 1..=3 {
        let guard = locker.mutex(&key).lock().await.unwrap();
        assert!(guard.fencing_token() >= ahead + step);
        assert!(guard.fencing_token() < 1 << 53);
        guard.release().await.unwrap();
    }
    let kept: i64 = server.command(&["PTTL", &counter]);
    let week = 7 * 24 * 60 * 60 * 1000;
    assert!(kept > week - 60_000 && kept <= week, "{kept}");
}

#[tokio::test]
async fn a_limited_wait_ends_with_none_and_a_last_attempt() {
    let server = Server::start();
    let locker = locker(&server).await;
    let key = unique_key();
    server.command::<()>(&["SET", &key, "theirs", "PX", "60000"]);
    let limit = Duration::from_millis(200);
    let began = Instant::now();
    let lock = locker.mutex(&key);
    assert!(lock.try_lock_for(limit).await.unwrap().is_none());
    assert!(began.elapsed() >= limit);
    assert!(lock.try_lock_for(Duration::ZERO).await.unwrap().is_none());
    server.command::<i64>(&["DEL", &key]);
    let last = lock.try_lock_for(Duration::ZERO).await.unwrap();
    assert!(last.is_some(), "a wait of no length is one attempt");
}
