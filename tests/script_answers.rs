//! What the scripts answer where a model of the lock has no place: on a server that may not write,
//! and beside what others wrote.

#[path = "common/lua.rs"]
mod lua;

use lua::*;
use redis::{Connection, RedisError, Value};
use testkit::Server;

const KEYS: [&str; 4] = ["k", "{k}:fence", "{k}:lock-queue", "{k}:lock-waiters"];
const MEMBER_KEYS: [&str; 5] = [
    "k",
    "{k}:fence",
    "{k}:fence-owner",
    "{k}:lock-queue",
    "{k}:lock-waiters",
];
const FLOOR: &str = "1790000000000000";
const CHANNEL: &str = "redlease:c";

fn call(
    connection: &mut Connection,
    script: &str,
    keys: &[&str],
    arguments: &[&str],
) -> Result<Value, RedisError> {
    let mut eval = redis::cmd("EVAL");
    eval.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    eval.query(connection)
}

/// Each script as it is called for the value `v`.
fn calls() -> Vec<(
    &'static str,
    &'static str,
    &'static [&'static str],
    Vec<&'static str>,
)> {
    let give_up = ["v", CHANNEL];
    vec![
        ("acquire", ACQUIRE, &KEYS, vec!["v", "9000", FLOOR]),
        (
            "acquire_member",
            ACQUIRE_MEMBER,
            &MEMBER_KEYS,
            vec!["v", "9000", FLOOR],
        ),
        (
            "enqueue",
            ENQUEUE,
            &KEYS,
            vec!["v", "9000", FLOOR, "1", "3000", "1", CHANNEL],
        ),
        ("force_release", FORCE_RELEASE, &KEYS, vec![]),
        (
            "keep",
            KEEP,
            &KEYS,
            [&give_up[..], &["", "", FLOOR, "9000", "1"]].concat(),
        ),
        ("leave", LEAVE, &KEYS, vec!["v"]),
        ("raise", RAISE, &MEMBER_KEYS, vec!["v", FLOOR, FLOOR]),
        ("release", RELEASE, &KEYS, give_up.to_vec()),
        ("renew", RENEW, &KEYS[..1], vec!["v", "9000"]),
        (
            "restore",
            RESTORE,
            &MEMBER_KEYS,
            vec!["v", "9000", FLOOR, FLOOR],
        ),
    ]
}

/// What a replica may have that missed what came later.
const STALE: [(&str, &[&[&str]]); 6] = [
    ("nothing", &[]),
    ("another value", &[&["SET", "k", "w", "PX", "60000"]]),
    ("our value", &[&["SET", "k", "v", "PX", "5000"]]),
    ("our value, for long", &[&["SET", "k", "v", "PX", "60000"]]),
    ("a hash", &[&["HSET", "k", "a", "b"]]),
    (
        "our value, and a larger number",
        &[
            &["SET", "k", "v", "PX", "60000"],
            &["SET", "{k}:fence", "9000000000000000"],
        ],
    ),
];

fn each_script_is_refused(server: &Server, disable: &[&str], enable: &[&str], text: &str) {
    let mut connection = server.client();
    for (stale, commands) in STALE {
        server.command::<()>(&["FLUSHALL"]);
        for command in commands {
            server.command::<Value>(command);
        }
        server.command::<()>(disable);
        for (name, script, keys, arguments) in calls() {
            let answer = call(&mut connection, script, keys, &arguments);
            let error = match answer {
                Ok(answer) => panic!("{name} believed {stale}: {answer:?}"),
                Err(error) => error,
            };
            assert!(error.to_string().contains(text), "{name}, {stale}: {error}");
        }
        server.command::<()>(enable);
    }
}

#[test]
fn p13_no_script_answers_anything_on_a_replica() {
    let server = Server::start();
    let replica = ["REPLICAOF", "127.0.0.1", "1"];
    each_script_is_refused(
        &server,
        &replica,
        &["REPLICAOF", "NO", "ONE"],
        "read only replica",
    );
}

#[test]
fn p13_no_script_answers_anything_on_a_master_that_lost_its_replicas() {
    let server = Server::start();
    let wants = |count| ["CONFIG", "SET", "min-replicas-to-write", count];
    each_script_is_refused(&server, &wants("1"), &wants("0"), "good replicas");
}

#[test]
fn who_wrote_the_counter_may_be_garbage() {
    let server = Server::start();
    let mut connection = server.client();
    let [_, counter, owner, ..] = MEMBER_KEYS;
    let arguments = ["v", "9000", FLOOR];
    server.command::<i64>(&["HSET", owner, "a", "b"]);
    let answer = call(&mut connection, ACQUIRE_MEMBER, &MEMBER_KEYS, &arguments);
    assert_eq!(answer.unwrap(), Value::Int(1));
    assert_eq!(server.command::<String>(&["GET", owner]), "v");
    assert_eq!(server.command::<String>(&["GET", counter]), FLOOR);
}

#[test]
fn a_key_of_another_type_is_not_ours_on_a_master() {
    let server = Server::start();
    let mut connection = server.client();
    server.command::<i64>(&["HSET", "k", "redisson", "1"]);
    for (name, expected) in [
        ("keep", Value::Array(vec![Value::Int(-1), Value::Int(0)])),
        ("leave", Value::Int(0)),
        ("release", Value::Int(0)),
        ("renew", Value::Int(0)),
    ] {
        let (_, script, keys, arguments) = calls()
            .into_iter()
            .find(|call| call.0 == name)
            .expect("a script");
        let answer = call(&mut connection, script, keys, &arguments).unwrap();
        assert_eq!(answer, expected, "{name}");
    }
    assert_eq!(server.command::<String>(&["TYPE", "k"]), "hash");
}

/// A number that has none behind it, or is none.
const NO_COUNTERS: [&str; 12] = [
    "1000000000000.00",
    "170000000000000x",
    "1700000000000000\0",
    "9007199254740992",
    "9007199254740991",
    "9007199254000000",
    "99999999999999999999999",
    "inf",
    "nan",
    "-5",
    "1.5",
    "",
];

#[test]
fn p8_no_number_is_taken_from_a_counter_that_has_none() {
    let server = Server::start();
    let mut connection = server.client();
    let refused = Value::Array(vec![Value::Int(3), Value::Int(0)]);
    for counter in NO_COUNTERS {
        for (name, holder, expected) in [
            ("acquire", None, &refused),
            ("acquire_member", None, &refused),
            ("enqueue", None, &refused),
            ("enqueue", Some("v"), &refused),
            ("keep", Some("v"), &refused),
            ("raise", Some("v"), &Value::Int(-1)),
            ("leave", Some("v"), &Value::Int(1)),
            ("release", Some("v"), &Value::Int(1)),
            ("restore", None, &Value::Int(1)),
        ] {
            server.command::<()>(&["FLUSHALL"]);
            server.command::<()>(&["SET", "{k}:fence", counter]);
            if let Some(holder) = holder {
                server.command::<()>(&["SET", "k", holder, "PX", "60000"]);
            }
            let (_, script, keys, arguments) = calls()
                .into_iter()
                .find(|call| call.0 == name)
                .expect("a script");
            let answer = call(&mut connection, script, keys, &arguments);
            assert_eq!(
                answer.as_ref().ok(),
                Some(expected),
                "{name}, {counter:?}: {answer:?}"
            );
            assert_eq!(server.get("{k}:fence").as_deref(), Some(counter), "{name}");
            if holder.is_none() && name != "restore" {
                assert!(!server.exists("k"), "{name} took it without a number");
            }
        }
    }
}

#[test]
fn p8_the_last_numbers_are_given_out_once() {
    let server = Server::start();
    let mut connection = server.client();
    // One block and one number below 2^53.
    server.command::<()>(&["SET", "{k}:fence", "9007199253740991"]);
    let (_, script, keys, arguments) = calls().remove(0);
    let first = call(&mut connection, script, keys, &arguments).unwrap();
    let expected = Value::Array(vec![Value::Int(1), Value::Int(9_007_199_253_740_992)]);
    assert_eq!(first, expected);
    server.command::<i64>(&["DEL", "k"]);
    let second = call(&mut connection, script, keys, &arguments).unwrap();
    assert_eq!(second, Value::Array(vec![Value::Int(3), Value::Int(0)]));
}

/// Puts a waiter with this record, and its `%b` as the present, at the head of the queue.
fn put_waiter(server: &Server, record: &str) {
    let time: Vec<u64> = server.command(&["TIME"]);
    let now = (time[0] * 1_000 + time[1] / 1_000).to_string();
    let record = record.replace("%b", &now);
    server.command::<i64>(&["ZADD", KEYS[2], "1", "w"]);
    server.command::<i64>(&["HSET", KEYS[3], "w", &record]);
}

fn release(server: &Server) {
    server.command::<()>(&["SET", "k", "v", "PX", "60000"]);
    let (_, script, keys, arguments) = calls()
        .into_iter()
        .find(|call| call.0 == "release")
        .expect("a script");
    let answer = call(&mut server.client(), script, keys, &arguments).unwrap();
    assert_eq!(answer, Value::Int(1));
}

#[test]
fn the_largest_record_of_a_waiter_is_believed() {
    let server = Server::start();
    put_waiter(&server, "%b 3000 3155760000000 1000000 1 redlease:c");
    release(&server);
    assert_eq!(server.get("k").as_deref(), Some("w"));
    let ttl: u64 = server.command(&["PTTL", "k"]);
    assert!(ttl <= 3_000, "{ttl}");
}

#[test]
fn a_record_that_no_waiter_writes_is_granted_nothing() {
    let server = Server::start();
    for record in [
        "%b 9000000000000 9000000000000 1 1 redlease:c",
        "%b 3001 30000 1 1 redlease:c",
        "%b 3000 0 1 1 redlease:c",
        "%b 3000 30000 1000001 1 redlease:c",
        "%b 3000 30000 99999999999999999999999999 1 redlease:c",
        "%b 3000 30000 1 1 somebody:else",
        "%b 3000 30000 1 1 redlease:c\nx",
    ] {
        server.command::<()>(&["FLUSHALL"]);
        put_waiter(&server, record);
        release(&server);
        assert!(!server.exists("k"), "granted to {record:?}");
    }
}

/// Puts so many waiters that are long dead, and then one that lives, into the queue.
fn put_dead(server: &Server, count: usize) {
    let script = "for i = 1, ARGV[1] do redis.call('ZADD', KEYS[1], i, 'dead-' .. i) \
                  redis.call('HSET', KEYS[2], 'dead-' .. i, '1 400 1000 1 1 redlease:c') end";
    let mut fill = redis::cmd("EVAL");
    fill.arg(script).arg(2).arg(KEYS[2]).arg(KEYS[3]).arg(count);
    fill.exec(&mut server.client()).unwrap();
}

#[test]
fn p9_one_call_drops_so_many_dead_waiters_and_no_more() {
    const DEAD: usize = 200_000;
    let server = Server::start();
    put_dead(&server, DEAD);
    let left = || server.command::<usize>(&["ZCARD", KEYS[2]]);
    for name in ["release", "leave", "keep"] {
        let before = left();
        server.command::<()>(&["SET", "k", "v", "PX", "60000"]);
        let (_, script, keys, arguments) = calls()
            .into_iter()
            .find(|call| call.0 == name)
            .expect("a script");
        call(&mut server.client(), script, keys, &arguments).unwrap();
        let dropped = before - left();
        assert!((100..=2_000).contains(&dropped), "{name} dropped {dropped}");
        assert_eq!(server.exists("k"), name == "keep", "{name}");
    }
}
