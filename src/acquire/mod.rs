//! One acquisition, from the first try to the hold.
//!
//! First the process' own queue: one contender for a key talks to Redis, in the order of arrival
//! (a second one beside it only if the first is not polled: K6).
//! Then Redis: one attempt; where that is refused, its queue, or else attempts with back-off.
//! Whatever cuts this short, the turn goes on to the next waiter, and a request whose outcome is
//! unknown is followed by a clean-up (P10).

mod local;
mod outage;
mod waiting;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::acquire::local::{LocalWaiter, Met};
use crate::acquire::outage::Outage;
use crate::backend::{Attempt, Claim, Fences, Grant};
use crate::backoff::Backoff;
use crate::clock::Moment;
use crate::driver::{Driver, HeldLock};
use crate::error::{Cause, Error, Fault, LostReason};
use crate::key::Key;
use crate::keys::{Call, KeyState, News, Waiter, Won};
use crate::options::CheckedOptions;

const SHORTEST_POLL: Duration = Duration::from_millis(1);
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// How long to wait for somebody else's release.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    None,
    Until(Instant),
    Unbounded,
}

impl Wait {
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

/// Acquires a lock; `None` if somebody else had it for the whole wait.
pub(crate) async fn acquire(
    driver: &Arc<Driver>,
    key: &Arc<Key>,
    options: &CheckedOptions,
    wait: Wait,
) -> Result<Option<HeldLock>, Error> {
    let waits = !matches!(wait, Wait::None);
    loop {
        let (local, since) = match LocalWaiter::enter(driver, key, options, waits)? {
            Met::Turn(local) => {
                let arrived = local.waiter.arrived;
                (local, arrived)
            }
            // Whether somebody else has the lock nobody knows while the store is silent (P13).
            Met::Taken(Some(fault)) => return Err(fault.about(Some(key.name()))),
            Met::Taken(None) => return Ok(None),
            Met::Others(mut local) => match called(&mut local, driver, wait).await? {
                None => return Ok(None),
                Some(Call::Outage(fault)) => return Err(fault.about(Some(key.name()))),
                Some(Call::Contend { silent_since }) => {
                    (local, silent_since.unwrap_or_else(Instant::now))
                }
                Some(Call::Hold(lease, claim)) => {
                    let lock = local.take(lease, claim);
                    if is_closed(&lock) {
                        return Err(Error::closed(key.name()));
                    }
                    if !lock.lease().is_lost() {
                        return Ok(Some(lock));
                    }
                    // It ended before it was taken up.
                    continue;
                }
            },
        };
        let (state, waiter) = (Arc::clone(&local.state), Arc::clone(&local.waiter));
        let contender = Contender::new(driver, key, options, local, since, wait.limit());
        let mut contend = pin!(contender.contend(wait.end()));
        return poll_fn(|context| {
            if waiter.note_poll(context) {
                contend.as_mut().poll(context)
            } else {
                Poll::Ready(Err(Error::closed(state.key.name())))
            }
        })
        .await;
    }
}

/// Waits to be called, without I/O.
async fn called(
    local: &mut LocalWaiter<'_>,
    driver: &Driver,
    wait: Wait,
) -> Result<Option<Call>, Error> {
    tokio::select! {
        biased;
        call = local.called() => call.map(Some),
        () = pass(wait.end()) => match driver.keys.outage(&local.state) {
            Some(fault) => Err(fault.about(Some(local.state.key.name()))),
            None => Ok(None),
        },
    }
}

/// The one of this process that talks to Redis about a key. There is another one beside it if this
/// one was not polled for a while (K6).
struct Contender<'a> {
    driver: &'a Arc<Driver>,
    options: &'a CheckedOptions,
    claim: Arc<Claim>,
    /// A request was sent that may have been, or may yet be, granted. An answer does not settle
    /// that: an earlier request may be on another connection. The backend knows.
    may_be_granted: bool,
    /// The claim has, or may have, a place in the queue of Redis.
    is_queued: bool,
    /// It hears of grants and changes.
    is_listening: bool,
    outage: Outage,
    /// `None` once it holds. Leaves after the clean-up was begun.
    local: Option<LocalWaiter<'a>>,
}

impl<'a> Contender<'a> {
    /// `since`: the store has not answered since then, as far as is known.
    fn new(
        driver: &'a Arc<Driver>,
        key: &Arc<Key>,
        options: &'a CheckedOptions,
        local: LocalWaiter<'a>,
        since: Instant,
        limit: Option<Instant>,
    ) -> Self {
        Self {
            driver,
            options,
            claim: fresh_claim(driver, key, options),
            may_be_granted: false,
            is_queued: false,
            is_listening: false,
            outage: Outage::new(options.outage_limit, limit, since),
            local: Some(local),
        }
    }

    async fn contend(mut self, end: Option<Instant>) -> Result<Option<HeldLock>, Error> {
        let mut first = None;
        if !self.is_to_queue_at_once(end) {
            match self.attempt().await {
                Ok(Attempt::Granted { fences, deadline }) => match self.won(fences, deadline) {
                    Ok(won) => return self.hold(won).await,
                    Err(fault) => first = Some(Err(fault)),
                },
                other => first = Some(other),
            }
        }
        // Not part of the future that most acquisitions are.
        Box::pin(self.contend_on(end, first)).await
    }

    /// Whether the key was contended a moment ago: no attempt, that would be refused.
    fn is_to_queue_at_once(&self, end: Option<Instant>) -> bool {
        self.driver.backend.queue().is_some()
            && self.driver.keys.was_contended(self.state())
            && end.is_none_or(|end| end > Instant::now())
    }

    /// Goes on after what became of a first attempt, if there was one.
    async fn contend_on(
        mut self,
        end: Option<Instant>,
        first: Option<Result<Attempt, Fault>>,
    ) -> Result<Option<HeldLock>, Error> {
        let mut poll = first_polls();
        let Some(mut attempt) = first else {
            return self.wait_in_queue(end).await;
        };
        loop {
            match attempt {
                Ok(Attempt::Granted { fences, deadline }) => match self.won(fences, deadline) {
                    Ok(won) => return self.hold(won).await,
                    Err(fault) => self.pause_after(fault).await?,
                },
                Ok(Attempt::Held { ttl }) => {
                    self.withdraw();
                    self.note_answer();
                    let now = Instant::now();
                    if end.is_some_and(|end| end <= now) {
                        return Ok(None);
                    }
                    if self.driver.backend.queue().is_some() {
                        return self.wait_in_queue(end).await;
                    }
                    // The key is free a moment after its TTL, at the latest.
                    let wait = ttl.map_or(LONGEST_POLL, |ttl| ttl + SHORTEST_POLL);
                    let next = now + poll.next().min(wait);
                    let next = end.map_or(next, |end| end.min(next));
                    self.listen();
                    tokio::select! {
                        biased;
                        _ = self.news(Some(News::Changed)) => {}
                        () = sleep_until(next) => {}
                    }
                }
                Err(fault) => {
                    self.withdraw();
                    self.pause_after(fault).await?;
                }
            }
            if self.is_listening {
                self.waiter().forget_news();
            }
            attempt = self.attempt().await;
        }
    }

    fn local(&self) -> &LocalWaiter<'a> {
        self.local.as_ref().expect("it does not hold yet")
    }

    fn state(&self) -> &Arc<KeyState> {
        &self.local().state
    }

    fn waiter(&self) -> &Arc<Waiter> {
        &self.local().waiter
    }

    /// Hears of grants to its claim, and of changes to the key, from now on.
    fn listen(&mut self) {
        if !self.is_listening {
            self.is_listening = true;
            let keys = &self.driver.keys;
            keys.queue(self.state(), self.waiter(), &self.claim);
        }
    }

    /// Waits for a grant (`Ok`) or for news of at least this urgency.
    ///
    /// # Cancel safety
    ///
    /// What was not returned stays for the next call.
    async fn news(&self, least: Option<News>) -> Result<Grant, News> {
        let waiter = self.waiter();
        poll_fn(|_| waiter.poll_news(least)).await
    }

    /// It was not granted: undo what it may have left, if that spent the claim.
    fn withdraw(&mut self) {
        if self.driver.backend.is_spent(&self.claim) {
            self.start_anew();
        }
    }

    /// Undoes what was done under this value, and goes on under another.
    fn start_anew(&mut self) {
        self.driver.clean_up(&self.claim, self.is_queued);
        self.claim = fresh_claim(self.driver, &self.claim.key, self.options);
        self.may_be_granted = false;
        if std::mem::take(&mut self.is_listening) {
            self.listen();
        }
    }

    /// Asks once. A fault leaves the outcome open.
    async fn attempt(&mut self) -> Result<Attempt, Fault> {
        let within = self.within();
        // What `Locker::connect` finds out is found out before the first grant (P10).
        if !self.driver.is_connected() {
            Box::pin(self.driver.connect(within)).await?;
        }
        let fences = Fences::floor(self.fences_wanted());
        self.may_be_granted = true;
        let backend = &self.driver.backend;
        backend.acquire(&self.claim, fences, within).await
    }

    fn within(&self) -> Duration {
        self.outage.bound(self.driver.settings.command_timeout)
    }

    /// How many fencing numbers to reserve: a stretch's, if somebody waits for the lease.
    fn fences_wanted(&self) -> u64 {
        if self.options.hands_over() && self.driver.keys.has_waiters(self.state()) {
            let most = self.driver.backend.largest_block();
            self.options.fences_of_a_stretch().min(most)
        } else {
            1
        }
    }

    /// Waits before the next try at a server that did not answer, or gives up.
    async fn pause_after(&mut self, fault: Fault) -> Result<(), Error> {
        let next = self.next_try(fault)?;
        sleep_until(next).await;
        Ok(())
    }

    /// When to try a server again that did not answer, if it is not time to give up.
    fn next_try(&mut self, fault: Fault) -> Result<Instant, Error> {
        if !fault.permanent {
            let (keys, since) = (&self.driver.keys, self.outage.since());
            keys.note_outage(self.state(), self.waiter(), since, &fault)
                .wake();
        }
        let next = self.outage.next_try(fault);
        next.map_err(|fault| fault.about(Some(self.claim.key.name())))
    }

    fn note_answer(&mut self) {
        self.outage.is_over();
        self.driver.keys.note_answer(self.state(), self.waiter());
    }

    /// Takes a grant, unless its lease is over already: then it is undone, and the next try goes
    /// under a new value.
    fn won(&mut self, fences: Fences, deadline: Moment) -> Result<Won, Fault> {
        if self.driver.clock.now() < deadline {
            return Ok(Won {
                claim: Arc::clone(&self.claim),
                fences,
                deadline,
            });
        }
        let server = self.driver.backend.server();
        self.driver.leave(Arc::clone(&self.claim));
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

    /// Holds what was won, unless the locker was closed meanwhile: then it is given back.
    async fn hold(mut self, won: Won) -> Result<Option<HeldLock>, Error> {
        self.may_be_granted = false;
        self.is_queued = false;
        let local = self.local.take().expect("it does not hold yet");
        let lock = local.hold(won);
        if !is_closed(&lock) {
            return Ok(Some(lock));
        }
        drop(lock);
        // P10: nobody may wait for the answer, and the thread that releases in the background may be
        // gone.
        self.driver.leave(Arc::clone(&self.claim));
        let (backend, claim) = (&self.driver.backend, &self.claim);
        let within = self.driver.settings.command_timeout;
        let _ = Box::pin(backend.release(claim, within)).await;
        Err(Error::closed(claim.key.name()))
    }
}

impl Drop for Contender<'_> {
    fn drop(&mut self) {
        if self.may_be_granted || self.is_queued {
            self.driver.clean_up(&self.claim, self.is_queued);
        }
    }
}

fn fresh_claim(driver: &Driver, key: &Arc<Key>, options: &CheckedOptions) -> Arc<Claim> {
    let value = driver.settings.owner.fresh_value();
    Arc::new(Claim::new(Arc::clone(key), value, options.ttl))
}

/// Whether the locker has ended, and the lease with it.
fn is_closed(lock: &HeldLock) -> bool {
    matches!(lock.lease().lost_reason(), Some(LostReason::Closed))
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
