//! What happened, as the workers tell it line by line; times are nanoseconds of `CLOCK_BOOTTIME`,
//! which all processes share, and which is the clock of the leases.

use std::collections::HashMap;
use std::sync::Mutex;

use rustix::time::{ClockId, clock_gettime};

pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub const MS: u64 = 1_000_000;

/// The keys of a run, and the TTL of each in milliseconds.
pub const TTLS: [u64; 6] = [300, 400, 500, 650, 800, 1000];

pub fn key(index: usize) -> String {
    format!("torture:{index}")
}

/// One wait for a lock, and the guard that it led to.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// The lane of the worker, and the number of its process in that lane.
    pub lane: usize,
    pub life: usize,
    pub key: usize,
    pub called: u64,
    /// In which of the ways it waits.
    pub how: String,
    /// When the wait ended without a guard.
    pub gave_up: Option<u64>,
    pub guard: Option<Guard>,
}

#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// A reading that was made after the guard was there.
    pub got: u64,
    pub token: u64,
    pub value: String,
    /// A reading that was made before `is_lost` last said "no": until here the claim is certain.
    pub held: u64,
    /// The least that the deadline was then.
    pub deadline: u64,
    /// Readings before and after `is_lost` first said "yes", and why.
    pub lost: Option<(u64, u64, String)>,
    /// When the token's fall was noticed.
    pub fired: Option<u64>,
    /// When the guard was about to be given up, and how.
    pub ended: Option<(u64, String)>,
    /// When that was over, as far as the one who gave it up waited.
    pub over: Option<u64>,
}

impl Claim {
    /// The time in which the guard certainly was there and not lost.
    pub fn certain(&self) -> Option<(u64, u64)> {
        let guard = self.guard.as_ref()?;
        (guard.got < guard.held).then_some((guard.got, guard.held))
    }
}

/// A worker process' life, as its parent sees it.
#[derive(Clone, Debug)]
pub struct Life {
    pub lane: usize,
    pub from: u64,
    pub until: Option<u64>,
}

/// A request to the protected resource.
#[derive(Clone, Debug)]
pub struct Write {
    pub at: u64,
    pub key: usize,
    pub lane: usize,
    pub claim: (usize, usize, u64),
    pub token: u64,
    pub accepted: bool,
}

/// A fault while it lasted.
#[derive(Clone, Debug)]
pub struct Disturbance {
    pub name: &'static str,
    pub detail: String,
    pub from: u64,
    pub until: u64,
    /// The lane that it was done to; `None`: all of them, or the server.
    pub lane: Option<usize>,
}

#[derive(Default)]
pub struct Record {
    pub claims: Vec<Claim>,
    pub lives: Vec<Life>,
    pub writes: Vec<Write>,
    pub disturbances: Vec<Disturbance>,
    /// When a worker was late for a moment that it had chosen, though nothing kept it but the
    /// machine or a signal: its lane, when it last ran, and when it noticed.
    pub pauses: Vec<(usize, u64, u64)>,
    /// The same of the driver, through which all traffic with the servers goes.
    pub starved: Vec<(u64, u64)>,
    pub errors: HashMap<String, u64>,
    pub misunderstood: Vec<String>,
    index: HashMap<(usize, usize, u64), usize>,
}

#[derive(Default)]
pub struct History(Mutex<Record>);

impl History {
    pub fn with<T>(&self, f: impl FnOnce(&mut Record) -> T) -> T {
        match self.0.lock() {
            Ok(mut record) => f(&mut record),
            Err(poisoned) => f(&mut poisoned.into_inner()),
        }
    }

    /// Enters a line that a worker wrote.
    pub fn enter(&self, lane: usize, life: usize, line: &str) {
        self.with(|record| {
            if record.enter(lane, life, line).is_none() {
                record.misunderstood.push(line.to_owned());
            }
        });
    }
}

impl Record {
    fn enter(&mut self, lane: usize, life: usize, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let mut words = rest.split(' ');
        if kind == "pause" {
            let (from, until) = (number(&mut words)?, number(&mut words)?);
            self.pauses.push((lane, from, until));
            return Some(());
        }
        if kind == "error" {
            *self.errors.entry(rest.to_owned()).or_default() += 1;
            return Some(());
        }
        let id = (lane, life, number(&mut words)?);
        if kind == "call" {
            self.index.insert(id, self.claims.len());
            self.claims.push(Claim {
                lane,
                life,
                key: usize::try_from(number(&mut words)?).ok()?,
                called: number(&mut words)?,
                how: words.next()?.to_owned(),
                ..Claim::default()
            });
            return Some(());
        }
        let claim = &mut self.claims[*self.index.get(&id)?];
        if kind == "none" {
            claim.gave_up = Some(number(&mut words)?);
            return Some(());
        }
        if kind == "got" {
            let (got, token) = (number(&mut words)?, number(&mut words)?);
            claim.guard = Some(Guard {
                got,
                token,
                value: words.next()?.to_owned(),
                held: got,
                deadline: got,
                ..Guard::default()
            });
            return Some(());
        }
        let guard = claim.guard.as_mut()?;
        match kind {
            "held" => {
                guard.held = guard.held.max(number(&mut words)?);
                guard.deadline = guard.deadline.max(number(&mut words)?);
            }
            "lost" => {
                let (before, after) = (number(&mut words)?, number(&mut words)?);
                guard.lost = Some((before, after, words.next()?.to_owned()));
            }
            "fired" => guard.fired = Some(number(&mut words)?),
            "over" => guard.over = Some(number(&mut words)?),
            "end" => guard.ended = Some((number(&mut words)?, words.next()?.to_owned())),
            _ => return None,
        }
        Some(())
    }
}

fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<u64> {
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_worker_make_a_claim() {
        let mut record = Record::default();
        for line in [
            "call 7 2 100 lock",
            "got 7 110 41 v",
            "held 7 120 400",
            "held 7 115 390",
            "lost 7 401 402 expired",
            "fired 7 403",
            "end 7 404 dropped",
            "over 7 405",
            "pause 90 99",
        ] {
            assert!(record.enter(3, 1, line).is_some(), "{line}");
        }
        let claim = &record.claims[0];
        assert_eq!((claim.lane, claim.life, claim.key), (3, 1, 2));
        assert_eq!(claim.certain(), Some((110, 120)));
        let guard = claim.guard.as_ref().unwrap();
        assert_eq!((guard.token, guard.deadline), (41, 400));
        assert_eq!(guard.lost, Some((401, 402, "expired".to_owned())));
        assert_eq!((guard.fired, guard.over), (Some(403), Some(405)));
        assert_eq!(record.pauses, [(3, 90, 99)]);
    }

    #[test]
    fn what_is_not_understood_is_kept() {
        let history = History::default();
        for line in ["", "got 7 110 41 v", "call 7 2", "what 1"] {
            history.enter(0, 0, line);
        }
        history.with(|record| assert_eq!(record.misunderstood.len(), 4));
    }
}
