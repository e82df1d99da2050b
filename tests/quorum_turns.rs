//! Contenders of several processes on one quorum wait in turn: as many lockers, which share
//! nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redlease::{Lock, LockGuard, Locker, Released};
use testkit::{DEADLINE, Servers, eventually, unique_key};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// So long that nothing expires while a test looks.
const TTL: Duration = Duration::from_secs(600);
/// For a waiter that dies or is forgotten: it lives as long as the lock, within half a second and
/// three.
const SHORT: Duration = Duration::from_secs(2);

async fn locker(urls: &[String]) -> Locker {
    let builder = Locker::builder().flush_timeout(Duration::ZERO);
    builder.quorum(urls).await.unwrap()
}

fn urls(servers: &Servers) -> Vec<String> {
    servers.urls()
}

/// Whose queue serves: the first by name.
fn first(servers: &Servers) -> usize {
    let names = servers
        .0
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port));
    let names: Vec<_> = names.collect();
    (0..names.len()).min_by_key(|&index| &names[index]).unwrap()
}

fn queue(lock: &Lock) -> String {
    format!("{{{}}}:lock-queue", lock.key())
}

fn waiting(servers: &Servers, index: usize, lock: &Lock) -> usize {
    servers.0[index].command(&["ZCARD", &queue(lock)])
}

/// A waiter with a process of its own, which says its number when it has the lock, and goes on to
/// the next.
fn wait(
    locker: Locker,
    lock: &Lock,
    number: usize,
    done: &mpsc::UnboundedSender<usize>,
) -> JoinHandle<()> {
    let lock = locker.mutex(lock.key()).ttl(TTL);
    let done = done.clone();
    tokio::spawn(async move {
        let guard = lock.lock().await.unwrap();
        done.send(number).unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        drop(locker);
    })
}

/// Ten waiters, in the order of their numbers, behind a guard.
async fn ten(
    servers: &Servers,
    lock: &Lock,
) -> (Vec<JoinHandle<()>>, mpsc::UnboundedReceiver<usize>) {
    let (sender, done) = mpsc::unbounded_channel();
    let mut waiters = Vec::new();
    let at = first(servers);
    for number in 0..10 {
        let locker = locker(&urls(servers)).await;
        waiters.push(wait(locker, lock, number, &sender));
        eventually("it waits at the first server", || {
            waiting(servers, at, lock) == number + 1
        })
        .await;
    }
    (waiters, done)
}

async fn all(mut done: mpsc::UnboundedReceiver<usize>) -> Vec<usize> {
    let mut order = Vec::new();
    let all = async {
        while let Some(number) = done.recv().await {
            order.push(number);
        }
    };
    let limit = tokio::time::timeout(2 * DEADLINE, all).await;
    limit.unwrap_or_else(|_| panic!("only {order:?} got it"));
    order
}

async fn hold(servers: &Servers) -> (Locker, Lock, LockGuard) {
    let locker = locker(&urls(servers)).await;
    let lock = locker.mutex(unique_key()).ttl(TTL);
    let guard = lock.lock().await.unwrap();
    let count = servers.0.len();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == count
    })
    .await;
    (locker, lock, guard)
}

fn requests(servers: &Servers) -> u64 {
    let scripts = |server: &testkit::Server| server.calls("evalsha") + server.calls("eval");
    servers.0.iter().map(scripts).sum()
}

async fn nothing_is_left(servers: &Servers, lock: &Lock) {
    eventually("all are free", || servers.with_key(lock.key()) == 0).await;
    for (index, server) in servers.0.iter().enumerate() {
        eventually("nobody waits", || waiting(servers, index, lock) == 0).await;
        eventually("the key is free, and stays it", || {
            !server.exists(lock.key())
        })
        .await;
    }
}

#[tokio::test]
async fn waiters_of_ten_processes_get_the_lock_in_the_order_in_which_they_came() {
    let servers = Servers::start(5);
    let (_locker, lock, guard) = hold(&servers).await;
    let (_waiters, done) = ten(&servers, &lock).await;
    let before = requests(&servers);
    guard.release().await.unwrap();
    assert_eq!(all(done).await, Vec::from_iter(0..10));
    nothing_is_left(&servers, &lock).await;
    let spent = requests(&servers) - before;
    // Votes and releases of ten, and the release of the first; heartbeats of a slow machine.
    assert!(spent <= 15 * 11, "{spent}");
}

#[tokio::test]
async fn who_names_the_servers_in_another_order_waits_at_the_same_one() {
    let servers = Servers::start(3);
    let (_locker, lock, guard) = hold(&servers).await;
    let (sender, done) = mpsc::unbounded_channel();
    for number in 0..3 {
        let mut urls = urls(&servers);
        urls.rotate_left(number);
        wait(locker(&urls).await, &lock, number, &sender);
        eventually("it waits at the first server", || {
            waiting(&servers, first(&servers), &lock) == number + 1
        })
        .await;
    }
    drop(sender);
    guard.release().await.unwrap();
    assert_eq!(all(done).await, [0, 1, 2]);
    nothing_is_left(&servers, &lock).await;
}

#[tokio::test]
async fn p11_a_queue_server_that_freezes_while_ten_wait_costs_time_only() {
    let servers = Servers::start(3);
    let (_locker, lock, guard) = hold(&servers).await;
    let (_waiters, done) = ten(&servers, &lock).await;
    let at = first(&servers);
    servers.0[at].freeze();
    guard.release().await.unwrap();
    let mut order = all(done).await;
    order.sort_unstable();
    assert_eq!(order, Vec::from_iter(0..10));
    servers.0[at].thaw();
    nothing_is_left(&servers, &lock).await;
}

#[tokio::test]
async fn p11_a_queue_server_that_is_killed_while_ten_wait_costs_time_only() {
    let mut servers = Servers::start(3);
    let (_locker, lock, guard) = hold(&servers).await;
    let (_waiters, done) = ten(&servers, &lock).await;
    let at = first(&servers);
    servers.0[at].kill();
    guard.release().await.unwrap();
    let mut order = all(done).await;
    order.sort_unstable();
    assert_eq!(order, Vec::from_iter(0..10));
}

#[tokio::test]
async fn p11_a_queue_server_that_comes_back_empty_while_ten_wait_costs_time_only() {
    let mut servers = Servers::start(3);
    let (_locker, lock, guard) = hold(&servers).await;
    let (_waiters, done) = ten(&servers, &lock).await;
    let at = first(&servers);
    servers.0[at].restart();
    guard.release().await.unwrap();
    let mut order = all(done).await;
    order.sort_unstable();
    assert_eq!(order, Vec::from_iter(0..10));
    nothing_is_left(&servers, &lock).await;
}

/// It is called, asks nobody for a vote, and its key at the queue's server expires with it.
#[tokio::test]
async fn p11_a_waiter_that_dies_is_passed_over() {
    let servers = Servers::start(3);
    let (_locker, lock, guard) = hold(&servers).await;
    let at = first(&servers);
    // As one that was killed leaves it: a place, and no more heartbeats.
    let () = servers.0[at].command(&["ZADD", &queue(&lock), "1", "dead"]);
    let time: (u64, u64) = servers.0[at].command(&["TIME"]);
    let beat = time.0 * 1_000 + time.1 / 1_000;
    let record = format!("{beat} 2000 2000 1 1 redlease:dead");
    let waiters = format!("{{{}}}:lock-waiters", lock.key());
    let () = servers.0[at].command(&["HSET", &waiters, "dead", &record]);
    let (sender, done) = mpsc::unbounded_channel();
    for number in 0..3 {
        wait(locker(&urls(&servers)).await, &lock, number, &sender);
        eventually("it waits", || waiting(&servers, at, &lock) > number).await;
    }
    drop(sender);
    guard.release().await.unwrap();
    let mut order = all(done).await;
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2]);
    nothing_is_left(&servers, &lock).await;
}

#[tokio::test]
async fn p10_a_waiter_that_gives_up_leaves_nothing_and_passes_its_turn_on() {
    let servers = Servers::start(3);
    let (_locker, lock, guard) = hold(&servers).await;
    let (waiters, done) = ten(&servers, &lock).await;
    for waiter in waiters.iter().step_by(2) {
        waiter.abort();
    }
    guard.release().await.unwrap();
    let order = all(done).await;
    assert!(
        [1, 3, 5, 7, 9].iter().all(|number| order.contains(number)),
        "{order:?}"
    );
    nothing_is_left(&servers, &lock).await;
}

#[tokio::test]
async fn p9_a_holder_that_dies_is_followed_by_the_first_that_waits() {
    let servers = Servers::start(3);
    let key = unique_key();
    for server in &servers.0 {
        let ttl = SHORT.as_millis().to_string();
        let () = server.command(&["SET", &key, "dead", "PX", &ttl]);
    }
    let locker = locker(&urls(&servers)).await;
    let start = Instant::now();
    let guard = tokio::time::timeout(DEADLINE, locker.mutex(&key).lock()).await;
    assert!(guard.expect("it is free after its ttl").is_ok());
    assert!(start.elapsed() >= SHORT / 2);
}

/// The queue's server was given to the waiter while somebody else has the majority.
#[tokio::test]
async fn p1_whose_turn_it_is_does_not_hold_before_the_majority_is_free() {
    let servers = Servers::start(3);
    let holder = locker(&urls(&servers)).await;
    // Nothing renews, so that the waiter is the first to take what is free.
    let lock = holder.mutex(unique_key()).ttl(TTL).auto_renew(false);
    let guard = lock.lock().await.unwrap();
    eventually("the key is everywhere", || {
        servers.with_key(lock.key()) == 3
    })
    .await;
    let (sender, mut done) = mpsc::unbounded_channel();
    wait(locker(&urls(&servers)).await, &lock, 0, &sender);
    drop(sender);
    let at = first(&servers);
    eventually("it waits", || waiting(&servers, at, &lock) == 1).await;
    let () = servers.0[at].command(&["DEL", lock.key()]);
    eventually("it has the queue's server", || {
        let value = servers.0[at].get(lock.key());
        value.is_some_and(|value| value != guard.value())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    guard.ensure_held().unwrap();
    assert!(done.try_recv().is_err(), "P1");
    guard.release().await.unwrap();
    assert_eq!(all(done).await, [0]);
    nothing_is_left(&servers, &lock).await;
}

/// Two processes, each first in a queue of its own, and a server that tips no balance.
#[tokio::test]
async fn p11_contenders_that_disagree_on_the_first_server_get_the_lock_although_one_is_dead() {
    let mut servers = Servers::start(3);
    let names = urls(&servers);
    let unix = |index: usize| format!("redis+unix://{}", servers.0[index].socket().display());
    // By name: paths come before addresses, so each takes another for the first.
    let one = [unix(0), names[1].clone(), names[2].clone()];
    let other = [names[0].clone(), unix(1), names[2].clone()];
    let lockers = [
        locker(&one).await,
        locker(&other).await,
        locker(&one).await,
        locker(&other).await,
    ];
    servers.0[2].kill();
    let key = unique_key();
    let mut racers = Vec::new();
    for locker in lockers {
        let lock = locker.mutex(&key).ttl(Duration::from_secs(60));
        racers.push(tokio::spawn(async move {
            for _ in 0..10 {
                let guard = lock.lock().await.unwrap();
                tokio::task::yield_now().await;
                guard.release().await.unwrap();
            }
            drop(locker);
        }));
    }
    for racer in racers {
        let done = tokio::time::timeout(2 * DEADLINE, racer).await;
        done.expect("nobody waits for ever").unwrap();
    }
}

/// The first of the process keeps the vote of the queue's server, which reserved one number. Then a
/// second one waits behind it, for which the other votes reserve more.
#[tokio::test]
async fn p8_numbers_for_others_of_the_process_are_reserved_where_a_vote_was_kept() {
    let mut servers = Servers::start(3);
    let at = first(&servers);
    let (other, last) = ((at + 1) % 3, (at + 2) % 3);
    servers.0[last].kill();
    let key = unique_key();
    // Ahead of this process' clock, as after a holder elsewhere: so that the votes agree.
    let counter = format!("{{{key}}}:fence");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ahead = now.as_micros() as u64 + 3_600_000_000;
    for index in [at, other] {
        let () = servers.0[index].command(&["SET", &counter, &ahead.to_string()]);
    }
    let () = servers.0[other].command(&["SET", &key, "somebody else", "PX", "600000"]);

    let waiters = locker(&urls(&servers)).await;
    let (sender, mut tokens) = mpsc::unbounded_channel();
    let wait = || {
        let lock = waiters.mutex(&key).ttl(TTL);
        let lock = lock.handover_for(Duration::from_secs(60));
        let sender = sender.clone();
        tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            sender.send(guard.fencing_token()).unwrap();
            guard.release().await.unwrap();
        })
    };
    let turn = wait();
    let writer = format!("{counter}-owner");
    // A first attempt is undone at once; a vote that is kept stays there.
    let mut seen = 0;
    eventually("it keeps its vote", || {
        let value = servers.0[at].get(&key);
        seen = match value.is_some() && value == servers.0[at].get(&writer) {
            true => seen + 1,
            false => 0,
        };
        seen == 5
    })
    .await;
    let behind = wait();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let () = servers.0[other].command(&["DEL", &key]);
    turn.await.unwrap();
    behind.await.unwrap();
    let handed_over = [tokens.recv().await.unwrap(), tokens.recv().await.unwrap()];
    assert!(handed_over[0] < handed_over[1]);

    // Of those two servers, only the one of the queue serves now.
    servers.0[last].restart();
    let later = locker(&urls(&servers)).await;
    servers.0[other].freeze();
    let guard = later.mutex(&key).ttl(TTL).lock().await.unwrap();
    assert!(
        guard.fencing_token() > handed_over[1],
        "P8: {} after {handed_over:?}",
        guard.fencing_token()
    );
    servers.0[other].thaw();
}
