//! What is in a key of a cluster, whichever server has its slot.

use redis::{ErrorKind, ServerErrorKind};

use crate::history::key;
use crate::observer::{Look, Seen, View};
use crate::server::connect;

/// One key, so that it is answered, or redirected, while the slot moves.
const LOOK: &str = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}";
/// How often a look follows one server to another.
const REDIRECTIONS: usize = 3;

pub(super) struct Slot {
    key: String,
    ports: Vec<u16>,
    at: u16,
    connection: Option<redis::Connection>,
}

impl Slot {
    pub(super) fn new(index: usize, ports: Vec<u16>) -> Self {
        Self {
            key: key(index),
            at: ports[0],
            ports,
            connection: None,
        }
    }

    fn go_to(&mut self, port: u16) {
        self.at = port;
        self.connection = None;
    }

    /// The server is away or of no use: the next one will name the master.
    fn go_on(&mut self) {
        let place = self.ports.iter().position(|&port| port == self.at);
        let next = place.map_or(0, |place| (place + 1) % self.ports.len());
        self.go_to(self.ports[next]);
    }

    fn ask(&mut self) -> redis::RedisResult<Seen> {
        if self.connection.is_none() {
            self.connection = Some(connect(self.at)?);
        }
        let connection = self.connection.as_mut().expect("it is open");
        look().arg(&self.key).query(connection)
    }

    /// Looks at another server for this time.
    fn ask_once(&self, port: u16) -> redis::RedisResult<Seen> {
        let mut pipe = redis::pipe();
        pipe.cmd("ASKING").ignore();
        pipe.add_command(look().arg(&self.key).clone());
        let (seen,): (Seen,) = pipe.query(&mut connect(port)?)?;
        Ok(seen)
    }
}

impl View for Slot {
    fn look(&mut self) -> Option<Look> {
        let before = self.at;
        for _ in 0..REDIRECTIONS {
            let error = match self.ask() {
                Ok(seen) => {
                    return Some(Look {
                        seen: vec![seen],
                        is_elsewhere: self.at != before,
                    });
                }
                Err(error) => error,
            };
            let port = error
                .redirect_node()
                .and_then(|(address, _)| port_in(address));
            match (error.kind(), port) {
                (ErrorKind::Server(ServerErrorKind::Moved), Some(port)) => self.go_to(port),
                (ErrorKind::Server(ServerErrorKind::Ask), Some(port)) => {
                    let seen = self.ask_once(port).ok()?;
                    return Some(Look {
                        seen: vec![seen],
                        is_elsewhere: true,
                    });
                }
                _ => {
                    self.go_on();
                    return None;
                }
            }
        }
        None
    }
}

fn look() -> redis::Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(LOOK).arg(1);
    command
}

fn port_in(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}
