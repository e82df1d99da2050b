//! Histories made by hand, for the tests of the checks. Times are milliseconds.

use crate::checker::{Findings, check, failed_over, passed_over};
use crate::faults::Class;
use crate::history::{Claim, Disturbance, Guard, Life, MS, Record, Write};
use crate::observer::Run;

/// A history of two workers and key 0, whose TTL is 300 ms, up to second 20.
pub(super) struct Story {
    record: Record,
    runs: Vec<Run>,
    class: Class,
}

pub(super) const END: u64 = 20_000;

/// A hold of the key under a token: sampled without a break, and never given up.
pub(super) fn hold(lane: usize, token: u64, (from, until): (u64, u64)) -> Claim {
    Claim {
        lane,
        called: from * MS,
        how: "lock".to_owned(),
        guard: Some(Guard {
            got: from * MS,
            token,
            value: value(lane, token),
            held: until * MS,
            deadline: until * MS,
            ..Guard::default()
        }),
        ..Claim::default()
    }
}

/// A wait that has not led to a guard.
pub(super) fn wait(lane: usize, (from, until): (u64, u64)) -> Claim {
    Claim {
        lane,
        called: from * MS,
        gave_up: Some(until * MS),
        ..Claim::default()
    }
}

pub(super) fn value(lane: usize, token: u64) -> String {
    format!("{token}:worker-{lane}.0")
}

impl Claim {
    pub(super) fn called(mut self, at: u64) -> Self {
        self.called = at * MS;
        self
    }

    pub(super) fn ended(self, at: u64, how: &str) -> Self {
        self.with(|guard| guard.ended = Some((at * MS, how.to_owned())))
    }

    pub(super) fn lost(self, at: u64, reason: &str) -> Self {
        self.with(|guard| guard.lost = Some((at * MS, at * MS, reason.to_owned())))
    }

    pub(super) fn fired(self, at: u64) -> Self {
        self.with(|guard| guard.fired = Some(at * MS))
    }

    pub(super) fn deadline(self, at: u64) -> Self {
        self.with(|guard| guard.deadline = at * MS)
    }

    fn with(mut self, change: impl FnOnce(&mut Guard)) -> Self {
        if let Some(guard) = &mut self.guard {
            change(guard);
        }
        self
    }
}

impl Story {
    pub(super) fn new() -> Self {
        let mut record = Record::default();
        record.lives.extend((0..2).map(|lane| Life {
            lane,
            from: 0,
            until: Some(END * MS),
        }));
        Self {
            record,
            runs: Vec::new(),
            class: Class::Safe,
        }
    }

    pub(super) fn claim(mut self, claim: Claim) -> Self {
        self.record.claims.push(claim);
        self
    }

    /// The observer sees this in the key, every 4 ms, at the ends too.
    pub(super) fn sees(self, value: Option<String>, (from, until): (u64, u64)) -> Self {
        self.sees_until(value, (from, until), until)
    }

    /// The same, with the moment at which the key expires by the last look.
    pub(super) fn sees_until(
        mut self,
        value: Option<String>,
        (from, until): (u64, u64),
        expires: u64,
    ) -> Self {
        let previous = self.runs.last().map(|run| run.last / MS);
        self.runs.push(Run {
            value,
            first: (from * MS, from * MS),
            last: until * MS,
            expires: expires * MS,
            is_change: previous.is_some_and(|previous| from - previous < 25),
        });
        self
    }

    pub(super) fn fault(mut self, name: &'static str, lane: Option<usize>, span: Span) -> Self {
        self.record.disturbances.push(Disturbance {
            name,
            detail: String::new(),
            from: span.0 * MS,
            until: span.1 * MS,
            lane,
        });
        self
    }

    pub(super) fn pause(mut self, lane: usize, (from, until): Span) -> Self {
        self.record.pauses.push((lane, from * MS, until * MS));
        self
    }

    pub(super) fn starved(mut self, (from, until): Span) -> Self {
        self.record.starved.push((from * MS, until * MS));
        self
    }

    pub(super) fn write(mut self, claim: u64, token: u64) -> Self {
        self.record.writes.push(Write {
            at: 0,
            key: 0,
            lane: 0,
            claim: (0, 0, claim),
            token,
            accepted: true,
        });
        self
    }

    pub(super) fn under_unsafe_faults(mut self) -> Self {
        self.class = Class::Unsafe;
        self
    }

    pub(super) fn findings(&self) -> Findings {
        check(
            &self.record,
            std::slice::from_ref(&self.runs),
            self.class,
            END * MS,
        )
    }

    pub(super) fn passed_over(&self) -> Vec<String> {
        passed_over(&self.record, std::slice::from_ref(&self.runs), END * MS)
    }

    pub(super) fn failed_over(&self) -> Vec<String> {
        failed_over(&self.record, std::slice::from_ref(&self.runs), END * MS)
    }

    /// Exactly one violation, which begins like this.
    pub(super) fn shows(&self, promise: &str) {
        let violations = self.findings().violations;
        assert!(
            violations.len() == 1 && violations[0].starts_with(promise),
            "{violations:?}"
        );
    }

    pub(super) fn is_fine(&self) {
        let violations = self.findings().violations;
        assert!(violations.is_empty(), "{violations:?}");
    }
}

type Span = (u64, u64);
