//! Releases that nobody waits for: by a dropped guard, or after a cancelled acquire.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::backend::{Answer, Claim, Cleanup, Freed};
use crate::backoff::Backoff;
use crate::events::emit;
use crate::fault::Fault;
use crate::lease::driver::Driver;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// How long a release that was answered counts as pending for the sake of what is left of it: the
/// slowest server of a quorum.
const LINGER: Duration = Duration::from_millis(100);

/// Counts as a pending release for as long as it lives.
pub(crate) struct Token(Arc<Driver>);

impl Token {
    pub(crate) fn new(driver: &Arc<Driver>) -> Self {
        driver.pending.begin();
        Self(Arc::clone(driver))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.pending.end();
    }
}

/// How a claim is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// By one who may yet be granted it, or waits for it.
    Leave,
    /// By its holder.
    Release,
}

/// One release, from the moment it is handed over until it is confirmed or given up.
///
/// Dropped unfinished only when the thread is gone.
struct Errand {
    driver: Arc<Driver>,
    claim: Arc<Claim>,
    manner: Manner,
    /// The holder's turn in the process' queue, if this release ends one.
    turn: Option<u64>,
    _pending: Token,
}

impl Errand {
    fn new(driver: &Arc<Driver>, claim: Arc<Claim>, manner: Manner, turn: Option<u64>) -> Self {
        Self {
            driver: Arc::clone(driver),
            claim,
            manner,
            turn,
            _pending: Token::new(driver),
        }
    }

    /// Tries until Redis has answered, or the key is gone by its TTL.
    async fn run(mut self) {
        let clock = self.driver.clock.clone();
        let until = clock.now() + self.claim.ttl;
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let fault = match self.request().await {
                Ok(_) => {
                    self.vacate();
                    return self.driver.backend.settle(&self.claim, LINGER).await;
                }
                Err(fault) => fault,
            };
            // A waiter of this process that tries now hears for itself how Redis is.
            self.vacate();
            if fault.permanent || clock.now() >= until {
                return self.give_up(&fault);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn request(&self) -> Answer<'_, Freed> {
        let within = self.driver.command_timeout;
        match (self.manner, self.driver.backend.queue()) {
            (Manner::Leave, Some(queue)) => queue.leave(&self.claim, within),
            _ => self.driver.backend.release(&self.claim, within),
        }
    }

    fn vacate(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.driver.vacate(self.claim.key.name(), turn);
        }
    }

    fn give_up(&self, fault: &Fault) {
        let (claim, fault) = (Arc::clone(&self.claim), fault.clone());
        emit(move || {
            tracing::warn!(
                lock = %claim.key.name(),
                owner = %claim.value,
                server = %fault.server,
                cause = %fault.cause,
                "a release was not confirmed; the ttl frees the key"
            );
        });
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.vacate();
    }
}

impl Driver {
    /// Releases a claim in the background, and then ends the turn.
    pub(crate) fn release(self: &Arc<Self>, claim: Arc<Claim>, turn: Option<u64>) {
        self.spawn(Errand::new(self, claim, Manner::Release, turn).run());
    }

    /// Gives up a claim in the background that somebody else may yet grant.
    pub(crate) fn leave(self: &Arc<Self>, claim: Arc<Claim>) {
        self.spawn(Errand::new(self, claim, Manner::Leave, None).run());
    }

    /// Undoes an acquire that was cut short, whether or not it was carried out (P10).
    pub(crate) fn clean_up(self: &Arc<Self>, claim: &Arc<Claim>, is_queued: bool) {
        let cleanups = self.backend.disown(claim);
        if cfg!(redlease_mutation = "no_clean_up") {
            return;
        }
        if cleanups.is_empty() && is_queued {
            self.leave(Arc::clone(claim));
        }
        for Cleanup { runtime, run } in cleanups {
            self.cleanups.add(claim);
            runtime.spawn(CleaningUp {
                run,
                is_done: false,
                driver: Arc::clone(self),
                claim: Arc::clone(claim),
            });
        }
    }

    /// Does what other runtimes were to clean up, which may have no chance to any more.
    pub(crate) fn take_over_cleanups(self: &Arc<Self>) {
        for claim in self.cleanups.take_all() {
            self.leave(claim);
        }
    }
}

/// A clean-up on the caller's runtime, over the connection that the request took. If the runtime
/// ends first, or the connection is broken, the driver does it.
struct CleaningUp {
    run: Answer<'static, Freed>,
    is_done: bool,
    driver: Arc<Driver>,
    claim: Arc<Claim>,
}

impl Future for CleaningUp {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let answer = std::task::ready!(self.run.as_mut().poll(context));
        self.is_done = answer.is_ok();
        Poll::Ready(())
    }
}

impl Drop for CleaningUp {
    fn drop(&mut self) {
        if self.driver.cleanups.remove(&self.claim) && !self.is_done {
            self.driver.leave(Arc::clone(&self.claim));
        }
    }
}
