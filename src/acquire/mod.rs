//! One acquisition, from the first try to the hold.
//!
//! First the process' own queue: one contender for a key talks to Redis, in the order of arrival.
//! Then Redis. Whatever cuts this short, the turn goes on to the next waiter, and a request whose
//! outcome is unknown is followed by a clean-up (P10).

pub(crate) mod queue;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::acquire::queue::{Arrival, Place, Turn};
use crate::backend::{Attempt, Claim, Fences};
use crate::backoff::Backoff;
use crate::engine::{Engine, Hold};
use crate::error::Error;
use crate::fault::{Cause, Fault};
use crate::key::Key;
use crate::lease::clock::Moment;
use crate::options::Terms;

const SHORTEST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// An attempt gets this long even when the wait is all but over.
const LAST_ATTEMPT: Duration = Duration::from_millis(100);

/// How long to wait for somebody else's release.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    None,
    Until(Instant),
    Unbounded,
}

impl Patience {
    fn end(self) -> Option<Instant> {
        match self {
            Self::None => Some(Instant::now()),
            Self::Until(end) => Some(end),
            Self::Unbounded => None,
        }
    }

    /// Until when an unreachable server is put up with. A try that does not wait for a holder
    /// still waits for the server.
    fn limit_of(self, give_up: Instant) -> Instant {
        match self {
            Self::Until(end) => end.min(give_up),
            Self::None | Self::Unbounded => give_up,
        }
    }
}

/// Acquires a lock; `None` if somebody else had it for as long as the patience lasted.
pub(crate) async fn acquire(
    engine: &Arc<Engine>,
    key: &Arc<Key>,
    terms: &Terms,
    patience: Patience,
) -> Result<Option<Hold>, Error> {
    let Some(turn) = turn(engine, key, patience).await? else {
        return Ok(None);
    };
    let contender = Contender::new(engine, key, terms);
    contender.contend(turn, patience).await
}

/// Waits for the turn in the process' own queue, without I/O.
async fn turn(
    engine: &Arc<Engine>,
    key: &Arc<Key>,
    patience: Patience,
) -> Result<Option<Turn>, Error> {
    let name = key.name();
    let arrival = match patience {
        Patience::None => engine.queues.try_enter(name),
        _ => Some(engine.queues.enter(name)),
    };
    let mut place: Place = match arrival {
        None => return Ok(None),
        Some(Arrival::First(turn)) => return Ok(Some(turn)),
        Some(Arrival::Closed) => return Err(Error::closed(name)),
        Some(Arrival::Behind(place)) => place,
    };
    tokio::select! {
        biased;
        turn = place.called() => match turn {
            Some(turn) => Ok(Some(turn)),
            None => Err(Error::closed(name)),
        },
        () = pass(patience.end()) => Ok(None),
    }
}

/// The one of this process that talks to Redis about a key.
struct Contender<'a> {
    engine: &'a Arc<Engine>,
    terms: &'a Terms,
    claim: Arc<Claim>,
    /// A request was sent that may have been, or may yet be, granted.
    in_doubt: bool,
}

impl<'a> Contender<'a> {
    fn new(engine: &'a Arc<Engine>, key: &Arc<Key>, terms: &'a Terms) -> Self {
        Self {
            engine,
            terms,
            claim: fresh_claim(engine, key, terms.ttl),
            in_doubt: false,
        }
    }

    async fn contend(mut self, turn: Turn, patience: Patience) -> Result<Option<Hold>, Error> {
        let end = patience.end();
        let mut poll = Backoff::new(SHORTEST_POLL, LONGEST_POLL);
        let mut retry = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut unreachable_until = None;
        loop {
            let give_up =
                *unreachable_until.get_or_insert_with(|| Instant::now() + self.terms.give_up_after);
            let fault = match self.attempt(patience, give_up).await? {
                Ok(Attempt::Granted { fence, deadline }) => {
                    if self.engine.clock.now() < deadline {
                        return Ok(Some(self.hold(turn, fence, deadline)));
                    }
                    self.start_anew();
                    too_late(self.engine)
                }
                Ok(Attempt::Held { ttl }) => {
                    self.withdraw();
                    self.in_doubt = false;
                    unreachable_until = None;
                    let now = Instant::now();
                    if end.is_some_and(|end| end <= now) {
                        return Ok(None);
                    }
                    // The key is free a moment after its TTL, at the latest.
                    let wait = ttl.map_or(LONGEST_POLL, |ttl| ttl + SHORTEST_POLL);
                    let next = now + poll.next().min(wait);
                    self.sleep(end.map_or(next, |end| end.min(next))).await?;
                    continue;
                }
                Err(fault) => {
                    self.withdraw();
                    fault
                }
            };
            let limit = patience.limit_of(give_up);
            if Instant::now() >= limit {
                return Err(fault.about(Some(self.claim.key.name())));
            }
            self.sleep(limit.min(Instant::now() + retry.next())).await?;
        }
    }

    /// Asks once. The outer error ends the acquisition; the inner one leaves the outcome open.
    async fn attempt(
        &mut self,
        patience: Patience,
        give_up: Instant,
    ) -> Result<Result<Attempt, Fault>, Error> {
        let left = patience.limit_of(give_up) - Instant::now();
        let within = self
            .engine
            .settings
            .command_timeout
            .min(left.max(LAST_ATTEMPT));
        self.in_doubt = true;
        let attempt = self
            .engine
            .backend
            .acquire(&self.claim, Fences::floor(1), within);
        let answer = unless_closed(self.engine, self.claim.key.name(), attempt).await?;
        match answer {
            Err(fault) if fault.permanent => Err(fault.about(Some(self.claim.key.name()))),
            other => Ok(other),
        }
    }

    async fn sleep(&self, until: Instant) -> Result<(), Error> {
        unless_closed(self.engine, self.claim.key.name(), sleep_until(until)).await
    }

    /// The grant came when its lease was over: undo it, and go on under a new value.
    fn start_anew(&mut self) {
        self.engine.driver.release(Arc::clone(&self.claim), None);
        self.claim = fresh_claim(self.engine, &self.claim.key, self.claim.ttl);
        self.in_doubt = false;
    }

    /// The attempt was not granted: undo what it may have left, where that spends its value.
    fn withdraw(&mut self) {
        if self.engine.backend.spends_values() {
            self.engine.driver.clean_up(&self.claim);
            self.claim = fresh_claim(self.engine, &self.claim.key, self.claim.ttl);
            self.in_doubt = false;
        }
    }

    fn hold(mut self, turn: Turn, fence: u64, deadline: Moment) -> Hold {
        self.in_doubt = false;
        let claim = Arc::clone(&self.claim);
        Hold::new(self.engine, claim, self.terms, turn.keep(), fence, deadline)
    }
}

impl Drop for Contender<'_> {
    fn drop(&mut self) {
        if self.in_doubt {
            self.engine.driver.clean_up(&self.claim);
        }
    }
}

fn fresh_claim(engine: &Engine, key: &Arc<Key>, ttl: Duration) -> Arc<Claim> {
    let value = engine.settings.owner.fresh_value();
    Arc::new(Claim::new(Arc::clone(key), value, ttl))
}

/// The fault of a server that grants a lock when its lease is over already.
fn too_late(engine: &Engine) -> Fault {
    Fault {
        permanent: false,
        server: engine.backend.server(),
        cause: Cause::new(io::Error::new(
            io::ErrorKind::TimedOut,
            "the answer took longer than the lease lasts",
        )),
    }
}

async fn unless_closed<T>(
    engine: &Engine,
    key: &Arc<str>,
    future: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = engine.closing.cancelled() => Err(Error::closed(key)),
    }
}

/// Ends at `end`, or never.
async fn pass(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
