//! A redis-server of our own: the one that is first on the PATH, whatever its version.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{end, freeze, thaw};
use crate::wait::DEADLINE;

/// How many ports are tried.
const ATTEMPTS: usize = 10;

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    arguments: Vec<String>,
    environment: Vec<(OsString, OsString)>,
}

impl Launch {
    /// A server with further arguments (`--requirepass x` and the like). It keeps nothing on disk
    /// unless they say so.
    #[must_use]
    pub fn with(arguments: &[&str]) -> Self {
        Self {
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            environment: Vec::new(),
        }
    }

    /// Sets a variable of the server's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    ///
    /// Of the kind `NotFound`, and with the line that installs it, if no redis-server is on the
    /// PATH; of another kind if it does not come up.
    pub fn start(self) -> io::Result<Server> {
        let folder = tempfile::tempdir()?;
        // Somebody else may take a free port before the server does.
        for _ in 0..ATTEMPTS {
            let port = free_port()?;
            let mut child = self.spawn(port, folder.path())?;
            if comes_up(&mut child, port)? {
                return Ok(Server {
                    child,
                    port,
                    folder,
                    launch: self,
                });
            }
            end(&mut child);
        }
        let arguments = self.arguments;
        Err(io::Error::other(format!(
            "no redis-server came up with {arguments:?}"
        )))
    }

    fn spawn(&self, port: u16, folder: &Path) -> io::Result<Child> {
        let port = port.to_string();
        Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1"])
            .args(["--unixsocket", "redis.sock"])
            .args(["--save", "", "--appendonly", "no"])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                kind @ io::ErrorKind::NotFound => io::Error::new(
                    kind,
                    "redis-server is not on the PATH; install it: apt-get install -y redis-server",
                ),
                _ => error,
            })
    }
}

/// A server on a free loopback port and a unix socket, with a folder of its own; ends with the
/// value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its loopback port.
    pub port: u16,
    folder: TempDir,
    launch: Launch,
}

impl Server {
    /// Starts a server for a test.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server for a test, with further arguments.
    pub fn with(arguments: &[&str]) -> Self {
        match Launch::with(arguments).start() {
            Ok(server) => {
                server.introduce();
                server
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Its URL over TCP.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The folder in which it runs and saves.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("redis.sock")
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

    /// Gives a server in cluster mode all slots.
    pub fn own_all_slots(&self) {
        let slots: Vec<String> = (0..16_384).map(|slot: u16| slot.to_string()).collect();
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

    /// Stops the server's process in its tracks until [`Self::thaw`].
    pub fn freeze(&self) {
        freeze(&self.child);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        thaw(&self.child);
    }

    /// Kills the server; what it saved stays in its folder.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Starts the server again, on its port and with what it saved; it may still be loading that.
    /// Panics if it does not come back.
    pub fn restart(&mut self) {
        self.kill();
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let child = self.launch.spawn(self.port, self.folder.path());
            self.child = child.expect("it was started before");
            if comes_up(&mut self.child, self.port).expect("our own child") {
                return;
            }
            self.kill();
        }
        panic!("the redis-server did not come back");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Waits until the server answers, or has ended. An answer of any kind will do: it may want a
/// password.
fn comes_up(child: &mut Child, port: u16) -> io::Result<bool> {
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until && child.try_wait()?.is_none() {
        if answers(port) {
            // On a port that another server has, ours has ended by now or is about to.
            return Ok(child.try_wait()?.is_none());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

fn answers(port: u16) -> bool {
    let answer = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        stream.read(&mut [0; 64])
    });
    answer.is_ok_and(|length| length > 0)
}
