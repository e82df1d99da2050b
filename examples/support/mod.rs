//! What the examples share: a Redis to run on, and a store that checks fencing tokens.

#![allow(dead_code, unreachable_pub, reason = "each program uses its part")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The Redis that an example runs on, if there is one.
pub enum Redis {
    /// The one that `REDIS_URL` names.
    Given(String),
    /// A `redis-server` from the PATH, for the length of the run.
    Private(PrivateServer),
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
        match PrivateServer::start() {
            Ok(server) => {
                println!("Redis: a private redis-server on port {}", server.port);
                Self::Private(server)
            }
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::NotFound => "there is no redis-server on the PATH".to_owned(),
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

/// A redis-server that ends with this value, also when the program fails or panics.
pub struct PrivateServer {
    child: Child,
    port: u16,
}

impl PrivateServer {
    pub fn start() -> io::Result<Self> {
        // Somebody else may take a free port before the server does.
        for _ in 0..5 {
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let child = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no"])
                .current_dir(std::env::temp_dir())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let mut server = Self { child, port };
            if server.comes_up()? {
                return Ok(server);
            }
        }
        Err(io::Error::other("it does not start"))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    fn comes_up(&mut self) -> io::Result<bool> {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until && self.child.try_wait()?.is_none() {
            if self.answers() {
                // On a port that another server has, ours has ended by now or is about to.
                return Ok(self.child.try_wait()?.is_none());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(false)
    }

    fn answers(&self) -> bool {
        let answer = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"PING\r\n")?;
            stream.read(&mut [0; 16])
        });
        answer.is_ok_and(|length| length > 0)
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
