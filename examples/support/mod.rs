//! What the examples share: a Redis to run on, and a store that checks fencing tokens.

#![allow(dead_code, unreachable_pub, reason = "each program uses its part")]

use std::io::ErrorKind;
use std::sync::Mutex;
use std::time::Duration;

use testkit::{Launch, Server};

/// The Redis that an example runs on, if there is one.
pub enum Redis {
    /// The one that `REDIS_URL` names.
    Given(String),
    /// A `redis-server` from the PATH, for the length of the run.
    Private(Box<Server>),
    /// None: the example runs on the in-memory backend.
    Absent,
}

impl Redis {
    /// Looks for a Redis, and says in one line what it found.
    pub fn find() -> Self {
        if let Ok(url) = std::env::var("REDIS_URL")
            && !url.is_empty()
        {
            println!("Redis: the server that REDIS_URL names");
            return Self::Given(url);
        }
        match Launch::default().start() {
            Ok(server) => {
                println!("Redis: a private redis-server on port {}", server.port);
                Self::Private(Box::new(server))
            }
            Err(error) => {
                let why = match error.kind() {
                    ErrorKind::NotFound => "there is no redis-server on the PATH".to_owned(),
                    _ => format!("the redis-server on the PATH fails: {error}"),
                };
                println!("Redis: {why}, so this runs on the in-memory backend");
                Self::Absent
            }
        }
    }

    pub fn url(&self) -> Option<String> {
        match self {
            Self::Given(url) => Some(url.clone()),
            Self::Private(server) => Some(server.url()),
            Self::Absent => None,
        }
    }

    /// What keeps the example's keys apart from all others on a server that is not its own.
    pub fn prefix(&self) -> String {
        match self {
            Self::Given(_) => format!("redlease-example:{}:", std::process::id()),
            Self::Private(_) | Self::Absent => String::new(),
        }
    }
}

/// Overwrites a key for half a second, as a program with a bug would, over a connection of its
/// own.
pub fn overwrite(url: &str, key: &str) -> redis::RedisResult<()> {
    let mut connection = redis::Client::open(url)?.get_connection()?;
    let mut set = redis::cmd("SET");
    set.arg(key).arg("a program with a bug").arg("PX").arg(500);
    set.exec(&mut connection)
}

/// A store that refuses a write whose fencing token is older than one that it has seen.
#[derive(Default)]
pub struct Store {
    newest: Mutex<u64>,
}

impl Store {
    pub fn write(&self, who: &str, token: u64) {
        let Ok(mut newest) = self.newest.lock() else {
            return;
        };
        if token < *newest {
            println!("  {who} writes with token {token}: refused, the store has seen a newer one");
        } else {
            *newest = token;
            println!("  {who} writes with token {token}: accepted");
        }
    }
}

/// Prints how long a key still lives, `step` quarters of a second into a job.
pub fn print_lifetime(step: u32, left: Duration, before: Duration, of: Duration) {
    const WIDTH: f64 = 30.0;
    let filled = (left.as_secs_f64() / of.as_secs_f64() * WIDTH).round();
    let bar = "#".repeat(filled.clamp(0.0, WIDTH) as usize);
    let note = if left > before { " < renewed" } else { "" };
    println!(
        "  {:4} ms: the key lives for {:4} ms  {bar}{note}",
        step * 250,
        left.as_millis()
    );
}
