//! What must hold in a history, and what does not.
//!
//! Readings are compared only where the program's order says which came first: a process may be
//! paused between any two steps. What is late is told apart from what the machine made late by a
//! control (`pulse.rs`), and what the faults explain is left out for as long as they can.

mod claims;
mod disruptions;
mod failovers;
mod idle;
mod keys;
#[cfg(test)]
mod story;

use std::collections::{BTreeMap, HashMap};

use crate::faults::Class;
use crate::history::{Claim, MS, Record, TTLS};
use crate::observer::Run;
use disruptions::Disruptions;

/// What scheduling alone may add to a bound: the machine may be busy.
const SLACK: u64 = 400 * MS;

/// What a run has shown.
#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<String>,
    pub overlaps: Vec<Overlap>,
    pub holds: usize,
    /// How often a lock went from one worker process to another.
    pub handovers: usize,
    /// Holds for longer than a TTL, which only renewals make possible.
    pub long_holds: usize,
    pub losses: usize,
    pub false_losses: usize,
    /// The least time from a certain claim's end to the key's expiry, in nanoseconds.
    pub least_margin: Option<i64>,
    /// How many tokens could be compared with the expiry of their keys.
    pub tokens: usize,
    /// The latest that a token was noticed after the key's expiry, as it was; and less what the
    /// machine was late by.
    pub latest_token: Option<i64>,
    pub latest_token_net: Option<i64>,
    pub longest_idle: u64,
    /// For how long a process did not run.
    pub longest_pause: u64,
    /// How often each way to wait was taken and led to a guard, and each way to give one up.
    pub waits: BTreeMap<String, (usize, usize)>,
    pub ends: BTreeMap<String, usize>,
}

/// Two claims that were certain at once.
#[derive(Clone, Debug)]
pub struct Overlap {
    pub key: usize,
    pub from: u64,
    pub until: u64,
    pub lanes: (usize, usize),
}

pub fn check(record: &Record, runs: &[Vec<Run>], class: Class, end: u64) -> Findings {
    let mut checker = Checker::new(record, runs, class, end);
    for (key, runs) in runs.iter().enumerate() {
        let mut claims: Vec<&Claim> = record.claims.iter().filter(|c| c.key == key).collect();
        claims.sort_by_key(|claim| claim.guard.as_ref().map_or(claim.called, |g| g.got));
        checker.count(&claims);
        checker.overlaps(key, &claims);
        checker.tokens(key, &claims);
        checker.losses(&claims);
        checker.tokens_at_loss(&claims);
        checker.values(key, runs);
        checker.idle(key, &claims, runs);
    }
    checker.log();
    let pauses = record.pauses.iter().map(|&(_, from, until)| (from, until));
    let pauses = pauses.chain(record.starved.iter().copied());
    let longest = pauses.map(|(from, until)| until - from).max();
    checker.findings.longest_pause = longest.unwrap_or(0);
    for line in &record.misunderstood {
        checker.violation(format!("a worker said {line:?}"));
    }
    checker.findings
}

/// P9, P10: values that stayed too long in the keys of one server, of several.
pub fn leaks(record: &Record, runs: &[Vec<Run>], end: u64) -> Vec<String> {
    let mut checker = Checker::new(record, runs, Class::Safe, end);
    for (key, runs) in runs.iter().enumerate() {
        runs.iter().for_each(|run| checker.leak(key, run));
    }
    checker.findings.violations
}

/// P11: waiters on one server that others passed over again and again. The servers of a quorum are
/// at odds for moments, in which the lock is not free.
pub fn passed_over(record: &Record, runs: &[Vec<Run>], end: u64) -> Vec<String> {
    let mut checker = Checker::new(record, runs, Class::Safe, end);
    for (key, runs) in runs.iter().enumerate() {
        let claims: Vec<&Claim> = record.claims.iter().filter(|c| c.key == key).collect();
        checker.passed_over(key, &claims, runs);
    }
    checker.findings.violations
}

/// P4, P13: guards that outlived their keys, and locks that nobody got again after the last fault.
/// Where masters replace each other, the keys were seen at the one that was appointed.
pub fn failed_over(record: &Record, runs: &[Vec<Run>], end: u64) -> Vec<String> {
    let mut checker = Checker::new(record, runs, Class::Safe, end);
    for (key, runs) in runs.iter().enumerate() {
        let claims: Vec<&Claim> = record.claims.iter().filter(|c| c.key == key).collect();
        checker.unreported(key, &claims, runs);
        checker.not_recovered(key, &claims);
    }
    checker.findings.violations
}

struct Checker<'a> {
    record: &'a Record,
    class: Class,
    end: u64,
    disruptions: Disruptions,
    by_value: HashMap<&'a str, Vec<&'a Claim>>,
    findings: Findings,
}

impl<'a> Checker<'a> {
    fn new(record: &'a Record, runs: &[Vec<Run>], class: Class, end: u64) -> Self {
        let mut by_value: HashMap<&str, Vec<&Claim>> = HashMap::new();
        for claim in &record.claims {
            if let Some(guard) = &claim.guard {
                by_value.entry(&guard.value).or_default().push(claim);
            }
        }
        Self {
            record,
            class,
            end,
            disruptions: Disruptions::new(record, runs),
            by_value,
            findings: Findings::default(),
        }
    }

    fn violation(&mut self, text: String) {
        self.findings.violations.push(text);
    }

    fn count(&mut self, by_got: &[&Claim]) {
        let mut previous: Option<&Claim> = None;
        for claim in by_got {
            let (waits, guards) = self.findings.waits.entry(claim.how.clone()).or_default();
            *waits += 1;
            *guards += usize::from(claim.guard.is_some());
            let Some(guard) = &claim.guard else { continue };
            self.findings.holds += 1;
            if previous.is_some_and(|previous| previous.lane != claim.lane) {
                self.findings.handovers += 1;
            }
            previous = Some(claim);
            self.findings.long_holds += usize::from(guard.held > guard.got + TTLS[claim.key] * MS);
            if let Some((_, how)) = &guard.ended {
                *self.findings.ends.entry(how.clone()).or_default() += 1;
            }
        }
    }

    /// When the process of a claim ended.
    fn life_end(&self, claim: &Claim) -> u64 {
        let mut lives = self.record.lives.iter().filter(|l| l.lane == claim.lane);
        let life = lives.nth(claim.life);
        life.and_then(|life| life.until).unwrap_or(self.end)
    }
}
