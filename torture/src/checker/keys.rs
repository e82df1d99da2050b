//! What was in the keys, against what the claims say.

use crate::checker::{Checker, SLACK};
use crate::history::{Claim, Guard, MS, TTLS};
use crate::observer::Run;

/// The rest of an unsafe fault: a replica's, or a ghost's, lease.
const STALE: u64 = 1000 * MS;
/// The shortest life of a waiter in the queue: for so long it may be granted a lock.
const WAITER: u64 = 500 * MS;

impl Checker<'_> {
    /// P3, P4, P9, P10: what each value's time in the key says.
    pub(super) fn values(&mut self, key: usize, runs: &[Run]) {
        for (index, run) in runs.iter().enumerate() {
            self.leak(key, run);
            self.lateness(key, run, &runs[index + 1..]);
        }
    }

    pub(super) fn leak(&mut self, key: usize, run: &Run) {
        let Some(value) = run.value.as_deref() else {
            return;
        };
        let limit = self.must_be_gone(key, value, run.first.0);
        if run.last > limit && self.is_spared(value, run) {
            self.violation(format!(
                "P9, P10: key {key}: {value} was there {} ms too long, at {}",
                (run.last - limit) / MS,
                run.last / MS
            ));
        }
    }

    /// When a value that was in the key at `seen` must be gone.
    fn must_be_gone(&self, key: usize, value: &str, seen: u64) -> u64 {
        let ttl = TTLS[key] * MS;
        let claims = || self.by_value.get(value).into_iter().flatten();
        let ends = claims().filter_map(|claim| {
            let guard = claim.guard.as_ref()?;
            let life = self.life_end(claim);
            let end = match (&guard.ended, &guard.lost) {
                (Some((at, how)), _) if how == "forgotten" => at + 2 * ttl,
                (Some((_, how)), _) if how == "aborted" => life + ttl,
                (Some((at, _)), _) => guard.over.unwrap_or(*at),
                (None, Some((_, at, _))) => at + ttl,
                (None, None) => life + ttl,
            };
            Some(end.min(life + ttl))
        });
        // Nobody had it: somebody was cancelled, or was granted what it no longer waited for.
        let end = ends
            .max()
            .unwrap_or_else(|| self.given_up(key, value, seen));
        let limit = end + SLACK;
        // A request that was kept may yet be carried out, and give the key its TTL again.
        let lane = claims().next().map(|claim| claim.lane).or(lane_of(value));
        let delivered = lane.and_then(|lane| self.disruptions.delivery(lane, end, limit));
        delivered.map_or(limit, |at| limit.max(at + ttl.max(WAITER) + SLACK))
    }

    /// When the waiter whose value it may be stopped waiting: until then a grant that it cannot
    /// hear of, or has just heard of, is its own.
    fn given_up(&self, key: usize, value: &str, seen: u64) -> u64 {
        let lane = lane_of(value);
        let waits = self.record.claims.iter().filter(|claim| claim.key == key);
        let waits = waits.filter(|claim| Some(claim.lane) == lane && claim.called <= seen);
        let ends = waits.filter_map(|claim| claim.gave_up);
        let in_time = seen..=seen + TTLS[key] * MS;
        ends.filter(|at| in_time.contains(at)).max().unwrap_or(seen)
    }

    /// Whether no unsafe fault has to do with the value.
    fn is_spared(&self, value: &str, run: &Run) -> bool {
        let claims = self.by_value.get(value).into_iter().flatten();
        let called = claims.map(|claim| claim.called).min();
        let from = called.unwrap_or(run.first.0.saturating_sub(STALE));
        self.disruptions.spare(from.min(run.first.0), run.last)
    }

    fn lateness(&mut self, key: usize, run: &Run, later: &[Run]) {
        let Some(value) = run.value.as_deref() else {
            return;
        };
        for claim in self.by_value.get(value).cloned().unwrap_or_default() {
            let Some(guard) = &claim.guard else { continue };
            let Some((_, lost, reason)) = &guard.lost else {
                continue;
            };
            let noticed = guard.fired.unwrap_or(*lost).max(*lost);
            // A key that was renewed after the last look, and then forgotten, tells nothing.
            let is_spared = self.disruptions.spare(claim.called, noticed);
            if reason != "expired" || !is_spared || !is_gone_until(noticed, value, later) {
                continue;
            }
            self.findings.false_losses += usize::from(run.last > lost + margin(key));
            // That a guard came is no answer of its `is_lost`.
            if let Some((_, held)) = claim.certain() {
                let left = run.expires as i64 - held as i64;
                let least = self.findings.least_margin.unwrap_or(left).min(left);
                self.findings.least_margin = Some(least);
                if left < 0 {
                    let late = millis(-left);
                    self.violation(format!("P3: key {key}: is_lost was {late:.1} ms late"));
                }
            }
            self.token_at_expiry(claim, guard, run.expires);
        }
    }

    /// P4: the token falls before the key expires, but for what the machine is late by.
    fn token_at_expiry(&mut self, claim: &Claim, guard: &Guard, expires: u64) {
        let Some(fired) = guard.fired else { return };
        let late = fired as i64 - expires as i64;
        let net = late - self.pause_around(claim.lane, guard.deadline, fired) as i64;
        let findings = &mut self.findings;
        findings.tokens += 1;
        findings.latest_token = Some(findings.latest_token.unwrap_or(late).max(late));
        findings.latest_token_net = Some(findings.latest_token_net.unwrap_or(net).max(net));
        if net > 0 {
            let (key, late, net) = (claim.key, millis(late), millis(net));
            self.violation(format!(
                "P4: key {key}: the token was {late:.1} ms late, {net:.1} ms of it by itself"
            ));
        }
    }

    /// P4: the token falls with the lease, wherever the key is, and at all.
    pub(super) fn tokens_at_loss(&mut self, claims: &[&Claim]) {
        for claim in claims {
            let Some(guard) = &claim.guard else { continue };
            let Some((_, lost, _)) = guard.lost else {
                continue;
            };
            // If its fall was never noticed, it had not fallen when the guard was given up.
            let given_up = guard.ended.as_ref().map(|&(at, _)| at);
            let Some(noticed) = guard.fired.or(given_up) else {
                continue;
            };
            let machine = UNSEEN + self.pause_around(claim.lane, lost, noticed);
            let allowed = lost + margin(claim.key) + machine;
            if noticed > allowed {
                let (key, late) = (claim.key, millis((noticed - allowed) as i64));
                self.violation(format!(
                    "P4: key {key}: the lease was lost, and the token fell {late:.1} ms too late or never"
                ));
            }
        }
    }

    /// For how long the machine kept a worker from noticing a moment that it noticed at `until`.
    fn pause_around(&self, lane: usize, moment: u64, until: u64) -> u64 {
        // Of a pause, what came after the moment.
        let mut over_it = 0;
        // On a busy machine each thread is late in its turn: its like shortly before and after count.
        let mut around = 0;
        for &(paused, began, ended) in &self.record.pauses {
            if paused != lane || began > until + AROUND || ended + AROUND < moment {
                continue;
            }
            if (began..ended).contains(&moment) {
                over_it = over_it.max(ended - moment);
            } else {
                around = around.max(ended - began);
            }
        }
        over_it + around
    }
}

const AROUND: u64 = 50 * MS;
/// The control notes no pause that is shorter than a beat, and the fall of a token takes two
/// threads: the watchdog's and the witness'.
const UNSEEN: u64 = 10 * MS;

/// Whether a value did not come back by `noticed`, so that the last look before tells when its key
/// expired. One that did not hear of its grant may be granted the lock again under the same value.
fn is_gone_until(noticed: u64, value: &str, later: &[Run]) -> bool {
    let Some(end) = later.iter().position(|run| run.last >= noticed) else {
        return false;
    };
    let mut until_then = later[..=end].iter();
    until_then.all(|run| run.is_change && run.value.as_deref() != Some(value))
}

/// The lane that a value names: nobody may ever have told of its claim.
fn lane_of(value: &str) -> Option<usize> {
    let owner = value.split_once(":worker-")?.1;
    owner.split_once('.')?.0.parse().ok()
}

/// By how much a lease ends before its key, at least.
fn margin(key: usize) -> u64 {
    (TTLS[key] / 100 + 2) * MS
}

fn millis(nanos: i64) -> f64 {
    nanos as f64 / MS as f64
}

#[cfg(test)]
mod tests {
    use crate::checker::story::{END, Story, hold, value, wait};

    fn expired(until: u64) -> crate::history::Claim {
        let hold = hold(0, 1, (100, until)).lost(until + 1, "expired");
        hold.ended(until + 2, "dropped")
    }

    /// The value is seen until 400, when it expires at the latest.
    fn seen(claim: crate::history::Claim) -> Story {
        let story = Story::new().claim(claim);
        let story = story.sees_until(Some(value(0, 1)), (100, 400), 400);
        story.sees(None, (404, 1000))
    }

    #[test]
    fn p3_a_claim_that_outlives_its_key_is_found() {
        seen(expired(401)).shows("P3: key 0: is_lost was 1.0 ms late");
    }

    #[test]
    fn p3_a_claim_that_ends_with_its_key_is_fine() {
        seen(expired(400)).is_fine();
        assert_eq!(seen(expired(390)).findings().least_margin, Some(10_000_000));
    }

    #[test]
    fn p3_when_the_guard_came_is_no_answer_of_is_lost() {
        let paused = hold(0, 1, (500, 500)).called(90).lost(501, "expired");
        seen(paused.ended(502, "dropped")).is_fine();
    }

    #[test]
    fn p3_an_expiry_that_the_observer_did_not_see_says_nothing() {
        // It may have been renewed after the last look.
        let story = Story::new().claim(expired(700));
        let story = story.sees_until(Some(value(0, 1)), (100, 400), 400);
        story.sees(None, (750, 1000)).is_fine();
    }

    #[test]
    fn p3_a_value_that_comes_back_has_a_later_expiry() {
        let granted_again = || {
            let story = Story::new().claim(expired(700));
            let story = story.sees_until(Some(value(0, 1)), (100, 400), 400);
            let story = story.sees(None, (404, 450));
            story.sees_until(Some(value(0, 1)), (454, 690), 750)
        };
        granted_again().sees(None, (694, 1000)).is_fine();
        // Out of sight it may have come back again.
        granted_again().sees(None, (694, 695)).is_fine();
        let story = Story::new().claim(expired(700));
        let story = story.sees_until(Some(value(0, 1)), (100, 400), 400);
        story
            .sees(None, (404, 700))
            .sees(None, (750, 1000))
            .is_fine();
    }

    #[test]
    fn p3_a_key_that_an_unsafe_fault_took_does_not_tell_its_expiry() {
        let late = || seen(expired(500)).under_unsafe_faults();
        late().fault("flushall", None, (402, 450)).is_fine();
        late().fault("flushall", None, (502, 550)).shows("P3");
    }

    #[test]
    fn p4_a_token_after_the_expiry_is_found() {
        let late = expired(395).deadline(395).lost(401, "expired");
        seen(late.fired(401)).shows("P4: key 0: the token was 1.0 ms late, 1.0 ms of it by itself");
    }

    #[test]
    fn p4_a_token_at_the_expiry_is_fine() {
        seen(expired(395).deadline(395).fired(400)).is_fine();
    }

    #[test]
    fn p4_a_pause_of_the_worker_explains_so_much_and_no_more() {
        let late = || {
            let late = expired(395).deadline(395).lost(460, "expired");
            seen(late.fired(460))
        };
        late().pause(0, (300, 455)).is_fine();
        late().pause(0, (300, 454)).shows("P4");
        late().pause(1, (300, 455)).shows("P4");
        // A moment later, or before, all were as late.
        late().pause(0, (396, 456)).is_fine();
        late().pause(0, (396, 455)).shows("P4");
        late().pause(0, (280, 345)).is_fine();
        late().pause(0, (280, 344)).shows("P4");
        let findings = late().pause(0, (300, 456)).findings();
        assert_eq!(findings.latest_token, Some(60_000_000));
        assert_eq!(findings.latest_token_net, Some(-1_000_000));
    }

    #[test]
    fn p4_a_token_that_falls_after_the_loss_is_found() {
        let lost = |reason| hold(0, 1, (100, 290)).lost(300, reason);
        for reason in ["expired", "removed", "max-hold"] {
            let fired = |at| Story::new().claim(lost(reason).fired(at));
            fired(315).is_fine();
            fired(316).shows("P4: key 0: the lease was lost, and the token fell 1.0 ms too late");
            fired(316).pause(0, (290, 296)).is_fine();
        }
    }

    #[test]
    fn p4_a_token_that_never_falls_is_found() {
        let lost = || hold(0, 1, (100, 290)).lost(300, "expired");
        let given_up = |at| Story::new().claim(lost().ended(at, "dropped"));
        given_up(315).is_fine();
        given_up(316).shows("P4");
        // Its process may have been killed.
        Story::new().claim(lost()).is_fine();
    }

    #[test]
    fn p9_a_value_that_stays_after_the_release_is_found() {
        let story = || Story::new().claim(hold(0, 1, (100, 200)).ended(200, "dropped"));
        let stays = |until| story().sees(Some(value(0, 1)), (100, until));
        stays(601).shows("P9, P10");
        stays(600).is_fine();
    }

    #[test]
    fn p9_the_bound_counts_from_the_end_of_the_release() {
        let mut claim = hold(0, 1, (100, 200)).ended(200, "released");
        claim.guard.as_mut().unwrap().over = Some(250_000_000);
        let story = Story::new().claim(claim);
        let story = story.sees(Some(value(0, 1)), (100, 650));
        story.is_fine();
    }

    #[test]
    fn p9_a_lost_and_a_forgotten_guard_have_their_ttls() {
        let lost = hold(0, 1, (100, 200)).lost(201, "expired");
        let forgotten = hold(0, 1, (100, 200)).ended(201, "forgotten");
        for (claim, limit) in [(lost, 201 + 300 + 400), (forgotten, 201 + 600 + 400)] {
            let stays = |until| {
                let story = Story::new().claim(claim.clone());
                story.sees(Some(value(0, 1)), (100, until))
            };
            stays(limit).is_fine();
            stays(limit + 1).shows("P9, P10");
        }
    }

    #[test]
    fn p9_a_dead_holders_value_goes_after_a_ttl() {
        let stays = |until| {
            let story = Story::new().claim(hold(0, 1, (END - 100, END)));
            // The worker's end counts as a fault that may have kept a request.
            story.sees(Some(value(0, 1)), (END - 100, until))
        };
        stays(END + 300 + 400).is_fine();
        stays(END + 300 + 100 + 500 + 401).shows("P9, P10");
        // Even if it would have kept the lock on purpose.
        let forgotten = hold(0, 1, (END - 100, END)).ended(END - 10, "forgotten");
        let story = Story::new().claim(forgotten);
        let until = END + 300 + 100 + 500 + 401;
        let story = story.sees(Some(value(0, 1)), (END - 100, until));
        story.shows("P9, P10");
    }

    #[test]
    fn p10_the_value_of_a_cancelled_acquire_that_stays_is_found() {
        let story = || Story::new().claim(wait(0, (90, 101)));
        let stays = |until| story().sees(Some(value(0, 1)), (100, until));
        stays(502).shows("P9, P10");
        stays(501).is_fine();
    }

    #[test]
    fn p10_a_grant_is_that_of_a_waiter_until_he_is_cancelled() {
        let story = || Story::new().claim(wait(0, (90, 350)));
        let stays = |until| story().sees(Some(value(0, 1)), (100, until));
        stays(751).shows("P9, P10");
        stays(750).is_fine();
    }

    #[test]
    fn p10_a_fault_that_keeps_the_release_gives_it_a_ttl_and_no_more() {
        let stays = |until| {
            let story = Story::new().claim(wait(0, (90, 101)));
            story.sees(Some(value(0, 1)), (100, until))
        };
        let limit = 500 + 100 + 500 + 400;
        stays(limit).fault("cut", Some(0), (50, 500)).is_fine();
        stays(limit + 1)
            .fault("cut", Some(0), (50, 500))
            .shows("P9, P10");
        // Another worker's fault, or one that begins when all is over, explains nothing.
        stays(502).fault("cut", Some(1), (50, 500)).shows("P9, P10");
        stays(5000)
            .fault("freeze", None, (502, 4900))
            .shows("P9, P10");
    }

    #[test]
    fn p10_in_a_row_of_faults_each_gives_no_more_time() {
        let mut story = Story::new().claim(hold(0, 1, (100, 200)).ended(200, "dropped"));
        for beginning in (150..4000).step_by(400) {
            story = story.fault("freeze", None, (beginning, beginning + 200));
        }
        story.sees(Some(value(0, 1)), (100, 4000)).shows("P9, P10");
    }

    #[test]
    fn p10_what_an_unsafe_fault_has_to_do_with_is_not_judged_and_the_rest_is() {
        let stays = |fault| {
            let story = Story::new().under_unsafe_faults();
            let story = story.fault("promote", None, fault);
            let story = story.claim(hold(0, 1, (5000, 5100)).ended(5100, "dropped"));
            story.sees(Some(value(0, 1)), (5000, 5700))
        };
        stays((3000, 3400)).shows("P9, P10");
        stays((4000, 5000)).is_fine();
        stays((5700, 5800)).is_fine();
        stays((5701, 5800)).shows("P9, P10");
    }
}
