//! A redis-server of our own.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tempfile::TempDir;

use crate::launch::{Launch, Port, SOCKET, tls_port};
use crate::process::{end, freeze, thaw};
use crate::wait::DEADLINE;

/// A server on a free loopback port and a unix socket, with a folder of its own; ends with the
/// value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its loopback port.
    pub port: u16,
    _reserved: Port,
    folder: TempDir,
    launch: Launch,
    /// It is neither frozen nor killed.
    runs: AtomicBool,
}

impl Server {
    pub(crate) fn new(child: Child, port: Port, folder: TempDir, launch: Launch) -> Self {
        Self {
            child,
            port: port.number,
            _reserved: port,
            folder,
            launch,
            runs: AtomicBool::new(true),
        }
    }

    /// Starts a server for a test.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server for a test, with further arguments.
    pub fn with(arguments: &[&str]) -> Self {
        Self::launch(Launch::with(arguments)).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn launch(launch: Launch) -> io::Result<Self> {
        let server = launch.start()?;
        server.introduce();
        Ok(server)
    }

    /// Its URL over TCP.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its URL over TLS. Panics if it was started without.
    pub fn tls_url(&self) -> String {
        assert!(self.launch.has_tls(), "it was started without TLS");
        format!("rediss://127.0.0.1:{}/", self.tls_port())
    }

    /// The port on which it listens with TLS if it was launched so.
    pub fn tls_port(&self) -> u16 {
        tls_port(self.port)
    }

    /// The port by which other servers, sentinels and clients of a cluster know it.
    pub(crate) fn known_port(&self) -> u16 {
        if self.launch.has_tls() {
            self.tls_port()
        } else {
            self.port
        }
    }

    /// The folder in which it runs and saves.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder().join(SOCKET)
    }

    /// A plain connection of redis-rs, for what a foreign client would do.
    ///
    /// # Errors
    ///
    /// If the server does not take it within [`DEADLINE`].
    pub fn connect(&self) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open(self.url())?;
        let connection = client.get_connection_with_timeout(DEADLINE)?;
        connection.set_read_timeout(Some(DEADLINE))?;
        Ok(connection)
    }

    /// The same; panics where that fails.
    pub fn client(&self) -> redis::Connection {
        self.connect().expect("a connection")
    }

    /// Runs one command and returns its reply.
    ///
    /// # Errors
    ///
    /// If the server does not answer within [`DEADLINE`], or with an error.
    pub fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut self.connect()?)
    }

    /// Runs one command and returns its reply; panics where that fails.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        match self.query(words) {
            Ok(reply) => reply,
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    /// What it is: `redis 7.0.15`.
    ///
    /// # Errors
    ///
    /// If it does not tell, because it wants a password for instance.
    pub fn version(&self) -> redis::RedisResult<String> {
        let info: String = self.query(&["INFO", "server"])?;
        // Valkey has a redis_version, too: of the Redis that it is compatible with.
        let version = |name: &str| {
            let mut lines = info.lines();
            let version = lines.find_map(|line| line.strip_prefix(&format!("{name}_version:")))?;
            Some(format!("{name} {version}"))
        };
        let version = version("valkey").or_else(|| version("redis"));
        Ok(version.expect("INFO names a version"))
    }

    /// A line of its INFO, and of a cluster's: what is behind the name and the colon.
    pub(crate) fn info(&self, words: &[&str], name: &str) -> Option<String> {
        let info: String = self.query(words).ok()?;
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::to_owned)
    }

    /// Gives a server in cluster mode all slots.
    pub fn own_all_slots(&self) {
        self.own_slots(0..=16_383);
    }

    /// Gives a server in cluster mode some slots.
    pub(crate) fn own_slots(&self, slots: RangeInclusive<u16>) {
        let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
        let mut words = vec!["CLUSTER", "ADDSLOTS"];
        words.extend(slots.iter().map(String::as_str));
        self.command(&words)
    }

    /// Whether it has a key.
    pub fn exists(&self, key: &str) -> bool {
        self.command(&["EXISTS", key])
    }

    /// The string in a key.
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

    /// Whether it is neither frozen nor killed.
    pub fn runs(&self) -> bool {
        self.runs.load(Ordering::SeqCst)
    }

    /// Stops the server's process in its tracks until [`Self::thaw`].
    pub fn freeze(&self) {
        self.runs.store(false, Ordering::SeqCst);
        freeze(&self.child);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        thaw(&self.child);
        self.runs.store(true, Ordering::SeqCst);
    }

    /// Kills the server; what it saved stays in its folder.
    pub fn kill(&mut self) {
        self.runs.store(false, Ordering::SeqCst);
        end(&mut self.child);
    }

    /// Starts the server again, on its port and with what it saved; it may still be loading that.
    /// Panics if it does not come back.
    pub fn restart(&mut self) {
        self.kill();
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let child = self.launch.start_again(self.port, &self.folder);
            if let Some(child) = child.expect("it was started before") {
                self.child = child;
                self.runs.store(true, Ordering::SeqCst);
                return;
            }
        }
        panic!("the redis-server did not come back");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
