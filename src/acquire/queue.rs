//! The process' own queue: for each key one contender that talks to Redis, and those behind him.
//!
//! Who leaves either ends his turn, so that the next contends, or hands his lease to the next.
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
//! * **Q5** A contender whose store does not answer tells the queue. So those behind him hear of it
//!   when their own time is over, and none of them takes silence for "taken" (P13).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::fault::Fault;
use crate::options::Terms;
use crate::sync::{Mutex, oneshot};

#[cfg(all(test, redlease_loom))]
mod models;

/// The queues of all keys. `L` is a lease that can be handed over.
pub(crate) struct Queues<L> {
    state: Mutex<State<L>>,
}

struct State<L> {
    keys: HashMap<Arc<str>, Occupied<L>>,
    last_number: u64,
    closed: bool,
}

struct Occupied<L> {
    turn: u64,
    waiters: VecDeque<Waiter<L>>,
    outage: Option<Outage>,
}

/// The store has not answered the contender since, the last time with this fault.
struct Outage {
    since: Instant,
    fault: Fault,
}

/// One who waits, as the one before him sees him.
pub(crate) struct Waiter<L> {
    /// The number of his turn, when it comes.
    pub(crate) number: u64,
    pub(crate) terms: Terms,
    arrived: Instant,
    call: oneshot::Sender<Called<L>>,
}

impl<L> Waiter<L> {
    /// Leaves him to contend: the turn is his already.
    pub(crate) fn call_to_contend(self, queues: &Arc<Queues<L>>, key: &Arc<str>) {
        let turn = Turn::new(queues, key, self.number);
        // A turn that comes back is dropped, and so goes on to the next (Q3).
        drop(self.call.send(Called::Turn(turn)));
    }

    /// Hands him a lease, with the turn; gives it back if he has left.
    pub(crate) fn hand(self, lease: L) -> Result<(), L> {
        match self.call.send(Called::Lease(lease)) {
            Err(Called::Lease(lease)) => Err(lease),
            _ => Ok(()),
        }
    }
}

/// What a waiter is called with.
pub(crate) enum Called<L> {
    /// It is his turn to contend.
    Turn(Turn<L>),
    /// He has the lock.
    Lease(L),
    /// The store has been silent for as long as he puts up with (Q5).
    Outage(Fault),
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
                last_number: 0,
                closed: false,
            }),
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
        match state.keys.entry(Arc::clone(key)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Occupied {
                    turn: number,
                    waiters: VecDeque::new(),
                    outage: None,
                });
                Arrival::First(Turn::new(self, key, number))
            }
            Entry::Occupied(mut occupied) => {
                let (call, called) = oneshot::channel();
                occupied.get_mut().waiters.push_back(Waiter {
                    number,
                    terms: *terms,
                    arrived: Instant::now(),
                    call,
                });
                Arrival::Behind(Place {
                    queues: Arc::clone(self),
                    key: Arc::clone(key),
                    number,
                    called,
                    was_called: false,
                })
            }
        }
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
        let Some(occupied) = state.keys.get_mut(key).filter(|o| o.turn == turn) else {
            return;
        };
        let fault = fault.clone();
        occupied.outage = Some(Outage {
            since,
            fault: fault.clone(),
        });
        let (out_of_time, waiting): (VecDeque<_>, _) = std::mem::take(&mut occupied.waiters)
            .into_iter()
            .partition(|w| now >= w.arrived.max(since) + w.terms.give_up_after);
        occupied.waiters = waiting;
        drop(state);
        for waiter in out_of_time {
            // One who left meanwhile needs no answer.
            drop(waiter.call.send(Called::Outage(fault.clone())));
        }
    }

    fn note_answer(&self, key: &Arc<str>, turn: u64) {
        let mut state = self.state.lock();
        if let Some(occupied) = state.keys.get_mut(key)
            && occupied.turn == turn
        {
            occupied.outage = None;
        }
    }

    /// Whether anybody waits for the turn.
    pub(crate) fn has_waiters(&self, key: &Arc<str>) -> bool {
        let state = self.state.lock();
        let occupied = state.keys.get(key);
        occupied.is_some_and(|occupied| !occupied.waiters.is_empty())
    }

    /// Whether a lease could be handed to the first waiter (Q4).
    pub(crate) fn next_fits(&self, key: &Arc<str>, turn: u64, terms: &Terms) -> bool {
        let mut state = self.state.lock();
        state.next(key, turn, terms).is_some()
    }

    /// Calls the first waiter, to hand him a lease; the turn is his from now on.
    pub(crate) fn call_next(&self, key: &Arc<str>, turn: u64, terms: &Terms) -> Option<Waiter<L>> {
        let mut state = self.state.lock();
        let occupied = state.next(key, turn, terms)?;
        let waiter = occupied.waiters.pop_front()?;
        occupied.turn = waiter.number;
        Some(waiter)
    }

    /// Ends a turn, if it is the present one (Q2).
    pub(crate) fn vacate(self: &Arc<Self>, key: &Arc<str>, turn: u64) {
        let mut present = turn;
        loop {
            let mut state = self.state.lock();
            let Some(occupied) = state.keys.get_mut(key) else {
                return;
            };
            if occupied.turn != present {
                return;
            }
            let Some(waiter) = occupied.waiters.pop_front() else {
                state.keys.remove(key);
                return;
            };
            occupied.turn = waiter.number;
            let outage = occupied.outage.as_ref();
            let silent_since = outage.map(|outage| outage.since.max(waiter.arrived));
            drop(state);
            let mut turn = Turn::new(self, key, waiter.number);
            turn.silent_since = silent_since;
            match waiter.call.send(Called::Turn(turn)) {
                // Q3: he has left; it is as if he had ended his turn at once.
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
            .flat_map(|occupied| occupied.waiters.drain(..))
            .collect();
        drop(state);
        // Dropping a call unanswered is the answer.
        drop(waiters);
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
    fn next(&mut self, key: &Arc<str>, turn: u64, terms: &Terms) -> Option<&mut Occupied<L>> {
        let occupied = self.keys.get_mut(key)?;
        if occupied.turn != turn {
            return None;
        }
        while occupied.waiters.front()?.call.is_closed() {
            occupied.waiters.pop_front();
        }
        let fits = occupied.waiters.front()?.terms.shares_lease_with(terms);
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
    number: Option<u64>,
    silent_since: Option<Instant>,
}

impl<L> Turn<L> {
    fn new(queues: &Arc<Queues<L>>, key: &Arc<str>, number: u64) -> Self {
        Self {
            queues: Arc::clone(queues),
            key: Arc::clone(key),
            number: Some(number),
            silent_since: None,
        }
    }

    /// Since when the store has not answered, while its owner waited, as far as is known.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// Tells those behind that the store does not answer, and has not since (Q5).
    pub(crate) fn note_outage(&mut self, since: Instant, fault: &Fault) {
        self.silent_since = Some(since);
        if let Some(number) = self.number {
            self.queues.note_outage(&self.key, number, since, fault);
        }
    }

    /// The store has answered.
    pub(crate) fn note_answer(&mut self) {
        if self.silent_since.take().is_some()
            && let Some(number) = self.number
        {
            self.queues.note_answer(&self.key, number);
        }
    }

    /// Leaves the turn's end to whoever has its number.
    pub(crate) fn keep(&mut self) -> u64 {
        self.number.take().unwrap_or_default()
    }
}

impl<L> Drop for Turn<L> {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.queues.vacate(&self.key, number);
        }
    }
}

/// A place behind others. Dropping it leaves the queue at once.
pub(crate) struct Place<L> {
    queues: Arc<Queues<L>>,
    key: Arc<str>,
    number: u64,
    called: oneshot::Receiver<Called<L>>,
    was_called: bool,
}

impl<L> Place<L> {
    /// Waits for the call; `None` if the locker was closed.
    ///
    /// # Cancel safety
    ///
    /// A call that is on its way when this is dropped stays in the channel, and what it carries
    /// goes on to the next when the channel is dropped (Q3).
    pub(crate) async fn called(&mut self) -> Option<Called<L>> {
        let called = (&mut self.called).await.ok();
        self.was_called = true;
        called
    }
}

impl<L> Drop for Place<L> {
    fn drop(&mut self) {
        if self.was_called {
            return;
        }
        let mut state = self.queues.state.lock();
        let left = state.keys.get_mut(&self.key).and_then(|occupied| {
            // In the order of their numbers.
            let waiters = &mut occupied.waiters;
            let place = waiters.binary_search_by_key(&self.number, |waiter| waiter.number);
            waiters.remove(place.ok()?)
        });
        drop(state);
        // Wakes him who waited, which is not to happen under the lock.
        drop(left);
    }
}

#[cfg(test)]
mod tests;
