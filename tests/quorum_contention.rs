//! Contenders for one key of a quorum: tasks of one process, and several processes, which are as
//! many lockers that share nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redlease::{Locker, Released};
use testkit::{DEADLINE, Servers, eventually, unique_key};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// So long that nothing expires while a test looks.
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

/// The free server is there for each waiter to take: it is the one at which they queue.
#[tokio::test]
async fn p2_a_server_that_forgot_the_holder_gets_the_key_back_although_others_wait() {
    const WAITERS: usize = 8;
    let servers = Servers::start(3);
    let locker = Locker::quorum(servers.urls()).await.unwrap();
    // Nothing but the test renews, so that a waiter is the first to take what is free.
    let lock = locker.mutex(unique_key()).ttl(TTL).auto_renew(false);
    let guard = lock.lock().await.unwrap();
    let is_everywhere = || {
        let values = servers.values(lock.key());
        values
            .iter()
            .all(|value| value.as_deref() == Some(guard.value()))
    };
    eventually("the key is everywhere", is_everywhere).await;
    let mut waiters = Vec::new();
    for _ in 0..WAITERS {
        let locker = Locker::quorum(servers.urls()).await.unwrap();
        let lock = locker.mutex(lock.key()).ttl(TTL);
        waiters.push(tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            guard.release().await.unwrap();
        }));
    }
    let queue = format!("{{{}}}:lock-queue", lock.key());
    eventually("all wait", || {
        let waiting = |server: &testkit::Server| server.command::<usize>(&["ZCARD", &queue]);
        servers.0.iter().map(waiting).sum::<usize>() == WAITERS
    })
    .await;
    let at = |server: &&testkit::Server| server.command::<usize>(&["ZCARD", &queue]) > 0;
    let server = servers.0.iter().find(at).unwrap();
    let () = server.command(&["DEL", lock.key()]);
    eventually("a waiter has taken it", || {
        let value = server.get(lock.key());
        value.is_some_and(|value| value != guard.value())
    })
    .await;
    let until = Instant::now() + DEADLINE;
    while !is_everywhere() {
        assert!(Instant::now() < until, "never: the key is back");
        guard.renew().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    guard.release().await.unwrap();
    for waiter in waiters {
        let done = tokio::time::timeout(DEADLINE, waiter).await;
        done.expect("all have had it").unwrap();
    }
    eventually("all are free", || servers.with_key(lock.key()) == 0).await;
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
