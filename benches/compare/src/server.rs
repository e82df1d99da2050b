//! redis-servers of this program's own, and what they count.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(10);

/// A server on a free loopback port; ends with the value.
pub struct Server {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Server {
    pub fn start() -> Result<Self> {
        // Somebody else may take a free port before the server does.
        for _ in 0..5 {
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let folder = tempfile::tempdir()?;
            let child = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no"])
                .current_dir(&folder)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .context("redis-server does not start (apt-get install -y redis-server)")?;
            let mut server = Self {
                child,
                port,
                _folder: folder,
            };
            if server.comes_up()? {
                return Ok(server);
            }
        }
        bail!("no redis-server came up")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server's process in its tracks until [`Self::thaw`].
    pub fn freeze(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::STOP)?)
    }

    pub fn thaw(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    pub fn counts(&self) -> Result<Counts> {
        let mut calls = BTreeMap::new();
        for line in self.info("commandstats")?.lines() {
            let Some((name, rest)) = line
                .strip_prefix("cmdstat_")
                .and_then(|line| line.split_once(":calls="))
            else {
                continue;
            };
            let mut numbers = rest.split([',', '=']).step_by(2);
            let mut number = || numbers.next()?.parse().ok();
            let (Some(count), Some(micros)) = (number(), number()) else {
                bail!("INFO is not understood: {line}");
            };
            calls.insert(name.to_owned(), (count, micros));
        }
        Ok(Counts(calls))
    }

    /// `redis 7.0.15`, or what it calls itself.
    pub fn version(&self) -> Result<String> {
        let info = self.info("server")?;
        let version = |name| info.lines().find_map(|line| line.strip_prefix(name));
        Ok(format!(
            "redis {}",
            version("redis_version:").unwrap_or("?")
        ))
    }

    fn info(&self, section: &str) -> Result<String> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port))?;
        let mut connection = client.get_connection()?;
        Ok(redis::cmd("INFO").arg(section).query(&mut connection)?)
    }

    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("no pid")
    }

    fn comes_up(&mut self) -> Result<bool> {
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until && self.child.try_wait()?.is_none() {
            let answer = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                stream.write_all(b"PING\r\n")?;
                stream.read(&mut [0; 16])
            });
            if answer.is_ok_and(|length| length > 0) {
                // On a port that another server has, ours has ended by now or is about to.
                return Ok(self.child.try_wait()?.is_none());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For each command, how often it was called and for how many microseconds, scripts' own calls
/// included.
pub struct Counts(BTreeMap<String, (u64, u64)>);

impl Counts {
    /// Requests since an earlier count, and the microseconds that the server took for them.
    ///
    /// A request is what a client sends. `INFO commandstats` counts what a script calls as well,
    /// so these are told apart by name: scripts, connection and channel commands are requests,
    /// and `SET` is one if this client sends it (`sends_set`; its scripts call none). A script's
    /// time includes that of what it calls.
    pub fn requests_since(&self, earlier: &Self, sends_set: bool) -> (u64, u64) {
        let request = |name: &str| {
            let parent = name.split('|').next().unwrap_or(name);
            matches!(
                parent,
                "evalsha" | "eval" | "script" | "client" | "hello" | "subscribe" | "ping"
            ) || (name == "set" && sends_set)
        };
        let mut sum = (0, 0);
        for (name, (calls, micros)) in self.0.iter().filter(|(name, _)| request(name)) {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            sum.0 += calls - before.0;
            sum.1 += micros - before.1;
        }
        sum
    }
}
