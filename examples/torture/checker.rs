//! What must hold in a history, and what does not.

use std::collections::HashMap;

use crate::faults::Class;
use crate::history::{Claim, MS, Record, TTLS};
use crate::observer::Run;

/// What scheduling alone may add to a bound: the machine may be busy.
const SLACK: u64 = 400 * MS;
/// How long after a fault its after-effects may last: retries back off for half a second.
const RECOVERY: u64 = 1500 * MS;
/// How long a lock may stay free with somebody waiting: the slowest heartbeat is 333 ms.
const LONGEST_IDLE: u64 = 333 * MS + 2 * SLACK;
/// How late a token may be noticed by a process that was not paused.
const TOKEN_SLACK: u64 = 15 * MS;

/// What a run has shown.
#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<String>,
    pub overlaps: Vec<Overlap>,
    pub holds: usize,
    /// How often a lock went from one worker process to another.
    pub handovers: usize,
    pub losses: usize,
    pub false_losses: usize,
    /// The least time from a certain claim's end to the key's expiry, in nanoseconds.
    pub least_margin: Option<i64>,
    /// The latest that a token was noticed after the key's expiry.
    pub latest_token: Option<i64>,
    pub longest_idle: u64,
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
    let mut checker = Checker::new(record, class, end);
    for (key, runs) in runs.iter().enumerate() {
        let mut claims: Vec<&Claim> = record.claims.iter().filter(|c| c.key == key).collect();
        claims.sort_by_key(|claim| claim.guard.as_ref().map_or(claim.called, |g| g.got));
        checker.overlaps(key, &claims);
        checker.tokens(key, &claims);
        if class == Class::Safe {
            checker.losses(&claims);
            checker.values(key, runs);
            checker.idle(key, &claims, runs);
        }
    }
    checker.log();
    for line in &record.misunderstood {
        checker
            .findings
            .violations
            .push(format!("a worker said {line:?}"));
    }
    checker.findings
}

/// P9, P10: values that stayed too long in the keys of one server, of several.
pub fn leaks(record: &Record, runs: &[Vec<Run>], end: u64) -> Vec<String> {
    let mut checker = Checker::new(record, Class::Safe, end);
    for (key, runs) in runs.iter().enumerate() {
        runs.iter().for_each(|run| checker.leak(key, run));
    }
    checker.findings.violations
}

/// When something was done to the server or to a worker: bounds on recovery count from its end.
fn disruptions(record: &Record) -> Vec<(u64, u64)> {
    let disturbances = record.disturbances.iter().map(|d| (d.from, d.until));
    let deaths = record
        .lives
        .iter()
        .filter_map(|life| Some((life.until?, life.until?)));
    let pauses = record.pauses.iter().map(|&(_, from, until)| (from, until));
    let pauses = pauses.filter(|(from, until)| until - from > 25 * MS);
    let mut all: Vec<_> = disturbances.chain(deaths).chain(pauses).collect();
    all.sort_unstable();
    all
}

struct Checker<'a> {
    record: &'a Record,
    class: Class,
    end: u64,
    disruptions: Vec<(u64, u64)>,
    by_value: HashMap<&'a str, Vec<&'a Claim>>,
    findings: Findings,
}

impl<'a> Checker<'a> {
    fn new(record: &'a Record, class: Class, end: u64) -> Self {
        let mut checker = Self {
            record,
            class,
            end,
            disruptions: disruptions(record),
            by_value: HashMap::new(),
            findings: Findings::default(),
        };
        for claim in &record.claims {
            if let Some(guard) = &claim.guard {
                checker.findings.holds += 1;
                let claims = checker.by_value.entry(guard.value.as_str()).or_default();
                claims.push(claim);
            }
        }
        checker
    }

    fn violation(&mut self, text: String) {
        self.findings.violations.push(text);
    }

    /// P1: no two certain claims of a key at one instant.
    fn overlaps(&mut self, key: usize, claims: &[&Claim]) {
        let mut latest: Option<&Claim> = None;
        let mut previous: Option<&Claim> = None;
        for claim in claims.iter().filter(|claim| claim.guard.is_some()) {
            if previous.is_some_and(|previous| previous.lane != claim.lane) {
                self.findings.handovers += 1;
            }
            previous = Some(claim);
            let Some((from, until)) = claim.certain() else {
                continue;
            };
            if let Some((other, (_, other_until))) = latest.and_then(|l| Some((l, l.certain()?)))
                && from < other_until
            {
                let overlap = Overlap {
                    key,
                    from,
                    until: until.min(other_until),
                    lanes: (other.lane, claim.lane),
                };
                if self.class == Class::Safe {
                    self.violation(format!(
                        "P1: key {key} was held by workers {} and {} at once for {:.3} ms, at {}",
                        other.lane,
                        claim.lane,
                        (overlap.until - from) as f64 / MS as f64,
                        from / MS,
                    ));
                }
                self.findings.overlaps.push(overlap);
            }
            if latest
                .and_then(Claim::certain)
                .is_none_or(|(_, latest)| latest < until)
            {
                latest = Some(claim);
            }
        }
    }

    /// P8: tokens are unique, and grow in real time.
    fn tokens(&mut self, key: usize, by_got: &[&Claim]) {
        let guards = || by_got.iter().filter_map(|c| Some((*c, c.guard.as_ref()?)));
        let mut seen: HashMap<u64, &Claim> = HashMap::new();
        for (claim, guard) in guards() {
            if let Some(other) = seen.insert(guard.token, claim) {
                let lanes = (other.lane, claim.lane);
                self.violation(format!(
                    "P8: key {key}: two tokens {} {lanes:?}",
                    guard.token
                ));
            }
        }
        let mut by_called: Vec<_> = guards().collect();
        by_called.sort_by_key(|(claim, _)| claim.called);
        let mut returned = guards().peekable();
        let mut largest = 0;
        for (claim, guard) in by_called {
            while let Some((_, earlier)) = returned.next_if(|(_, g)| g.got < claim.called) {
                largest = largest.max(earlier.token);
            }
            if guard.token <= largest {
                self.violation(format!(
                    "P8: key {key}: token {} of worker {} came after {largest}",
                    guard.token, claim.lane
                ));
            }
        }
    }

    /// Fencing: a token that was accepted belongs to one claim.
    fn log(&mut self) {
        let mut owners = HashMap::new();
        for write in self.record.writes.iter().filter(|write| write.accepted) {
            let owner = owners
                .entry((write.key, write.token))
                .or_insert(write.claim);
            if *owner != write.claim {
                let text = format!("fencing: {:?} and {owner:?} share a token", write.claim);
                self.findings.violations.push(text);
            }
        }
    }

    /// P6: nobody takes a lock away while its lease lasts.
    fn losses(&mut self, claims: &[&Claim]) {
        for claim in claims {
            let Some(guard) = &claim.guard else { continue };
            let Some((_, after, reason)) = &guard.lost else {
                continue;
            };
            self.findings.losses += usize::from(reason != "max-hold");
            if matches!(reason.as_str(), "removed" | "stolen") && *after < guard.deadline {
                self.violation(format!(
                    "P6: key {} of worker {} was {reason} {:.1} ms before its deadline",
                    claim.key,
                    claim.lane,
                    (guard.deadline - after) as f64 / MS as f64
                ));
            }
        }
    }

    /// P3, P4, P9, P10: what each value's time in the key says.
    fn values(&mut self, key: usize, runs: &[Run]) {
        for (index, run) in runs.iter().enumerate() {
            self.leak(key, run);
            let is_final = runs.get(index + 1).is_some_and(|next| next.is_change);
            if let Some(value) = run.value.as_deref().filter(|_| is_final) {
                self.lateness(key, value, run);
            }
        }
    }

    fn leak(&mut self, key: usize, run: &Run) {
        let Some(value) = run.value.as_deref() else {
            return;
        };
        let limit = self.must_be_gone(key, value, run.first.0);
        if run.last > limit {
            self.violation(format!(
                "P9, P10: key {key}: {value} was there {} ms too long, at {}",
                (run.last - limit) / MS,
                run.last / MS
            ));
        }
    }

    fn lateness(&mut self, key: usize, value: &str, run: &Run) {
        let claims = self.by_value.get(value).cloned().unwrap_or_default();
        let margin = (TTLS[key] / 100 + 2) * MS;
        for claim in claims {
            let Some(guard) = &claim.guard else { continue };
            let Some((_, lost, reason)) = &guard.lost else {
                continue;
            };
            if reason != "expired" {
                continue;
            }
            // A process may be paused between getting its guard and the first question.
            if let Some((_, held)) = claim.certain() {
                let left = run.expires as i64 - held as i64;
                let least = self.findings.least_margin.unwrap_or(left).min(left);
                self.findings.least_margin = Some(least);
                if left < -(MS as i64) {
                    let late = -left / MS as i64;
                    self.violation(format!("P3: key {key}: is_lost was {late} ms late"));
                }
            }
            self.findings.false_losses += usize::from(run.last > lost + margin);
            if let Some(fired) = guard.fired {
                let late = fired as i64 - run.expires as i64;
                let was_paused = self.record.pauses.iter().any(|&(lane, from, until)| {
                    lane == claim.lane && from < fired && until + MS > guard.deadline
                });
                if !was_paused {
                    let latest = self.findings.latest_token.unwrap_or(late).max(late);
                    self.findings.latest_token = Some(latest);
                    if late > TOKEN_SLACK as i64 {
                        let late = late / MS as i64;
                        self.violation(format!("P4: key {key}: the token was {late} ms late"));
                    }
                }
            }
        }
    }

    /// When a value that was in the key at `seen` must be gone.
    fn must_be_gone(&self, key: usize, value: &str, seen: u64) -> u64 {
        let ttl = TTLS[key] * MS;
        let ends = self.by_value.get(value).into_iter().flatten().map(|claim| {
            let life = self.life_end(claim.lane, claim.life);
            let Some(guard) = &claim.guard else { return 0 };
            let end = match (&guard.ended, &guard.lost) {
                (Some((at, how)), _) if how == "forgotten" => at + 2 * ttl,
                (Some((at, _)), _) => *at,
                (None, Some((_, at, _))) => at + ttl,
                (None, None) => life + ttl,
            };
            end.min(life + ttl)
        });
        let mut limit = ends.max().unwrap_or(seen) + SLACK;
        for &(from, until) in &self.disruptions {
            if from <= limit && until + RECOVERY >= seen.min(limit) {
                // Somebody may have been granted it in the fault's last moment, and died or
                // given up then: the longest life of a waiter, or a TTL.
                limit = limit.max(until + ttl.max(500 * MS) + SLACK);
            }
        }
        limit
    }

    fn life_end(&self, lane: usize, life: usize) -> u64 {
        let mut lives = self.record.lives.iter().filter(|l| l.lane == lane);
        lives
            .nth(life)
            .and_then(|life| life.until)
            .unwrap_or(self.end)
    }

    /// P9, P11: a lock that is free does not stay so while somebody waits for it.
    fn idle(&mut self, key: usize, claims: &[&Claim], runs: &[Run]) {
        for run in runs.iter().filter(|run| run.value.is_none()) {
            let (from, until) = (run.first.1, run.last);
            let is_disturbed = self
                .disruptions
                .iter()
                .any(|&(began, ended)| began < until && ended + RECOVERY > from);
            if until < from + 20 * MS || is_disturbed {
                continue;
            }
            let waits = |claim: &&&Claim| {
                let guard = claim.guard.as_ref().map(|guard| guard.got);
                let end = guard.or(claim.gave_up);
                let end = end.unwrap_or_else(|| self.life_end(claim.lane, claim.life));
                claim.called < from && end > until
            };
            if claims.iter().any(|claim| waits(&claim)) {
                let idle = until - from;
                self.findings.longest_idle = self.findings.longest_idle.max(idle);
                if idle > LONGEST_IDLE {
                    let (idle, at) = (idle / MS, from / MS);
                    self.violation(format!(
                        "P11: key {key} was free for {idle} ms at {at} while somebody waited"
                    ));
                }
            }
        }
    }
}
