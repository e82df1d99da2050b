//! What was done to whom, and when: bounds on what must happen count from its end.

use crate::faults::{Class, Fault};
use crate::history::{MS, Record};
use crate::observer::{LONGEST_GAP, Run};

/// How long after a fault its after-effects may last: retries back off for half a second.
pub const RECOVERY: u64 = 1500 * MS;
/// A pause that is shorter makes no request time out, and so has no after-effects.
const HARMLESS: u64 = 100 * MS;
/// A request that a fault has kept is carried out this soon after the fault.
const DELIVERY: u64 = 100 * MS;

/// From, until.
pub type Span = (u64, u64);

pub struct Disruptions {
    lanes: Vec<Lane>,
    /// Those under which Redis forgets a lock.
    pub unsafe_ones: Vec<Span>,
}

/// What was done to a lane or to all, in order and merged.
#[derive(Default)]
struct Lane {
    /// With the time of recovery.
    unrest: Vec<Span>,
    /// What can keep a request, as long as it is kept.
    delays: Vec<Span>,
}

impl Disruptions {
    pub fn new(record: &Record, runs: &[Vec<Run>]) -> Self {
        // Where a server did not answer beside the faults, it answered nobody.
        let gaps = runs.iter().flat_map(|runs| runs.windows(2));
        let gaps = gaps.map(|pair| (pair[0].last, pair[1].first.1));
        let gaps = gaps.filter(|(from, until)| until - from > LONGEST_GAP);
        let mut all: Vec<Span> = gaps.chain(record.starved.iter().copied()).collect();
        let mut of_lanes = Vec::new();
        let mut unsafe_ones = Vec::new();
        for fault in &record.disturbances {
            let span = (fault.from, fault.until);
            match fault.lane {
                Some(lane) => of_lanes.push((lane, span)),
                None => all.push(span),
            }
            let is_unsafe = |f: &&Fault| f.name() == fault.name && f.class() == Class::Unsafe;
            if Fault::ALL.iter().any(|f| is_unsafe(&f)) {
                unsafe_ones.push(span);
            }
        }
        for life in &record.lives {
            of_lanes.extend(life.until.map(|until| (life.lane, (until, until))));
        }
        let pauses = record.pauses.iter();
        of_lanes.extend(pauses.map(|&(lane, from, until)| (lane, (from, until))));
        let lives = record.lives.iter().map(|life| life.lane);
        let count = lives.chain(of_lanes.iter().map(|&(lane, _)| lane)).max();
        let mut lanes = vec![all; count.map_or(1, |last| last + 1)];
        for (lane, span) in of_lanes {
            lanes[lane].push(span);
        }
        Self {
            lanes: lanes.into_iter().map(Lane::new).collect(),
            unsafe_ones,
        }
    }

    /// Whether no fault that is unsafe came between.
    pub fn spare(&self, from: u64, until: u64) -> bool {
        let mut unsafe_ones = self.unsafe_ones.iter();
        unsafe_ones.all(|&(began, ended)| ended < from || began > until)
    }

    /// The times from `from` to `until` in which `lane`, or what it needs, was disturbed or had not
    /// recovered, in order.
    pub fn unrest(&self, lane: usize, from: u64, until: u64) -> impl Iterator<Item = Span> {
        let spans = self.lanes.get(lane).map_or(&[][..], |lane| &lane.unrest);
        let first = spans.partition_point(|&(_, ended)| ended < from);
        let spans = spans[first..].iter().copied();
        spans.take_while(move |&(began, _)| began <= until)
    }

    /// By when a request of `lane` has been carried out that was sent at `at`, if anything can have
    /// kept it that happened before `by`.
    pub fn delivery(&self, lane: usize, at: u64, by: u64) -> Option<u64> {
        let spans = self.lanes.get(lane).map_or(&[][..], |lane| &lane.delays);
        let first = spans.partition_point(|&(_, until)| until + RECOVERY < at);
        let mut kept = spans[first..].iter().filter(|&&(from, _)| from <= by);
        kept.next_back().map(|&(_, until)| until.max(at) + DELIVERY)
    }
}

impl Lane {
    fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable();
        let is_harmful = |&&(from, until): &&Span| from == until || until - from >= HARMLESS;
        let mut lane = Self::default();
        for &(from, until) in &spans {
            let recovery = if is_harmful(&&(from, until)) {
                RECOVERY
            } else {
                0
            };
            add(&mut lane.unrest, (from, until + recovery), 0);
        }
        for &span in spans.iter().filter(is_harmful) {
            add(&mut lane.delays, span, DELIVERY);
        }
        lane
    }
}

/// Adds a span to those before it, as one with the last if there is no more than `gap` between.
fn add(spans: &mut Vec<Span>, (from, until): Span, gap: u64) {
    match spans.last_mut() {
        Some(last) if from <= last.1 + gap => last.1 = last.1.max(until),
        _ => spans.push((from, until)),
    }
}
