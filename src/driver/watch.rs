//! One lease on the watchdog's roster: when it needs attention next.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::Claim;
use crate::backoff::jittered;
use crate::clock::Moment;
use crate::lease::Lease;

/// A renewal that failed is tried again after this share of the usual distance of renewals.
const RETRIES_PER_RENEWAL: u32 = 8;
pub(super) const SHORTEST_RETRY: Duration = Duration::from_millis(1);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// How long after a grant by push the driver looks at the key for the first time.
const FIRST_LOOK: Duration = Duration::from_millis(2);
/// Renewals that come due this soon go out together with those that are due now, unless that is
/// far too early for their TTL.
pub(super) const GATHER: Duration = Duration::from_millis(5);
const GATHER_SHARE: u32 = 20;

/// Whose connection read a key last, after its last write: that one hears of changes. Others hear
/// the echo of what that one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ear {
    Caller,
    Driver,
}

/// A lease on the roster.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) lease: Arc<Lease>,
    pub(crate) claim: Arc<Claim>,
    /// The holder's turn in the process' queue for the key.
    pub(crate) turn: u64,
    pub(super) renew_every: Option<Duration>,
    /// Until when Redis granted the claim, whatever the holder's `max_hold`.
    pub(super) granted_until: Moment,
    pub(super) renew_at: Moment,
    /// When to ask whether the key is ours still, without extending it.
    pub(super) look_at: Moment,
    /// A look found less life than was granted, and no renewal was sent since.
    is_short: bool,
    pub(super) in_flight: bool,
    /// The holder lets go: it asked Redis to keep the claim or to pass it on.
    pub(super) is_ceded: bool,
    /// Redis told of a change while a request was under way that may have run before it.
    pub(super) again: bool,
    /// `None`: unsure, so every sign of a change counts.
    pub(super) ear: Option<Ear>,
    /// When the last renewal over either's connection was answered.
    caller_answered: Moment,
    driver_answered: Moment,
    pub(super) wake: Moment,
}

impl Watch {
    /// Watches a lease from its grant over the connection of `ear`.
    pub(crate) fn new(
        lease: Arc<Lease>,
        claim: Arc<Claim>,
        turn: u64,
        granted_until: Moment,
        renew_every: Option<Duration>,
        ear: Ear,
        now: Moment,
    ) -> Self {
        let mut watch = Self {
            lease,
            claim,
            turn,
            renew_every,
            granted_until,
            renew_at: Moment::NEVER,
            look_at: Moment::NEVER,
            is_short: false,
            in_flight: false,
            is_ceded: false,
            again: false,
            ear: Some(ear),
            caller_answered: Moment::from_nanos(0),
            driver_answered: Moment::from_nanos(0),
            wake: Moment::NEVER,
        };
        watch.plan_renewal(now);
        watch
    }

    /// For a lease that a releaser granted: no connection of ours has read the key since, so none
    /// would hear of a theft. A look mends that, after a moment, because most sections are short.
    /// It changes nothing in Redis, so that it does not stir up those who wait.
    pub(crate) fn granted_by_push(mut self, now: Moment) -> Self {
        self.ear = None;
        self.look_at = now + FIRST_LOOK;
        self
    }

    pub(super) fn plan_renewal(&mut self, now: Moment) {
        let Some(every) = self.renew_every else {
            return;
        };
        self.renew_at = self.claim.sent(self.granted_until) + every;
        if self.renew_at <= now {
            // Granted for less than the TTL, or answered late.
            self.renew_at = now + every.min(self.granted_until.since(now) / 3);
        }
    }

    /// Plans to ask again what came to no answer.
    pub(super) fn plan_retry(&mut self, now: Moment) {
        let every = self.renew_every.unwrap_or(self.claim.ttl / 3);
        let wait = (every / RETRIES_PER_RENEWAL).clamp(SHORTEST_RETRY, LONGEST_RETRY);
        let retry_at = now + jittered(wait);
        if self.renew_at <= now {
            self.renew_at = retry_at;
        } else {
            self.look_at = retry_at;
        }
    }

    pub(super) fn wants_attention(&self, now: Moment) -> bool {
        !self.in_flight && !self.is_ceded && (self.wants_renewal(now) || self.look_at <= now)
    }

    fn wants_renewal(&self, now: Moment) -> bool {
        let early = match self.renew_every {
            Some(every) if self.ear.is_some() => GATHER.min(every / GATHER_SHARE),
            _ => Duration::ZERO,
        };
        self.is_short || self.renew_at.minus(early) <= now
    }

    /// Notes that Redis is asked now; says whether for a renewal, which is a look as well.
    pub(super) fn ask(&mut self, now: Moment) -> bool {
        let extend = self.wants_renewal(now);
        self.in_flight = true;
        self.is_short &= !extend;
        self.look_at = Moment::NEVER;
        self.ear = Some(Ear::Driver);
        extend
    }

    pub(super) fn next_wake(&self) -> Moment {
        let deadline = self.lease.deadline();
        if self.in_flight || self.is_ceded {
            deadline
        } else if self.is_short {
            Moment::from_nanos(0)
        } else {
            deadline.min(self.renew_at).min(self.look_at)
        }
    }

    /// Whether the lease is over, and the holder did not let it go before (W4).
    pub(super) fn is_to_be_told(&self) -> bool {
        !self.is_ceded && self.lease.is_lost()
    }

    /// Has Redis asked at once, for a look: a renewal could be what was told of (see
    /// `backend/echo.rs`), and would be told of again.
    pub(super) fn doubt(&mut self, now: Moment) {
        if self.in_flight {
            self.again = true;
        } else {
            self.look_at = now;
        }
    }

    /// The claim was extended until `deadline`, over `ear`'s connection.
    pub(super) fn renewed(&mut self, deadline: Moment, ear: Ear, now: Moment) {
        let others = match ear {
            Ear::Caller => self.driver_answered,
            Ear::Driver => self.caller_answered,
        };
        // Of two renewals that were under way together, either may have been the last to run.
        let is_last = others <= self.claim.sent(deadline) && !self.in_flight;
        self.ear = is_last.then_some(ear);
        match ear {
            Ear::Caller => self.caller_answered = now,
            Ear::Driver => self.driver_answered = now,
        }
        self.granted_until = self.granted_until.max(deadline);
        self.plan_renewal(now);
        self.answered(now);
    }

    /// The key is ours until then at least, as far as can be told; it was not extended. If that is
    /// less than was granted, somebody has shortened its life.
    pub(super) fn looked(&mut self, until: Option<Moment>, now: Moment) {
        let is_short = until.is_none_or(|until| until < self.granted_until);
        self.is_short = is_short && self.renew_every.is_some();
        self.answered(now);
    }

    fn answered(&mut self, now: Moment) {
        // A caller's answer may be older than the change, and the driver's question, too.
        if !self.in_flight && std::mem::take(&mut self.again) {
            self.look_at = now;
        }
    }
}
