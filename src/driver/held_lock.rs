//! A lease that somebody is responsible for, and how it is given up.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Claim, Fences, Freed, Kept, Listen};
use crate::backoff::Backoff;
use crate::driver::Driver;
use crate::driver::release::Token;
use crate::driver::told::say_lease_lost;
use crate::error::{Error, Fault};
use crate::keys::{KeyState, LetGo, TakenOff};
use crate::lease::Lease;
use crate::released::Released;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(100);

/// A lease with the duty to give it up: dropping it hands it on, or releases the lock in the
/// background.
#[derive(Debug)]
pub(crate) struct HeldLock {
    driver: Arc<Driver>,
    state: Arc<KeyState>,
    lease: Arc<Lease>,
    claim: Arc<Claim>,
    end: End,
}

/// How far giving up has come.
#[derive(Debug)]
enum End {
    NotYet,
    /// The lease is off the held, and the claim is to be released.
    Releasing(TakenOff),
    Done,
}

impl HeldLock {
    pub(crate) fn new(
        driver: &Arc<Driver>,
        state: &Arc<KeyState>,
        lease: Arc<Lease>,
        claim: Arc<Claim>,
    ) -> Self {
        Self {
            driver: Arc::clone(driver),
            state: Arc::clone(state),
            lease,
            claim,
            end: End::NotYet,
        }
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        self.claim.key.name()
    }

    pub(crate) fn value(&self) -> &str {
        &self.claim.value
    }

    /// Asks Redis now, and extends the lease. The future does not borrow, so that it can run on the
    /// driver's thread.
    pub(crate) fn renew(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (driver, state) = (Arc::clone(&self.driver), Arc::clone(&self.state));
        let (lease, claim) = (Arc::clone(&self.lease), Arc::clone(&self.claim));
        async move {
            lease.ensure_held()?;
            let within = driver.settings.command_timeout.min(lease.remaining());
            match driver.backend.renew(&claim, Listen::No, within).await {
                Ok(renewal) => {
                    if let Some((held, reason)) =
                        driver.keys.renewed(&state, &claim, renewal, false)
                    {
                        driver.lose(&state, &held, reason);
                    }
                    Ok(lease.ensure_held()?)
                }
                Err(fault) => {
                    lease.ensure_held()?;
                    Err(fault.about(Some(claim.key.name())))
                }
            }
        }
    }

    /// Gives the lock up and waits for the answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped in the middle, it leaves the release to the background.
    pub(crate) async fn release(mut self) -> Result<Released, Error> {
        match self.driver.keys.let_go(&self.state, &self.lease) {
            LetGo::HandedOver(wakes) => {
                self.end = End::Done;
                wakes.wake();
                return Ok(Released::Freed);
            }
            LetGo::Nothing(taken_off) => {
                self.finish(taken_off);
                return Ok(Released::AlreadyLost);
            }
            LetGo::Release(taken_off) => self.end = End::Releasing(taken_off),
            LetGo::Ask { fences } => {
                // Not part of the future that most releases are.
                if let Some(released) = Box::pin(self.ask(fences)).await {
                    return Ok(released);
                }
            }
        }
        let within = self.driver.settings.command_timeout;
        match self.driver.backend.release(&self.claim, within).await {
            // A question that was not answered may have passed the lock on (K8).
            Ok(freed) => Ok(self.released(freed, self.was_in_question())),
            Err(fault) => Box::pin(self.release_again(fault)).await,
        }
    }

    /// Asks Redis whether to keep the claim for another stretch; `None` if it is to be released.
    async fn ask(&mut self, fences: u64) -> Option<Released> {
        let within = self.driver.settings.command_timeout;
        let fences = Fences::floor(fences);
        let kept = self.driver.backend.keep(&self.claim, fences, within).await;
        let taken_off = match kept.map(|kept| self.go_on(kept)) {
            Ok(Ok(released)) => return Some(released),
            Ok(Err(taken_off)) => taken_off,
            // Without an answer, the release finds out how things stand.
            Err(_) => self.driver.keys.take_off(&self.state, &self.lease),
        };
        self.end = End::Releasing(taken_off);
        None
    }

    /// Tries a release again that came to no answer.
    async fn release_again(&mut self, mut fault: Fault) -> Result<Released, Error> {
        let within = self.driver.settings.command_timeout;
        let clock = self.driver.clock.clone();
        let until = clock.now() + self.claim.ttl.min(within);
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        while !fault.permanent && clock.now() < until {
            tokio::time::sleep(backoff.next()).await;
            fault = match self.driver.backend.release(&self.claim, within).await {
                Ok(freed) => return Ok(self.released(freed, true)),
                Err(fault) => fault,
            };
        }
        // The drop leaves further tries to the driver.
        Err(fault.about(Some(self.name())))
    }

    fn was_in_question(&self) -> bool {
        matches!(&self.end, End::Releasing(taken_off) if taken_off.was_in_question)
    }

    /// The release was answered.
    fn released(&mut self, freed: Freed, was_tried: bool) -> Released {
        if let End::Releasing(taken_off) = self.take_end() {
            self.finish(taken_off);
        }
        let is_lost = freed == Freed::NotOurs && self.lease.is_lost();
        Released::from_answer(freed, was_tried, is_lost)
    }

    /// Goes on as Redis answered; gives back a lease whose claim is still to be released.
    fn go_on(&mut self, kept: Kept) -> Result<Released, TakenOff> {
        let keys = &self.driver.keys;
        match kept {
            Kept::Ours { fences, deadline } => {
                match keys.kept(&self.state, &self.lease, fences, deadline) {
                    LetGo::HandedOver(wakes) => {
                        self.end = End::Done;
                        wakes.wake();
                        Ok(Released::Freed)
                    }
                    LetGo::Release(taken_off) | LetGo::Nothing(taken_off) => Err(taken_off),
                    LetGo::Ask { .. } => unreachable!("a stretch has just begun"),
                }
            }
            Kept::NotOurs => {
                let taken_off = keys.take_off(&self.state, &self.lease);
                self.finish(taken_off);
                Ok(Released::AlreadyLost)
            }
            Kept::PassedOn => {
                let taken_off = keys.take_off(&self.state, &self.lease);
                self.finish(taken_off);
                Ok(Released::Freed)
            }
        }
    }

    /// There is nothing left to release: the turn goes on.
    fn finish(&mut self, taken_off: TakenOff) {
        self.end = End::Done;
        // An earlier request of this value may be on another connection yet (P10).
        self.driver.clean_up(&self.claim, false);
        if let Some(holder) = &taken_off.holder {
            self.driver.keys.end_turn(&self.state, holder).wake();
        }
        self.tell(&taken_off);
    }

    /// Leaves the release to the driver.
    fn release_behind(&mut self, taken_off: TakenOff) {
        self.end = End::Done;
        let holder = taken_off.holder.clone();
        let turn = holder.map(|holder| (Arc::clone(&self.state), holder));
        self.driver.release(Arc::clone(&self.claim), turn);
        self.tell(&taken_off);
    }

    /// Leaves the question who else waits to the driver.
    fn ask_behind(&mut self, fences: u64) {
        self.end = End::Done;
        let mut lock = Self::new(
            &self.driver,
            &self.state,
            Arc::clone(&self.lease),
            Arc::clone(&self.claim),
        );
        let pending = Token::new(&self.driver);
        self.driver.spawn(async move {
            let _ = lock.ask(fences).await;
            drop(lock);
            drop(pending);
        });
    }

    /// Tells of a lease that was over before it was let go, after what depends on it (D3).
    fn tell(&self, taken_off: &TakenOff) {
        if taken_off.is_lost {
            say_lease_lost(&self.lease, &self.claim);
        }
    }

    fn take_end(&mut self) -> End {
        std::mem::replace(&mut self.end, End::Done)
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        match self.take_end() {
            End::Done => {}
            End::Releasing(taken_off) => self.release_behind(taken_off),
            End::NotYet => match self.driver.keys.let_go(&self.state, &self.lease) {
                LetGo::HandedOver(wakes) => wakes.wake(),
                LetGo::Nothing(taken_off) => self.finish(taken_off),
                LetGo::Release(taken_off) => self.release_behind(taken_off),
                LetGo::Ask { fences } => self.ask_behind(fences),
            },
        }
    }
}
