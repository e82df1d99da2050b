//! TLS to the servers of a cluster, and to a master and its sentinels.

#![cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]

use std::error::Error as _;
use std::time::{Duration, Instant};

use redlease::{Builder, Error, Locker};
use testkit::{
    Authority, Cluster, ClusterOptions, DEADLINE, Identity, Launch, MASTER, SentinelOptions,
    Sentinels, Server, Tls, unique_key,
};

/// In which time a mistake is named.
const SOON: Duration = Duration::from_secs(2);
/// How often a busy machine may take longer.
const ATTEMPTS: usize = 5;

/// A builder that puts up with a slow machine: an unoptimised build takes long to read the system's
/// authorities.
fn patient() -> Builder {
    Locker::builder().command_timeout(DEADLINE)
}

fn trusting(authority: &Authority) -> Builder {
    patient().root_certificates(authority.root())
}

fn with_client(builder: Builder, identity: &Identity) -> Builder {
    builder.client_certificate(identity.certificate_pem(), identity.key_pem())
}

/// The error, and what stands behind it.
fn text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Connecting is refused at once, and the error says why.
async fn is_refused(connect: impl AsyncFn() -> Result<Locker, Error>, why: &str) {
    for _ in 0..ATTEMPTS {
        let began = Instant::now();
        let error = connect().await.expect_err("an error");
        assert!(matches!(error, Error::Refused { .. }), "{}", text(&error));
        assert!(text(&error).contains(why), "{}", text(&error));
        if began.elapsed() < SOON {
            return;
        }
    }
    panic!("it never took less than {SOON:?}");
}

fn cluster(launch: Launch) -> Cluster {
    Cluster::with(&ClusterOptions {
        replicas: 0,
        launch,
        ..ClusterOptions::default()
    })
}

fn nodes(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().map(Server::tls_url).collect()
}

fn sentinels(launch: Launch) -> Sentinels {
    Sentinels::with(&SentinelOptions {
        launch,
        ..SentinelOptions::default()
    })
}

fn urls(set: &Sentinels) -> Vec<String> {
    set.sentinels.iter().map(Server::tls_url).collect()
}

fn master() -> String {
    format!("rediss://{MASTER}")
}

#[tokio::test]
async fn a_cluster_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let Some(launch) = Launch::with_tls(Tls::new(&authority, authority.server())) else {
        return;
    };
    let cluster = cluster(launch);
    let urls = nodes(&cluster);
    let connect = async || trusting(&other).cluster(&urls).await;
    is_refused(connect, "invalid peer certificate").await;
}

#[tokio::test]
async fn a_cluster_of_another_name_is_refused() {
    let authority = Authority::new();
    let identity = authority.server_named("redis.example");
    let Some(launch) = Launch::with_tls(Tls::new(&authority, identity)) else {
        return;
    };
    let cluster = cluster(launch);
    let urls = nodes(&cluster);
    let connect = async || trusting(&authority).cluster(&urls).await;
    is_refused(connect, "not valid for name").await;
}

/// Servers refuse each other then, so it is a cluster of one.
#[tokio::test]
async fn a_cluster_whose_certificate_is_expired_is_refused() {
    let authority = Authority::new();
    let Some(launch) = Launch::with_tls(Tls::new(&authority, authority.expired_server())) else {
        return;
    };
    let server = launch.and(&["--cluster-enabled", "yes"]).start();
    let server = server.expect("a server");
    server.own_all_slots();
    let connect = async || trusting(&authority).cluster([server.tls_url()]).await;
    is_refused(connect, "certificate expired").await;
}

#[tokio::test]
async fn a_cluster_wants_the_clients_certificate() {
    let authority = Authority::new();
    let tls = Tls::new(&authority, authority.server()).with_clients_certificates();
    let Some(launch) = Launch::with_tls(tls) else {
        return;
    };
    let cluster = cluster(launch);
    let urls = nodes(&cluster);
    let connect = async || trusting(&authority).cluster(&urls).await;
    is_refused(connect, "CertificateRequired").await;
    let known = with_client(trusting(&authority), &authority.client());
    let locker = known.cluster(&urls).await.expect("known");
    for node in 0..3 {
        let guard = locker.mutex(cluster.key_at(node)).lock().await.unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn sentinels_of_another_authority_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let Some(launch) = Launch::with_tls(Tls::new(&authority, authority.server())) else {
        return;
    };
    let set = sentinels(launch);
    let urls = urls(&set);
    let connect = async || trusting(&other).sentinel(&urls, master()).await;
    is_refused(connect, "invalid peer certificate").await;
}

#[tokio::test]
async fn sentinels_of_another_name_are_refused() {
    let authority = Authority::new();
    let identity = authority.server_named("redis.example");
    let Some(launch) = Launch::with_tls(Tls::new(&authority, identity)) else {
        return;
    };
    let set = sentinels(launch);
    let urls = urls(&set);
    let connect = async || trusting(&authority).sentinel(&urls, master()).await;
    is_refused(connect, "not valid for name").await;
}

#[tokio::test]
async fn sentinels_want_the_clients_certificate() {
    let authority = Authority::new();
    let tls = Tls::new(&authority, authority.server()).with_clients_certificates();
    let Some(launch) = Launch::with_tls(tls) else {
        return;
    };
    let set = sentinels(launch);
    let urls = urls(&set);
    let connect = async || trusting(&authority).sentinel(&urls, master()).await;
    is_refused(connect, "CertificateRequired").await;
    let known = with_client(trusting(&authority), &authority.client());
    let locker = known.sentinel(&urls, master()).await.expect("known");
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    guard.release().await.unwrap();
}

/// The sentinels are asked in plain text, the master with TLS.
#[tokio::test]
async fn a_master_with_tls_is_followed_by_sentinels_without() {
    let authority = Authority::new();
    let Some(launch) = Launch::with_tls(Tls::new(&authority, authority.server())) else {
        return;
    };
    let set = sentinels(launch);
    let locker = trusting(&authority).sentinel(set.urls(), master()).await;
    let locker = locker.expect("a locker");
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    set.failover(set.master()).await;
    let again = locker.mutex(unique_key()).lock().await.unwrap();
    drop((guard, again));
}
