//! What the fixture of a cluster promises, on real servers.

use std::time::Duration;

use testkit::{Cluster, ClusterOptions, Launch, Server, key_in, slot_of, unique_key};

/// Short, as these clusters have little to do.
fn quick() -> ClusterOptions {
    ClusterOptions {
        node_timeout: Duration::from_secs(1),
        ..ClusterOptions::default()
    }
}

/// The word with which an error begins.
fn refusal(server: &Server, words: &[&str]) -> String {
    let error = server.query::<()>(words).expect_err("an error");
    error.code().expect("an error of the server").to_owned()
}

#[test]
fn all_slots_are_served_and_each_master_has_a_replica() {
    let cluster = Cluster::start();
    assert_eq!(cluster.urls().len(), 6);
    for master in 0..3 {
        assert_eq!(cluster.replicas_of(master), [master + 3]);
        let key = cluster.key_at(master);
        assert_eq!(cluster.master_of(&key), master);
        cluster.nodes[master].command::<()>(&["SET", &key, "x"]);
        assert_eq!(
            refusal(&cluster.nodes[(master + 1) % 3], &["GET", &key]),
            "MOVED"
        );
    }
    for slot in [0, 1, 5461, 5462, 10_923, 16_383] {
        let master = cluster.master_of_slot(slot);
        cluster.nodes[master].command::<()>(&["SET", &key_in(slot), "x"]);
    }
}

#[test]
fn a_key_has_the_slot_that_the_server_gives_it() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    let odd = [
        "",
        "{}x",
        "a}b",
        "}",
        "{",
        "x}{y",
        "{a}b",
        "{{a}}",
        "a{b}{c}",
        "ä{ö}",
        "123456789",
    ];
    let keys = odd.map(str::to_owned).into_iter();
    for key in keys.chain((0..50).map(|_| unique_key())) {
        let slot: u16 = server.command(&["CLUSTER", "KEYSLOT", &key]);
        assert_eq!(slot_of(&key), slot, "{key}");
    }
    for slot in [0, 77, 16_383] {
        let key = key_in(slot);
        assert_eq!(slot_of(&key), slot);
        assert_eq!(slot_of(&format!("before{{{key}}}after")), slot);
    }
}

#[tokio::test]
async fn a_slot_moves_step_by_step() {
    let cluster = Cluster::with(&quick());
    let (from, to) = (&cluster.nodes[0], &cluster.nodes[1]);
    let (first, second) = (key_in(100), key_in(100));
    for key in [&first, &second] {
        from.command::<()>(&["SET", key, "x"]);
    }
    let step = cluster.move_slot(100, 1);
    assert_eq!((step.from, step.to), (0, 1));
    assert_eq!(refusal(to, &["GET", &first]), "MOVED");
    step.import();
    step.migrate();
    assert_eq!(from.get(&first).as_deref(), Some("x"));
    step.move_these(&[&first]);
    assert_eq!(refusal(from, &["GET", &first]), "ASK");
    let mut asking = to.client();
    redis::cmd("ASKING").exec(&mut asking).expect("an answer");
    let keys = redis::cmd("MGET").arg(&[&first, &second]).exec(&mut asking);
    assert_eq!(keys.expect_err("a refusal").code(), Some("TRYAGAIN"));
    assert_eq!(from.get(&second).as_deref(), Some("x"));
    step.move_keys();
    assert_eq!(refusal(from, &["GET", &second]), "ASK");
    assert_eq!(cluster.master_of_slot(100), 0);
    step.assign();
    assert_eq!(cluster.master_of_slot(100), 1);
    assert_eq!(refusal(from, &["GET", &second]), "MOVED");
    assert_eq!(to.get(&second).as_deref(), Some("x"));
    cluster.settled().await;

    cluster.move_slot(100, 2).run();
    assert_eq!(cluster.nodes[2].get(&first).as_deref(), Some("x"));
    cluster.settled().await;
}

#[tokio::test]
async fn a_move_can_be_given_up() {
    let cluster = Cluster::with(&quick());
    let key = key_in(200);
    let step = cluster.move_slot(200, 2);
    step.import();
    step.migrate();
    assert_eq!(refusal(&cluster.nodes[0], &["GET", &key]), "ASK");
    step.give_up();
    assert_eq!(cluster.nodes[0].get(&key), None);
    cluster.settled().await;
    assert_eq!(cluster.master_of_slot(200), 0);
}

#[tokio::test]
async fn redis_cli_reshards_and_rebalances() {
    let cluster = Cluster::with(&quick());
    let key = key_in(0);
    cluster.nodes[0].command::<()>(&["SET", &key, "x"]);
    cluster.reshard(0, 1, 400).await;
    assert_eq!(cluster.slots_of(0).len(), 5462 - 400);
    assert_eq!(cluster.nodes[1].get(&key).as_deref(), Some("x"));
    cluster.settled().await;
    cluster.rebalance(&[]).await;
    cluster.settled().await;
    assert!((5461..=5462).contains(&cluster.slots_of(0).len()));
}

#[tokio::test]
async fn a_failover_by_hand_swaps_a_master_and_its_replica() {
    let cluster = Cluster::with(&quick());
    let key = cluster.key_at(0);
    cluster.nodes[0].command::<()>(&["SET", &key, "x"]);
    let switch = cluster.failover(3).await;
    assert_eq!(switch.master, 3);
    assert_eq!(cluster.master_of(&key), 3);
    assert_eq!(cluster.nodes[3].get(&key).as_deref(), Some("x"));
    cluster.settled().await;
    assert_eq!(cluster.replicas_of(3), [0]);
    assert_eq!(cluster.failover(0).await.master, 0);
}

#[tokio::test]
async fn a_killed_master_is_replaced_and_comes_back_as_a_replica() {
    let mut cluster = Cluster::with(&quick());
    let key = cluster.key_at(1);
    cluster.nodes[1].command::<()>(&["SET", &key, "x"]);
    cluster.replicated(1).await;
    cluster.nodes[1].kill();
    let switch = cluster.switched(slot_of(&key), 1).await;
    assert_eq!(switch.master, 4);
    assert_eq!(cluster.nodes[4].get(&key).as_deref(), Some("x"));
    cluster.settled().await;

    cluster.nodes[1].restart();
    cluster.settled().await;
    assert_eq!(cluster.replicas_of(4), [1]);
}

#[tokio::test]
async fn a_frozen_master_is_replaced() {
    let cluster = Cluster::with(&quick());
    let slot = cluster.slots_of(2)[0];
    cluster.nodes[2].freeze();
    assert_eq!(cluster.switched(slot, 2).await.master, 5);
    cluster.nodes[2].thaw();
    cluster.settled().await;
    assert_eq!(cluster.master_of_slot(slot), 5);
    assert_eq!(cluster.replicas_of(5), [2]);
}

#[tokio::test]
async fn sizes_coverage_and_further_arguments_are_taken() {
    for full_coverage in [true, false] {
        let mut cluster = Cluster::with(&ClusterOptions {
            replicas: 0,
            full_coverage,
            launch: Launch::with(&["--maxclients", "321"]),
            ..quick()
        });
        assert_eq!(cluster.nodes.len(), 3);
        let (_, clients): (String, u16) =
            cluster.nodes[2].command(&["CONFIG", "GET", "maxclients"]);
        assert_eq!(clients, 321);
        let key = cluster.key_at(0);
        cluster.nodes[2].kill();
        let state = || -> String { cluster.nodes[0].command(&["CLUSTER", "NODES"]) };
        testkit::eventually("the node counts as failed", || {
            state().contains("master,fail ")
        })
        .await;
        let answer = cluster.nodes[0].query::<()>(&["GET", &key]);
        assert_eq!(answer.is_err(), full_coverage, "{answer:?}");
    }
}
