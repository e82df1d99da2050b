//! How close the openings of connections follow each other.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::Fault;
use crate::events::emit;

const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(500);
/// A caller in a hurry, such as a renewal of a lease that ends soon, waits no longer than this.
const REST_IN_A_HURRY: Duration = Duration::from_millis(50);
/// After this long without an opening, the next one is the first again.
const CALM: Duration = Duration::from_secs(1);

/// So many losses that follow each other are worth a warning.
const MANY: u32 = 5;
/// Losses this far apart have nothing to do with each other.
const APART: Duration = Duration::from_secs(60);

/// How close openings follow each other (C3).
///
/// A server may end connections in many ways: hang up, refuse requests as a replica, or break them
/// off as soon as there is much to say. What they have in common is that the next opening comes
/// soon. So rests are counted from one opening to the next, and grow while the openings are closer
/// than [`CALM`]; what a connection did in between does not matter.
#[derive(Default)]
pub(super) struct Pace {
    rests: Option<Backoff>,
    last: Option<Instant>,
    rest: Duration,
}

impl Pace {
    /// Until when a caller that has `within` may not open a connection, if not now.
    pub(super) fn rests_until(&self, now: Instant, within: Duration) -> Option<Instant> {
        let rest = self.rest.min(REST_IN_A_HURRY.max(within / 2));
        let over = self.last? + rest;
        (now < over).then_some(over)
    }

    pub(super) fn was_calm_for(&self, now: Instant, time: Duration) -> bool {
        self.last.is_none_or(|last| now >= last + time)
    }

    pub(super) fn begin(&mut self, now: Instant) {
        if self.was_calm_for(now, CALM) {
            self.rests = None;
        }
        let rests = self
            .rests
            .get_or_insert_with(|| Backoff::new(FIRST_REST, LONGEST_REST));
        self.rest = rests.next();
        self.last = Some(now);
    }
}

/// The connections that one place lost, as long as they follow each other.
#[derive(Default)]
pub(super) struct Losses {
    first: Option<Instant>,
    last: Option<Instant>,
    count: u32,
}

/// How many connections were lost, and in what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Episode {
    pub(super) lost: u32,
    pub(super) time: Duration,
}

impl Episode {
    /// Tells of it, and what ended the last of the connections.
    pub(super) fn tell(self, fault: Fault) {
        emit(move || {
            tracing::warn!(
                server = %fault.server,
                lost = self.lost,
                within = ?self.time,
                cause = %fault.cause,
                "connections to redis are lost again and again, and opened anew with rests in \
                 between"
            );
        });
    }
}

impl Losses {
    /// A connection was found lost. Returns the episode once, when it is one.
    pub(super) fn note(&mut self, now: Instant) -> Option<Episode> {
        if self.last.is_none_or(|last| now >= last + APART) {
            *self = Self::default();
        }
        let first = *self.first.get_or_insert(now);
        self.last = Some(now);
        self.count += 1;
        (self.count == MANY).then(|| Episode {
            lost: MANY,
            time: now - first,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many openings a caller gets in `time` that asks again and again.
    fn openings(pace: &mut Pace, time: Duration, within: Duration) -> usize {
        let begin = Instant::now();
        let step = Duration::from_millis(1);
        let steps = u32::try_from(time.as_millis()).expect("a short time");
        let moments = (0..steps).map(|number| begin + step * number);
        let moments = moments.filter(|&now| {
            let allows = pace.rests_until(now, within).is_none();
            if allows {
                pace.begin(now);
            }
            allows
        });
        moments.count()
    }

    #[test]
    fn openings_that_follow_each_other_are_spaced_out() {
        let count = openings(&mut Pace::default(), 10 * SECOND, SECOND);
        assert!((15..50).contains(&count), "{count}");
    }

    #[test]
    fn a_caller_in_a_hurry_waits_less() {
        let hurry = Duration::from_millis(20);
        let count = openings(&mut Pace::default(), 10 * SECOND, hurry);
        assert!((150..210).contains(&count), "{count}");
    }

    #[test]
    fn losses_that_follow_each_other_are_told_once() {
        let mut losses = Losses::default();
        let mut now = Instant::now();
        for _ in 0..3 {
            let mut told = Vec::new();
            for _ in 0..10 * MANY {
                now += SECOND;
                told.extend(losses.note(now));
            }
            let time = (MANY - 1) * SECOND;
            assert_eq!(told, [Episode { lost: MANY, time }]);
            now += APART;
        }
        for _ in 0..10 * MANY {
            assert_eq!(losses.note(now), None, "too far apart");
            now += APART;
        }
    }

    #[test]
    fn after_a_time_of_calm_the_first_opening_and_the_one_behind_it_come_at_once() {
        let mut pace = Pace::default();
        openings(&mut pace, 10 * SECOND, SECOND);
        let now = Instant::now() + 20 * SECOND;
        assert_eq!(pace.rests_until(now, SECOND), None);
        pace.begin(now);
        let over = pace.rests_until(now, SECOND).expect("a rest");
        assert!(over <= now + FIRST_REST * 3 / 2);
    }
}
