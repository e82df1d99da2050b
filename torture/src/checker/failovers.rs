//! What must hold even where a master is replaced by one that lacks its last writes.

use crate::checker::disruptions::RECOVERY;
use crate::checker::idle::LONGEST_IDLE;
use crate::checker::{Checker, SLACK};
use crate::history::{Claim, MS, TTLS};
use crate::observer::{LONGEST_GAP, Run};

impl Checker<'_> {
    /// P4: a guard whose key is gone, or somebody else's, is told within its TTL. Nothing extends
    /// its lease any more, unless it is renewed where nobody else looks.
    pub(super) fn unreported(&mut self, key: usize, claims: &[&Claim], runs: &[Run]) {
        for claim in claims {
            let (Some(guard), Some((got, held))) = (&claim.guard, claim.certain()) else {
                continue;
            };
            let there = got.max(last_there(&guard.value, runs, held));
            let limit = there + TTLS[key] * MS + SLACK;
            if held > limit {
                self.violation(format!(
                    "P4: key {key}: worker {} held it {} ms too long after it was gone, at {}",
                    claim.lane,
                    (held - limit) / MS,
                    held / MS
                ));
            }
        }
    }

    /// P13: once all have recovered from the last fault, a lock that somebody waits for is held
    /// again. The others may all wait for other locks.
    pub(super) fn not_recovered(&mut self, key: usize, claims: &[&Claim]) {
        let faults = self.record.disturbances.iter();
        let from = faults
            .map(|fault| fault.until + RECOVERY)
            .max()
            .unwrap_or(0);
        let mut guards = claims.iter().filter_map(|claim| claim.guard.as_ref());
        if guards.any(|guard| guard.got < self.end && guard.held >= from) {
            return;
        }
        let waits = claims.iter().filter(|claim| claim.guard.is_none());
        let waits = waits.map(|claim| {
            let until = claim.gave_up.unwrap_or_else(|| self.life_end(claim));
            until.min(self.end).saturating_sub(claim.called.max(from))
        });
        let waited = waits.max().unwrap_or(0);
        if waited > LONGEST_IDLE {
            let waited = waited / MS;
            self.violation(format!(
                "P13: key {key} was not held again, and a worker waited for {waited} ms"
            ));
        }
    }
}

/// The last moment before `by` at which the key can have had a value, by what was seen.
fn last_there(value: &str, runs: &[Run], by: u64) -> u64 {
    let (mut last, mut looked) = (0, 0);
    for run in runs.iter().take_while(|run| run.first.0 <= by) {
        if run.value.as_deref() == Some(value) {
            last = run.last;
        } else if !run.is_change {
            // In the gap before it, anything may have been there.
            last = run.first.1;
        }
        looked = run.last;
    }
    match looked + LONGEST_GAP < by {
        true => by,
        false => last,
    }
}

#[cfg(test)]
mod tests {
    use crate::checker::story::{END, Story, hold, value, wait};

    /// The guard says that it is held until then; its value is seen until 400.
    fn held_until(until: u64) -> Story {
        let story = Story::new().claim(hold(0, 1, (100, until)));
        story.sees(Some(value(0, 1)), (100, 400))
    }

    #[test]
    fn p4_a_guard_that_outlives_its_key_by_more_than_a_ttl_is_found() {
        let gone = |until| held_until(until).sees(None, (404, 5000));
        assert_eq!(gone(1100).failed_over(), [""; 0]);
        let found = gone(1101).failed_over();
        assert!(
            found[0].starts_with("P4: key 0: worker 0 held it 1 ms too long"),
            "{found:?}"
        );
        let others = held_until(1200).sees(Some(value(1, 2)), (404, 5000));
        assert_eq!(others.failed_over().len(), 1);
    }

    #[test]
    fn p4_a_key_that_was_out_of_sight_may_have_been_there() {
        let gap = |until| held_until(until).sees(None, (2000, 5000));
        assert_eq!(gap(2700).failed_over(), [""; 0]);
        assert_eq!(gap(2701).failed_over().len(), 1);
        // Nobody looked to the end.
        assert_eq!(held_until(3000).failed_over(), [""; 0]);
    }

    #[test]
    fn p4_a_guard_that_came_after_the_last_look_has_its_ttl() {
        let story = || Story::new().sees(None, (100, 5000));
        let late = |until| story().claim(hold(0, 1, (1000, until)));
        assert_eq!(late(1700).failed_over(), [""; 0]);
        assert_eq!(late(1701).failed_over().len(), 1);
    }

    #[test]
    fn p13_a_lock_that_a_waiter_does_not_get_after_the_last_fault_is_found() {
        let story = |held, from| {
            let story = Story::new().fault("takeover", None, (9000, 10_000));
            let story = story.claim(hold(0, 1, (8000, held)));
            story.claim(wait(1, (from, from + 1000)))
        };
        // All have recovered by 11 500.
        let lost = "P13: key 0 was not held again, and a worker waited for 734 ms";
        assert_eq!(story(11_499, 11_234).failed_over(), [lost]);
        assert_eq!(story(11_499, 11_233).failed_over(), [""; 0]);
        assert_eq!(story(11_500, 11_234).failed_over(), [""; 0]);
        assert_eq!(story(11_499, END - 733).failed_over(), [""; 0]);
    }
}
