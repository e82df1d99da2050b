//! Deployments whose servers reach each other with TLS, on real servers.

use testkit::{
    Authority, Cluster, ClusterOptions, Launch, MASTER, SentinelOptions, Sentinels, Tls, key_in,
};

/// Servers with one certificate that all of them trust.
fn launch(authority: &Authority) -> Option<Launch> {
    Launch::with_tls(Tls::new(authority, authority.server()))
}

#[tokio::test]
async fn sentinels_name_the_port_for_tls_and_fail_over() {
    let authority = Authority::new();
    let Some(launch) = launch(&authority) else {
        return;
    };
    let set = Sentinels::with(&SentinelOptions {
        launch,
        ..SentinelOptions::default()
    });
    let switch = set.failover(set.master()).await;
    let words = ["SENTINEL", "get-master-addr-by-name", MASTER];
    let (_, port): (String, u16) = set.sentinels[0].command(&words);
    assert_eq!(port, set.servers[switch.master].tls_port());
}

#[tokio::test]
async fn slots_of_a_cluster_move_by_hand_and_by_redis_cli() {
    let authority = Authority::new();
    let Some(launch) = launch(&authority) else {
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
