//! A redis-server of the run's own: on a free loopback port, in a folder of its own, ended by pid.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::clock::{self, Clock};

const START: Duration = Duration::from_secs(20);
/// For orders of the run itself, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Server {
    child: Child,
    pub port: u16,
    folder: PathBuf,
    /// Its clock, if that is not the machine's.
    clock: Option<Clock>,
}

impl Server {
    /// Starts a server that writes each change to its log before it answers, so that a killed one
    /// comes back with all that it acknowledged.
    pub fn start(folder: PathBuf) -> io::Result<Self> {
        Self::with_clock(folder, None)
    }

    /// The same, with a clock of its own.
    pub fn start_with_clock(folder: PathBuf) -> io::Result<Self> {
        let library = clock::library().ok_or(io::Error::other(
            "the library of faketime is not there; install it: apt-get install -y faketime",
        ))?;
        let clock = Clock::new(library, &folder);
        Self::with_clock(folder, Some(clock))
    }

    fn with_clock(folder: PathBuf, mut clock: Option<Clock>) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        for _ in 0..5 {
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let child = spawn(port, &folder, clock.as_mut())?;
            let mut server = Self {
                child,
                port,
                folder: folder.clone(),
                clock,
            };
            if server.comes_up()? {
                return Ok(server);
            }
            clock = server.clock.take();
        }
        Err(io::Error::other("redis-server does not start"))
    }

    pub fn signal(&self, signal: Signal) {
        signal_to(self.child.id(), signal);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn forget_data(&self) {
        let _ = std::fs::remove_dir_all(self.folder.join("appendonlydir"));
    }

    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = spawn(self.port, &self.folder, self.clock.as_mut())?;
        if self.comes_up()? {
            Ok(())
        } else {
            Err(io::Error::other("redis-server does not come back"))
        }
    }

    /// Its clock, if it has one of its own.
    pub fn clock(&mut self) -> io::Result<&mut Clock> {
        let error = || io::Error::other("the server goes by the clock of the machine");
        self.clock.as_mut().ok_or_else(error)
    }

    pub fn connect(&self) -> redis::RedisResult<redis::Connection> {
        connect_within(self.port, PATIENCE)
    }

    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut self.connect()?)
    }

    fn comes_up(&mut self) -> io::Result<bool> {
        let until = Instant::now() + START;
        while Instant::now() < until && self.child.try_wait()?.is_none() {
            if answers(self.port) {
                return Ok(self.child.try_wait()?.is_none());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn connect(port: u16) -> redis::RedisResult<redis::Connection> {
    connect_within(port, Duration::from_secs(1))
}

fn connect_within(port: u16, patience: Duration) -> redis::RedisResult<redis::Connection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let connection = client.get_connection_with_timeout(patience)?;
    connection.set_read_timeout(Some(patience))?;
    Ok(connection)
}

pub fn signal_to(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn spawn(port: u16, folder: &Path, clock: Option<&mut Clock>) -> io::Result<Child> {
    let mut command = Command::new("redis-server");
    if let Some(clock) = clock {
        clock.rule(&mut command)?;
    }
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "yes"])
        .args(["--appendfsync", "no", "--repl-diskless-sync-delay", "0"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(
                "redis-server is not on the PATH; install it: apt-get install -y redis-server",
            ),
            _ => error,
        })
}

fn answers(port: u16) -> bool {
    let answer = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 16];
        let length = stream.read(&mut reply)?;
        Ok(reply[..length].starts_with(b"+PONG"))
    });
    answer.unwrap_or(false)
}
