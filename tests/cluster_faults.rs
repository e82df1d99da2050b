//! A Redis Cluster with servers that fail, hang or change their slots under load.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use redlease::{Error, LockGuard, Locker, LostReason, Released};
use testkit::{Cluster, ClusterOptions, DEADLINE, eventually, key_in, slot_of};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

const NODE_TIMEOUT: Duration = Duration::from_secs(1);

fn with_replicas(full_coverage: bool) -> Cluster {
    Cluster::with(&ClusterOptions {
        node_timeout: NODE_TIMEOUT,
        full_coverage,
        ..ClusterOptions::default()
    })
}

fn three_masters() -> Cluster {
    Cluster::with(&ClusterOptions {
        replicas: 0,
        full_coverage: false,
        ..ClusterOptions::default()
    })
}

async fn locker(cluster: &Cluster) -> Locker {
    let locker = Locker::cluster(cluster.urls()).await;
    locker.expect("a locker")
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = timeout(DEADLINE, future).await;
    done.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Guards of keys in so many slots of a master.
async fn guards_at(
    cluster: &Cluster,
    locker: &Locker,
    master: usize,
    count: usize,
    ttl: Duration,
) -> Vec<LockGuard> {
    let slots = cluster.slots_of(master);
    let mut guards = Vec::new();
    for slot in slots.iter().take(count) {
        let lock = locker.mutex(key_in(*slot)).ttl(ttl);
        guards.push(in_time("a guard", lock.lock()).await.unwrap());
    }
    guards
}

fn assert_held(guards: &[LockGuard]) {
    for guard in guards {
        assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
    }
}

async fn renewed_beyond(guards: &[LockGuard], moment: Instant) {
    for guard in guards {
        eventually("it is renewed", || {
            assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
            Instant::now() + guard.remaining() > moment
        })
        .await;
    }
}

/// A task that acquires and releases a lock again and again, and tells how long the longest cycle
/// took. Errors are counted.
struct Cycles {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(Duration, u64, u64)>,
}

impl Cycles {
    fn start(locker: &Locker, key: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, locker) = (Arc::clone(&stop), locker.clone());
        let task = tokio::spawn(async move {
            let (mut longest, mut done, mut failed) = (Duration::ZERO, 0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                match locker.mutex(&key).lock().await {
                    Ok(guard) => match guard.release().await {
                        Ok(_) => done += 1,
                        Err(_) => failed += 1,
                    },
                    Err(_) => failed += 1,
                }
                longest = longest.max(start.elapsed());
            }
            (longest, done, failed)
        });
        Self { stop, task }
    }

    async fn stop(self) -> (Duration, u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        in_time("the last cycle", self.task).await.unwrap()
    }
}

/// As an operator moves slots: `redis-cli --cluster reshard`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_no_guard_is_lost_by_a_reshard() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let ttl = Duration::from_secs(3);
    let guards = guards_at(&cluster, &locker, 0, 100, ttl).await;
    let cycles = Cycles::start(&locker, key_in(cluster.slots_of(0)[5]));
    cluster.reshard(0, 1, 150).await;
    renewed_beyond(&guards, Instant::now() + ttl * 3 / 4).await;
    let (longest, done, failed) = cycles.stop().await;
    println!("{done} cycles meanwhile, the longest {longest:?}, {failed} failed");
    assert_eq!(failed, 0);
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

/// Operators' tools move the lowest slots of a server first, one by one.
#[tokio::test]
async fn a_reshard_leaves_the_connections_to_its_source_alone() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let source = &cluster.nodes[0];
    let subscribers = || {
        let clients: String = source.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        let id = |client: &str| client.split(' ').next().map(str::to_owned);
        let mut ids: Vec<_> = clients.lines().filter_map(id).collect();
        ids.sort();
        ids
    };
    let slots = cluster.slots_of(0);
    let before = subscribers();
    assert_eq!(before.len(), 2, "the caller's and the driver's");
    for slot in &slots[..20] {
        cluster.move_slot(*slot, 1).run();
        let lock = locker.mutex(key_in(slots[30]));
        let guard = in_time("a guard", lock.lock()).await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
    assert_eq!(subscribers(), before);
}

/// Valkey from version 9 on moves whole slots, with all of their keys at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_guard_is_lost_by_a_move_of_whole_slots() {
    let cluster = three_masters();
    let known = ["COMMAND", "INFO", "CLUSTER|MIGRATESLOTS"];
    let known: Vec<redis::Value> = cluster.nodes[0].command(&known);
    if known == [redis::Value::Nil] {
        return testkit::left_out("the server does not move whole slots");
    }
    let locker = locker(&cluster).await;
    let ttl = Duration::from_secs(3);
    let guards = guards_at(&cluster, &locker, 0, 100, ttl).await;
    let slots = cluster.slots_of(0);
    let (first, last) = (slots[0], slots[149]);
    let cycles = Cycles::start(&locker, key_in(slots[5]));
    let to: String = cluster.nodes[1].command(&["CLUSTER", "MYID"]);
    let range = [first.to_string(), last.to_string()];
    cluster.nodes[0].command::<()>(&[
        "CLUSTER",
        "MIGRATESLOTS",
        "SLOTSRANGE",
        &range[0],
        &range[1],
        "NODE",
        &to,
    ]);
    eventually("the slots are there", || {
        cluster.slots_of(1).contains(&last)
    })
    .await;
    renewed_beyond(&guards, Instant::now() + ttl * 3 / 4).await;
    let (longest, done, failed) = cycles.stop().await;
    println!("{done} cycles meanwhile, the longest {longest:?}, {failed} failed");
    assert_eq!(failed, 0);
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_guard_is_lost_by_a_failover_by_hand() {
    let cluster = with_replicas(true);
    let locker = locker(&cluster).await;
    let ttl = Duration::from_secs(5);
    let guards = guards_at(&cluster, &locker, 0, 50, ttl).await;
    let replica = cluster.replicas_of(0)[0];
    cluster.replicated(0).await;
    let cycles = Cycles::start(&locker, cluster.key_at(0));
    cluster.failover(replica).await;
    renewed_beyond(&guards, Instant::now() + ttl * 3 / 4).await;
    let (longest, done, failed) = cycles.stop().await;
    println!("{done} cycles meanwhile, the longest {longest:?}, {failed} failed");
    for guard in guards {
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

/// The locks of the other servers are served while a replica takes over, if the cluster is set up
/// for that. Guards outlast the election.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_killed_takes_no_guard_along_whose_ttl_is_longer_than_the_election() {
    for full_coverage in [true, false] {
        let mut cluster = with_replicas(full_coverage);
        let locker = locker(&cluster).await;
        let ttl = Duration::from_secs(20);
        let mut guards = Vec::new();
        for master in 0..3 {
            guards.extend(guards_at(&cluster, &locker, master, 33, ttl).await);
        }
        cluster.replicated(0).await;
        let slot = slot_of(&cluster.key_at(0));
        let other = Cycles::start(&locker, cluster.key_at(1));
        cluster.nodes[0].kill();
        let killed = Instant::now();
        let switch = cluster.switched(slot, 0).await;
        let lock = locker.mutex(key_in(slot));
        drop(
            in_time("an acquire at the new master", lock.lock())
                .await
                .unwrap(),
        );
        println!(
            "full coverage {full_coverage}: new master after {:?}, acquired {:?} later",
            switch.at - killed,
            switch.at.elapsed()
        );
        renewed_beyond(&guards, Instant::now() + ttl * 3 / 4).await;
        let (longest, done, failed) = other.stop().await;
        println!("{done} cycles elsewhere, the longest {longest:?}, {failed} failed");
        for guard in guards {
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        }
    }
}

/// What delayed everybody with another client: one server hangs, and a slot moves elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_shard_delays_no_other() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let ttl = Duration::from_secs(5);
    let (hung, elsewhere) = (
        guards_at(&cluster, &locker, 0, 20, Duration::from_secs(2)).await,
        guards_at(&cluster, &locker, 1, 20, ttl).await,
    );
    let slots = cluster.slots_of(1);
    let cycles: Vec<_> = slots[30..34]
        .iter()
        .map(|slot| Cycles::start(&locker, key_in(*slot)))
        .collect();
    cluster.nodes[0].freeze();
    for (slot, to) in slots[30..34].iter().zip([2, 2, 2, 2]) {
        cluster.move_slot(*slot, to).run();
    }
    for guard in &hung {
        in_time(
            "the loss of a guard at the hung server",
            guard.lost().cancelled(),
        )
        .await;
        assert_eq!(guard.lost_reason(), Some(LostReason::Expired));
    }
    renewed_beyond(&elsewhere, Instant::now() + ttl * 3 / 4).await;
    for cycles in cycles {
        let (longest, done, failed) = cycles.stop().await;
        println!("{done} cycles at the others, the longest {longest:?}");
        assert_eq!(failed, 0);
        // A request to the hung server takes a second until it is given up.
        assert!(longest < Duration::from_millis(900), "{longest:?}");
    }
    cluster.nodes[0].thaw();
    drop(hung);
    assert_held(&elsewhere);
}

/// The thread that asks about the slots has no use for most of its connections: those to the
/// healthy servers may be gone by the time that another hangs.
#[tokio::test]
async fn a_hung_master_is_followed_by_its_replica_though_no_other_was_asked_lately() {
    let cluster = with_replicas(false);
    let locker = locker(&cluster).await;
    let slot = cluster.slots_of(0)[0];
    for healthy in 1..3 {
        cluster.nodes[healthy].command::<()>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }
    cluster.nodes[0].freeze();
    cluster.switched(slot, 0).await;
    let lock = locker.mutex(key_in(slot));
    let guard = in_time("a guard", lock.lock()).await.expect("a guard");
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    cluster.nodes[0].thaw();
}

/// A locker that begins while one server of three hangs can use the other two.
#[tokio::test]
async fn a_hung_shard_keeps_no_locker_from_connecting() {
    let cluster = three_masters();
    let key = cluster.key_at(1);
    cluster.nodes[0].freeze();
    let mut connecting = JoinSet::new();
    for _ in 0..12 {
        let urls = cluster.urls().split_off(1);
        let key = key.clone();
        connecting.spawn(async move {
            let locker = Locker::cluster(&urls).await.expect("a locker");
            let guard = locker.mutex(key).lock().await.expect("a guard");
            assert_eq!(guard.release().await.unwrap(), Released::Freed);
        });
    }
    while let Some(connected) = in_time("a locker", connecting.join_next()).await {
        connected.unwrap();
    }
    cluster.nodes[0].thaw();
}

/// While a connection to a hung master is awaited, nothing else would tell of its successor.
#[tokio::test]
async fn whoever_waits_for_a_hung_master_goes_on_at_its_successor() {
    let cluster = with_replicas(false);
    let long = Duration::from_secs(120);
    let locker = Locker::builder().command_timeout(long);
    let locker = locker.cluster(cluster.urls()).await.expect("a locker");
    let slot = cluster.slots_of(0)[0];
    let subscribers = ["CLIENT", "KILL", "TYPE", "pubsub"];
    cluster.nodes[0].command::<()>(&subscribers);
    cluster.nodes[0].freeze();
    let lock = locker.mutex(key_in(slot)).outage_limit(long);
    let guard = in_time("a guard", lock.lock()).await.expect("a guard");
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    cluster.nodes[0].thaw();
}

/// The connection to one server of three is lost: only its leases are asked about.
#[tokio::test]
async fn a_lost_connection_puts_only_its_own_leases_in_question() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let ttl = Duration::from_secs(60);
    let scripts = |node: usize| cluster.nodes[node].calls("evalsha");
    let mut guards = Vec::new();
    for master in 0..3 {
        let before = scripts(master);
        guards.extend(guards_at(&cluster, &locker, master, 10, ttl).await);
        // Each lease is asked for, and looked at once when it is no longer young.
        eventually("all are watched", || scripts(master) >= before + 20).await;
    }
    // The connections are those of subscribers.
    let before = [scripts(0), scripts(1), scripts(2)];
    cluster.nodes[1].command::<()>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually("the leases are asked about", || {
        scripts(1) >= before[1] + 10
    })
    .await;
    assert_eq!([scripts(0), scripts(2)], [before[0], before[2]]);
    assert_held(&guards);
}

/// When the slot of a connection's channel moves away, the server sends what the client takes for
/// the reply to a request: from then on each reply is another's. Many renewals are under way then,
/// and some of the keys were stolen just before: their guards are told, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_lost_step_answers_nobody() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let (from, to) = (&cluster.nodes[0], &cluster.nodes[2]);
    let slots = cluster.slots_of(0);
    // The channel is in the last slot of its server.
    let last = *slots.last().expect("a slot");
    let ttl = Duration::from_secs(20);
    let guards = guards_at(&cluster, &locker, 0, 81, ttl).await;
    let mut guards: Vec<_> = guards.into_iter().skip(1).collect();
    let others = guards.split_off(20);
    let stolen = guards;
    let moving = cluster.move_slot(last, 2);
    moving.import();
    moving.migrate();
    moving.move_keys();

    // The server knows the script of a renewal now.
    stolen[0].renew().await.unwrap();
    // First the thefts, behind them the renewals: none is carried out yet.
    from.command::<()>(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let mut thefts = JoinSet::new();
    for guard in &stolen {
        let (mut thief, key) = (from.client(), guard.key().to_owned());
        thefts.spawn_blocking(move || redis::Cmd::set(key, "another's").exec(&mut thief));
    }
    let waiting = |command: &str| {
        let clients: String = from.command(&["CLIENT", "LIST"]);
        let waits = |client: &&str| {
            let mut words = client.split(' ');
            let is_blocked = words.any(|word| word.starts_with("flags=") && word.contains('b'));
            is_blocked && client.contains(&format!("cmd={command} "))
        };
        clients.lines().filter(waits).count()
    };
    eventually("the thefts wait", || waiting("set") == stolen.len()).await;
    let renewals = renew_all(stolen.iter().chain(&others));
    let renewals = in_time("the renewals", renewals);
    let setting = async {
        eventually("the renewals wait", || waiting("evalsha") > 0).await;
        let owner: String = to.command(&["CLUSTER", "MYID"]);
        for node in [to, from] {
            node.command::<()>(&["CLUSTER", "SETSLOT", &last.to_string(), "NODE", &owner]);
        }
        from.command::<()>(&["CLIENT", "UNPAUSE"]);
    };
    tokio::join!(renewals, setting);
    for theft in in_time("the thefts", thefts.join_all()).await {
        theft.unwrap();
    }
    for guard in &stolen {
        in_time("the loss of a stolen one", guard.lost().cancelled()).await;
        assert_eq!(guard.lost_reason(), Some(LostReason::Stolen));
    }
    renewed_beyond(&others, Instant::now() + ttl * 3 / 4).await;
}

/// Renews all at once.
async fn renew_all(guards: impl Iterator<Item = &LockGuard>) {
    let mut renewals: Vec<_> = guards.map(|guard| Box::pin(guard.renew())).collect();
    poll_fn(|context| {
        renewals.retain_mut(|renewal| renewal.as_mut().poll(context).is_pending());
        if renewals.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// A cluster without a server for the slot of a key is an outage.
#[tokio::test]
async fn a_slot_that_nobody_has_is_unavailable_until_somebody_has_it() {
    let cluster = three_masters();
    let locker = locker(&cluster).await;
    let slot = cluster.slots_of(0)[7];
    let words = slot.to_string();
    for node in &cluster.nodes {
        node.command::<()>(&["CLUSTER", "DELSLOTS", &words]);
    }
    let lock = locker.mutex(key_in(slot));
    let error = in_time("an error", lock.try_lock()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let waiter = tokio::spawn(async move { lock.lock().await });
    cluster.nodes[0].command::<()>(&["CLUSTER", "ADDSLOTS", &words]);
    drop(in_time("the lock", waiter).await.unwrap().unwrap());
}
