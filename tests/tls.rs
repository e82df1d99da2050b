//! TLS: what is trusted, what is refused, and in which words.

#![cfg(any(feature = "tls", feature = "tls-aws-lc-rs"))]

use std::error::Error as _;
use std::process::Command;
use std::time::{Duration, Instant};

use redlease::redis::{Client, ClientTlsConfig, TlsCertificates};
use redlease::{Builder, Error, Locker, blocking};
#[cfg(not(feature = "tls"))]
use rustls::crypto::aws_lc_rs as users_choice;
#[cfg(feature = "tls")]
use rustls::crypto::ring as users_choice;
use testkit::{Authority, DEADLINE, Identity, Server, Tls, eventually, unique_key};
use tokio::time::timeout;

/// In which time a mistake is named.
const SOON: Duration = Duration::from_secs(2);
/// How often a busy machine may take longer.
const ATTEMPTS: usize = 5;

/// A server with TLS whose authority is known, or the end of the test where there is no TLS.
macro_rules! server {
    ($tls:expr) => {
        match Server::with_tls($tls) {
            Some(server) => server,
            None => return,
        }
    };
}

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

fn says(error: &Error, why: &str) {
    let text = text(error);
    assert!(matches!(error, Error::Refused { .. }), "{text}");
    assert!(text.contains(why), "{text}");
}

/// Connecting and acquiring are refused, in both APIs, and the error says why.
async fn is_refused(builder: Builder, url: &str, why: &str) {
    for _ in 0..ATTEMPTS {
        let began = Instant::now();
        let error = builder.clone().connect(url).await;
        says(&error.expect_err("an error"), why);
        let connect = began.elapsed();
        let began = Instant::now();
        let lazy = builder.clone().connect_lazily(url).expect("no I/O");
        let error = lazy.mutex(unique_key()).lock().await;
        says(&error.expect_err("an error"), why);
        let lock = began.elapsed();
        let began = Instant::now();
        let lazy = blocking::Locker::from(lazy);
        let error = tokio::task::spawn_blocking(move || lazy.mutex(unique_key()).lock().map(drop));
        says(&error.await.expect("no panic").expect_err("an error"), why);
        let lock_in_a_thread = began.elapsed();
        if connect.max(lock).max(lock_in_a_thread) < SOON {
            return;
        }
    }
    panic!("it never took less than {SOON:?}");
}

#[tokio::test]
async fn a_trusted_server_keeps_the_lock() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.server()));
    let by_name = server.tls_url().replace("127.0.0.1", "localhost");
    let resp2 = format!("{}?protocol=resp2", server.tls_url());
    for url in [server.tls_url(), by_name, resp2] {
        let locker = trusting(&authority).connect(&url).await.expect("trusted");
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        assert_eq!(server.get(guard.key()).as_deref(), Some(guard.value()));
        guard.renew().await.expect("renewed");
        guard.release().await.unwrap();
    }
}

#[test]
fn a_thread_locks_over_tls() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.server()));
    let builder = blocking::Locker::builder().command_timeout(DEADLINE);
    let builder = builder.root_certificates(authority.root());
    let locker = builder.connect(server.tls_url()).expect("trusted");
    let guard = locker.mutex(unique_key()).lock().unwrap();
    assert_eq!(server.get(guard.key()).as_deref(), Some(guard.value()));
    drop(guard);
}

#[tokio::test]
async fn a_known_client_is_let_in() {
    for tls in [|tls: Tls| tls, Tls::at_most_1_2] {
        let authority = Authority::new();
        let tls = tls(Tls::new(&authority, authority.server()).with_clients_certificates());
        let server = server!(tls);
        let builder = with_client(trusting(&authority), &authority.client());
        let locker = builder.connect(server.tls_url()).await.expect("known");
        let guard = locker.mutex(unique_key()).lock().await.unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = server!(Tls::new(&authority, authority.server()));
    let why = "invalid peer certificate";
    is_refused(trusting(&other), &server.tls_url(), why).await;
    is_refused(patient(), &server.tls_url(), why).await;
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let authority = Authority::new();
    let identity = authority.server_named("redis.example");
    let server = server!(Tls::new(&authority, identity));
    let why = "not valid for name";
    is_refused(trusting(&authority), &server.tls_url(), why).await;
}

#[tokio::test]
async fn a_server_whose_certificate_is_expired_is_refused() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.expired_server()));
    let why = "certificate expired";
    is_refused(trusting(&authority), &server.tls_url(), why).await;
}

/// With TLS 1.3 the server says so after the handshake.
#[tokio::test]
async fn a_client_without_the_certificate_that_is_wanted_is_refused() {
    let authority = Authority::new();
    let tls = Tls::new(&authority, authority.server()).with_clients_certificates();
    let server = server!(tls.clone());
    let resp2 = format!("{}?protocol=resp2", server.tls_url());
    for _ in 0..5 {
        for url in [&server.tls_url(), &resp2] {
            is_refused(trusting(&authority), url, "CertificateRequired").await;
        }
    }
    let server = server!(tls.at_most_1_2());
    is_refused(trusting(&authority), &server.tls_url(), "HandshakeFailure").await;
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = Tls::new(&authority, authority.server()).with_clients_certificates();
    for tls in [tls.clone(), tls.at_most_1_2()] {
        let server = server!(tls);
        let builder = with_client(trusting(&authority), &other.client());
        for _ in 0..5 {
            is_refused(builder.clone(), &server.tls_url(), "received fatal alert").await;
        }
    }
}

/// Plain text to a server with TLS.
#[tokio::test]
async fn a_url_without_tls_for_a_server_with_it_is_named() {
    let authority = Authority::new();
    let tls = Tls::new(&authority, authority.server());
    for tls in [tls.clone(), tls.with_clients_certificates()] {
        let server = server!(tls);
        let url = server.tls_url().replace("rediss://", "redis://");
        let with_password = url.replace("redis://", "redis://:pw@");
        for url in [&url, &format!("{url}?protocol=resp2"), &with_password] {
            is_refused(patient(), url, "rediss:// rather than redis://?").await;
        }
    }
}

/// TLS to a server without it, which waits for the end of the line.
#[tokio::test]
async fn a_url_with_tls_for_a_server_without_it_is_named() {
    let authority = Authority::new();
    for server in [Server::start(), Server::with(&["--requirepass", "pw"])] {
        let url = server.url().replace("redis://", "rediss://");
        for url in [&url, &format!("{url}?protocol=resp2")] {
            let why = "redis:// rather than rediss://?";
            is_refused(trusting(&authority), url, why).await;
        }
    }
}

/// The mistake is named of servers that answer, not of those that are slow or away.
#[tokio::test]
async fn p13_a_server_that_hangs_is_unavailable_with_tls_and_without() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.server()));
    server.freeze();
    for url in [server.url(), server.tls_url()] {
        let error = Locker::connect(&url).await.expect_err("an error");
        let text = text(&error);
        assert!(matches!(error, Error::Unavailable { .. }), "{text}");
        assert!(!text.contains("rather than"), "{text}");
    }
    server.thaw();
    let locker = trusting(&authority).connect(server.tls_url()).await;
    locker.expect("it goes on");
}

/// The grant is told at once: the next heartbeat would come a second later.
#[tokio::test]
async fn a_waiter_is_told_over_tls() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.server()));
    let connect = async || trusting(&authority).connect(server.tls_url()).await;
    let (one, other) = (connect().await.unwrap(), connect().await.unwrap());
    let key = unique_key();
    let guard = one.mutex(&key).lock().await.unwrap();
    let waiting = other.mutex(&key);
    let waiter = tokio::spawn(async move { waiting.lock().await });
    let queue = format!("{{{key}}}:lock-queue");
    eventually("it waits", || server.exists(&queue)).await;
    let before = server.calls("zadd");
    eventually("a heartbeat", || server.calls("zadd") > before).await;
    let (published, asked) = (server.calls("publish"), server.calls("zadd"));
    guard.release().await.unwrap();
    let next = timeout(DEADLINE, waiter).await.unwrap().unwrap().unwrap();
    assert_eq!(server.calls("publish"), published + 1);
    assert_eq!(server.calls("zadd"), asked, "it did not ask again");
    drop(next);
}

#[tokio::test]
async fn a_majority_of_servers_with_tls_keeps_the_lock() {
    let authority = Authority::new();
    let tls = Tls::new(&authority, authority.server()).with_clients_certificates();
    let servers = [server!(tls.clone()), server!(tls.clone()), server!(tls)];
    let urls = servers.each_ref().map(Server::tls_url);
    let builder = with_client(trusting(&authority), &authority.client());
    let locker = builder.quorum(&urls).await.expect("trusted");
    let guard = locker.mutex(unique_key()).lock().await.unwrap();
    eventually("all have the key", || {
        servers.iter().all(|server| server.exists(guard.key()))
    })
    .await;
    guard.renew().await.expect("renewed");
    guard.release().await.unwrap();

    let error = patient().quorum(&urls).await.expect_err("an error");
    says(&error, "invalid peer certificate");
    let error = trusting(&authority).quorum(&urls).await;
    says(&error.expect_err("an error"), "CertificateRequired");
}

#[tokio::test]
async fn a_client_of_the_users_own_brings_its_certificates() {
    let authority = Authority::new();
    let tls = Tls::new(&authority, authority.server()).with_clients_certificates();
    let server = server!(tls);
    let identity = authority.client();
    let certificates = TlsCertificates {
        client_tls: Some(ClientTlsConfig {
            client_cert: identity.certificate_pem().into(),
            client_key: identity.key_pem().into(),
        }),
        root_cert: Some(authority.root().into()),
    };
    let own = Client::build_with_tls(server.tls_url(), certificates).expect("a client");
    let bare = Client::open(server.tls_url()).expect("a client");
    let builder = with_client(trusting(&authority), &identity);
    for locker in [
        patient().connect_client(own).await,
        builder.connect_client(bare.clone()).await,
    ] {
        let guard = locker.expect("trusted").mutex(unique_key()).lock().await;
        guard.unwrap().release().await.unwrap();
    }
    let error = patient().connect_client(bare).await;
    says(&error.expect_err("an error"), "invalid peer certificate");
}

#[tokio::test]
async fn p13_a_guard_outlives_a_restart_of_its_server() {
    let authority = Authority::new();
    let mut server = server!(Tls::new(&authority, authority.server()));
    server.command::<()>(&["CONFIG", "SET", "save", "3600 1"]);
    let locker = trusting(&authority)
        .connect(server.tls_url())
        .await
        .unwrap();
    let lock = locker.mutex(unique_key()).ttl(DEADLINE);
    let lock = lock.renew_every(Duration::from_millis(50));
    let guard = lock.lock().await.unwrap();
    server.command::<()>(&["SAVE"]);
    server.restart();
    let end = Instant::now() + guard.remaining();
    eventually("it is renewed", || Instant::now() + guard.remaining() > end).await;
    guard.release().await.unwrap();
}

/// Somebody renews the server's certificate, and makes a mistake.
#[tokio::test]
async fn p13_a_certificate_that_is_refused_is_not_yet_a_loss() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.server()));
    let present = |identity: &Identity| {
        let file = |path: &std::path::Path| path.display().to_string();
        let (key, certificate) = (file(&identity.key), file(&identity.certificate));
        let names = ["tls-key-file", "tls-cert-file"];
        server.command::<()>(&["CONFIG", "SET", names[0], &key, names[1], &certificate]);
        server.command::<u64>(&["CLIENT", "KILL", "TYPE", "normal"]);
        server.command::<u64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    };
    let locker = trusting(&authority)
        .connect(server.tls_url())
        .await
        .unwrap();
    let lock = locker.mutex(unique_key()).ttl(DEADLINE);
    let lock = lock.renew_every(Duration::from_millis(50));
    let guard = lock.lock().await.unwrap();
    present(&authority.expired_server());
    let error = locker.mutex(unique_key()).lock().await;
    says(&error.expect_err("an error"), "certificate expired");
    guard.ensure_held().expect("the lease is not over");
    present(&authority.server());
    let end = Instant::now() + guard.remaining();
    eventually("it is renewed", || Instant::now() + guard.remaining() > end).await;
    let key = guard.key().to_owned();
    drop(guard);
    eventually("the release", || !server.exists(&key)).await;
}

#[tokio::test]
async fn certificates_that_are_none_are_invalid() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (root, client) = (authority.root(), authority.client());
    let (certificate, key) = (client.certificate_pem(), client.key_pem());
    let broken = root.replace("MII", "???");
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let roots = |pem: &str| Locker::builder().root_certificates(pem);
    let pair = |certificate: &str, key: &str| roots(&root).client_certificate(certificate, key);
    for (builder, problem) in [
        (roots(""), "the root certificates"),
        (roots("no PEM"), "the root certificates"),
        (roots(&key), "the root certificates"),
        (roots(&broken), "the root certificates"),
        (roots(not_der), "the root certificates"),
        (pair("", &key), "the client certificate"),
        (pair(&certificate, ""), "the client certificate"),
        (pair(&key, &certificate), "the client certificate"),
        (pair(not_der, &key), "the client certificate"),
        (pair(&broken, &key), "the client certificate"),
        (
            pair(&certificate, &other.client().key_pem()),
            "the client certificate",
        ),
    ] {
        let url = "rediss://127.0.0.1:1/";
        let urls = [url, "rediss://127.0.0.1:2/", "rediss://127.0.0.1:3/"];
        for error in [
            builder.clone().connect_lazily(url).expect_err("an error"),
            builder.clone().connect(url).await.expect_err("an error"),
            builder.quorum_lazily(urls).expect_err("an error"),
        ] {
            let text = text(&error);
            assert!(matches!(error, Error::Invalid { .. }), "{text}");
            assert!(text.contains(problem), "{text}");
        }
    }
}

#[tokio::test]
async fn certificates_without_tls_are_invalid() {
    let authority = Authority::new();
    let server = Server::start();
    let socket = format!("unix://{}", server.socket().display());
    for url in [server.url(), socket] {
        let error = trusting(&authority).connect(&url).await;
        let error = error.expect_err("an error");
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains("rediss://"), "{error}");
    }
}

#[test]
fn certificates_are_for_those_sentinels_and_masters_that_have_tls() {
    let authority = Authority::new();
    let outcome = |sentinel: &str, master: &str| {
        let locker = trusting(&authority).sentinel_lazily([sentinel], master);
        locker.map(drop)
    };
    for (sentinel, master) in [
        ("rediss://127.0.0.1/", "mymaster"),
        ("redis://127.0.0.1/", "rediss://mymaster/"),
        ("rediss://127.0.0.1/", "rediss://mymaster/"),
        ("valkeys://127.0.0.1/", "mymaster"),
        ("REDISS://127.0.0.1/", "mymaster"),
    ] {
        outcome(sentinel, master).expect("one has TLS");
    }
    let error = outcome("redis://127.0.0.1/", "mymaster").expect_err("none has TLS");
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
}

#[test]
fn the_private_key_is_not_shown() {
    let authority = Authority::new();
    let builder = with_client(trusting(&authority), &authority.client());
    let shown = format!("{builder:?} {builder:#?}");
    let key: Vec<u8> = authority.client().key_pem().into();
    assert!(!shown.contains("PRIVATE"), "{shown}");
    assert!(
        !shown.contains(&format!("{}, {}", key[0], key[1])),
        "{shown}"
    );
}

/// What a child process does before its first locker.
const PROVIDER: &str = "REDLEASE_TEST_PROVIDER";
const URL: &str = "REDLEASE_TEST_URL";
const ROOT: &str = "REDLEASE_TEST_ROOT";

/// rustls panics where nobody chose a provider of cryptography and there is not just one.
#[test]
fn a_provider_is_installed_where_there_is_none() {
    let authority = Authority::new();
    let server = server!(Tls::new(&authority, authority.server()));
    for provider in ["none", "the user's", "none, for a client of the user's own"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(PROVIDER, provider)
            .env(URL, server.tls_url())
            .env(ROOT, authority.root_file())
            .output()
            .expect("this program runs");
        let said = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{provider}: {said} {complained}");
        assert!(said.contains("held"), "{provider}: {said}");
        assert!(!complained.contains("panicked"), "{provider}: {complained}");
    }
}

/// Not a test by itself: the `main` of the child processes.
#[test]
fn child() {
    let Ok(provider) = std::env::var(PROVIDER) else {
        return;
    };
    let url = std::env::var(URL).unwrap();
    let root = std::fs::read(std::env::var(ROOT).unwrap()).unwrap();
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    let users = users_choice::default_provider();
    let suites = users.cipher_suites[..1].to_vec();
    if provider == "the user's" {
        let users = rustls::crypto::CryptoProvider {
            cipher_suites: suites.clone(),
            ..users
        };
        users.install_default().expect("it is the first");
    }
    let builder = blocking::Locker::builder().command_timeout(DEADLINE);
    let builder = builder.root_certificates(root);
    let locker = if provider.ends_with("own") {
        builder.connect_client(Client::open(url).unwrap())
    } else {
        builder.connect(url)
    };
    let guard = locker.unwrap().mutex(unique_key()).lock().unwrap();
    let installed = rustls::crypto::CryptoProvider::get_default().expect("one is installed");
    assert_eq!(installed.cipher_suites == suites, provider == "the user's");
    println!("held");
    guard.release().unwrap();
}
