//! A holder lets go: the lease goes to the next of this process, or the claim is given up.
//!
//! # Local hand-over
//!
//! A claim in Redis outlives its holders. When a holder lets go and the next of the process wants a
//! lease with the same options, it gets it without a round trip: a new lease with a token and a
//! deadline of its own, and the next of the fencing numbers that the claim reserved. After a
//! stretch of `handover_for`, or when the reserved numbers are used up, Redis is asked whether
//! anybody else waits; if so the lock goes to that waiter, if not a new stretch begins.

use std::sync::Arc;

use crate::backend::Fences;
use crate::clock::Moment;
use crate::contain::contain;
use crate::error::LostReason;
use crate::keys::state::{Locked, State};
use crate::keys::waiter::Call;
use crate::keys::{KeyState, Keys, Waiter, Wakes};
use crate::lease::Lease;

/// What is to be done with a claim whose holder lets go.
#[derive(Debug)]
#[must_use]
pub(crate) enum LetGo {
    /// The next of this process has it.
    HandedOver(Wakes),
    /// Redis is to be asked who else waits (K8); then [`Keys::kept`], or let go again.
    Ask { fences: u64 },
    /// It is to be released; then the turn is to be ended, if it has one.
    Release(TakenOff),
    /// There is nothing to release: somebody else has the key, or sees to it.
    Nothing(TakenOff),
}

/// A lease that was taken off the held.
#[derive(Debug)]
pub(crate) struct TakenOff {
    /// Who held it; `None` if its turn has ended before.
    pub(crate) holder: Option<Arc<Waiter>>,
    /// The lease was over before it was let go: to be told (K7).
    pub(crate) is_lost: bool,
    /// A question to Redis may have passed the lock on (K8).
    pub(crate) was_in_question: bool,
}

impl Keys {
    /// Lets go of a lease.
    pub(crate) fn let_go(&self, state: &Arc<KeyState>, lease: &Arc<Lease>) -> LetGo {
        let mut known = state.lock();
        let is_last = nothing_to_release(lease);
        let goes_on = !is_last && known.has_heir(lease);
        let Some(held) = known.held(lease).filter(|_| goes_on) else {
            let released = self.remove(state, known, lease);
            return match is_last {
                true => LetGo::Nothing(released),
                false => LetGo::Release(released),
            };
        };
        if held.is_in_stretch(self.clock.now()) {
            return self.hand_over(state, known, lease);
        }
        held.is_ceded = true;
        held.in_question = true;
        let fences = held.holder.options.fences_of_a_stretch();
        self.refile(state, &mut known);
        LetGo::Ask { fences }
    }

    /// Redis keeps the claim for another stretch: the next of this process gets it. It is to be
    /// released if there is none any more.
    pub(crate) fn kept(
        &self,
        state: &Arc<KeyState>,
        lease: &Arc<Lease>,
        fences: Fences,
        deadline: Moment,
    ) -> LetGo {
        let now = self.clock.now();
        let mut known = state.lock();
        if let Some(held) = known.held(lease) {
            held.renewed(deadline, false, now);
            held.begin_stretch(fences, now);
        }
        if known.has_heir(lease) {
            return self.hand_over(state, known, lease);
        }
        LetGo::Release(self.remove(state, known, lease))
    }

    /// Takes off a lease that is let go for good.
    pub(crate) fn take_off(&self, state: &Arc<KeyState>, lease: &Arc<Lease>) -> TakenOff {
        self.remove(state, state.lock(), lease)
    }

    fn remove(&self, state: &Arc<KeyState>, mut known: Locked<'_>, lease: &Arc<Lease>) -> TakenOff {
        let held = known.take_held(lease);
        self.refile(state, &mut known);
        drop(known);
        let Some(held) = held else {
            return TakenOff {
                holder: None,
                is_lost: false,
                was_in_question: false,
            };
        };
        let is_lost = held.is_over();
        if is_lost {
            contain(|| lease.expire());
        }
        TakenOff {
            was_in_question: held.in_question,
            holder: Some(held.holder),
            is_lost,
        }
    }

    fn hand_over(&self, state: &Arc<KeyState>, mut known: Locked<'_>, lease: &Arc<Lease>) -> LetGo {
        let heir = known.advance();
        let held = known.held(lease);
        let (Some(heir), Some(held)) = (heir, held) else {
            unreachable!("K4: there was an heir, and a lease to hand over");
        };
        held.hand_over(&heir, &self.clock);
        let call = Call::Hold(Arc::clone(&held.lease), Arc::clone(&held.claim));
        let wakes = Wakes::from(heir.call(call));
        self.refile(state, &mut known);
        LetGo::HandedOver(wakes)
    }
}

impl State {
    /// Whether the first waiter gets the lease when its holder lets go: if it wants it as it is (K4).
    fn has_heir(&mut self, lease: &Arc<Lease>) -> bool {
        if !self.has_waiters() {
            return false;
        }
        let held = self.held(lease).filter(|held| held.may_go_on());
        let Some(holder) = held.map(|held| Arc::clone(&held.holder)) else {
            return false;
        };
        self.is_turn(&holder)
            && self
                .first()
                .is_some_and(|first| first.options.shares_lease_with(&holder.options))
    }
}

/// Whether it is certain that the key does not hold our value, or somebody else sees to it.
fn nothing_to_release(lease: &Lease) -> bool {
    matches!(
        lease.lost_reason(),
        Some(LostReason::Removed | LostReason::Stolen | LostReason::Closed)
    )
}
