//! A claim that is held: its present lease, and when that needs attention next.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Claim, Fences};
use crate::backoff::jittered;
use crate::clock::{Clock, Moment};
use crate::keys::waiter::Waiter;
use crate::lease::Lease;

/// A renewal that failed is tried again after this share of the usual distance of renewals.
const RETRIES_PER_RENEWAL: u32 = 8;
pub(super) const SHORTEST_RETRY: Duration = Duration::from_millis(1);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// A lease is young for so long after its grant, or after its holder had it extended. The driver
/// looks at it when it is not any more: from then on Redis tells of changes. Most leases do not live
/// as long, and cost neither a look nor a place in the server's tracking table.
pub(super) const YOUTH: Duration = Duration::from_millis(50);
/// A first look may come this much earlier, so that many go together.
const GATHER_LOOKS: Duration = Duration::from_millis(10);
/// Renewals that come due this soon go out together with those that are due now, unless that is
/// far too early for their TTL.
pub(super) const GATHER: Duration = GATHER_LOOKS;
const GATHER_RENEWALS: Duration = Duration::from_millis(5);
const GATHER_SHARE: u32 = 20;

/// How a claim was won.
#[derive(Debug)]
pub(crate) struct Won {
    pub(crate) claim: Arc<Claim>,
    pub(crate) fences: Fences,
    pub(crate) deadline: Moment,
}

/// A claim and its present lease. Several leases follow each other on a claim by hand-over.
#[derive(Debug)]
pub(crate) struct HeldClaim {
    pub(crate) lease: Arc<Lease>,
    pub(crate) claim: Arc<Claim>,
    /// Who holds it, with its options.
    pub(crate) holder: Arc<Waiter>,
    /// The fencing number of the present lease, and the end of those that are reserved.
    fence: u64,
    fences_end: u64,
    /// Until when the claim is handed on without asking Redis who else waits.
    stretch_until: Moment,
    /// Its holder lets go, and asked Redis whether to keep it: no renewal, and no loss (K7, K8).
    pub(super) is_ceded: bool,
    /// Redis was asked whether to keep the claim, and has not answered (K8).
    pub(super) in_question: bool,
    /// Until when Redis granted the claim, whatever the holder's `max_hold`.
    granted_until: Moment,
    renew_at: Moment,
    /// When to ask whether the key is ours still, without extending it.
    look_at: Moment,
    /// Not looked at before then: see [`YOUTH`].
    young_until: Moment,
    /// A look found less life than was granted, and no renewal was sent since.
    is_short: bool,
    /// The last question came to no answer: the next is not to come early.
    has_failed: bool,
    /// The driver's question is under way.
    in_flight: bool,
    /// Redis told of a change while a question was under way that may have run before it.
    again: bool,
}

impl HeldClaim {
    pub(super) fn new(won: Won, holder: &Arc<Waiter>, clock: &Clock, now: Moment) -> Self {
        let Won {
            claim,
            fences,
            deadline,
        } = won;
        let max_hold = holder.options.max_hold;
        let key = Arc::clone(&claim.key);
        let lease = Lease::new(clock.clone(), key, fences.first, deadline, max_hold);
        let mut held = Self {
            lease: Arc::new(lease),
            claim,
            holder: Arc::clone(holder),
            fence: 0,
            fences_end: 0,
            stretch_until: now,
            is_ceded: false,
            in_question: false,
            granted_until: deadline,
            renew_at: Moment::NEVER,
            look_at: now + YOUTH,
            young_until: now + YOUTH,
            is_short: false,
            has_failed: false,
            in_flight: false,
            again: false,
        };
        held.begin_stretch(fences, now);
        held.plan_renewal(now);
        held
    }

    pub(super) fn begin_stretch(&mut self, fences: Fences, now: Moment) {
        self.in_question = false;
        self.fence = fences.first;
        self.fences_end = fences.first + fences.count;
        self.stretch_until = now + self.holder.options.handover_for;
        self.claim.note_reserved(fences);
    }

    /// Whether the lease may go on to another holder, if there is one.
    pub(super) fn may_go_on(&self) -> bool {
        !self.in_question
            && self.holder.options.hands_over()
            && !self.lease.is_lost()
            && !self.lease.is_in_trouble()
    }

    /// Whether it may go on without asking Redis who else waits.
    pub(super) fn is_in_stretch(&self, now: Moment) -> bool {
        self.fence + 1 < self.fences_end && now < self.stretch_until
    }

    /// Puts a new holder's lease in the place of the present one's: the claim lives on.
    pub(super) fn hand_over(&mut self, heir: &Arc<Waiter>, clock: &Clock) {
        self.fence += 1;
        self.claim.note_fence(self.fence);
        self.lease = Arc::new(Lease::new(
            clock.clone(),
            Arc::clone(&self.claim.key),
            self.fence,
            self.granted_until,
            heir.options.max_hold,
        ));
        self.holder = Arc::clone(heir);
        self.is_ceded = false;
    }

    fn plan_renewal(&mut self, now: Moment) {
        let Some(every) = self.holder.options.renew_every else {
            return;
        };
        self.renew_at = self.claim.sent(self.granted_until) + every;
        if self.renew_at <= now {
            // Granted for less than the TTL, or answered late.
            self.renew_at = now + every.min(self.granted_until.since(now) / 3);
        }
    }

    /// Plans to ask again what came to no answer.
    fn plan_retry(&mut self, now: Moment) {
        let every = self
            .holder
            .options
            .renew_every
            .unwrap_or(self.claim.ttl / 3);
        let wait = (every / RETRIES_PER_RENEWAL).clamp(SHORTEST_RETRY, LONGEST_RETRY);
        let retry_at = now + jittered(wait);
        if self.renew_at <= now {
            self.renew_at = retry_at;
        } else {
            self.look_at = retry_at;
        }
    }

    /// Whether the lease is over, and nobody lets go of it.
    pub(super) fn is_over(&self) -> bool {
        !self.is_ceded && self.lease.is_lost()
    }

    /// What the driver is to ask now, if anything: it is under way then.
    pub(super) fn ask(&mut self, now: Moment, command_timeout: Duration) -> Option<Question> {
        if self.in_flight || self.is_ceded {
            return None;
        }
        let extend = self.wants_renewal(now);
        if !extend && !self.wants_look(now) {
            return None;
        }
        self.in_flight = true;
        self.is_short &= !extend;
        // A renewal looks, too.
        self.look_at = Moment::NEVER;
        Some(Question {
            claim: Arc::clone(&self.claim),
            extend,
            // Three tries fit into what is left of the lease.
            within: command_timeout
                .min(self.lease.remaining() / 3)
                .max(SHORTEST_RETRY),
        })
    }

    fn wants_renewal(&self, now: Moment) -> bool {
        let early = match self.holder.options.renew_every {
            Some(every) if !self.has_failed => GATHER_RENEWALS.min(every / GATHER_SHARE),
            _ => Duration::ZERO,
        };
        self.is_short || self.renew_at.minus(early) <= now
    }

    fn wants_look(&self, now: Moment) -> bool {
        let early = match self.look_at == self.young_until {
            true => GATHER_LOOKS,
            false => Duration::ZERO,
        };
        self.look_at.minus(early) <= now
    }

    pub(super) fn next_wake(&self) -> Moment {
        let deadline = self.lease.deadline();
        if self.is_ceded {
            // Whoever lets go takes it off (K7).
            Moment::NEVER
        } else if self.in_flight {
            deadline
        } else if self.is_short {
            Moment::from_nanos(0)
        } else {
            deadline.min(self.renew_at).min(self.look_at)
        }
    }

    /// Has the driver look at the key, at once or when the question under way is answered. Not
    /// renew: a renewal of ours may be the change that Redis told of (`backend/redis/echo.rs`),
    /// and would be told of again.
    pub(super) fn look_soon(&mut self, now: Moment) {
        if self.in_flight {
            self.again = true;
        } else {
            self.plan_look(now);
        }
    }

    fn plan_look(&mut self, now: Moment) {
        self.look_at = self.look_at.min(now.max(self.young_until));
    }

    /// The claim was extended until `deadline`. If the holder asked for that, the lease is young
    /// again: its request ended what the server was asked to tell, perhaps without telling.
    pub(super) fn renewed(&mut self, deadline: Moment, asked_by_driver: bool, now: Moment) {
        // K9: a holder's answer says nothing of a question of the driver's.
        self.in_flight &= !asked_by_driver;
        self.has_failed = false;
        if !asked_by_driver {
            self.young_until = now + YOUTH;
            self.look_at = self.young_until;
        }
        self.granted_until = self.granted_until.max(deadline);
        self.plan_renewal(now);
        self.look_if_told(now);
        self.lease.forget_failure();
        self.lease.extend(deadline);
    }

    /// The key is ours until then at least, as far as can be told; it was not extended. If that is
    /// less than was granted, somebody has shortened its life.
    pub(super) fn looked(&mut self, until: Option<Moment>, now: Moment) {
        self.in_flight = false;
        self.has_failed = false;
        let is_short = until.is_none_or(|until| until < self.granted_until);
        self.is_short = is_short && self.holder.options.renew_every.is_some();
        self.look_if_told(now);
    }

    /// The key is not ours, says an answer, while the holder lets go. If Redis keeps the claim all the
    /// same, the driver looks again.
    pub(super) fn gone(&mut self, asked_by_driver: bool, now: Moment) {
        self.in_flight &= !asked_by_driver;
        self.look_soon(now);
    }

    /// A question came to no answer.
    pub(super) fn unanswered(&mut self, now: Moment) {
        self.in_flight = false;
        self.has_failed = true;
        self.plan_retry(now);
        self.look_if_told(now);
    }

    fn look_if_told(&mut self, now: Moment) {
        // A caller's answer may be older than the change, and the driver's question, too.
        if !self.in_flight && mem::take(&mut self.again) {
            self.plan_look(now);
        }
    }
}

/// What the driver has to ask Redis about a claim.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) claim: Arc<Claim>,
    /// Whether it is to be extended; if not, it is only looked at.
    pub(crate) extend: bool,
    pub(crate) within: Duration,
}
