//! A redis-server of the test's own: the one that is first on the PATH, whatever its version.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod abilities;
pub mod blackhole;
pub mod proxy;
pub mod servers;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Longer than anything takes on a slow machine: reaching it is a failure.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A server on a free loopback port, with a folder of its own; ends with the value.
pub struct Server {
    child: Child,
    pub port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server with further arguments (`--requirepass x` and the like).
    pub fn with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the server");
        let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
        let until = Instant::now() + DEADLINE;
        // Somebody else may take a free port before the server does.
        while Instant::now() < until {
            let port = free_port();
            let mut child = spawn(port, folder.path(), &arguments);
            if comes_up(&mut child, port) {
                let server = Self {
                    child,
                    port,
                    folder,
                    arguments,
                };
                server.introduce();
                return server;
            }
            end(&mut child);
        }
        panic!("no redis-server came up with {arguments:?}");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// A plain connection of redis-rs, for what a foreign client would do.
    pub fn client(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("a url");
        client.get_connection().expect("a connection")
    }

    /// Runs one command and returns its reply.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        match command.query(&mut self.client()) {
            Ok(reply) => reply,
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    /// Gives a server in cluster mode all slots.
    pub fn own_all_slots(&self) {
        let slots: Vec<String> = (0..16_384).map(|slot: u16| slot.to_string()).collect();
        let mut words = vec!["CLUSTER", "ADDSLOTS"];
        words.extend(slots.iter().map(String::as_str));
        self.command(&words)
    }

    pub fn exists(&self, key: &str) -> bool {
        self.command(&["EXISTS", key])
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.command(&["GET", key])
    }

    /// How often a command was called, by the server's own count.
    pub fn calls(&self, command: &str) -> u64 {
        let stats: String = self.command(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        let count = line.and_then(|rest| rest.split(',').next());
        count.map_or(0, |count| count.parse().expect("a number"))
    }

    /// Stops the server's process in its tracks until [`Self::thaw`].
    pub fn freeze(&self) {
        freeze(&self.child);
    }

    pub fn thaw(&self) {
        thaw(&self.child);
    }

    /// Kills the server; what it saved stays in its folder.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Starts the server again, on its port and with what it saved.
    pub fn restart(&mut self) {
        self.kill();
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            self.child = spawn(self.port, self.folder.path(), &self.arguments);
            if comes_up(&mut self.child, self.port) {
                return;
            }
            self.kill();
        }
        panic!("the redis-server did not come back");
    }
}

fn pid(child: &Child) -> Pid {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.expect("a pid")
}

/// Stops a process; none of its threads runs any more when this returns.
pub fn freeze(child: &Child) {
    kill_process(pid(child), Signal::STOP).expect("our own child");
    let stopped = waitpid(Some(pid(child)), WaitOptions::UNTRACED);
    let (_, status) = stopped.expect("our own child").expect("it was waited for");
    assert!(status.stopped(), "{status:?}");
}

pub fn thaw(child: &Child) {
    kill_process(pid(child), Signal::CONT).expect("our own child");
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn spawn(port: u16, folder: &Path, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
            "redis.sock",
        ])
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is not on the PATH; install it: apt-get install -y redis-server")
}

/// Waits until the server answers, or has ended. An answer of any kind will do: it may want a
/// password.
fn comes_up(child: &mut Child, port: u16) -> bool {
    use std::io::{Read, Write};

    let until = Instant::now() + DEADLINE;
    while Instant::now() < until && child.try_wait().expect("our own child").is_none() {
        if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port))
            && stream.write_all(b"PING\r\n").is_ok()
            && stream.read(&mut [0; 64]).is_ok_and(|length| length > 0)
        {
            return child.try_wait().expect("our own child").is_none();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A key that no other test has.
pub fn unique_key() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test:{}:{number}", std::process::id())
}

/// Waits until `done` says so, without a runtime; panics when it does not within [`DEADLINE`].
pub fn eventually_blocking(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `done` says so; panics when it does not within [`DEADLINE`].
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
