//! One user of a key in this process, from its arrival until the queue has nothing more to do
//! with it. No lock but its own is taken here, and nothing is woken or dropped under that.

use std::mem;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::options::Terms;
use crate::sync::Mutex;

/// What a waiter hears.
pub(super) enum Heard<C> {
    Called(C),
    /// It was called, and did not take that up in time: it went on to the next (Q6).
    Missed,
    /// The locker was closed.
    Closed,
}

/// `C` is what it is called with.
pub(crate) struct Waiter<C> {
    /// The number of its turn.
    pub(crate) number: u64,
    pub(crate) terms: Terms,
    pub(super) arrived: Instant,
    state: Mutex<State<C>>,
}

struct State<C> {
    stage: Stage<C>,
    waker: Option<Waker>,
    /// It was woken to show that it is polled, and has not been polled since (Q6).
    was_asked: bool,
}

pub(super) enum Stage<C> {
    /// In the queue.
    Waiting,
    /// It has not taken up the call yet.
    Called(C),
    /// It has the turn, and talks to Redis.
    Contending,
    Missed,
    Closed,
    /// It left, holds the lock, or has ended its turn.
    Done,
}

impl<C> Waiter<C> {
    pub(super) fn waiting(number: u64, terms: &Terms) -> Self {
        Self::at(Stage::Waiting, number, terms)
    }

    pub(super) fn contending(number: u64, terms: &Terms) -> Self {
        Self::at(Stage::Contending, number, terms)
    }

    fn at(stage: Stage<C>, number: u64, terms: &Terms) -> Self {
        Self {
            number,
            terms: *terms,
            arrived: Instant::now(),
            state: Mutex::new(State {
                stage,
                waker: None,
                was_asked: false,
            }),
        }
    }

    /// Calls it, unless it has left.
    pub(super) fn call(&self, called: C) -> Result<(), C> {
        self.end_wait(Stage::Called(called))
            .map_err(|stage| match stage {
                Stage::Called(called) => called,
                _ => unreachable!("it is what was passed in"),
            })
    }

    pub(super) fn turn_away(&self) {
        // One that left meanwhile needs no answer.
        drop(self.end_wait(Stage::Closed));
    }

    fn end_wait(&self, stage: Stage<C>) -> Result<(), Stage<C>> {
        let mut state = self.state.lock();
        if !matches!(state.stage, Stage::Waiting) {
            return Err(stage);
        }
        state.stage = stage;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(self.state.lock().stage, Stage::Done)
    }

    /// Takes up what it was called with, which may be to contend.
    pub(super) fn poll_called(
        &self,
        context: &mut Context<'_>,
        is_to_contend: fn(&C) -> bool,
    ) -> Poll<Heard<C>> {
        let mut state = self.state.lock();
        let stage = match &state.stage {
            Stage::Waiting => {
                let former = state.polled(context);
                drop(state);
                drop(former);
                return Poll::Pending;
            }
            Stage::Called(called) if is_to_contend(called) => {
                mem::replace(&mut state.stage, Stage::Contending)
            }
            _ => mem::replace(&mut state.stage, Stage::Done),
        };
        state.was_asked = false;
        Poll::Ready(match stage {
            Stage::Called(called) => Heard::Called(called),
            Stage::Missed => Heard::Missed,
            _ => Heard::Closed,
        })
    }

    /// Shows, while it contends, that it is polled (Q6).
    pub(crate) fn note_poll(&self, context: &mut Context<'_>) {
        let former = self.state.lock().polled(context);
        drop(former);
    }

    /// Leaves the queue. Says whether it was not called yet; what else is given back is to be
    /// dropped without a lock.
    pub(super) fn leave(&self) -> (bool, (Stage<C>, Option<Waker>)) {
        let mut state = self.state.lock();
        let stage = mem::replace(&mut state.stage, Stage::Done);
        let is_uncalled = matches!(stage, Stage::Waiting);
        (is_uncalled, (stage, state.waker.take()))
    }

    /// It holds, or has ended its turn: nobody waits any more for its being polled.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock();
        if matches!(state.stage, Stage::Contending) {
            state.stage = Stage::Done;
        }
        let waker = state.waker.take();
        drop(state);
        drop(waker);
    }

    /// Whether it may yet keep others waiting by not being polled, once it has the turn.
    pub(super) fn is_called(&self) -> bool {
        matches!(self.state.lock().stage, Stage::Waiting | Stage::Called(_))
    }

    /// Wakes it, to see whether it is polled. Says whether it was asked before, and has not been
    /// polled since. One that only waits or holds need not be polled.
    pub(crate) fn ask(&self) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.stage, Stage::Called(_) | Stage::Contending) {
            return false;
        }
        if mem::replace(&mut state.was_asked, true) {
            return true;
        }
        let waker = state.waker.clone();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        false
    }

    /// Takes its turn from it, unless it was polled since it was asked.
    pub(super) fn reclaim(&self) -> Reclaimed<C> {
        let mut state = self.state.lock();
        if !state.was_asked {
            return Reclaimed::Nothing;
        }
        match state.stage {
            Stage::Called(_) => match mem::replace(&mut state.stage, Stage::Missed) {
                Stage::Called(called) => Reclaimed::Call(called),
                _ => unreachable!("it was just seen"),
            },
            Stage::Contending => {
                state.stage = Stage::Done;
                Reclaimed::Turn
            }
            _ => Reclaimed::Nothing,
        }
    }
}

impl<C> State<C> {
    /// Notes a poll; gives back the former waker, to be dropped without the lock.
    fn polled(&mut self, context: &mut Context<'_>) -> Option<Waker> {
        self.was_asked = false;
        match &self.waker {
            Some(waker) if waker.will_wake(context.waker()) => None,
            _ => self.waker.replace(context.waker().clone()),
        }
    }
}

/// What was taken from one that is not polled.
pub(super) enum Reclaimed<C> {
    Call(C),
    /// The right to contend; it may go on, beside the next.
    Turn,
    Nothing,
}
