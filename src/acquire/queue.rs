//! The process' own queue: for each key one contender that talks to Redis, and those behind it.
//!
//! Who leaves either ends its turn, so that the next contends, or hands its lease to the next.
//!
//! # Invariants
//!
//! * **Q1** A key is in the map exactly while somebody has its turn. So a million keys locked once
//!   leave nothing behind.
//! * **Q2** A turn has a number that is never used again; only the present one can be ended. So
//!   ending it twice (by the watchdog at a loss, and by the guard's drop) is harmless.
//! * **Q3** A turn that ends goes to the first waiter that still waits, in the order of arrival.
//!   One that was sent to a waiter who leaves at that moment goes on to the next (P11).
//! * **Q4** A lease is handed to the first waiter or to nobody: never past one whose options differ.
//! * **Q5** A contender whose store does not answer tells the queue. So those behind it hear of it
//!   when their own time is over, and none of them takes silence for "taken" (P13).
//! * **Q6** Nobody depends on a future that is not polled. A key at which somebody waited is watched
//!   (`reclaim.rs`); a call that is not taken up goes on to the next as if the waiter had left, and
//!   it enters the queue anew when it is polled. A contender that is not polled has its turn ended,
//!   which it need not know: it and the next contend as if they were two processes (P1, Q2).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::acquire::queue::occupied::{Occupied, Outage};
use crate::acquire::queue::waiter::Heard;
use crate::contain::contain;
use crate::fault::Fault;
use crate::options::Terms;
use crate::sync::Mutex;

#[cfg(all(test, redlease_loom))]
mod models;
mod occupied;
pub(crate) mod reclaim;
mod waiter;

/// The queues of all keys. `L` is a lease that can be handed over.
pub(crate) struct Queues<L> {
    state: Mutex<State<L>>,
    /// Tells of keys that are to be watched.
    somebody_waits: Notify,
}

struct State<L> {
    keys: HashMap<Arc<str>, Occupied<Called<L>>>,
    /// Keys that are to be watched from now on (Q6).
    to_watch: Vec<Arc<str>>,
    last_number: u64,
    closed: bool,
}

/// What a waiter is called with.
pub(crate) enum Called<L> {
    /// It is its turn to contend.
    Turn(Turn<L>),
    /// It has the lock.
    Lease(L),
    /// The store has been silent for as long as it puts up with (Q5).
    Outage(Fault),
}

/// One who waits, as the one before it sees it.
type Waiter<L> = waiter::Waiter<Called<L>>;

impl<L> Waiter<L> {
    /// Leaves it to contend: the turn is its already.
    pub(crate) fn call_to_contend(self: Arc<Self>, queues: &Arc<Queues<L>>, key: &Arc<str>) {
        let turn = Turn::new(queues, key, Arc::clone(&self));
        // A turn that comes back is dropped, and so goes on to the next (Q3).
        drop(self.call(Called::Turn(turn)));
    }

    /// Hands it a lease, with the turn; gives it back if it has left.
    pub(crate) fn hand(&self, lease: L) -> Result<(), L> {
        match self.call(Called::Lease(lease)) {
            Err(Called::Lease(lease)) => Err(lease),
            _ => Ok(()),
        }
    }
}

/// What an arrival meets.
pub(crate) enum Arrival<L> {
    /// Nobody is there: contend.
    First(Turn<L>),
    /// Others are there: wait to be called.
    Behind(Place<L>),
    /// The locker is closed.
    Closed,
}

impl<L> Default for Queues<L> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                keys: HashMap::new(),
                to_watch: Vec::new(),
                last_number: 0,
                closed: false,
            }),
            somebody_waits: Notify::new(),
        }
    }
}

impl<L> Queues<L> {
    pub(crate) fn enter(self: &Arc<Self>, key: &Arc<str>, terms: &Terms) -> Arrival<L> {
        let mut state = self.state.lock();
        if state.closed {
            return Arrival::Closed;
        }
        state.last_number += 1;
        let number = state.last_number;
        let occupied = match state.keys.entry(Arc::clone(key)) {
            Entry::Vacant(vacant) => {
                let present = Arc::new(Waiter::contending(number, terms));
                vacant.insert(Occupied::new(Arc::clone(&present)));
                drop(state);
                return Arrival::First(Turn::new(self, key, present));
            }
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let waiter = Arc::new(Waiter::waiting(number, terms));
        occupied.push(Arc::clone(&waiter));
        if !mem::replace(&mut occupied.is_watched, true) {
            state.to_watch.push(Arc::clone(key));
            drop(state);
            self.somebody_waits.notify_one();
        }
        Arrival::Behind(Place {
            queues: Arc::clone(self),
            key: Arc::clone(key),
            waiter,
            was_called: false,
        })
    }

    /// Takes the turn if nobody has it or waits for it.
    pub(crate) fn try_enter(self: &Arc<Self>, key: &Arc<str>, terms: &Terms) -> Option<Arrival<L>> {
        if self.state.lock().keys.contains_key(key) {
            return None;
        }
        match self.enter(key, terms) {
            // Somebody came in between.
            Arrival::Behind(_) => None,
            arrival => Some(arrival),
        }
    }

    /// What the contender for a key last heard of a store that does not answer (Q5).
    pub(crate) fn outage(&self, key: &Arc<str>) -> Option<Fault> {
        let state = self.state.lock();
        let outage = state.keys.get(key)?.outage.as_ref()?;
        Some(outage.fault.clone())
    }

    fn note_outage(&self, key: &Arc<str>, turn: u64, since: Instant, fault: &Fault) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let Some(occupied) = state.keys.get_mut(key).filter(|o| o.is_turn(turn)) else {
            return;
        };
        let fault = fault.clone();
        occupied.outage = Some(Outage {
            since,
            fault: fault.clone(),
        });
        let out_of_time = occupied
            .remove_if(|waiter| now >= waiter.arrived.max(since) + waiter.terms.outage_limit);
        drop(state);
        for waiter in out_of_time {
            // One that left meanwhile needs no answer.
            contain(|| drop(waiter.call(Called::Outage(fault.clone()))));
        }
    }

    fn note_answer(&self, key: &Arc<str>, turn: u64) {
        let mut state = self.state.lock();
        if let Some(occupied) = state.keys.get_mut(key)
            && occupied.is_turn(turn)
        {
            occupied.outage = None;
        }
    }

    /// Whether anybody waits for the turn.
    pub(crate) fn has_waiters(&self, key: &Arc<str>) -> bool {
        let state = self.state.lock();
        let occupied = state.keys.get(key);
        occupied.is_some_and(Occupied::has_waiters)
    }

    /// Whether a lease could be handed to the first waiter (Q4).
    pub(crate) fn next_fits(&self, key: &Arc<str>, turn: u64, terms: &Terms) -> bool {
        let mut state = self.state.lock();
        state.next(key, turn, terms).is_some()
    }

    /// Calls the first waiter, to hand it a lease; the turn is its own from now on.
    pub(crate) fn call_next(
        &self,
        key: &Arc<str>,
        turn: u64,
        terms: &Terms,
    ) -> Option<Arc<Waiter<L>>> {
        let mut state = self.state.lock();
        let occupied = state.next(key, turn, terms)?;
        occupied.advance()
    }

    /// Ends a turn, if it is the present one (Q2).
    pub(crate) fn vacate(self: &Arc<Self>, key: &Arc<str>, turn: u64) {
        let mut present = turn;
        loop {
            let mut state = self.state.lock();
            let Some(occupied) = state.keys.get_mut(key) else {
                return;
            };
            if !occupied.is_turn(present) {
                return;
            }
            let Some(waiter) = occupied.advance() else {
                let gone = state.keys.remove(key);
                drop(state);
                drop(gone);
                return;
            };
            let outage = occupied.outage.as_ref();
            let silent_since = outage.map(|outage| outage.since.max(waiter.arrived));
            drop(state);
            let mut turn = Turn::new(self, key, Arc::clone(&waiter));
            turn.silent_since = silent_since;
            match waiter.call(Called::Turn(turn)) {
                // Q3: it has left; it is as if it had ended its turn at once.
                Err(Called::Turn(mut turn)) => present = turn.keep(),
                _ => return,
            }
        }
    }

    /// Turns all waiters away, and all who come later.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let waiters: Vec<_> = state
            .keys
            .values_mut()
            .flat_map(|occupied| occupied.take_waiters())
            .collect();
        drop(state);
        for waiter in waiters {
            contain(|| waiter.turn_away());
        }
    }

    /// How many keys somebody of this process holds or contends for.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.state.lock().keys.len()
    }
}

impl<L> State<L> {
    /// The queue of a key, if `turn` is the present one and the first who still waits would take a
    /// lease on these terms.
    fn next(
        &mut self,
        key: &Arc<str>,
        turn: u64,
        terms: &Terms,
    ) -> Option<&mut Occupied<Called<L>>> {
        let occupied = self.keys.get_mut(key)?;
        if !occupied.is_turn(turn) {
            return None;
        }
        let fits = occupied.first()?.terms.shares_lease_with(terms);
        fits.then_some(occupied)
    }
}

impl<L> fmt::Debug for Queues<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").finish_non_exhaustive()
    }
}

/// The right to contend for a key in this process. Ends when it is dropped, unless it is kept.
#[must_use]
pub(crate) struct Turn<L> {
    queues: Arc<Queues<L>>,
    key: Arc<str>,
    /// `None` once it is kept.
    owner: Option<Arc<Waiter<L>>>,
    silent_since: Option<Instant>,
}

impl<L> Turn<L> {
    fn new(queues: &Arc<Queues<L>>, key: &Arc<str>, owner: Arc<Waiter<L>>) -> Self {
        Self {
            queues: Arc::clone(queues),
            key: Arc::clone(key),
            owner: Some(owner),
            silent_since: None,
        }
    }

    /// Who is to be polled while it has the turn (Q6).
    pub(crate) fn owner(&self) -> Option<Arc<Waiter<L>>> {
        self.owner.clone()
    }

    /// Since when the store has not answered, while its owner waited, as far as is known.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// Tells those behind that the store does not answer, and has not since (Q5).
    pub(crate) fn note_outage(&mut self, since: Instant, fault: &Fault) {
        self.silent_since = Some(since);
        if let Some(owner) = &self.owner {
            self.queues
                .note_outage(&self.key, owner.number, since, fault);
        }
    }

    /// The store has answered.
    pub(crate) fn note_answer(&mut self) {
        if self.silent_since.take().is_some()
            && let Some(owner) = &self.owner
        {
            self.queues.note_answer(&self.key, owner.number);
        }
    }

    /// Leaves the turn's end to whoever has its number.
    pub(crate) fn keep(&mut self) -> u64 {
        self.owner.take().map_or(0, |owner| {
            owner.finish();
            owner.number
        })
    }
}

impl<L> Drop for Turn<L> {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.finish();
            self.queues.vacate(&self.key, owner.number);
        }
    }
}

/// A place behind others. Dropping it leaves the queue at once.
pub(crate) struct Place<L> {
    queues: Arc<Queues<L>>,
    key: Arc<str>,
    waiter: Arc<Waiter<L>>,
    was_called: bool,
}

impl<L> Place<L> {
    /// Waits for the call; `None` if the locker was closed.
    ///
    /// # Cancel safety
    ///
    /// A call that was not taken up when this is dropped goes on to the next with the drop of the
    /// place (Q3).
    pub(crate) async fn called(&mut self) -> Option<Called<L>> {
        let is_to_contend = |called: &_| matches!(called, Called::Turn(_));
        loop {
            let heard = poll_fn(|context| self.waiter.poll_called(context, is_to_contend)).await;
            self.was_called = true;
            match heard {
                Heard::Called(called) => return Some(called),
                Heard::Closed => return None,
                Heard::Missed => match self.queues.enter(&self.key, &self.waiter.terms) {
                    Arrival::First(turn) => return Some(Called::Turn(turn)),
                    Arrival::Behind(place) => *self = place,
                    Arrival::Closed => return None,
                },
            }
        }
    }
}

impl<L> Drop for Place<L> {
    fn drop(&mut self) {
        if self.was_called {
            return;
        }
        let mut state = self.queues.state.lock();
        let (is_uncalled, rest) = self.waiter.leave();
        if is_uncalled && let Some(occupied) = state.keys.get_mut(&self.key) {
            occupied.note_left(self.waiter.number);
        }
        drop(state);
        // Wakes the next, or frees the task that waited: neither is to happen under the lock.
        drop(rest);
    }
}

#[cfg(test)]
mod tests;
