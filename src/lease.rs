//! One holder's claim to a lock, as this process knows it. Pure: no I/O, no timer.
//!
//! # Invariants
//!
//! * **L1** `deadline` alone says whether the lease is held. Its highest bit is set once, by
//!   whoever first finds the lease over, and is never cleared (P5).
//! * **L2** A reader that finds the clock at or past the deadline sets that bit before it answers
//!   "lost". An extension is a compare-and-swap on the deadline that it saw. So no extension can
//!   follow an answer "lost", and no answer "lost" can follow an extension that came first.
//! * **L3** The reason is written under the lock of `ending` by whoever sets the bit through
//!   [`Lease::lose`]; a bit that a reader set means "expired".
//! * **L4** The token fires only through [`Lease::lose`], so never on release.

#[cfg(all(test, redlease_loom))]
mod models;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment};
use crate::error::{Cause, Lost, LostReason};
use crate::key::Key;
use crate::sync::{AtomicU64, Mutex};

const LOST: u64 = 1 << 63;

#[derive(Debug)]
pub(crate) struct Lease {
    key: Arc<Key>,
    fence: u64,
    clock: Clock,
    /// Nanoseconds of the clock, and [`LOST`].
    deadline: AtomicU64,
    /// The end of `max_hold`: no deadline goes beyond it.
    hold_until: Moment,
    ending: Mutex<Ending>,
}

#[derive(Debug, Default)]
struct Ending {
    reason: Option<LostReason>,
    last_error: Option<Cause>,
    token: Option<CancellationToken>,
}

impl Ending {
    /// What is known of the last attempt to renew stays as it was at the loss.
    fn note(&mut self, last_error: Option<Cause>) {
        if self.reason.is_none() {
            self.last_error = last_error;
        }
    }
}

impl Lease {
    pub(crate) fn new(
        clock: Clock,
        key: Arc<Key>,
        fence: u64,
        deadline: Moment,
        max_hold: Option<Duration>,
    ) -> Self {
        let hold_until = max_hold.map_or(Moment::NEVER, |max_hold| clock.now() + max_hold);
        Self {
            key,
            fence,
            clock,
            deadline: AtomicU64::new(deadline.min(hold_until).nanos()),
            hold_until,
            ending: Mutex::default(),
        }
    }

    pub(crate) fn key(&self) -> &Arc<Key> {
        &self.key
    }

    pub(crate) fn fence(&self) -> u64 {
        self.fence
    }

    /// Whether the lease is over; compares the clock itself (P3).
    pub(crate) fn is_lost(&self) -> bool {
        let mut seen = self.deadline.load(Ordering::Acquire);
        loop {
            if seen & LOST != 0 {
                return true;
            }
            if self.clock.now().nanos() < seen {
                return false;
            }
            // L2: make it final before saying so.
            match self.swap(seen, seen | LOST) {
                Ok(_) => return true,
                Err(newer) => seen = newer,
            }
        }
    }

    /// Moves the deadline to a later moment, unless the lease is over already; says whether it is
    /// held.
    pub(crate) fn extend(&self, deadline: Moment) -> bool {
        let deadline = deadline.min(self.hold_until).nanos();
        let mut seen = self.deadline.load(Ordering::Acquire);
        loop {
            if seen & LOST != 0 {
                return false;
            }
            if self.clock.now().nanos() >= seen {
                return !self.is_lost();
            }
            if deadline <= seen {
                return true;
            }
            match self.swap(seen, deadline) {
                Ok(_) => return true,
                Err(newer) => seen = newer,
            }
        }
    }

    /// Ends the lease and fires the token. A later call changes nothing (P5).
    pub(crate) fn lose(&self, reason: LostReason) {
        let mut ending = self.ending.lock();
        let before = self.deadline.fetch_or(LOST, Ordering::AcqRel);
        if before & LOST == 0 {
            ending.reason = Some(reason);
        }
        self.settle_reason(&mut ending, before);
        let token = ending.token.clone();
        drop(ending);
        if let Some(token) = token {
            token.cancel();
        }
    }

    /// Ends the lease because its deadline has passed.
    pub(crate) fn expire(&self) {
        let deadline = self.deadline.load(Ordering::Acquire) & !LOST;
        self.lose(self.passing_of(deadline));
    }

    /// Keeps what the last attempt to renew failed with, for the error of a later loss.
    pub(crate) fn note_failure(&self, cause: Cause) {
        self.ending.lock().note(Some(cause));
    }

    /// Whether the last attempt to renew failed.
    pub(crate) fn is_in_trouble(&self) -> bool {
        self.ending.lock().last_error.is_some()
    }

    pub(crate) fn forget_failure(&self) {
        self.ending.lock().note(None);
    }

    pub(crate) fn lost_reason(&self) -> Option<LostReason> {
        if !self.is_lost() {
            return None;
        }
        let mut ending = self.ending.lock();
        let deadline = self.deadline.load(Ordering::Acquire);
        self.settle_reason(&mut ending, deadline);
        ending.reason
    }

    pub(crate) fn ensure_held(&self) -> Result<(), Lost> {
        let Some(reason) = self.lost_reason() else {
            return Ok(());
        };
        let last_error = match reason {
            LostReason::Expired => self.ending.lock().last_error.clone(),
            _ => None,
        };
        Err(Lost::new(Arc::clone(self.key.name()), reason, last_error))
    }

    pub(crate) fn deadline(&self) -> Moment {
        Moment::from_nanos(self.deadline.load(Ordering::Acquire) & !LOST)
    }

    pub(crate) fn remaining(&self) -> Duration {
        if self.is_lost() {
            return Duration::ZERO;
        }
        self.deadline().since(self.clock.now())
    }

    /// A token that fires when the lease is lost. Cancelling it has no effect on the lease.
    pub(crate) fn token(&self) -> CancellationToken {
        let mut ending = self.ending.lock();
        let root = ending.token.get_or_insert_default().clone();
        // Only `lose` writes a reason and fires the token together; a bit that a reader set is
        // followed by `expire`, which finds the token (L4).
        let fired = ending.reason.is_some();
        drop(ending);
        if fired {
            root.cancel();
        }
        root.child_token()
    }

    /// L3: gives the loss its reason if it has none yet.
    fn settle_reason(&self, ending: &mut Ending, deadline: u64) {
        if ending.reason.is_none() {
            ending.reason = Some(self.passing_of(deadline & !LOST));
        }
    }

    /// Why a lease ended that nobody ended but the clock.
    fn passing_of(&self, deadline: u64) -> LostReason {
        if deadline == self.hold_until.nanos() {
            LostReason::MaxHold
        } else {
            LostReason::Expired
        }
    }

    fn swap(&self, seen: u64, new: u64) -> Result<u64, u64> {
        self.deadline
            .compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(100);

    fn lease(clock: &Clock, max_hold: Option<Duration>) -> Lease {
        let key = Arc::new(Key::new("", "k".to_owned()));
        Lease::new(clock.clone(), key, 7, clock.now() + TTL, max_hold)
    }

    #[test]
    fn p3_is_lost_turns_true_by_the_clock_alone() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        clock.advance(TTL - Duration::from_nanos(1));
        assert!(!lease.is_lost());
        assert_eq!(lease.remaining(), Duration::from_nanos(1));
        clock.advance(Duration::from_nanos(1));
        assert!(lease.is_lost());
        assert_eq!(lease.remaining(), Duration::ZERO);
        assert_eq!(lease.lost_reason(), Some(LostReason::Expired));
    }

    #[test]
    fn p5_a_renewal_that_comes_after_the_deadline_changes_nothing() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        clock.advance(TTL);
        assert!(!lease.extend(clock.now() + TTL));
        assert!(lease.is_lost());
    }

    #[test]
    fn p5_the_first_reason_stays() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        lease.lose(LostReason::Stolen);
        lease.lose(LostReason::Removed);
        lease.expire();
        assert!(matches!(lease.lost_reason(), Some(LostReason::Stolen)));
        assert!(!lease.extend(clock.now() + 2 * TTL));
    }

    #[test]
    fn p7_an_extension_never_moves_the_deadline_back() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        assert!(lease.extend(clock.now() + TTL / 2));
        assert_eq!(lease.remaining(), TTL);
    }

    #[test]
    fn the_token_fires_on_loss_also_when_it_is_asked_for_later() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        let early = lease.token();
        early.cancel();
        let witness = lease.token();
        assert!(!witness.is_cancelled(), "cancelling a child is local");
        lease.lose(LostReason::Removed);
        assert!(witness.is_cancelled());
        assert!(lease.token().is_cancelled());
    }

    #[test]
    fn a_token_asked_for_between_expiry_and_the_watchdog_fires_with_the_watchdog() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        clock.advance(TTL);
        assert!(lease.is_lost());
        let token = lease.token();
        lease.expire();
        assert!(token.is_cancelled());
    }

    #[test]
    fn max_hold_ends_a_lease_that_is_renewed() {
        let clock = Clock::manual();
        let lease = lease(&clock, Some(TTL * 3 / 2));
        clock.advance(TTL / 2);
        assert!(lease.extend(clock.now() + 2 * TTL));
        assert_eq!(lease.remaining(), TTL);
        clock.advance(TTL);
        assert!(lease.is_lost());
        assert!(matches!(lease.lost_reason(), Some(LostReason::MaxHold)));
    }

    #[test]
    fn an_expired_lease_tells_what_renewing_failed_with() {
        let clock = Clock::manual();
        let lease = lease(&clock, None);
        lease.note_failure(Cause::new(std::io::Error::other("cut off")));
        clock.advance(TTL);
        lease.expire();
        lease.forget_failure();
        let lost = lease.ensure_held().unwrap_err();
        assert_eq!(lost.reason(), LostReason::Expired);
        let source = std::error::Error::source(&lost).unwrap();
        assert_eq!(source.to_string(), "cut off");
    }
}
