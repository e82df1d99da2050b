//! What this process knows of one key. No lock but a waiter's and the schedule's is taken under its
//! own; nothing is woken, told or dropped under it that could run foreign code.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use crate::backend::Claim;
use crate::clock::Moment;
use crate::contain::contain;
use crate::error::Fault;
use crate::key::Key;
use crate::keys::held::HeldClaim;
use crate::keys::waiter::{Call, Waiter};
use crate::lease::Lease;
use crate::sync::{Mutex, MutexGuard};

/// So many claims that waited in Redis are remembered. A grant for one that waited before them
/// stays until it expires, after a waiter's life.
const REMEMBERED_CLAIMS: usize = 256;

pub(super) type Locked<'a> = MutexGuard<'a, State>;

/// One key, from the first who wants its lock until nobody does and nothing of it matters any more.
#[derive(Debug)]
pub(crate) struct KeyState {
    pub(crate) key: Arc<Key>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The one that contends, has been called, or holds the lock: all others wait for it.
    pub(super) turn: Option<Arc<Waiter>>,
    /// In the order of arrival. Those who have left stay here until they are first, or more than
    /// half of all.
    waiters: VecDeque<Arc<Waiter>>,
    left: usize,
    /// Contenders whose turn was taken from them, and may yet be granted the lock (K6).
    pub(super) overdue: Vec<Arc<Waiter>>,
    pub(super) held: Vec<HeldClaim>,
    pub(super) outage: Option<Box<Outage>>,
    /// Somebody else had the lock when it was last asked for.
    pub(super) was_contended: bool,
    /// The claims that waited in Redis and do not any more, the newest in front: a heartbeat of
    /// theirs may yet run.
    left_queue: VecDeque<Arc<Claim>>,
    /// Until when `was_contended` and `left_queue` are worth remembering.
    pub(super) remembered_until: Option<Moment>,
    /// The moment under which the key is in the schedule (K10).
    pub(super) wake: Option<Moment>,
    /// Somebody looks whether the one that has the turn is polled (K6).
    pub(super) is_watched: bool,
    pub(super) is_closed: bool,
    /// It is out of the table, or about to be: nobody enters here any more (K1).
    pub(super) is_retired: bool,
}

/// The store has not answered the contender since, the last time with this fault.
#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) fault: Fault,
}

impl KeyState {
    pub(super) fn new(key: &Arc<Key>) -> Self {
        Self {
            key: Arc::clone(key),
            state: Mutex::new(State::default()),
        }
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        self.state.lock()
    }
}

impl State {
    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.len() > self.left
    }

    pub(super) fn is_turn(&self, waiter: &Arc<Waiter>) -> bool {
        self.turn
            .as_ref()
            .is_some_and(|turn| Arc::ptr_eq(turn, waiter))
    }

    pub(super) fn push(&mut self, waiter: Arc<Waiter>) {
        self.waiters.push_back(waiter);
    }

    /// The first that still waits.
    pub(super) fn first(&mut self) -> Option<&Arc<Waiter>> {
        while self.left > 0 && !self.waiters.front()?.is_waiting() {
            self.waiters.pop_front();
            self.left -= 1;
        }
        self.waiters.front()
    }

    /// Gives the turn to the first that still waits; nobody has it if there is none.
    pub(super) fn advance(&mut self) -> Option<Arc<Waiter>> {
        self.first();
        self.turn = self.waiters.pop_front();
        self.turn.clone()
    }

    /// Notes that a waiter has left. They are forgotten together, so that each costs no more than a
    /// few steps.
    pub(super) fn note_left(&mut self) {
        self.left += 1;
        if self.left * 2 > self.waiters.len() {
            self.take_waiters_if(|_| false);
        }
    }

    /// Takes out those that still wait and are meant.
    pub(super) fn take_waiters_if(
        &mut self,
        is_meant: impl Fn(&Waiter) -> bool,
    ) -> Vec<Arc<Waiter>> {
        let mut taken = Vec::new();
        self.waiters.retain(|waiter| {
            if !waiter.is_waiting() {
                return false;
            }
            let is_meant = is_meant(waiter);
            if is_meant {
                taken.push(Arc::clone(waiter));
            }
            !is_meant
        });
        self.left = 0;
        taken
    }

    /// Those that may be waiting in Redis: the one that has the turn, and those it was taken from.
    pub(super) fn contenders(&self) -> impl Iterator<Item = &Arc<Waiter>> {
        self.turn.iter().chain(&self.overdue)
    }

    /// The contender that waits in Redis with this value.
    pub(super) fn queued(&self, value: &str) -> Option<Arc<Waiter>> {
        let mut contenders = self.contenders();
        let queued = contenders.find(|c| c.queued().is_some_and(|claim| *claim.value == *value));
        queued.cloned()
    }

    /// Passes the turn on, if it is this waiter's.
    pub(super) fn end_turn(&mut self, waiter: &Arc<Waiter>) -> Wakes {
        if !self.is_turn(waiter) {
            self.overdue.retain(|other| !Arc::ptr_eq(other, waiter));
            return Wakes::default();
        }
        match self.advance() {
            None => {
                self.outage = None;
                Wakes::default()
            }
            Some(next) => {
                let outage = self.outage.as_ref();
                let silent_since = outage.map(|outage| outage.since.max(next.arrived));
                Wakes::from(next.call(Call::Contend { silent_since }))
            }
        }
    }

    pub(super) fn held(&mut self, lease: &Arc<Lease>) -> Option<&mut HeldClaim> {
        let mut held = self.held.iter_mut();
        held.find(|held| Arc::ptr_eq(&held.lease, lease))
    }

    /// The present lease on a claim: a question may be answered after a hand-over.
    pub(super) fn held_on(&mut self, claim: &Arc<Claim>) -> Option<&mut HeldClaim> {
        let mut held = self.held.iter_mut();
        held.find(|held| Arc::ptr_eq(&held.claim, claim))
    }

    pub(super) fn take_held(&mut self, lease: &Arc<Lease>) -> Option<HeldClaim> {
        let place = self.held.iter().position(|h| Arc::ptr_eq(&h.lease, lease));
        place.map(|place| self.held.swap_remove(place))
    }

    pub(super) fn note_left_queue(&mut self, claim: Arc<Claim>) {
        self.left_queue.truncate(REMEMBERED_CLAIMS - 1);
        self.left_queue.push_front(claim);
    }

    /// The claim of this value that waited in Redis, and does not any more.
    pub(super) fn claim_that_left(&self, value: &str) -> Option<Arc<Claim>> {
        let mut same = self
            .left_queue
            .iter()
            .filter(|claim| *claim.value == *value);
        same.next().cloned()
    }

    /// Forgets what was remembered for long enough; says whether anything is left to know.
    pub(super) fn is_idle(&mut self, now: impl FnOnce() -> Moment) -> bool {
        if self.turn.is_some() || !self.overdue.is_empty() || !self.held.is_empty() {
            return false;
        }
        if self.remembered_until.is_some_and(|until| until <= now()) {
            self.remembered_until = None;
        }
        self.remembered_until.is_none()
    }

    /// The earliest moment at which the key needs attention (K10).
    pub(super) fn next_wake(&self) -> Option<Moment> {
        let held = self.held.iter().map(HeldClaim::next_wake).min();
        match held {
            None if self.turn.is_none() && self.overdue.is_empty() => self.remembered_until,
            held => held,
        }
    }
}

/// Whom to wake when no lock is held any more. A waker is foreign code.
#[derive(Debug, Default)]
#[must_use = "whoever was called is to be woken"]
pub(crate) struct Wakes {
    first: Option<Waker>,
    others: Vec<Waker>,
}

impl Wakes {
    pub(super) fn add(&mut self, waker: Option<Waker>) {
        match &self.first {
            None => self.first = waker,
            Some(_) => self.others.extend(waker),
        }
    }

    pub(crate) fn wake(self) {
        for waker in self.first.into_iter().chain(self.others) {
            contain(|| waker.wake());
        }
    }
}

impl From<Option<Waker>> for Wakes {
    fn from(first: Option<Waker>) -> Self {
        Self {
            first,
            others: Vec::new(),
        }
    }
}
