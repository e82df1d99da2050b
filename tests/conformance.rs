//! What a lock is, whatever keeps it: one suite, run over every backend.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redlease::{Error, Locker, LostReason, Released};
#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
use testkit::{Authority, Launch, SentinelOptions, Tls};
use testkit::{
    Cluster, ClusterOptions, DEADLINE, MASTER, Sentinels, Server, Servers, eventually, unique_key,
};
use tokio::time::timeout;

/// Lockers that know nothing of each other but share a store, where the store can be shared.
struct Backend {
    one: Locker,
    other: Locker,
    /// What ends with the case.
    _servers: Box<dyn Any + Send>,
}

impl Backend {
    async fn of(
        servers: impl Any + Send,
        locker: impl AsyncFn() -> Result<Locker, Error>,
    ) -> Option<Self> {
        Some(Self {
            one: locker().await.expect("a locker"),
            other: locker().await.expect("a locker"),
            _servers: Box::new(servers),
        })
    }
}

async fn tcp() -> Option<Backend> {
    let server = Server::start();
    let url = server.url();
    Backend::of(server, async || Locker::connect(&url).await).await
}

async fn tcp_resp2() -> Option<Backend> {
    let server = Server::start();
    let url = format!("{}?protocol=resp2", server.url());
    Backend::of(server, async || Locker::connect(&url).await).await
}

async fn unix_socket() -> Option<Backend> {
    let server = Server::start();
    let url = format!("unix://{}", server.socket().display());
    Backend::of(server, async || Locker::connect(&url).await).await
}

/// None, which is said, where the server is built without TLS.
#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
async fn tls() -> Option<Backend> {
    let authority = Authority::new();
    let server = Server::with_tls(Tls::new(&authority, authority.server()))?;
    let (url, root) = (server.tls_url(), authority.root());
    let locker = async || trusting(&root).connect(&url).await;
    Backend::of((server, authority), locker).await
}

async fn quorum() -> Option<Backend> {
    let servers = Servers::start(3);
    let urls = servers.urls();
    Backend::of(servers, async || Locker::quorum(&urls).await).await
}

async fn cluster() -> Option<Backend> {
    let cluster = Cluster::with(&three_masters());
    let urls = cluster.urls();
    Backend::of(cluster, async || Locker::cluster(&urls).await).await
}

async fn cluster_resp2() -> Option<Backend> {
    let cluster = Cluster::with(&three_masters());
    let urls = cluster.urls();
    let urls: Vec<_> = urls
        .iter()
        .map(|url| format!("{url}?protocol=resp2"))
        .collect();
    Backend::of(cluster, async || Locker::cluster(&urls).await).await
}

#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
async fn cluster_tls() -> Option<Backend> {
    let authority = Authority::new();
    let launch = Launch::with_tls(Tls::new(&authority, authority.server()))?;
    let cluster = Cluster::with(&ClusterOptions {
        launch,
        ..three_masters()
    });
    let urls: Vec<_> = cluster.nodes.iter().map(Server::tls_url).collect();
    let root = authority.root();
    let locker = async || trusting(&root).cluster(&urls).await;
    Backend::of((cluster, authority), locker).await
}

async fn sentinel() -> Option<Backend> {
    let set = Sentinels::start();
    let urls = set.urls();
    let locker = async || Locker::sentinel(&urls, MASTER).await;
    Backend::of(set, locker).await
}

async fn sentinel_resp2() -> Option<Backend> {
    let set = Sentinels::start();
    let urls = set.urls();
    let master = format!("redis://{MASTER}?protocol=resp2");
    let locker = async || Locker::sentinel(&urls, &master).await;
    Backend::of(set, locker).await
}

#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
async fn sentinel_tls() -> Option<Backend> {
    let authority = Authority::new();
    let launch = Launch::with_tls(Tls::new(&authority, authority.server()))?;
    let set = Sentinels::with(&SentinelOptions {
        launch,
        ..SentinelOptions::default()
    });
    let urls: Vec<_> = set.sentinels.iter().map(Server::tls_url).collect();
    let (master, root) = (format!("rediss://{MASTER}"), authority.root());
    let locker = async || trusting(&root).sentinel(&urls, &master).await;
    Backend::of((set, authority), locker).await
}

async fn memory() -> Option<Backend> {
    let locker = Locker::in_memory();
    Backend::of((), async || Ok(locker.clone())).await
}

/// Reads the system's certificates at each opening, which takes its time in a build for tests.
#[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
fn trusting(root: &str) -> redlease::Builder {
    let builder = Locker::builder().command_timeout(DEADLINE);
    builder.root_certificates(root)
}

/// A cluster of which no case loses a server.
fn three_masters() -> ClusterOptions {
    ClusterOptions {
        replicas: 0,
        ..ClusterOptions::default()
    }
}

macro_rules! suite {
    ([$($(#[$attribute:meta])* $store:ident)*] $cases:tt) => {
        $(suite! { @ $(#[$attribute])* $store $cases })*
    };
    (@ $(#[$attribute:meta])* $store:ident { $($case:ident)* }) => {
        $(#[$attribute])*
        mod $store {
            $(#[tokio::test] async fn $case() {
                if let Some(backend) = super::$store().await {
                    super::$case(backend).await;
                }
            })*
        }
    };
}

suite! {
    [
        tcp
        tcp_resp2
        unix_socket
        #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
        tls
        memory
        quorum
        sentinel
        sentinel_resp2
        #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
        sentinel_tls
        cluster
        cluster_resp2
        #[cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]
        cluster_tls
    ]
    {
        a_guard_excludes_others_until_its_release
        a_dropped_guard_frees_the_key
        a_waiter_gets_the_lock
        waiters_exclude_each_other
        tokens_grow
        a_guard_outlives_its_ttl
        without_renewal_a_guard_expires
        max_hold_ends_a_guard
        force_release_is_a_loss
        holder_tells_who
        run_runs_under_the_lock
        a_limited_wait_ends
        a_cancelled_wait_leaves_nothing
        close_closes
        bad_options_are_refused
    }
}

async fn a_guard_excludes_others_until_its_release(b: Backend) {
    let key = unique_key();
    let (lock, other) = (b.one.mutex(&key), b.other.mutex(&key));
    let guard = lock.lock().await.unwrap();
    assert_eq!(guard.key(), key);
    assert!(!guard.is_lost());
    assert!(guard.lost_reason().is_none());
    assert!(lock.try_lock().await.unwrap().is_none());
    assert!(other.try_lock().await.unwrap().is_none());
    assert!(
        b.other
            .mutex(unique_key())
            .try_lock()
            .await
            .unwrap()
            .is_some()
    );
    let token = guard.lost();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(!token.is_cancelled(), "a release is no loss");
    assert!(other.try_lock().await.unwrap().is_some());
}

async fn a_dropped_guard_frees_the_key(b: Backend) {
    let lock = b.one.mutex(unique_key());
    drop(lock.lock().await.unwrap());
    let next = timeout(DEADLINE, lock.lock()).await.expect("in time");
    assert!(next.is_ok());
}

async fn a_waiter_gets_the_lock(b: Backend) {
    let key = unique_key();
    let guard = b.one.mutex(&key).lock().await.unwrap();
    let first = guard.fencing_token();
    let other = b.other.mutex(&key);
    let waiter = tokio::spawn(async move { other.lock().await });
    tokio::task::yield_now().await;
    assert!(!waiter.is_finished());
    guard.release().await.unwrap();
    let second = timeout(DEADLINE, waiter).await.unwrap().unwrap().unwrap();
    assert!(second.fencing_token() > first);
}

async fn waiters_exclude_each_other(b: Backend) {
    let key = unique_key();
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for number in 0..6 {
        let lock = if number % 2 == 0 { &b.one } else { &b.other }.mutex(&key);
        let inside = Arc::clone(&inside);
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                let _guard = lock.lock().await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "P1");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            }
        }));
    }
    for task in tasks {
        timeout(DEADLINE, task).await.unwrap().unwrap();
    }
}

async fn tokens_grow(b: Backend) {
    let key = unique_key();
    let mut last = 0;
    for round in 0..10 {
        let locker = if round % 2 == 0 { &b.one } else { &b.other };
        let guard = locker.mutex(&key).lock().await.unwrap();
        assert!(guard.fencing_token() > last, "P8");
        last = guard.fencing_token();
        guard.release().await.unwrap();
    }
}

async fn a_guard_outlives_its_ttl(b: Backend) {
    let key = unique_key();
    let lock = b.one.mutex(&key).ttl(Duration::from_secs(5));
    let lock = lock.renew_every(Duration::from_millis(50));
    let guard = lock.lock().await.unwrap();
    let first_end = Instant::now() + guard.remaining();
    eventually("the lease goes beyond its first end", || {
        Instant::now() + guard.remaining() > first_end + Duration::from_millis(300)
    })
    .await;
    guard.ensure_held().unwrap();
    guard.renew().await.unwrap();
    assert!(b.other.mutex(&key).try_lock().await.unwrap().is_none());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

async fn without_renewal_a_guard_expires(b: Backend) {
    let key = unique_key();
    let lock = b.one.mutex(&key).ttl(Duration::from_millis(100));
    let guard = lock.auto_renew(false).lock().await.unwrap();
    timeout(DEADLINE, guard.lost().cancelled()).await.unwrap();
    assert!(guard.is_lost());
    let reason = guard.lost_reason();
    assert!(matches!(reason, Some(LostReason::Expired)), "{reason:?}");
    assert!(matches!(guard.renew().await, Err(Error::Lost(_))), "P5");
    let next = timeout(DEADLINE, b.other.mutex(&key).lock())
        .await
        .unwrap()
        .unwrap();
    drop(guard);
    next.renew()
        .await
        .expect("P6: the old guard's drop is not its matter");
}

async fn max_hold_ends_a_guard(b: Backend) {
    let hold = Duration::from_millis(100);
    let lock = b.one.mutex(unique_key()).max_hold(hold);
    let began = Instant::now();
    let guard = lock.lock().await.unwrap();
    timeout(DEADLINE, guard.lost().cancelled()).await.unwrap();
    assert!(began.elapsed() >= hold);
    assert!(matches!(guard.lost_reason(), Some(LostReason::MaxHold)));
    assert!(b.other.mutex(guard.key()).holder().await.unwrap().is_some());
}

async fn force_release_is_a_loss(b: Backend) {
    let key = unique_key();
    let lock = b.one.mutex(&key).ttl(Duration::from_secs(60));
    let lock = lock.renew_every(Duration::from_millis(30));
    let guard = lock.lock().await.unwrap();
    assert!(b.other.mutex(&key).force_release().await.unwrap());
    timeout(DEADLINE, guard.lost().cancelled()).await.unwrap();
    assert!(guard.is_lost());
    assert!(!b.other.mutex(unique_key()).force_release().await.unwrap());
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyLost);
}

async fn holder_tells_who(b: Backend) {
    let key = unique_key();
    let watcher = b.other.mutex(&key);
    assert_eq!(watcher.holder().await.unwrap(), None);
    let guard = b.one.mutex(&key).lock().await.unwrap();
    let holder = watcher.holder().await.unwrap().expect("a holder");
    assert_eq!(holder.value, guard.value().as_bytes());
    let owner = holder.owner.expect("a label");
    assert!(owner.ends_with(&std::process::id().to_string()), "{owner}");
    assert!(holder.ttl.unwrap() <= Duration::from_secs(10));
    guard.release().await.unwrap();
    assert_eq!(watcher.holder().await.unwrap(), None);
}

async fn run_runs_under_the_lock(b: Backend) {
    let key = unique_key();
    let (lock, other) = (b.one.mutex(&key), b.other.mutex(&key));
    let token = lock
        .run(async |guard| {
            assert!(other.try_lock().await.unwrap().is_none());
            guard.fencing_token()
        })
        .await;
    assert!(token.unwrap() > 0);
    assert_eq!(
        other.holder().await.unwrap(),
        None,
        "the release is awaited"
    );
}

async fn a_limited_wait_ends(b: Backend) {
    let key = unique_key();
    let guard = b.one.mutex(&key).lock().await.unwrap();
    let limit = Duration::from_millis(60);
    let began = Instant::now();
    assert!(
        b.other
            .mutex(&key)
            .try_lock_for(limit)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        b.one
            .mutex(&key)
            .try_lock_for(limit)
            .await
            .unwrap()
            .is_none()
    );
    assert!(began.elapsed() >= 2 * limit);
    guard.release().await.unwrap();
    assert!(
        b.one
            .mutex(&key)
            .try_lock_for(limit)
            .await
            .unwrap()
            .is_some()
    );
}

async fn a_cancelled_wait_leaves_nothing(b: Backend) {
    let key = unique_key();
    let guard = b.one.mutex(&key).lock().await.unwrap();
    for locker in [&b.one, &b.other] {
        let lock = locker.mutex(&key);
        let cut_short = timeout(Duration::from_millis(20), lock.lock()).await;
        assert!(cut_short.is_err());
    }
    guard.release().await.unwrap();
    let lock = b.other.mutex(&key);
    let until = Instant::now() + DEADLINE;
    while lock.holder().await.unwrap().is_some() {
        assert!(Instant::now() < until, "P10");
    }
}

async fn close_closes(b: Backend) {
    let guard = b.one.mutex(unique_key()).lock().await.unwrap();
    let waiter = b.one.mutex(guard.key());
    let waiter = tokio::spawn(async move { waiter.lock().await });
    tokio::task::yield_now().await;
    b.one.close(DEADLINE).await.unwrap();
    eventually("the loss", || guard.is_lost()).await;
    assert!(matches!(guard.lost_reason(), Some(LostReason::Closed)));
    let end = timeout(DEADLINE, waiter).await.unwrap().unwrap();
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    let late = b.one.mutex(unique_key()).try_lock().await;
    assert!(matches!(late, Err(Error::Closed { .. })), "{late:?}");
}

async fn bad_options_are_refused(b: Backend) {
    let lock = b.one.mutex(unique_key());
    for bad in [
        b.one.mutex(""),
        lock.clone().ttl(Duration::MAX),
        lock.clone().ttl(Duration::from_millis(9)),
        lock.clone().renew_every(Duration::from_secs(10)),
    ] {
        let error = bad.lock().await.expect_err("an error");
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }
    assert_eq!(lock.holder().await.unwrap(), None);
}
