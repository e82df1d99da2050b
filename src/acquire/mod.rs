//! One acquisition, from the first try to the hold.
//!
//! First the process' own queue: one contender for a key talks to Redis, in the order of arrival
//! (a second one beside it only if the first is not polled: Q6).
//! Then Redis: one attempt; where that is refused, its queue, or else attempts with back-off.
//! Whatever cuts this short, the turn goes on to the next waiter, and a request whose outcome is
//! unknown is followed by a clean-up (P10).

pub(crate) mod outage;
pub(crate) mod queue;
pub(crate) mod waiting;
pub(crate) mod wakeup;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::acquire::outage::Outage;
use crate::acquire::queue::{Arrival, Called, Turn};
use crate::acquire::wakeup::{Listener, Nudge};
use crate::backend::{Attempt, Availability, Claim, Fences};
use crate::backoff::Backoff;
use crate::clock::Moment;
use crate::error::Error;
use crate::fault::{Cause, Fault};
use crate::hold::{Context, Hold, Won};
use crate::key::Key;
use crate::lost::LostReason;
use crate::options::Terms;

const SHORTEST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// How long to wait for somebody else's release.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    None,
    Until(Instant),
    Unbounded,
}

impl Patience {
    /// When the wait for a holder ends.
    fn end(self) -> Option<Instant> {
        match self {
            Self::None => Some(Instant::now()),
            Self::Until(end) => Some(end),
            Self::Unbounded => None,
        }
    }

    /// When the wait for a server ends, if not for another reason before. A try that does not wait
    /// for a holder still waits for the server.
    fn limit(self) -> Option<Instant> {
        match self {
            Self::Until(end) => Some(end),
            Self::None | Self::Unbounded => None,
        }
    }
}

/// Acquires a lock; `None` if somebody else had it for as long as the patience lasted.
pub(crate) async fn acquire(
    context: &Context,
    key: &Arc<Key>,
    terms: &Terms,
    patience: Patience,
) -> Result<Option<Hold>, Error> {
    let called = loop {
        match called(context, key, terms, patience).await? {
            // It ended before it was taken up.
            Some(Called::Lease(hold)) if hold.lease.is_lost() && !is_closed(&hold) => {}
            called => break called,
        }
    };
    match called {
        None => Ok(None),
        Some(Called::Lease(hold)) if is_closed(&hold) => Err(Error::closed(key.name())),
        Some(Called::Lease(hold)) => Ok(Some(hold)),
        Some(Called::Turn(turn)) => {
            let owner = turn.owner();
            let contender = Contender::new(context, key, terms, turn);
            let mut contend = pin!(contender.contend(patience));
            poll_fn(|context| {
                if let Some(owner) = &owner {
                    owner.note_poll(context);
                }
                contend.as_mut().poll(context)
            })
            .await
        }
        Some(Called::Outage(fault)) => Err(fault.about(Some(key.name()))),
    }
}

/// Waits in the process' own queue, without I/O.
async fn called(
    context: &Context,
    key: &Arc<Key>,
    terms: &Terms,
    patience: Patience,
) -> Result<Option<Called<Hold>>, Error> {
    let name = key.name();
    let arrival = match patience {
        Patience::None => context.queues.try_enter(name, terms),
        _ => Some(context.queues.enter(name, terms)),
    };
    // Whether somebody else has the lock nobody knows while the store is silent (P13).
    let taken = || match context.queues.outage(name) {
        Some(fault) => Err(fault.about(Some(name))),
        None => Ok(None),
    };
    let mut place = match arrival {
        None => return taken(),
        Some(Arrival::First(turn)) => return Ok(Some(Called::Turn(turn))),
        Some(Arrival::Closed) => return Err(Error::closed(name)),
        Some(Arrival::Behind(place)) => place,
    };
    tokio::select! {
        biased;
        called = place.called() => match called {
            Some(called) => Ok(Some(called)),
            None => Err(Error::closed(name)),
        },
        () = pass(patience.end()) => taken(),
    }
}

/// The one of this process that talks to Redis about a key. There is another one beside it if this
/// one was not polled for a while (Q6).
struct Contender<'a> {
    context: &'a Context,
    terms: &'a Terms,
    claim: Arc<Claim>,
    /// A request was sent that may have been, or may yet be, granted. An answer does not settle
    /// that: an earlier request may be on another way. The backend knows.
    in_doubt: bool,
    /// The claim has, or may have, a place in the queue of Redis.
    is_queued: bool,
    /// Ends with the contender, after its clean-up was begun.
    turn: Turn<Hold>,
}

impl<'a> Contender<'a> {
    fn new(context: &'a Context, key: &Arc<Key>, terms: &'a Terms, turn: Turn<Hold>) -> Self {
        Self {
            context,
            terms,
            claim: fresh_claim(context, key, terms),
            in_doubt: false,
            is_queued: false,
            turn,
        }
    }

    async fn contend(mut self, patience: Patience) -> Result<Option<Hold>, Error> {
        let end = patience.end();
        let mut poll = first_polls();
        let mut comeback = first_polls();
        let mut listener: Option<Listener> = None;
        let silent_since = self.turn.silent_since();
        let mut outage = Outage::new(self.terms.outage_limit, patience.limit(), silent_since);
        // A key that was contended a moment ago: no attempt, that would be refused.
        if end.is_none_or(|end| end > Instant::now())
            && self
                .context
                .engine
                .wakeups
                .was_contended(self.claim.key.name())
        {
            return self.wait_in_queue(end, &mut outage).await;
        }
        loop {
            let availability = match &listener {
                Some(listener) => self.availability(listener, &outage).await?,
                None => Ok(Availability::Free),
            };
            let attempt = match availability {
                Ok(Availability::Free) => self.attempt(&outage).await?,
                Ok(Availability::Held) => {
                    comeback = first_polls();
                    Ok(Attempt::Held { ttl: None })
                }
                Err(fault) => Err(fault),
            };
            match attempt {
                Ok(Attempt::Granted { fences, deadline }) => {
                    match self.won(fences, deadline, false) {
                        Ok(won) => return self.hold(won).await.map(Some),
                        Err(fault) => self.put_up_with(&mut outage, fault).await?,
                    }
                }
                Ok(Attempt::Held { ttl }) => {
                    self.withdraw();
                    self.note_answer(&mut outage);
                    let now = Instant::now();
                    if end.is_some_and(|end| end <= now) {
                        return Ok(None);
                    }
                    if self.context.engine.backend.queue().is_some() {
                        return self.wait_in_queue(end, &mut outage).await;
                    }
                    // The key is free a moment after its TTL, at the latest.
                    let wait = ttl.map_or(LONGEST_POLL, |ttl| ttl + SHORTEST_POLL);
                    let next = now + poll.next().min(wait);
                    let next = end.map_or(next, |end| end.min(next));
                    let wakeups = &self.context.engine.wakeups;
                    let listener = listener.get_or_insert_with(|| wakeups.listen(&self.claim));
                    let nudged = async {
                        tokio::select! {
                            biased;
                            _ = listener.news(Nudge::Changed) => true,
                            () = sleep_until(next) => false,
                        }
                    };
                    if self.unless_closed(nudged).await? {
                        // Others have heard it, too: come back at random, and later after each
                        // collision.
                        self.unless_closed(sleep(comeback.next())).await?;
                    }
                }
                Err(fault) => {
                    self.withdraw();
                    self.put_up_with(&mut outage, fault).await?;
                }
            }
        }
    }

    /// The attempt was not granted: undo what it may have left, where that spends its value.
    fn withdraw(&mut self) {
        if self.in_doubt && self.context.engine.backend.spends_values() {
            self.start_anew();
        }
    }

    /// Undoes what was done under this value, and goes on under another.
    fn start_anew(&mut self) {
        let driver = &self.context.engine.driver;
        driver.clean_up(&self.claim, self.is_queued);
        self.claim = fresh_claim(self.context, &self.claim.key, self.terms);
        self.in_doubt = false;
    }

    /// Asks once. The outer error ends the acquisition; the inner one leaves the outcome open.
    async fn attempt(&mut self, outage: &Outage) -> Result<Result<Attempt, Fault>, Error> {
        let engine = &self.context.engine;
        let within = outage.bound(engine.settings.command_timeout);
        let fences = self.context.fences_wanted(&self.claim.key, self.terms);
        self.in_doubt = true;
        let attempt = engine
            .backend
            .acquire(&self.claim, Fences::floor(fences), within);
        self.unless_closed(attempt).await
    }

    /// Asks whether another attempt is worth making, with all changes so far in view.
    async fn availability(
        &self,
        listener: &Listener,
        outage: &Outage,
    ) -> Result<Result<Availability, Fault>, Error> {
        let engine = &self.context.engine;
        let within = outage.bound(engine.settings.command_timeout);
        listener.heed();
        let asked = engine.backend.availability(&self.claim, within);
        self.unless_closed(asked).await
    }

    /// Waits before the next try at a server that did not answer, or gives up.
    async fn put_up_with(&mut self, outage: &mut Outage, fault: Fault) -> Result<(), Error> {
        let next = self.next_try(outage, fault)?;
        self.unless_closed(sleep_until(next)).await
    }

    /// When to try a server again that did not answer, if it is not time to give up.
    fn next_try(&mut self, outage: &mut Outage, fault: Fault) -> Result<Instant, Error> {
        if !fault.permanent {
            self.turn.note_outage(outage.since(), &fault);
        }
        let next = outage.next_try(fault);
        next.map_err(|fault| fault.about(Some(self.claim.key.name())))
    }

    fn note_answer(&mut self, outage: &mut Outage) {
        outage.is_over();
        self.turn.note_answer();
    }

    /// Takes a grant, unless its lease is over already: then it is undone, and the next try goes
    /// under a new value.
    fn won(&mut self, fences: Fences, deadline: Moment, by_push: bool) -> Result<Won, Fault> {
        let engine = &self.context.engine;
        if engine.clock.now() < deadline {
            return Ok(Won {
                fences,
                deadline,
                by_push,
            });
        }
        let server = engine.backend.server();
        engine.driver.leave(Arc::clone(&self.claim));
        self.start_anew();
        Err(Fault {
            permanent: false,
            server,
            cause: Cause::new(io::Error::new(
                io::ErrorKind::TimedOut,
                "the answer took longer than the lease lasts",
            )),
        })
    }

    /// Holds what was won, unless the locker has ended meanwhile: then it is given back.
    async fn hold(mut self, won: Won) -> Result<Hold, Error> {
        self.in_doubt = false;
        self.is_queued = false;
        self.turn.note_answer();
        let claim = Arc::clone(&self.claim);
        let hold = Hold::new(self.context, claim, self.terms, self.turn.keep(), won);
        if !is_closed(&hold) {
            return Ok(hold);
        }
        drop(hold);
        let engine = &self.context.engine;
        // P10: the thread that releases in the background may be gone.
        let within = engine.settings.command_timeout;
        let _ = engine.backend.release(&self.claim, within).await;
        Err(Error::closed(self.claim.key.name()))
    }

    async fn unless_closed<T>(&self, future: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            biased;
            output = future => Ok(output),
            () = self.context.engine.driver.closing.cancelled() => {
                Err(Error::closed(self.claim.key.name()))
            }
        }
    }
}

impl Drop for Contender<'_> {
    fn drop(&mut self) {
        if self.in_doubt || self.is_queued {
            let driver = &self.context.engine.driver;
            driver.clean_up(&self.claim, self.is_queued);
        }
    }
}

fn fresh_claim(context: &Context, key: &Arc<Key>, terms: &Terms) -> Arc<Claim> {
    let value = context.engine.settings.owner.fresh_value();
    Arc::new(Claim::new(Arc::clone(key), value, terms.ttl))
}

/// Whether the locker has ended, and the lease with it.
fn is_closed(hold: &Hold) -> bool {
    matches!(hold.lease.lost_reason(), Some(LostReason::Closed))
}

fn first_polls() -> Backoff {
    Backoff::new(SHORTEST_POLL, LONGEST_POLL)
}

/// Ends at `end`, or never.
async fn pass(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
