//! What a majority of the servers had in a key, from what each of them had.

use crate::history::MS;
use crate::observer::Run;

/// A server may be looked at so long after another one.
const SKEW: u64 = 50 * MS;

/// The runs of a key on each server, as runs of what a majority had.
///
/// A value was there while a majority was seen to have it, and expires with the majority-th of its
/// keys, counted from the last. `None` means that no value had a majority: the key was free, or
/// the servers were at odds. A run is followed by a change only if its expiry is certain, whatever
/// the servers did that could not be looked at.
pub fn of(servers: &[Vec<Run>]) -> Vec<Run> {
    if let [only] = servers {
        return only.clone();
    }
    let majority = servers.len() / 2 + 1;
    let ends = servers
        .iter()
        .flatten()
        .flat_map(|run| [run.first.1, run.last + 1]);
    let mut ends: Vec<u64> = ends.collect();
    ends.sort_unstable();
    ends.dedup();
    let mut merged: Vec<Run> = Vec::new();
    let mut places = vec![0; servers.len()];
    for span in ends.windows(2) {
        let (from, until) = (span[0], span[1] - 1);
        let mut seen = Vec::new();
        for (runs, place) in servers.iter().zip(&mut places) {
            while runs.get(*place).is_some_and(|run| run.last < from) {
                *place += 1;
            }
            seen.extend(runs.get(*place).filter(|run| run.first.1 <= from));
        }
        let Some(value) = agreed(&seen, servers.len(), majority) else {
            continue;
        };
        match merged.last_mut() {
            // A contender that takes a part of the servers is at odds with the free rest.
            Some(run)
                if run.value == value
                    && (run.last + 1 == from || value.is_none() && from - run.last < SKEW) =>
            {
                run.last = until;
            }
            _ => merged.push(Run {
                value,
                first: (from, from),
                last: until,
                expires: 0,
                is_change: false,
            }),
        }
    }
    for index in 1..merged.len() {
        let (before, rest) = merged.split_at_mut(index);
        let run = &mut before[index - 1];
        let is_last = run.value.is_some() && rest.iter().all(|later| later.value != run.value);
        if let Some(expires) = is_last.then(|| expiry(servers, run, majority)).flatten() {
            run.expires = expires;
            rest[0].is_change = true;
        }
    }
    merged
}

/// The value that a majority has for certain, `None` in it if none can; `None` if that is open.
fn agreed(seen: &[&Run], servers: usize, majority: usize) -> Option<Option<String>> {
    let values = seen.iter().filter_map(|run| run.value.as_ref());
    let count = |value| {
        seen.iter()
            .filter(|run| run.value.as_ref() == Some(value))
            .count()
    };
    let (most, value) = values
        .map(|v| (count(v), Some(v)))
        .max()
        .unwrap_or((0, None));
    let unseen = servers - seen.len();
    if most >= majority {
        Some(value.cloned())
    } else {
        (most + unseen < majority).then_some(None)
    }
}

/// When the majority-th key with the run's value expires, at the latest; `None` if that depends
/// on servers that could not be looked at.
fn expiry(servers: &[Vec<Run>], run: &Run, majority: usize) -> Option<u64> {
    let at_one = |runs: &Vec<Run>| {
        let place = runs.iter().rposition(|other| other.value == run.value);
        match place.map(|place| (&runs[place], runs.get(place + 1))) {
            Some((last, Some(next))) if next.is_change => last.expires,
            None if !is_blind(runs, run.first.0.saturating_sub(SKEW), run.last) => 0,
            _ => u64::MAX,
        }
    };
    let mut expiries: Vec<u64> = servers.iter().map(at_one).collect();
    expiries.sort_unstable();
    let expires = expiries[servers.len() - majority];
    (expires < u64::MAX).then_some(expires)
}

/// Whether a server could not be looked at for a part of the time.
fn is_blind(runs: &[Run], from: u64, until: u64) -> bool {
    let mut last = 0;
    for run in runs {
        if !run.is_change && last < until && run.first.1 > from {
            return true;
        }
        last = run.last;
    }
    until > last + SKEW
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<&str> = Some("a");
    const B: Option<&str> = Some("b");

    /// Runs that follow each other: value, first and last look; a gap of 100 ms is blindness.
    fn server(runs: &[(Option<&str>, u64, u64)]) -> Vec<Run> {
        let mut last = None;
        let mut entered = Vec::new();
        for &(value, from, until) in runs {
            entered.push(Run {
                value: value.map(str::to_owned),
                first: (from * MS, from * MS),
                last: until * MS,
                expires: (until + 300) * MS,
                is_change: last.is_some_and(|last| from - last < 100),
            });
            last = Some(until);
        }
        entered
    }

    fn spans(runs: &[Run]) -> Vec<(Option<&str>, u64, u64)> {
        let spans = runs.iter();
        spans
            .map(|r| (r.value.as_deref(), r.first.0.div_ceil(MS), r.last / MS))
            .collect()
    }

    #[test]
    fn a_value_is_there_while_a_majority_has_it() {
        let merged = of(&[
            server(&[(None, 0, 10), (A, 20, 100), (None, 110, 200)]),
            server(&[(None, 0, 15), (A, 25, 60), (None, 70, 200)]),
            server(&[(None, 0, 200)]),
        ]);
        assert_eq!(
            spans(&merged),
            [(None, 0, 15), (A, 25, 60), (None, 70, 200)]
        );
        assert_eq!(merged[1].expires, 360 * MS);
        assert!(merged[2].is_change);
    }

    #[test]
    fn servers_at_odds_have_no_value() {
        let merged = of(&[
            server(&[(A, 0, 100)]),
            server(&[(B, 0, 100)]),
            server(&[(None, 0, 100)]),
        ]);
        assert_eq!(spans(&merged), [(None, 0, 100)]);
    }

    #[test]
    fn two_servers_out_of_sight_leave_it_open() {
        let merged = of(&[
            server(&[(A, 0, 40), (A, 190, 300), (None, 310, 400)]),
            server(&[(A, 0, 50), (A, 180, 300), (None, 310, 400)]),
            server(&[(A, 0, 300), (None, 305, 400)]),
        ]);
        assert_eq!(
            spans(&merged),
            [(A, 0, 50), (A, 180, 300), (None, 310, 400)]
        );
        let whole: Vec<_> = merged.iter().map(|run| run.is_change).collect();
        assert_eq!(whole, [false, false, true]);
    }

    #[test]
    fn the_expiry_is_open_if_it_depends_on_a_server_out_of_sight() {
        let seen = server(&[(A, 0, 100), (None, 110, 400)]);
        let blind = server(&[(A, 0, 50), (None, 390, 400)]);
        let merged = of(&[seen.clone(), seen.clone(), blind.clone()]);
        assert_eq!(
            merged[0].expires,
            400 * MS,
            "the larger one of those that are known"
        );
        let merged = of(&[seen, blind.clone(), blind]);
        assert!(merged.iter().all(|run| !run.is_change));
    }
}
