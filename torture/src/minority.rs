//! P2: with a minority of the servers in trouble, locks go on as if nothing had happened; and what
//! happens if a minority forgets its keys.

use std::collections::BTreeMap;

use crate::checker::Overlap;
use crate::history::{MS, Record};
use crate::target::Trouble;

/// How long after a trouble of a majority nothing is asked of the locks.
const RECOVERY: u64 = 1500 * MS;
/// How long a trouble must last to say something. All keys may be held for long by chance, and who
/// comes next comes at random.
const LONG: u64 = 1000 * MS;

/// What was seen while a majority worked all the time.
#[derive(Debug, Default)]
pub struct Minority {
    /// The troubles that could be judged.
    pub troubles: usize,
    pub holds: usize,
    /// Leases that ran out although their process was not paused.
    pub losses: usize,
    pub overlaps: usize,
    pub violations: Vec<String>,
}

pub fn check(record: &Record, troubles: &[Trouble], overlaps: &[Overlap]) -> Minority {
    let mut seen = Minority::default();
    for (index, trouble) in troubles.iter().enumerate() {
        let (from, until) = (trouble.from, trouble.until);
        let is_alone = troubles.iter().enumerate().all(|(other_index, other)| {
            let recovered = match other.spares_a_majority {
                true => other.until,
                false => other.until + RECOVERY,
            };
            other_index == index || other.from > until || recovered < from
        });
        if !trouble.spares_a_majority || !is_alone || until - from < LONG {
            continue;
        }
        seen.troubles += 1;
        let during = |at: u64| (from..until).contains(&at);
        let guards = record
            .claims
            .iter()
            .filter_map(|claim| Some((claim, claim.guard.as_ref()?)));
        let holds = guards
            .clone()
            .filter(|(_, guard)| during(guard.got))
            .count();
        seen.holds += holds;
        seen.overlaps += overlaps.iter().filter(|o| during(o.from)).count();
        let length = until - from;
        if holds == 0 && length > LONG + paused(record, from, until) {
            let length = length / MS;
            let text = format!("P2: nothing was locked for {length} ms, with a majority at work");
            seen.violations.push(text);
        }
        seen.losses += guards
            .filter(|(claim, guard)| {
                guard.lost.as_ref().is_some_and(|(at, _, reason)| {
                    let was_paused = record.pauses.iter().any(|&(lane, began, ended)| {
                        lane == claim.lane && ended > guard.got && began < *at
                    });
                    reason == "expired" && during(*at) && guard.got > from && !was_paused
                })
            })
            .count();
    }
    seen
}

/// For how long of a time the machine kept a worker from running, the one that it kept longest.
fn paused(record: &Record, from: u64, until: u64) -> u64 {
    let mut lanes = BTreeMap::<usize, u64>::new();
    for &(lane, began, ended) in &record.pauses {
        *lanes.entry(lane).or_default() += ended.min(until).saturating_sub(began.max(from));
    }
    lanes.into_values().max().unwrap_or(0)
}
