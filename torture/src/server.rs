//! A redis-server of the run's own, that comes back with all that it acknowledged.

use std::io;
use std::ops::Deref;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Launch, eventually_blocking};

use crate::clock::Clock;

/// Each change is in its log before it is answered, and a replica gets its copy at once.
pub const PERSISTENT: [&str; 6] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",
    "--repl-diskless-sync-delay",
    "0",
];
/// How long a server is waited for over a connection that passes no proxy.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Server {
    process: testkit::Server,
    /// Its clock, if that is not the machine's.
    clock: Option<Clock>,
}

impl Server {
    pub fn start() -> io::Result<Self> {
        Ok(Self {
            process: Launch::with(&PERSISTENT).start()?,
            clock: None,
        })
    }

    /// Starts a server with a clock of its own.
    pub fn start_with_clock() -> io::Result<Self> {
        let clock = Clock::new()?;
        let mut launch = Launch::with(&PERSISTENT);
        for (name, value) in clock.environment() {
            launch = launch.env(name, value);
        }
        Ok(Self {
            process: launch.start()?,
            clock: Some(clock),
        })
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn forget_data(&self) {
        let _ = std::fs::remove_dir_all(self.folder().join("appendonlydir"));
    }

    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        if let Some(clock) = &mut self.clock {
            clock.begin()?;
        }
        self.process.restart();
        eventually_blocking("the server has loaded what it saved", || {
            self.query::<()>(&["PING"]).is_ok()
        });
        Ok(())
    }

    /// Its clock, if it has one of its own.
    pub fn clock(&mut self) -> io::Result<&mut Clock> {
        let error = || io::Error::other("the server goes by the clock of the machine");
        self.clock.as_mut().ok_or_else(error)
    }
}

impl Deref for Server {
    type Target = testkit::Server;

    fn deref(&self) -> &testkit::Server {
        &self.process
    }
}

pub fn connect(port: u16) -> redis::RedisResult<redis::Connection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let connection = client.get_connection_with_timeout(PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

pub fn signal_to(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
