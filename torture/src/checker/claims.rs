//! What the claims say of each other.

use std::collections::HashMap;

use crate::checker::{Checker, Overlap};
use crate::faults::Class;
use crate::history::{Claim, MS};

impl Checker<'_> {
    /// P1: no two certain claims of a key at one instant.
    pub(super) fn overlaps(&mut self, key: usize, by_got: &[&Claim]) {
        let mut latest: Option<(&Claim, u64)> = None;
        for claim in by_got {
            let Some((from, until)) = claim.certain() else {
                continue;
            };
            if let Some((other, other_until)) = latest
                && from < other_until
            {
                let overlap = Overlap {
                    key,
                    from,
                    until: until.min(other_until),
                    lanes: (other.lane, claim.lane),
                };
                // Without a fault that is unsafe, nothing explains it.
                if self.class == Class::Safe || self.disruptions.unsafe_ones.is_empty() {
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
            if latest.is_none_or(|(_, latest)| latest < until) {
                latest = Some((claim, until));
            }
        }
    }

    /// P8: tokens are unique, and grow in real time.
    pub(super) fn tokens(&mut self, key: usize, by_got: &[&Claim]) {
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

    /// Fencing: a token that was accepted belongs to one claim, and none is accepted after a
    /// larger one.
    pub(super) fn log(&mut self) {
        let mut owners = HashMap::new();
        let mut largest: HashMap<usize, u64> = HashMap::new();
        for write in self.record.writes.iter().filter(|write| write.accepted) {
            let owner = owners
                .entry((write.key, write.token))
                .or_insert(write.claim);
            if *owner != write.claim {
                let text = format!("fencing: {:?} and {owner:?} share a token", write.claim);
                self.findings.violations.push(text);
            }
            let largest = largest.entry(write.key).or_default();
            if write.token < *largest {
                let text = format!("fencing: {} was accepted after {largest}", write.token);
                self.findings.violations.push(text);
            }
            *largest = write.token.max(*largest);
        }
    }

    /// P6: nobody takes a lock away while its lease lasts.
    pub(super) fn losses(&mut self, claims: &[&Claim]) {
        for claim in claims {
            let Some(guard) = &claim.guard else { continue };
            let Some((_, after, reason)) = &guard.lost else {
                continue;
            };
            self.findings.losses += usize::from(reason != "max-hold");
            if matches!(reason.as_str(), "removed" | "stolen")
                && *after < guard.deadline
                && self.disruptions.spare(claim.called, *after)
            {
                self.violation(format!(
                    "P6: key {} of worker {} was {reason} {:.1} ms before its deadline",
                    claim.key,
                    claim.lane,
                    (guard.deadline - after) as f64 / MS as f64
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::checker::story::{Story, hold};

    #[test]
    fn p1_two_certain_claims_at_once_are_found() {
        let story = Story::new().claim(hold(0, 1, (100, 200)));
        story.claim(hold(1, 2, (199, 300))).shows("P1: key 0");
    }

    #[test]
    fn p1_claims_that_touch_are_fine() {
        let story = Story::new().claim(hold(0, 1, (100, 200)));
        story.claim(hold(1, 2, (200, 300))).is_fine();
    }

    #[test]
    fn p1_a_claim_overlaps_one_that_came_long_before_others() {
        let long = Story::new().claim(hold(0, 1, (100, 900)));
        let findings = long
            .claim(hold(1, 2, (300, 310)))
            .claim(hold(1, 3, (800, 810)))
            .findings();
        assert_eq!(findings.overlaps.len(), 2);
    }

    #[test]
    fn p1_a_guard_that_was_never_asked_claims_nothing() {
        // Paused between the guard's coming and the first question, by which it was lost.
        let story = Story::new().claim(hold(0, 1, (900, 900)).called(100));
        story.claim(hold(1, 2, (800, 1000)).called(100)).is_fine();
    }

    #[test]
    fn p1_under_an_unsafe_fault_an_overlap_is_counted_and_no_violation() {
        let story = Story::new()
            .under_unsafe_faults()
            .fault("flushall", None, (50, 60))
            .claim(hold(0, 1, (100, 200)))
            .claim(hold(1, 2, (199, 300)));
        story.is_fine();
        assert_eq!(story.findings().overlaps.len(), 1);
    }

    #[test]
    fn p8_two_equal_tokens_are_found() {
        // Both were called before either came, so that their order says nothing.
        let story = Story::new().claim(hold(0, 7, (100, 200)));
        let story = story.claim(hold(1, 7, (250, 300)).called(50));
        story.shows("P8: key 0: two tokens 7");
    }

    #[test]
    fn p8_a_smaller_token_after_a_larger_one_is_found() {
        let story = Story::new().claim(hold(0, 7, (100, 200)));
        let story = story.claim(hold(1, 6, (250, 300)).called(101));
        story.shows("P8: key 0: token 6 of worker 1 came after 7");
    }

    #[test]
    fn p8_who_called_before_the_other_came_may_have_the_smaller_token() {
        let story = Story::new().claim(hold(0, 7, (100, 200)));
        story.claim(hold(1, 6, (250, 300)).called(100)).is_fine();
    }

    #[test]
    fn fencing_an_accepted_token_of_two_claims_is_found() {
        let story = Story::new().write(1, 5).write(2, 5);
        story.shows("fencing: (0, 0, 2) and (0, 0, 1) share a token");
    }

    #[test]
    fn fencing_a_stale_token_that_is_accepted_is_found() {
        Story::new()
            .write(1, 6)
            .write(2, 5)
            .shows("fencing: 5 was accepted after 6");
    }

    #[test]
    fn fencing_several_writes_of_one_claim_are_fine() {
        Story::new().write(1, 5).write(1, 5).write(2, 6).is_fine();
    }

    #[test]
    fn p6_a_lock_that_is_taken_away_before_its_deadline_is_found() {
        for reason in ["removed", "stolen"] {
            let taken = hold(0, 1, (100, 200)).deadline(400).lost(399, reason);
            let story = Story::new().claim(taken);
            story.shows(&format!("P6: key 0 of worker 0 was {reason} 1.0 ms"));
        }
    }

    #[test]
    fn p6_what_is_taken_after_the_deadline_or_expires_is_fine() {
        let late = hold(0, 1, (100, 200)).deadline(400).lost(400, "removed");
        let expired = hold(1, 2, (500, 600)).deadline(700).lost(690, "expired");
        Story::new().claim(late).claim(expired).is_fine();
    }

    #[test]
    fn p6_only_what_an_unsafe_fault_met_may_be_taken_away() {
        let taken = || hold(0, 1, (100, 200)).deadline(400).lost(300, "removed");
        let story = Story::new().under_unsafe_faults();
        let story = story.fault("flushall", None, (250, 350)).claim(taken());
        story.is_fine();
        let story = Story::new().under_unsafe_faults();
        let story = story.fault("flushall", None, (301, 350)).claim(taken());
        story.shows("P6");
        let story = Story::new().under_unsafe_faults();
        let story = story.fault("freeze", None, (250, 350)).claim(taken());
        story.shows("P6");
    }
}
