//! P9, P11: a lock that is free does not stay so while somebody waits for it.

use crate::checker::disruptions::RECOVERY;
use crate::checker::{Checker, SLACK};
use crate::history::{Claim, MS};
use crate::observer::Run;

/// How long a lock may stay free with somebody waiting: the slowest heartbeat is 333 ms.
pub(super) const LONGEST_IDLE: u64 = 333 * MS + SLACK;

impl Checker<'_> {
    /// A waiter that is not disturbed asks for a free lock by itself, whatever the others do.
    pub(super) fn idle(&mut self, key: usize, claims: &[&Claim], runs: &[Run]) {
        let got = |claim: &&Claim| claim.guard.as_ref().map(|guard| guard.got);
        let taken: Vec<u64> = claims.iter().filter_map(got).collect();
        for run in runs.iter().filter(|run| run.value.is_none()) {
            let mut longest = (0, 0);
            for claim in claims {
                let end = got(claim).or(claim.gave_up);
                let from = run.first.1.max(claim.called);
                let until = run.last.min(end.unwrap_or_else(|| self.life_end(claim)));
                if from < until {
                    longest = longest.max(self.calm(claim.lane, from, until, &taken));
                }
            }
            let (idle, at) = longest;
            self.findings.longest_idle = self.findings.longest_idle.max(idle);
            if idle > LONGEST_IDLE {
                let (idle, at) = (idle / MS, at / MS);
                self.violation(format!(
                    "P11: key {key} was free for {idle} ms at {at} while somebody waited"
                ));
            }
        }
    }

    /// A waiter that asks takes a lock that is free, or gives it to one before it: then it is not
    /// free again and again, for others to take.
    pub(super) fn passed_over(&mut self, key: usize, claims: &[&Claim], runs: &[Run]) {
        for claim in claims {
            let end = claim.guard.as_ref().map(|guard| guard.got);
            let end = end.or(claim.gave_up);
            let until = end.unwrap_or_else(|| self.life_end(claim));
            let free = match until.saturating_sub(claim.called) {
                0..=LONGEST_IDLE => 0,
                _ => self.free_in(claim.lane, claim.called, until, runs),
            };
            if free > LONGEST_IDLE {
                let (waited, free) = ((until - claim.called) / MS, free / MS);
                let (lane, at) = (claim.lane, until / MS);
                self.violation(format!(
                    "P11: key {key} was free for {free} ms of the {waited} ms until {at} that \
                     worker {lane} waited"
                ));
            }
        }
    }

    /// For how long in all the lock was free, at most between two disturbances of `lane`.
    fn free_in(&self, lane: usize, from: u64, until: u64, runs: &[Run]) -> u64 {
        let mut unrest: Vec<_> = self.disruptions.unrest(lane, from, until).collect();
        unrest.push((until, until + RECOVERY));
        let first = runs.partition_point(|run| run.last < from);
        let free = runs[first..].iter().filter(|run| run.value.is_none());
        let free: Vec<_> = free.map(|run| (run.first.1, run.last)).collect();
        let (mut longest, mut sum, mut calm_from) = (0, 0, from);
        for (began, ended) in unrest {
            let within =
                |&(since, to): &(u64, u64)| to.min(began).saturating_sub(since.max(calm_from));
            sum += free.iter().map(within).sum::<u64>();
            longest = longest.max(sum);
            // A short pause is left out, and changes nothing.
            if ended - began >= RECOVERY {
                sum = 0;
            }
            calm_from = calm_from.max(ended);
        }
        longest
    }

    /// The longest stretch in which `lane` was not disturbed and nobody got the lock, for a moment
    /// between two looks; and its beginning.
    fn calm(&self, lane: usize, from: u64, until: u64, taken: &[u64]) -> (u64, u64) {
        let first = taken.partition_point(|&at| at < from);
        let taken = taken[first..].iter().take_while(|&&at| at <= until);
        let mut breaks: Vec<_> = taken.map(|&at| (at, at)).collect();
        breaks.extend(self.disruptions.unrest(lane, from, until));
        breaks.push((until, until));
        breaks.sort_unstable();
        let mut longest = (0, from);
        let mut began = from;
        for (at, ended) in breaks {
            longest = longest.max((at.saturating_sub(began), began));
            began = began.max(ended);
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use crate::checker::story::{Story, hold, value, wait};
    use crate::history::MS;

    /// Somebody of worker 0 waits all the time; the key is free so long from 5000.
    fn free_for(length: u64) -> Story {
        let story = Story::new().claim(wait(0, (1000, 19_000)));
        story.sees(None, (5000, 5000 + length))
    }

    #[test]
    fn p11_a_free_lock_with_a_waiter_is_found() {
        free_for(734).shows("P11: key 0 was free for 734 ms");
    }

    #[test]
    fn p11_a_heartbeat_may_take_its_time() {
        free_for(733).is_fine();
        assert_eq!(free_for(733).findings().longest_idle, 733 * MS);
    }

    #[test]
    fn p11_without_a_waiter_a_lock_may_stay_free() {
        let story = Story::new().claim(wait(0, (1000, 5000)));
        let story = story.claim(wait(1, (8000, 8700)));
        story.sees(None, (5000, 9000)).is_fine();
    }

    #[test]
    fn p11_a_hold_that_the_observer_missed_ends_the_stretch() {
        let missed = |at| free_for(1400).claim(hold(1, 1, (at, at + 2)).ended(at + 2, "dropped"));
        missed(5700).is_fine();
        missed(5600).shows("P11: key 0 was free for 800 ms");
    }

    #[test]
    fn p11_a_waiter_that_is_disturbed_proves_nothing() {
        free_for(1400).fault("cut", Some(0), (5100, 6000)).is_fine();
        free_for(1400).pause(0, (5700, 5710)).is_fine();
        free_for(1400).starved((5700, 5710)).is_fine();
    }

    #[test]
    fn p11_a_short_pause_has_no_after_effects() {
        let story = free_for(1600).pause(0, (5100, 5110));
        story.shows("P11: key 0 was free for 1490 ms");
    }

    #[test]
    fn p11_the_fault_of_another_excuses_nobody() {
        let story = free_for(1400).fault("cut", Some(1), (5100, 6000));
        story.shows("P11");
    }

    #[test]
    fn p11_a_waiter_recovers_in_a_bounded_time() {
        let after = |length| free_for(length).fault("freeze", None, (4000, 6000));
        after(1000 + 1500 + 733).is_fine();
        after(1000 + 1500 + 734).shows("P11");
    }

    /// Somebody of worker 0 waits all the time; the key is free, and taken by others, by turns.
    fn by_turns(turns: u64) -> Story {
        let story = Story::new().claim(wait(0, (1000, 19_000)));
        (0..turns).fold(story, |story, turn| {
            let at = 5000 + 200 * turn;
            let taken = hold(1, turn + 1, (at + 100, at + 190)).ended(at + 190, "dropped");
            let story = story.sees(None, (at, at + 98)).claim(taken);
            story.sees(Some(value(1, turn + 1)), (at + 102, at + 188))
        })
    }

    #[test]
    fn p11_a_waiter_that_others_pass_over_again_and_again_is_found() {
        assert!(by_turns(7).passed_over().is_empty());
        let found = by_turns(8).passed_over();
        assert_eq!(
            found,
            ["P11: key 0 was free for 784 ms of the 18000 ms until 19000 that worker 0 waited"]
        );
    }

    #[test]
    fn p11_who_is_passed_over_while_it_is_disturbed_proves_nothing() {
        let cut = by_turns(8).fault("cut", Some(0), (5700, 5900));
        assert!(cut.passed_over().is_empty());
        let paused = by_turns(9).pause(0, (5700, 5710));
        assert_eq!(paused.passed_over().len(), 1);
    }

    #[test]
    fn p11_what_the_observer_did_not_see_is_left_open() {
        let story = free_for(700).sees(None, (5800, 6500));
        story.is_fine();
        let story = free_for(700).sees(Some(value(1, 1)), (5704, 5708));
        story.sees(None, (5712, 6400)).is_fine();
    }
}
