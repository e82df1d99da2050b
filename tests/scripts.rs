//! The Lua scripts against a model of what they are to do, on a real server.

#[path = "common/lua.rs"]
mod lua;

use std::cell::{Cell, RefCell};

use lua::*;
use proptest::collection::vec;
use proptest::prelude::*;
use redis::{Commands, Connection, Value};
use testkit::Server;

/// TTLs are far apart and far from the end of a run, so that the model needs no clock.
const TTLS: [u64; 3] = [100_000, 400_000, 900_000];
const SLACK: u64 = 60_000;
const FENCE_TTL: u64 = 604_800_000;
/// Above 2^49, where `tostring` of Lua would round.
const FLOOR: u64 = 1_790_000_000_000_000;
const CHANNEL: &str = "redlease:c";

#[derive(Clone, Debug)]
enum Step {
    Acquire {
        value: u8,
        ttl: usize,
        floor: u64,
        fences: u64,
    },
    Renew {
        value: u8,
        ttl: usize,
    },
    Release {
        value: u8,
    },
    ForceRelease,
    Holder,
    Look {
        value: u8,
    },
    /// Another library's holder, with or without a TTL.
    Foreign {
        ttl: Option<usize>,
    },
    /// What an operator or an eviction does.
    LoseLock,
    LoseFence,
}

fn step() -> impl Strategy<Value = Step> {
    let value = 0..3_u8;
    let looker = value.clone();
    let ttl = 0..TTLS.len();
    prop_oneof![
        4 => (value.clone(), ttl.clone(), 0..5_u64, 1..20_u64).prop_map(
            |(value, ttl, floor, fences)| Step::Acquire { value, ttl, floor: FLOOR + floor, fences }
        ),
        2 => (value.clone(), ttl.clone()).prop_map(|(value, ttl)| Step::Renew { value, ttl }),
        2 => value.prop_map(|value| Step::Release { value }),
        1 => Just(Step::ForceRelease),
        1 => Just(Step::Holder),
        1 => looker.prop_map(|value| Step::Look { value }),
        1 => proptest::option::of(ttl).prop_map(|ttl| Step::Foreign { ttl }),
        1 => Just(Step::LoseLock),
        1 => Just(Step::LoseFence),
    ]
}

/// The lock key and its counter, as they should be.
#[derive(Debug, Default)]
struct Model {
    held: Option<(String, Option<u64>)>,
    fence: Option<u64>,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Granted(u64),
    Held(Option<u64>),
    Number(i64),
    Holder(Option<(String, Option<u64>)>),
    None,
}

fn name(value: u8) -> String {
    format!("value-{value}")
}

impl Model {
    fn holds(&self, value: u8) -> bool {
        self.held
            .as_ref()
            .is_some_and(|(held, _)| *held == name(value))
    }

    fn apply(&mut self, step: &Step) -> Answer {
        match *step {
            Step::Acquire {
                value,
                ttl,
                floor,
                fences,
            } => {
                if let Some((_, left)) = &self.held
                    && !self.holds(value)
                {
                    return Answer::Held(*left);
                }
                // Counted from the latest request of this value.
                self.held = Some((name(value), Some(TTLS[ttl])));
                let first = self.fence.map_or(floor, |last| floor.max(last + 1));
                self.fence = Some(first + fences - 1);
                Answer::Granted(first)
            }
            Step::Renew { value, ttl } => match &mut self.held {
                None => Answer::Number(-1),
                Some((held, left)) if *held == name(value) => {
                    // P7: never shorter.
                    *left = Some(left.unwrap_or(0).max(TTLS[ttl]));
                    Answer::Number(1)
                }
                Some(_) => Answer::Number(0),
            },
            Step::Release { value } if self.holds(value) => {
                self.held = None;
                Answer::Number(1)
            }
            Step::Release { .. } => Answer::Number(0),
            Step::ForceRelease => Answer::Number(self.held.take().is_some().into()),
            Step::Holder => Answer::Holder(self.held.clone()),
            Step::Look { value } => Answer::Number(match &self.held {
                None => -2,
                Some((_, left)) if self.holds(value) => left.map_or(-1, |left| left as i64),
                Some(_) => -3,
            }),
            Step::Foreign { ttl } => {
                self.held = Some(("theirs".to_owned(), ttl.map(|ttl| TTLS[ttl])));
                Answer::None
            }
            Step::LoseLock => {
                self.held = None;
                Answer::None
            }
            Step::LoseFence => {
                self.fence = None;
                Answer::None
            }
        }
    }
}

struct Real<'a> {
    connection: &'a mut Connection,
    key: String,
    fence: String,
}

/// A PTTL as it was set, if it is a little below that.
fn set_as(pttl: i64) -> Option<u64> {
    let left = u64::try_from(pttl).ok()?;
    let set = TTLS.iter().chain([&FENCE_TTL]);
    let mut fitting = set.filter(|&&ttl| left <= ttl && left + SLACK > ttl);
    Some(*fitting.next().unwrap_or_else(|| panic!("a ttl of {left}")))
}

impl Real<'_> {
    fn run(&mut self, script: &str, keys: &[&str], arguments: &[String]) -> Value {
        let mut eval = redis::cmd("EVAL");
        eval.arg(script).arg(keys.len()).arg(keys).arg(arguments);
        eval.query(self.connection).expect("a reply")
    }

    fn number(&mut self, script: &str, arguments: &[String]) -> Answer {
        let (key, fence) = (self.key.clone(), self.fence.clone());
        let queue = format!("{{{key}}}:lock-queue");
        let waiters = format!("{{{key}}}:lock-waiters");
        match self.run(script, &[&key, &fence, &queue, &waiters], arguments) {
            Value::Int(number) => Answer::Number(number),
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, step: &Step) -> Answer {
        let (key, fence) = (self.key.clone(), self.fence.clone());
        match *step {
            Step::Acquire {
                value,
                ttl,
                floor,
                fences,
            } => {
                let numbers = [TTLS[ttl], floor, floor + fences - 1].map(|n| n.to_string());
                let numbers = if fences > 1 {
                    &numbers[..]
                } else {
                    &numbers[..2]
                };
                let arguments = [&[name(value)], numbers].concat();
                match self.run(ACQUIRE, &[&key, &fence], &arguments) {
                    Value::Int(1) => Answer::Granted(floor),
                    Value::Array(pair) => match pair[..] {
                        [Value::Int(1), Value::Int(fence)] => Answer::Granted(fence as u64),
                        [Value::Int(0), Value::Int(pttl)] => Answer::Held(set_as(pttl)),
                        ref other => panic!("{other:?}"),
                    },
                    other => panic!("{other:?}"),
                }
            }
            Step::Renew { value, ttl } => self.number(RENEW, &[name(value), TTLS[ttl].to_string()]),
            Step::Release { value } => self.number(RELEASE, &[name(value)]),
            Step::ForceRelease => self.number(FORCE_RELEASE, &[]),
            Step::Holder => Answer::Holder(match self.run(HOLDER, &[&key], &[]) {
                Value::Nil => None,
                Value::Array(pair) => match &pair[..] {
                    [Value::BulkString(value), Value::Int(pttl)] => {
                        Some((String::from_utf8(value.clone()).unwrap(), set_as(*pttl)))
                    }
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }),
            Step::Look { value } => match self.run(LOOK, &[&key], &[name(value)]) {
                Value::Int(pttl @ 0..) => Answer::Number(set_as(pttl).map_or(-1, |set| set as i64)),
                Value::Int(number) => Answer::Number(number),
                other => panic!("{other:?}"),
            },
            Step::Foreign { ttl } => {
                let _: () = self.connection.set(&key, "theirs").unwrap();
                if let Some(ttl) = ttl {
                    let _: () = self.connection.pexpire(&key, TTLS[ttl] as i64).unwrap();
                }
                Answer::None
            }
            Step::LoseLock => {
                let _: () = self.connection.del(&key).unwrap();
                Answer::None
            }
            Step::LoseFence => {
                let _: () = self.connection.del(&fence).unwrap();
                Answer::None
            }
        }
    }

    fn assert_like(&mut self, model: &Model) {
        let value: Option<String> = self.connection.get(&self.key).unwrap();
        let pttl: i64 = self.connection.pttl(&self.key).unwrap();
        assert_eq!(value.map(|value| (value, set_as(pttl))), model.held);
        // The text, not a number: a rounded one would look alike.
        let fence: Option<String> = self.connection.get(&self.fence).unwrap();
        assert_eq!(fence, model.fence.map(|fence| fence.to_string()));
        if model.fence.is_some() {
            let pttl: i64 = self.connection.pttl(&self.fence).unwrap();
            assert_eq!(set_as(pttl), Some(FENCE_TTL));
        }
    }
}

#[test]
fn the_scripts_do_what_the_model_does() {
    let server = Server::start();
    let connection = RefCell::new(server.client());
    let number = Cell::new(0);
    // Steps are found again by their seed; a file of them would need a place in the repository.
    let config = ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in vec(step(), 1..30))| {
        number.set(number.get() + 1);
        let number = number.get();
        let mut model = Model::default();
        let mut real = Real {
            connection: &mut connection.borrow_mut(),
            key: format!("k{number}"),
            fence: format!("{{k{number}}}:fence"),
        };
        for step in &steps {
            let expected = model.apply(step);
            prop_assert_eq!(real.apply(step), expected, "{:?}", step);
            real.assert_like(&model);
        }
    });
    assert!(number.get() >= 150);
}

#[test]
fn p8_a_release_gives_back_its_own_reservation_only() {
    let server = Server::start();
    let mut connection = server.client();
    let mut counter_after = |counter: u64, back: &[u64]| -> u64 {
        let () = connection.set("k", "value-0").unwrap();
        let () = connection.set("{k}:fence", counter).unwrap();
        let mut release = redis::cmd("EVAL");
        release.arg(RELEASE).arg(4);
        release.arg(&["k", "{k}:fence", "{k}:lock-queue", "{k}:lock-waiters"]);
        release.arg("value-0").arg(CHANNEL).arg(back);
        let freed: i64 = release.query(&mut connection).unwrap();
        assert_eq!(freed, 1);
        connection.get("{k}:fence").unwrap()
    };
    assert_eq!(counter_after(FLOOR + 50, &[]), FLOOR + 50);
    let back = [FLOOR + 10, FLOOR + 50];
    assert_eq!(counter_after(FLOOR + 50, &back), FLOOR + 10);
    // Somebody else has numbers beyond: a release that runs late must not take those back.
    assert_eq!(counter_after(FLOOR + 60, &back), FLOOR + 60);
}

#[test]
fn p13_a_replica_that_is_behind_does_not_say_whose_the_lock_is() {
    let server = Server::start();
    let mut client = server.client();
    let look = |client: &mut Connection, key: &str| -> Result<i64, redis::RedisError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(LOOK).arg(1).arg(key).arg("ours").query(client)
    };
    let () = client.set("lock", "ours").unwrap();
    let () = client.set("stolen", "theirs").unwrap();
    let () = client.hset("hash", "field", "theirs").unwrap();
    assert_eq!(look(&mut client, "lock").unwrap(), -1);
    assert_eq!(look(&mut client, "stolen").unwrap(), -3);
    assert_eq!(look(&mut client, "gone").unwrap(), -2);
    assert_eq!(look(&mut client, "hash").unwrap(), -3);
    // Of a master that cannot be reached.
    let () = server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    for key in ["lock", "stolen", "gone", "hash"] {
        let error = look(&mut client, key).unwrap_err().to_string();
        assert!(error.contains("READONLY"), "{key}: {error}");
    }
}
