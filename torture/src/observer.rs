//! What is in the keys of a server, as seen from beside the faults: over a connection that passes
//! no proxy.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::history::{MS, TTLS, key, now};
use crate::server::connect;

const EVERY: Duration = Duration::from_millis(4);
/// Looks that are further apart, because the machine is busy, leave open what was in between.
pub const LONGEST_GAP: u64 = 25 * MS;

/// Looks in a row that found the same value in a key.
#[derive(Clone, Debug)]
pub struct Run {
    /// The value; `None`: no such key.
    pub value: Option<String>,
    /// Before and after the first look.
    pub first: (u64, u64),
    /// Before the last look.
    pub last: u64,
    /// The latest that the key can expire, by the last look.
    pub expires: u64,
    /// The look before the first one saw another value, was answered, and was not long before.
    pub is_change: bool,
}

/// What can be seen at one instant.
pub struct Look {
    pub seen: Vec<Seen>,
    /// It is not the server that the last look was at: what is different need not be new.
    pub is_elsewhere: bool,
}

/// From where some keys are looked at.
pub trait View: Send + 'static {
    /// What is in them, if that can be told.
    fn look(&mut self) -> Option<Look>;
}

/// Watches one server, or one key; a frozen server blinds only its own.
pub struct Observer {
    runs: Arc<Mutex<Vec<Vec<Run>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Watches all keys at the server that has this port for the time being.
    pub fn of_server(port: Arc<AtomicU16>) -> Self {
        Self::start(OneServer {
            port,
            connection: None,
            connected_to: 0,
        })
    }

    pub fn start(mut view: impl View) -> Self {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (all, stopped) = (Arc::clone(&runs), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut is_blind = true;
            let mut previous = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                let before = now();
                let look = view.look();
                let after = now();
                is_blind |= after - previous > LONGEST_GAP;
                previous = before;
                match (look, all.lock()) {
                    (Some(Look { seen, is_elsewhere }), Ok(mut runs)) => {
                        is_blind |= is_elsewhere;
                        runs.resize(seen.len(), Vec::new());
                        for (runs, (value, ttl)) in runs.iter_mut().zip(seen) {
                            enter(runs, value, ttl, (before, after), is_blind);
                        }
                        is_blind = false;
                    }
                    _ => is_blind = true,
                }
            }
        });
        Self {
            runs,
            stop,
            thread: Some(thread),
        }
    }

    /// Ends the observation; the runs of each key that was watched.
    pub fn finish(mut self) -> Vec<Vec<Run>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.runs
            .lock()
            .map(|runs| runs.clone())
            .unwrap_or_default()
    }
}

/// The value of a key, and its time to live in milliseconds.
pub type Seen = (Option<Vec<u8>>, i64);

struct OneServer {
    port: Arc<AtomicU16>,
    connection: Option<redis::Connection>,
    connected_to: u16,
}

impl View for OneServer {
    fn look(&mut self) -> Option<Look> {
        let target = self.port.load(Ordering::SeqCst);
        let is_elsewhere = self.connected_to != target;
        if is_elsewhere {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connected_to = target;
            self.connection = connect(target).ok();
        }
        match look(self.connection.as_mut()?) {
            Ok(seen) => Some(Look { seen, is_elsewhere }),
            Err(_) => {
                self.connection = None;
                None
            }
        }
    }
}

fn look(connection: &mut redis::Connection) -> redis::RedisResult<Vec<Seen>> {
    let mut pipe = redis::pipe();
    pipe.atomic();
    for index in 0..TTLS.len() {
        pipe.cmd("GET").arg(key(index));
        pipe.cmd("PTTL").arg(key(index));
    }
    let answers: Vec<redis::Value> = pipe.query(connection)?;
    let mut seen = Vec::new();
    for pair in answers.chunks_exact(2) {
        seen.push((
            redis::from_redis_value(pair[0].clone())?,
            redis::from_redis_value(pair[1].clone())?,
        ));
    }
    Ok(seen)
}

fn enter(
    runs: &mut Vec<Run>,
    value: Option<Vec<u8>>,
    ttl: i64,
    (before, after): (u64, u64),
    was_blind: bool,
) {
    let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
    let expires = after + (ttl.max(0) as u64 + 1) * MS;
    if let Some(run) = runs.last_mut()
        && run.value == value
        && !was_blind
    {
        run.last = before;
        run.expires = expires;
        return;
    }
    runs.push(Run {
        value,
        first: (before, after),
        last: before,
        expires,
        is_change: !was_blind,
    });
}
