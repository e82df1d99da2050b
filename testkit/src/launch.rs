//! How a redis-server is started: the one that is first on the PATH, whatever its version.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::process::end;
use crate::server::Server;
use crate::tls::Tls;
use crate::wait::DEADLINE;

/// How many ports are tried.
const ATTEMPTS: usize = 10;

/// The name of the configuration file in the server's folder.
const CONFIGURATION: &str = "redis.conf";

/// The name of the unix socket in the server's folder.
pub(crate) const SOCKET: &str = "redis.sock";

/// The lowest port, and how many there are from there. They are below those that the system gives
/// to outgoing connections: one of these could sit on the port of a server that is to come back.
const PORTS: (u16, u16) = (10_000, 10_000);

/// The bus of a cluster is so far above the port.
const BUS: u16 = 10_000;

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    arguments: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    configuration: Option<String>,
    tls: Option<Tls>,
}

impl Launch {
    /// A server with further arguments (`--requirepass x` and the like). It keeps nothing on disk
    /// unless they say so.
    #[must_use]
    pub fn with(arguments: &[&str]) -> Self {
        Self::default().and(arguments)
    }

    /// Adds arguments.
    #[must_use]
    pub fn and(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// Sets a variable of the server's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Gives the server a configuration file of its own, with this text. It can rewrite the file,
    /// and a restart reads what it wrote. The arguments overrule it.
    #[must_use]
    pub fn configuration(mut self, text: impl Into<String>) -> Self {
        self.configuration = Some(text.into());
        self
    }

    /// Lets the server listen with TLS, too, on [`Server::tls_port`]; it reaches other servers
    /// (its master, a cluster's other nodes) with TLS then.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether the server listens with TLS, too.
    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
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
            let port = Port::free()?;
            self.configure(folder.path())?;
            let mut child = self.spawn(port.number, folder.path())?;
            if comes_up(&mut child, folder.path())? {
                return Ok(Server::new(child, port, folder, self));
            }
            end(&mut child);
        }
        let arguments = self.arguments;
        Err(io::Error::other(format!(
            "no redis-server came up with {arguments:?}"
        )))
    }

    /// Starts several servers at the same time and waits until all of them answer; panics where
    /// one does not come up.
    pub(crate) fn start_all(launches: Vec<Self>) -> Vec<Server> {
        let servers: Vec<_> = thread::scope(|scope| {
            let start = |launch: Self| scope.spawn(|| launch.start());
            let threads: Vec<_> = launches.into_iter().map(start).collect();
            let ends = threads.into_iter().map(thread::ScopedJoinHandle::join);
            ends.collect()
        });
        let servers: io::Result<Vec<_>> = servers
            .into_iter()
            .map(|end| end.expect("no panic"))
            .collect();
        let servers = servers.unwrap_or_else(|error| panic!("{error}"));
        servers.iter().for_each(Server::introduce);
        servers
    }

    /// Starts the server again and waits until it answers; none if it ended.
    pub(crate) fn start_again(&self, port: u16, folder: &TempDir) -> io::Result<Option<Child>> {
        let mut child = self.spawn(port, folder.path())?;
        if comes_up(&mut child, folder.path())? {
            return Ok(Some(child));
        }
        end(&mut child);
        Ok(None)
    }

    fn configure(&self, folder: &Path) -> io::Result<()> {
        let Some(text) = &self.configuration else {
            return Ok(());
        };
        fs::write(folder.join(CONFIGURATION), text)
    }

    fn spawn(&self, port: u16, folder: &Path) -> io::Result<Child> {
        let mut command = Command::new("redis-server");
        if self.configuration.is_some() {
            command.arg(CONFIGURATION);
        }
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--unixsocket", SOCKET])
            .args(["--save", "", "--appendonly", "no"]);
        if let Some(tls) = &self.tls {
            command
                .args(["--tls-port", &tls_port(port).to_string()])
                .args(["--tls-replication", "yes", "--tls-cluster", "yes"])
                .args(tls.arguments());
        }
        command
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

/// The port for TLS of a server with this port.
pub(crate) fn tls_port(port: u16) -> u16 {
    port + 1
}

/// A port, with the one for TLS and the buses of both, that no other server of ours gets while this
/// one lives: also where it is down for a while.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Locked; the tests run in several processes.
    _reservation: File,
}

impl Port {
    fn free() -> io::Result<Self> {
        let folder = env::temp_dir().join("redlease-testkit-ports");
        fs::create_dir_all(&folder)?;
        let (lowest, count) = PORTS;
        for _ in 0..ATTEMPTS {
            let random = RandomState::new().hash_one(()) % u64::from(count / 2);
            let number = lowest + 2 * u16::try_from(random).expect("less than the count");
            let reservation = File::create(folder.join(number.to_string()))?;
            let is_ours = flock(&reservation, FlockOperation::NonBlockingLockExclusive).is_ok();
            let ports = [
                number,
                tls_port(number),
                number + BUS,
                tls_port(number) + BUS,
            ];
            let free = |&port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if is_ours && ports.iter().all(free) {
                return Ok(Self {
                    number,
                    _reservation: reservation,
                });
            }
        }
        Err(io::Error::other("no free port"))
    }
}

/// Waits until the server answers, or has ended. An answer of any kind will do: it may want a
/// password. It is asked on its unix socket, where no other server can answer in its place; it
/// opens this one last.
fn comes_up(child: &mut Child, folder: &Path) -> io::Result<bool> {
    let socket = folder.join(SOCKET);
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until && child.try_wait()?.is_none() {
        if answers(&socket) {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

fn answers(socket: &Path) -> bool {
    let answer = UnixStream::connect(socket).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        stream.read(&mut [0; 64])
    });
    answer.is_ok_and(|length| length > 0)
}
