//! What the fixture with sentinels promises, on real servers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use testkit::{MASTER, SentinelOptions, Sentinels, Server, eventually, unique_key};

/// What a sentinel names as the master's port.
fn named(sentinel: &Server) -> u16 {
    let words = ["SENTINEL", "get-master-addr-by-name", MASTER];
    let (_, port): (String, u16) = sentinel.command(&words);
    port
}

fn says_master(server: &Server) -> bool {
    let role: Vec<redis::Value> = server.command(&["ROLE"]);
    role[0] == redis::Value::BulkString(b"master".to_vec())
}

#[test]
fn each_sentinel_knows_the_master_and_all_others() {
    let set = Sentinels::start();
    assert_eq!(set.master(), 0);
    assert_eq!(set.replicas(), [1, 2]);
    let urls: HashSet<_> = set.urls().into_iter().collect();
    assert_eq!(urls.len(), 3);
    for sentinel in &set.sentinels {
        assert_eq!(named(sentinel), set.servers[0].port);
        sentinel.command::<String>(&["SENTINEL", "CKQUORUM", MASTER]);
    }
}

#[tokio::test]
async fn a_failover_by_hand_leaves_the_old_master_up() {
    let set = Sentinels::start();
    let before = Instant::now();
    let switch = set.failover(set.master()).await;
    assert_ne!(switch.master, 0);
    assert!(before < switch.at && switch.at < Instant::now());
    assert_eq!(set.master(), switch.master);
    assert!(says_master(&set.servers[switch.master]));
    set.servers[0].command::<()>(&["PING"]);

    set.settled().await;
    assert!(!says_master(&set.servers[0]));
    let again = set.failover(set.master()).await;
    assert_ne!(again.master, switch.master);
}

#[tokio::test]
async fn a_killed_master_comes_back_as_a_replica() {
    let mut set = Sentinels::start();
    let key = unique_key();
    set.servers[0].command::<()>(&["SET", &key, "x"]);
    set.replicated().await;
    set.servers[0].kill();
    let switch = set.switched(0).await;
    let master = &set.servers[switch.master];
    assert_eq!(master.get(&key).as_deref(), Some("x"));

    set.servers[0].restart();
    set.settled().await;
    assert!(!says_master(&set.servers[0]));
    assert_eq!(set.servers[0].get(&key).as_deref(), Some("x"));
}

#[tokio::test]
async fn a_frozen_master_is_replaced_and_a_killed_sentinel_is_not_missed() {
    let mut set = Sentinels::start();
    set.sentinels[0].kill();
    set.servers[0].freeze();
    let switch = set.switched(0).await;
    assert!(!set.servers[0].runs() && set.servers[switch.master].runs());

    set.servers[0].thaw();
    set.sentinels[0].restart();
    set.settled().await;
    assert_eq!(named(&set.sentinels[0]), set.servers[switch.master].port);
}

#[tokio::test]
async fn a_sentinel_can_be_frozen() {
    let set = Sentinels::start();
    set.sentinels[2].freeze();
    let switch = set.failover(set.master()).await;
    assert_eq!(set.master(), switch.master);
    set.sentinels[2].thaw();
    let port = set.servers[switch.master].port;
    eventually("it hears of the switch", || {
        named(&set.sentinels[2]) == port
    })
    .await;
}

#[tokio::test]
async fn a_master_that_is_cut_off_stays_writable_for_its_users() {
    let set = Sentinels::start();
    let old = &set.servers[0];
    old.add_user("locker", &["~*", "&*", "+@all"]);
    let url = format!("redis://locker:pw@127.0.0.1:{}/", old.port);
    let mut locker = redis::Client::open(url).unwrap().get_connection().unwrap();

    set.cut_off(0);
    let switch = set.switched(0).await;
    assert!(says_master(old) && says_master(&set.servers[switch.master]));
    // The connection from before, and a new one of the default user.
    let key = unique_key();
    redis::cmd("SET")
        .arg(&key)
        .arg("x")
        .exec(&mut locker)
        .unwrap();
    assert_eq!(old.get(&key).as_deref(), Some("x"));
    let other = set.servers.iter().filter(|server| server.port != old.port);
    for server in other {
        assert!(!server.exists(&key));
    }

    set.reconnect(0);
    set.settled().await;
    assert!(!says_master(old));
    assert!(!old.exists(&key));
}

#[tokio::test]
async fn a_key_that_the_replicas_lost_is_gone_after_a_failover() {
    let mut set = Sentinels::start();
    let (kept, lost) = (unique_key(), unique_key());
    set.servers[0].command::<()>(&["SET", &kept, "x"]);
    set.servers[0].command::<()>(&["SET", &lost, "x"]);
    set.lose_on_replicas(&lost).await;
    assert!(set.servers[0].exists(&lost));
    set.servers[0].kill();
    let switch = set.switched(0).await;
    let master = &set.servers[switch.master];
    assert!(master.exists(&kept) && !master.exists(&lost));
}

#[test]
fn sizes_times_and_further_arguments_are_taken() {
    let set = Sentinels::with(&SentinelOptions {
        replicas: 1,
        sentinels: 1,
        down_after: Duration::from_secs(7),
        launch: testkit::Launch::with(&["--maxclients", "321"]),
        ..SentinelOptions::default()
    });
    assert_eq!((set.servers.len(), set.sentinels.len()), (2, 1));
    for server in &set.servers {
        let (_, clients): (String, u16) = server.command(&["CONFIG", "GET", "maxclients"]);
        assert_eq!(clients, 321);
    }
    let words = ["SENTINEL", "MASTER", MASTER];
    let master: std::collections::HashMap<String, String> = set.sentinels[0].command(&words);
    assert_eq!(master["down-after-milliseconds"], "7000");
}
