//! The process' own queue: for each key one contender that talks to Redis, and those behind him.
//!
//! # Invariants
//!
//! * **Q1** A key is in the map exactly while somebody has its turn. So a million keys locked once
//!   leave nothing behind.
//! * **Q2** A turn has a number that is never used again; only the present one can be ended. So
//!   ending it twice (by the watchdog at a loss, and by the guard's drop) is harmless.
//! * **Q3** A turn that ends goes to the first waiter that still waits, in the order of arrival.
//!   One that was sent to a waiter who leaves at that moment goes on to the next (P11).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

#[derive(Default)]
pub(crate) struct Queues {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: HashMap<Arc<str>, Occupied>,
    last_number: u64,
    closed: bool,
}

struct Occupied {
    turn: u64,
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    number: u64,
    call: oneshot::Sender<Turn>,
}

/// What an arrival meets.
pub(crate) enum Arrival {
    /// Nobody is there: contend.
    First(Turn),
    /// Others are there: wait to be called.
    Behind(Place),
    /// The locker is closed.
    Closed,
}

impl Queues {
    pub(crate) fn enter(self: &Arc<Self>, key: &Arc<str>) -> Arrival {
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
                });
                Arrival::First(Turn::new(self, key, number))
            }
            Entry::Occupied(mut occupied) => {
                let (call, called) = oneshot::channel();
                occupied
                    .get_mut()
                    .waiters
                    .push_back(Waiter { number, call });
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
    pub(crate) fn try_enter(self: &Arc<Self>, key: &Arc<str>) -> Option<Arrival> {
        if self.state.lock().keys.contains_key(key) {
            return None;
        }
        match self.enter(key) {
            // Somebody came in between.
            Arrival::Behind(_) => None,
            arrival => Some(arrival),
        }
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
            drop(state);
            match waiter.call.send(Turn::new(self, key, waiter.number)) {
                Ok(()) => return,
                // Q3: he has left; it is as if he had ended his turn at once.
                Err(turn) => present = turn.keep(),
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

    #[cfg(test)]
    fn len(&self) -> usize {
        self.state.lock().keys.len()
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").finish_non_exhaustive()
    }
}

/// The right to contend for a key in this process. Ends when it is dropped, unless it is kept.
#[must_use]
pub(crate) struct Turn {
    queues: Arc<Queues>,
    key: Arc<str>,
    number: Option<u64>,
}

impl Turn {
    fn new(queues: &Arc<Queues>, key: &Arc<str>, number: u64) -> Self {
        Self {
            queues: Arc::clone(queues),
            key: Arc::clone(key),
            number: Some(number),
        }
    }

    /// Leaves the turn's end to whoever has its number.
    pub(crate) fn keep(mut self) -> u64 {
        self.number.take().unwrap_or_default()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.queues.vacate(&self.key, number);
        }
    }
}

/// A place behind others. Dropping it leaves the queue at once.
pub(crate) struct Place {
    queues: Arc<Queues>,
    key: Arc<str>,
    number: u64,
    called: oneshot::Receiver<Turn>,
    was_called: bool,
}

impl Place {
    /// Waits for the turn; `None` if the locker was closed.
    ///
    /// # Cancel safety
    ///
    /// A turn that is on its way when this is dropped stays in the channel, and goes on to the
    /// next when the channel is dropped (Q3).
    pub(crate) async fn called(&mut self) -> Option<Turn> {
        let turn = (&mut self.called).await.ok();
        self.was_called = true;
        turn
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.was_called {
            return;
        }
        let mut state = self.queues.state.lock();
        if let Some(occupied) = state.keys.get_mut(&self.key) {
            occupied
                .waiters
                .retain(|waiter| waiter.number != self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Arc<str> {
        "k".into()
    }

    fn first(queues: &Arc<Queues>) -> Turn {
        match queues.enter(&key()) {
            Arrival::First(turn) => turn,
            _ => panic!("somebody is there"),
        }
    }

    fn behind(queues: &Arc<Queues>) -> Place {
        match queues.enter(&key()) {
            Arrival::Behind(place) => place,
            _ => panic!("nobody is there"),
        }
    }

    #[tokio::test]
    async fn turns_go_in_the_order_of_arrival() {
        let queues = Arc::new(Queues::default());
        let turn = first(&queues);
        let mut places: Vec<Place> = (0..3).map(|_| behind(&queues)).collect();
        drop(turn);
        for place in &mut places {
            drop(place.called().await.unwrap());
        }
        assert_eq!(queues.len(), 0, "Q1");
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_is_passed_over() {
        let queues = Arc::new(Queues::default());
        let turn = first(&queues);
        let leaver = behind(&queues);
        let mut stayer = behind(&queues);
        drop(leaver);
        drop(turn);
        drop(stayer.called().await.unwrap());
        assert_eq!(queues.len(), 0, "Q1");
    }

    #[tokio::test]
    async fn p11_a_turn_sent_to_a_waiter_that_leaves_goes_on() {
        let queues = Arc::new(Queues::default());
        let turn = first(&queues);
        let called_but_leaves = behind(&queues);
        let mut next = behind(&queues);
        drop(turn);
        drop(called_but_leaves);
        assert!(next.called().await.is_some());
    }

    #[test]
    fn a_turn_ends_once() {
        let queues = Arc::new(Queues::default());
        let number = first(&queues).keep();
        queues.vacate(&key(), number);
        let second = first(&queues);
        queues.vacate(&key(), number);
        assert!(queues.try_enter(&key()).is_none(), "Q2: the second has it");
        drop(second);
        assert!(queues.try_enter(&key()).is_some());
    }

    #[tokio::test]
    async fn closing_turns_waiters_away() {
        let queues = Arc::new(Queues::default());
        let turn = first(&queues);
        let mut place = behind(&queues);
        queues.close();
        assert!(place.called().await.is_none());
        drop(turn);
        assert!(matches!(queues.enter(&key()), Arrival::Closed));
    }
}
