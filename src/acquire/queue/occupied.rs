//! The users of one key: whose turn it is, and who waits.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use tokio::time::Instant;

use crate::acquire::queue::waiter::Waiter;
use crate::fault::Fault;

pub(super) struct Occupied<C> {
    /// Whose turn it is.
    pub(super) present: Arc<Waiter<C>>,
    /// By their numbers, which is the order of arrival. Those who have left stay here until they
    /// are first, or more than half of all.
    waiters: VecDeque<Arc<Waiter<C>>>,
    /// How many of the waiters have left.
    left: usize,
    pub(super) outage: Option<Outage>,
    pub(super) is_watched: bool,
}

/// The store has not answered the contender since, the last time with this fault.
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) fault: Fault,
}

impl<C> Occupied<C> {
    pub(super) fn new(present: Arc<Waiter<C>>) -> Self {
        Self {
            present,
            waiters: VecDeque::new(),
            left: 0,
            outage: None,
            is_watched: false,
        }
    }

    pub(super) fn is_turn(&self, number: u64) -> bool {
        self.present.number == number
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.len() > self.left
    }

    pub(super) fn push(&mut self, waiter: Arc<Waiter<C>>) {
        self.waiters.push_back(waiter);
    }

    /// The first who still waits.
    pub(super) fn first(&mut self) -> Option<&Arc<Waiter<C>>> {
        while self.left > 0 && self.waiters.front()?.has_left() {
            self.waiters.pop_front();
            self.left -= 1;
        }
        self.waiters.front()
    }

    /// Gives the turn to the first who still waits.
    pub(super) fn advance(&mut self) -> Option<Arc<Waiter<C>>> {
        self.first()?;
        let waiter = self.waiters.pop_front()?;
        self.present = Arc::clone(&waiter);
        Some(waiter)
    }

    /// Notes that a waiter has left, if it is still among the others. They are forgotten together,
    /// so that each costs no more than a few steps.
    pub(super) fn note_left(&mut self, number: u64) {
        let place = self.waiters.binary_search_by_key(&number, |w| w.number);
        if place.is_err() {
            return;
        }
        self.left += 1;
        if self.left * 2 > self.waiters.len() {
            self.remove_if(|_| false);
        }
    }

    /// Takes out those who still wait and are meant.
    pub(super) fn remove_if(
        &mut self,
        is_meant: impl Fn(&Waiter<C>) -> bool,
    ) -> Vec<Arc<Waiter<C>>> {
        let mut removed = Vec::new();
        self.waiters.retain(|waiter| {
            if waiter.has_left() {
                return false;
            }
            let is_meant = is_meant(waiter);
            if is_meant {
                removed.push(Arc::clone(waiter));
            }
            !is_meant
        });
        self.left = 0;
        removed
    }

    pub(super) fn take_waiters(&mut self) -> VecDeque<Arc<Waiter<C>>> {
        self.left = 0;
        mem::take(&mut self.waiters)
    }
}
