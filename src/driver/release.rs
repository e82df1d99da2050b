//! Releases that nobody waits for: by a dropped guard, or after a cancelled acquire.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::backend::{Answer, Claim, Freed, SentBehind};
use crate::backoff::Backoff;
use crate::driver::Driver;
use crate::error::Fault;
use crate::events::emit;
use crate::keys::{KeyState, Waiter};

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// How long a release that was answered counts as pending for the sake of what is left of it: the
/// slowest server of a quorum, or what was sent behind an unsettled request.
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
enum Way {
    /// By one that may yet be granted it, or waits for it.
    Leave,
    /// By its holder.
    Release,
}

/// The turn that ends with a release.
pub(super) type Turn = (Arc<KeyState>, Arc<Waiter>);

/// One release, from the moment it is handed over until it is confirmed or given up.
///
/// Dropped unfinished only when the thread is gone.
struct Release {
    driver: Arc<Driver>,
    claim: Arc<Claim>,
    way: Way,
    /// The turn that ends with it, if one does.
    turn: Option<Turn>,
    _pending: Token,
}

impl Release {
    fn new(driver: &Arc<Driver>, claim: Arc<Claim>, way: Way, turn: Option<Turn>) -> Self {
        Self {
            driver: Arc::clone(driver),
            claim,
            way,
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
                    self.end_turn();
                    // A request that was retried was granted, and an earlier try of it may run yet.
                    self.driver.send_behind(&self.claim);
                    return self.driver.backend.settle(&self.claim, LINGER).await;
                }
                Err(fault) => fault,
            };
            // A waiter of this process that tries now hears for itself how Redis is.
            self.end_turn();
            if fault.permanent || clock.now() >= until {
                self.driver.send_behind(&self.claim);
                return self.give_up(&fault);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn request(&self) -> Answer<'_, Freed> {
        let within = self.driver.settings.command_timeout;
        match (self.way, self.driver.backend.queue()) {
            (Way::Leave, Some(queue)) => queue.leave(&self.claim, within),
            _ => self.driver.backend.release(&self.claim, within),
        }
    }

    fn end_turn(&mut self) {
        if let Some((state, holder)) = self.turn.take() {
            self.driver.keys.end_turn(&state, &holder).wake();
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

impl Drop for Release {
    fn drop(&mut self) {
        self.end_turn();
    }
}

impl Driver {
    /// Releases a claim in the background, and then ends the turn.
    pub(super) fn release(self: &Arc<Self>, claim: Arc<Claim>, turn: Option<Turn>) {
        self.spawn(Release::new(self, claim, Way::Release, turn).run());
    }

    /// Gives up a claim in the background that somebody else may yet grant.
    pub(crate) fn leave(self: &Arc<Self>, claim: Arc<Claim>) {
        self.spawn(Release::new(self, claim, Way::Leave, None).run());
    }

    /// Undoes an acquire that was cut short, whether or not it was carried out (P10): at once, in
    /// case that it was, and behind its requests, in case that they will be yet. The connection of
    /// either may be dead without anybody's knowing.
    pub(crate) fn clean_up(self: &Arc<Self>, claim: &Arc<Claim>, is_queued: bool) {
        if self.send_behind(claim) || is_queued {
            self.leave(Arc::clone(claim));
        }
    }

    /// Sends a release behind each request that may yet set the key of a claim that is given up;
    /// says whether there is any.
    fn send_behind(self: &Arc<Self>, claim: &Arc<Claim>) -> bool {
        let Some(sent) = self.backend.disown(claim) else {
            return false;
        };
        for sent in sent {
            let (driver, claim) = (Arc::clone(self), Arc::clone(claim));
            self.spawn(see_through(driver, claim, sent, Token::new(self)));
        }
        true
    }
}

/// Waits for a release that was sent behind a request. If it failed, because the connection is
/// broken or its runtime has ended, the request may have run after the release that was sent at
/// once: that is sent again.
async fn see_through(driver: Arc<Driver>, claim: Arc<Claim>, mut sent: SentBehind, pending: Token) {
    let answer = match timeout(LINGER, &mut sent).await {
        Ok(answer) => answer,
        // A connection that is dead may be waited for, but nobody waits for that.
        Err(_) => {
            drop(pending);
            sent.await
        }
    };
    if !answer.is_ok_and(|answer| answer.is_ok()) {
        driver.leave(claim);
    }
}
