//! Contenders for one key of a quorum: tasks of one process, and several processes, which are as
//! many lockers that share nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redlease::{LockGuard, Locker, Released};
use testkit::{DEADLINE, Servers, eventually, unique_key};
use tokio::sync::Barrier;
use tokio::task::{JoinHandle, JoinSet};

/// So long that nothing expires and nobody renews while a test looks.
const TTL: Duration = Duration::from_secs(600);

/// Figures of contenders on a quorum: `cargo run --release -p compare quorum-contended`.
#[tokio::test]
async fn p1_three_racers_on_three_servers_have_one_holder_at_a_time_and_none_starves() {
    const ROUNDS: usize = 50;
    let servers = Servers::start(3);
    let key = unique_key();
    let inside = Arc::new(AtomicU32::new(0));
    let start = Arc::new(Barrier::new(3));
    let mut racers = Vec::new();
    for _ in 0..3 {
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let (key, inside, start) = (key.clone(), Arc::clone(&inside), Arc::clone(&start));
        racers.push(tokio::spawn(async move {
            for _ in 0..ROUNDS {
                start.wait().await;
                let lock = locker.mutex(&key);
                let guard = tokio::time::timeout(DEADLINE, lock.lock()).await;
                let guard = guard.expect("a split vote ends").unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        }));
    }
    for racer in racers {
        racer.await.unwrap();
    }
}

/// Waiters of as many processes.
async fn wait(servers: &Servers, key: &str, count: usize) -> Vec<JoinHandle<LockGuard>> {
    let mut waiters = Vec::new();
    for _ in 0..count {
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let lock = locker.mutex(key).ttl(TTL);
        waiters.push(tokio::spawn(async move { lock.lock().await.unwrap() }));
    }
    waiters
}

fn scripts(servers: &Servers) -> Vec<u64> {
    let calls = |server: &testkit::Server| server.calls("evalsha") + server.calls("eval");
    servers.0.iter().map(calls).collect()
}

/// The free server is there for each waiter to take and to give back, and tells the others of it.
#[tokio::test]
async fn waiters_do_not_storm_a_server_that_the_holder_lacks() {
    const WAITERS: usize = 8;
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key()).ttl(TTL).auto_renew(false);
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    let waiters = wait(&servers, lock.key(), WAITERS).await;
    let () = servers.0[2].command(&["DEL", lock.key()]);
    let begun = scripts(&servers);
    eventually("the waiters have asked several times", || {
        let now = scripts(&servers);
        now.iter()
            .zip(&begun)
            .all(|(now, begun)| now - begun >= 10 * WAITERS as u64)
    })
    .await;

    let attempts = servers.0[2].calls("set");
    let before = scripts(&servers);
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = scripts(&servers);
    let elapsed = start.elapsed().as_secs_f64();
    for (after, before) in after.iter().zip(before) {
        let rate = (after - before) as f64 / elapsed / WAITERS as f64;
        // Each comes back every 50 ms on average.
        assert!(rate < 30.0, "{rate}");
    }
    assert_eq!(servers.0[2].calls("set"), attempts, "nobody takes it");

    // Nobody is in the way of the repair.
    guard.renew().await.unwrap();
    eventually("the key is back", || servers.with_key(lock.key()) == 3).await;
    assert_eq!(servers.0[2].get(lock.key()).as_deref(), Some(guard.value()));
    guard.release().await.unwrap();
    for waiter in waiters {
        // In whatever order they get it.
        tokio::spawn(async move { waiter.await.unwrap().release().await });
    }
    eventually("all have had it", || servers.with_key(lock.key()) == 0).await;
}

/// The reservation of a block of fencing numbers, and the local hand-over that uses it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p1_p8_many_tasks_on_one_key_have_it_one_at_a_time_with_growing_tokens() {
    const TASKS: usize = 64;
    const ROUNDS: usize = 50;
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    let lock = locker.mutex(unique_key());
    let inside = Arc::new(AtomicUsize::new(0));
    let last = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (lock, inside, last) = (lock.clone(), Arc::clone(&inside), Arc::clone(&last));
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let guard = lock.lock().await.unwrap();
                let token = guard.fencing_token();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "P1");
                assert!(last.swap(token, Ordering::SeqCst) < token, "P8");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                if round % 2 == 0 {
                    assert_eq!(guard.release().await.unwrap(), Released::Freed);
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let grants: u64 = servers.0.iter().map(|s| s.calls("set")).max().unwrap();
    assert!(grants < (TASKS * ROUNDS) as u64, "handed over: {grants}");
    locker.close(DEADLINE).await.unwrap();
    eventually("all are free", || servers.with_key(lock.key()) == 0).await;
}
