//! Deployments whose servers reach each other with TLS, on real servers.

use std::fs;

use testkit::{
    Cluster, ClusterOptions, Launch, MASTER, SentinelOptions, Sentinels, Server, key_in, left_out,
};

/// Whether the server was built with TLS. It complains of the missing certificate then; others know
/// no such parameter, or crash.
fn has_tls() -> bool {
    let words = ["CONFIG", "SET", "tls-replication", "yes"];
    let answer = Server::start().query::<()>(&words);
    answer.is_err_and(|error| error.to_string().contains("TLS configuration"))
}

/// Servers with one certificate that all of them trust, in a folder that must outlive them. None
/// where the server was built without TLS.
fn launch(folder: &tempfile::TempDir) -> Option<Launch> {
    if !has_tls() {
        left_out("the server has no TLS");
        return None;
    }
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    fs::write(&certificate, made.cert.pem()).expect("a file");
    fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
    let launch = Launch::with(&files).and(&["--tls-ca-cert-file", &certificate]);
    Some(launch.tls())
}

#[tokio::test]
async fn sentinels_name_the_port_for_tls_and_fail_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(launch) = launch(&folder) else {
        return;
    };
    let set = Sentinels::with(&SentinelOptions {
        launch,
        ..SentinelOptions::default()
    });
    let switch = set.failover().await;
    let words = ["SENTINEL", "get-master-addr-by-name", MASTER];
    let (_, port): (String, u16) = set.sentinels[0].command(&words);
    assert_eq!(port, set.servers[switch.master].tls_port());
}

#[tokio::test]
async fn slots_of_a_cluster_move_by_hand_and_by_redis_cli() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(launch) = launch(&folder) else {
        return;
    };
    let cluster = Cluster::with(&ClusterOptions {
        launch,
        ..ClusterOptions::default()
    });
    let (first, second) = (key_in(100), key_in(0));
    for key in [&first, &second] {
        cluster.nodes[0].command::<()>(&["SET", key, "x"]);
    }
    cluster.move_slot(100, 1).run();
    assert_eq!(cluster.nodes[1].get(&first).as_deref(), Some("x"));
    cluster.settled().await;
    cluster.reshard(0, 2, 50).await;
    assert_eq!(cluster.nodes[2].get(&second).as_deref(), Some("x"));
}
