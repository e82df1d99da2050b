//! One user of a key in this process, from its arrival until it holds a lease or has gone.
//!
//! Its lock is taken under the key's, or alone; nothing is woken or dropped under it.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::backend::{Claim, Grant};
use crate::error::Fault;
use crate::lease::Lease;
use crate::options::CheckedOptions;
use crate::sync::Mutex;

/// What ends a wait in the process.
pub(crate) enum Call {
    /// To contend in Redis. The store has not answered the one before since then, if at all (K5).
    Contend { silent_since: Option<Instant> },
    /// To hold the lease that the one before let go.
    Hold(Arc<Lease>, Arc<Claim>),
    /// To give up: the store has been silent for as long as this waiter puts up with (K5).
    Outage(Fault),
}

/// What a waiter hears.
pub(crate) enum Heard {
    Called(Call),
    /// It was called, and did not take that up in time: it went on to the next (K6).
    Missed,
    /// The locker was closed.
    Closed,
}

/// Why a contender should ask Redis now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum News {
    /// The lock's key changed: of interest to the first of the queue.
    Changed,
    /// Messages may have been missed, or all keys changed: of interest to all.
    Missed,
}

#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) options: CheckedOptions,
    pub(crate) arrived: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    waker: Option<Waker>,
    /// It was woken to show that it is polled, and has not been polled since (K6).
    was_asked: bool,
    /// What it waits with in the queue of Redis, while it does.
    queued: Option<Arc<Claim>>,
    /// Boxed, because most waiters never get one.
    grant: Option<Box<Grant>>,
    news: Option<News>,
}

pub(super) enum Stage {
    /// Behind others of this process.
    Waiting,
    /// It has not taken up the call yet.
    Called(Call),
    /// It talks to Redis.
    Contending,
    Missed,
    Closed,
    /// It has left, or holds a lease.
    Done,
}

impl Waiter {
    pub(super) fn waiting(options: &CheckedOptions) -> Arc<Self> {
        Self::at(Stage::Waiting, options)
    }

    pub(super) fn contending(options: &CheckedOptions) -> Arc<Self> {
        Self::at(Stage::Contending, options)
    }

    fn at(stage: Stage, options: &CheckedOptions) -> Arc<Self> {
        Arc::new(Self {
            options: *options,
            arrived: Instant::now(),
            state: Mutex::new(State {
                stage,
                waker: None,
                was_asked: false,
                queued: None,
                grant: None,
                news: None,
            }),
        })
    }

    /// Ends the wait of one that waits; returns whom to wake.
    pub(super) fn call(&self, call: Call) -> Option<Waker> {
        let mut state = self.state.lock();
        debug_assert!(matches!(state.stage, Stage::Waiting), "K3");
        state.stage = Stage::Called(call);
        state.waker.take()
    }

    /// Ends the wait, or the contention, because the locker is closed. One that was called to hold
    /// a lease finds it lost.
    pub(super) fn turn_away(&self) -> Option<Waker> {
        let mut state = self.state.lock();
        match state.stage {
            Stage::Waiting | Stage::Called(Call::Contend { .. }) | Stage::Contending => {}
            _ => return None,
        }
        state.stage = Stage::Closed;
        state.waker.clone()
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state.lock().stage, Stage::Waiting)
    }

    /// Takes up what it was called to.
    pub(crate) fn poll_called(&self, context: &mut Context<'_>) -> Poll<Heard> {
        let mut state = self.state.lock();
        let next = match &state.stage {
            Stage::Waiting => {
                let former = state.polled(context);
                drop(state);
                drop(former);
                return Poll::Pending;
            }
            Stage::Called(Call::Contend { .. }) => Stage::Contending,
            // It may have a turn to end when it leaves.
            Stage::Closed => Stage::Closed,
            _ => Stage::Done,
        };
        state.was_asked = false;
        Poll::Ready(match mem::replace(&mut state.stage, next) {
            Stage::Called(call) => Heard::Called(call),
            Stage::Missed => Heard::Missed,
            _ => Heard::Closed,
        })
    }

    /// Shows, while it contends, that it is polled (K6); says whether the locker is open.
    pub(crate) fn note_poll(&self, context: &mut Context<'_>) -> bool {
        let mut state = self.state.lock();
        let is_open = !matches!(state.stage, Stage::Closed);
        let former = state.polled(context);
        drop(state);
        drop(former);
        is_open
    }

    /// It is gone, or holds. Returns what it was, and what is to be dropped without a lock.
    pub(super) fn end(&self) -> (Stage, Option<Waker>) {
        let mut state = self.state.lock();
        let stage = mem::replace(&mut state.stage, Stage::Done);
        (stage, state.waker.take())
    }

    /// It begins to wait in Redis under this claim, or goes on under another.
    pub(super) fn queue(&self, claim: &Arc<Claim>) -> Option<Arc<Claim>> {
        let mut state = self.state.lock();
        state.grant = None;
        state.news = None;
        state.queued.replace(Arc::clone(claim))
    }

    /// The claim that it waits with in Redis.
    pub(super) fn queued(&self) -> Option<Arc<Claim>> {
        self.state.lock().queued.clone()
    }

    pub(super) fn unqueue(&self) -> Option<Arc<Claim>> {
        self.state.lock().queued.take()
    }

    /// Keeps a grant; returns whom to wake.
    pub(super) fn grant(&self, grant: Grant) -> Option<Waker> {
        let mut state = self.state.lock();
        state.grant = Some(Box::new(grant));
        state.waker.clone()
    }

    /// Keeps news; returns whom to wake.
    pub(super) fn tell(&self, news: News) -> Option<Waker> {
        let mut state = self.state.lock();
        state.queued.as_ref()?;
        state.news = state.news.max(Some(news));
        state.waker.clone()
    }

    /// Whether a grant is there that was not taken yet.
    pub(crate) fn has_grant(&self) -> bool {
        self.state.lock().grant.is_some()
    }

    /// Forgets the news so far: what it asks for is about to be done.
    pub(crate) fn forget_news(&self) {
        self.state.lock().news = None;
    }

    /// Takes a grant, or news of at least this urgency. Whoever polls shows it by
    /// [`note_poll`](Self::note_poll), which keeps the waker.
    pub(crate) fn poll_news(&self, least: Option<News>) -> Poll<Result<Grant, News>> {
        let mut state = self.state.lock();
        if let Some(grant) = state.grant.take() {
            return Poll::Ready(Ok(*grant));
        }
        match state.news.take_if(|news| least.is_some_and(|l| *news >= l)) {
            Some(news) => Poll::Ready(Err(news)),
            None => Poll::Pending,
        }
    }

    /// Whether it keeps others waiting by not being polled, once it has the turn.
    pub(super) fn has_to_be_polled(&self) -> bool {
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
    pub(super) fn reclaim(&self) -> Reclaimed {
        let mut state = self.state.lock();
        if !state.was_asked {
            return Reclaimed::Nothing;
        }
        match &state.stage {
            Stage::Called(_) => match mem::replace(&mut state.stage, Stage::Missed) {
                Stage::Called(call) => Reclaimed::Call(call),
                _ => unreachable!("it was just seen"),
            },
            Stage::Contending => Reclaimed::Turn,
            _ => Reclaimed::Nothing,
        }
    }
}

impl State {
    /// Notes a poll; gives back the former waker, to be dropped without the lock.
    fn polled(&mut self, context: &mut Context<'_>) -> Option<Waker> {
        self.was_asked = false;
        match &self.waker {
            Some(waker) if waker.will_wake(context.waker()) => None,
            _ => self.waker.replace(context.waker().clone()),
        }
    }
}

/// What was taken from a waiter that is not polled.
pub(super) enum Reclaimed {
    Call(Call),
    /// The right to contend alone; it may go on, beside the next.
    Turn,
    Nothing,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Called(_) => "called",
            Self::Contending => "contending",
            Self::Missed => "missed",
            Self::Closed => "closed",
            Self::Done => "done",
        })
    }
}
