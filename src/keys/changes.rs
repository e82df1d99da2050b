//! What comes from outside: what Redis tells without being asked, and what it answers the driver.
//!
//! What it tells is hints: a waiter's heartbeat and a holder's renewal bound how long a missing one
//! can matter (P11).

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Claim, Grant, Look, Renewal, Signals};
use crate::clock::Moment;
use crate::error::{Cause, LostReason};
use crate::keys::held::GATHER;
use crate::keys::{HeldClaim, KeyState, Keys, News, Question, Wakes};
use crate::lease::Lease;

/// What the driver has to do about a key.
#[derive(Debug)]
pub(crate) enum Due {
    Ask(Question),
    /// The lease is over: it is to be expired, and the turn ended.
    Expire(HeldClaim),
}

impl Keys {
    /// What is due at `now`.
    pub(crate) fn due(&self, now: Moment, command_timeout: Duration) -> Vec<(Arc<KeyState>, Due)> {
        let mut due = Vec::new();
        for state in self.schedule.due(now + GATHER) {
            let mut known = state.lock();
            for held in known.held.extract_if(.., |held| held.is_over()) {
                due.push((Arc::clone(&state), Due::Expire(held)));
            }
            for held in &mut known.held {
                let question = held.ask(now, command_timeout);
                due.extend(question.map(|question| (Arc::clone(&state), Due::Ask(question))));
            }
            self.settle(&state, known);
        }
        due
    }

    /// Notes until when the driver sleeps now.
    pub(crate) fn fall_asleep(&self) -> Option<Moment> {
        self.schedule.fall_asleep(self.clock.now())
    }

    /// Waits for what is to be done before the moment until which the driver sleeps.
    pub(crate) async fn early(&self) {
        self.schedule.early().await;
    }

    /// Enters what became of a renewal; gives back a lease that is lost by it, for which the turn is
    /// to be ended.
    pub(crate) fn renewed(
        &self,
        state: &Arc<KeyState>,
        claim: &Arc<Claim>,
        renewal: Renewal,
        asked_by_driver: bool,
    ) -> Option<(HeldClaim, LostReason)> {
        let reason = match renewal {
            Renewal::Renewed { deadline } => {
                let mut known = state.lock();
                if let Some(held) = known.held_on(claim) {
                    held.renewed(deadline, asked_by_driver, self.clock.now());
                    self.refile(state, &mut known);
                }
                return None;
            }
            Renewal::Removed => LostReason::Removed,
            Renewal::Stolen => LostReason::Stolen,
        };
        let mut known = state.lock();
        let held = known.held_on(claim)?;
        if held.is_ceded {
            // By its own request, perhaps: it finds out for itself, and ends its turn.
            held.gone(asked_by_driver, self.clock.now());
            return None;
        }
        let lease = Arc::clone(&held.lease);
        let held = known.take_held(&lease);
        self.settle(state, known);
        held.map(|held| (held, reason))
    }

    /// Enters what a look found, as [`renewed`](Self::renewed) does.
    pub(crate) fn looked(
        &self,
        state: &Arc<KeyState>,
        claim: &Arc<Claim>,
        look: Look,
    ) -> Option<(HeldClaim, LostReason)> {
        match look {
            Look::Ours { until } => {
                let mut known = state.lock();
                if let Some(held) = known.held_on(claim) {
                    held.looked(until, self.clock.now());
                    self.refile(state, &mut known);
                }
                None
            }
            Look::Removed => self.renewed(state, claim, Renewal::Removed, true),
            Look::Stolen => self.renewed(state, claim, Renewal::Stolen, true),
        }
    }

    /// A question of the driver's came to no answer. Says which lease it was about.
    pub(crate) fn unanswered(
        &self,
        state: &Arc<KeyState>,
        claim: &Arc<Claim>,
        cause: Cause,
    ) -> Option<Arc<Lease>> {
        let mut known = state.lock();
        let held = known.held_on(claim)?;
        held.unanswered(self.clock.now());
        let lease = Arc::clone(&held.lease);
        lease.note_failure(cause);
        self.refile(state, &mut known);
        Some(lease)
    }

    /// Takes the claims that were granted although nobody waits with them any more.
    pub(crate) fn take_unwanted(&self) -> Vec<Arc<Claim>> {
        mem::take(&mut self.unwanted.lock())
    }

    /// Passes news on to those who wait in Redis for a key, and has the driver look at leases on it;
    /// only those that the connection of this number concerns, if one is named.
    fn tell(&self, state: &Arc<KeyState>, news: News, connection: Option<u64>) -> Wakes {
        let mut wakes = Wakes::default();
        let mut known = state.lock();
        for waiter in known.contenders() {
            let queued = connection.and_then(|number| Some((number, waiter.queued()?)));
            if queued.is_none_or(|(number, claim)| claim.may_be_heard_on(number)) {
                wakes.add(waiter.tell(news));
            }
        }
        let now = self.clock.now();
        let mut is_concerned = false;
        for held in &mut known.held {
            if connection.is_none_or(|number| held.claim.is_tracked_on(number)) {
                held.look_soon(now);
                is_concerned = true;
            }
        }
        if is_concerned {
            self.refile(state, &mut known);
        }
        wakes
    }
}

impl Signals for Keys {
    fn changed(&self, key: &str) {
        if let Some(state) = self.known(key) {
            self.tell(&state, News::Changed, None).wake();
        }
    }

    fn pushes_missed(&self, connection: Option<u64>) {
        for state in self.all() {
            self.tell(&state, News::Missed, connection).wake();
        }
    }

    fn granted(&self, grant: Grant) {
        let Some(state) = self.known(&grant.key) else {
            return;
        };
        let known = state.lock();
        if let Some(waiter) = known.queued(&grant.value) {
            let wakes = Wakes::from(waiter.grant(grant));
            drop(known);
            return wakes.wake();
        }
        // A contender is known before it asks, and until it holds. So a value that neither waits nor
        // holds belongs to nobody any more: pass the lock on, at once. But only one of ours: anybody
        // may write to the channel, and name a value of somebody else's (P6).
        let is_held = known.held.iter().any(|h| *h.claim.value == *grant.value);
        if !is_held && let Some(claim) = known.claim_that_left(&grant.value) {
            drop(known);
            self.unwanted.lock().push(claim);
            self.schedule.wake();
        }
    }
}
