//! What a guard owns: a lease, and the duty to give it up or hand it on.
//!
//! # Local hand-over
//!
//! A claim in Redis outlives its holders. When a holder lets go and the next of the process' queue
//! wants a lease on the same terms, it gets it without a round trip: a new lease with a token and
//! a deadline of its own and the next of the fencing numbers that the claim reserved. After a
//! stretch of `handover_for`, or when the reserved numbers are used up, Redis is asked whether
//! anybody else waits; if so the lock goes to that waiter, if not a new stretch begins.
//!
//! # Invariants
//!
//! * **H1** A claim has one lease at a time: the old one is off the roster when the new one is on.
//! * **H2** Whoever holds the `Tenancy` gives the claim up; it exists once, and its end is either
//!   a hand-over, a release, or the knowledge that there is nothing to release.
//! * **H3** A question whether to keep the claim that was not answered may be carried out at any
//!   later time, and pass the lock on. After one, the claim is only ever released.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::queue::Queues;
use crate::backend::{Answer, Claim, Fences, Kept, Renewal};
use crate::backoff::Backoff;
use crate::clock::Moment;
use crate::driver::Vacate;
use crate::driver::release::Token;
use crate::driver::watch::Watch;
use crate::engine::Engine;
use crate::error::Error;
use crate::key::Key;
use crate::lease::Lease;
use crate::lost::LostReason;
use crate::options::Terms;
use crate::released::Released;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(100);
/// The number of no turn: ending it has no effect.
const NO_TURN: u64 = 0;

/// What every lock of a locker needs.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) engine: Arc<Engine>,
    pub(crate) queues: Arc<Queues<Hold>>,
}

impl Context {
    /// Fails all waiters, loses and releases all guards. The releases are pending afterwards.
    pub(crate) fn begin_close(&self) {
        self.engine.driver.turn_away();
        // Those who wait in Redis may not be polled in time to leave for themselves.
        if self.engine.backend.queue().is_some() {
            for claim in self.engine.wakeups.waiting() {
                self.engine.driver.leave(claim);
            }
        }
        self.engine.driver.close();
    }

    /// How many fencing numbers to reserve: a stretch's, if somebody waits for the lease.
    pub(crate) fn fences_wanted(&self, key: &Key, terms: &Terms) -> u64 {
        if terms.hands_over() && self.queues.has_waiters(key.name()) {
            let most = self.engine.backend.largest_block();
            terms.fences_of_a_stretch().min(most)
        } else {
            1
        }
    }
}

impl Vacate for Queues<Hold> {
    fn vacate(self: Arc<Self>, key: &Arc<str>, turn: u64) {
        Queues::vacate(&self, key, turn);
    }

    fn close(&self) {
        Queues::close(self);
    }
}

/// How a claim was won.
#[derive(Debug)]
pub(crate) struct Won {
    pub(crate) fences: Fences,
    pub(crate) deadline: Moment,
    /// A releaser granted it, for the rest of the waiter's life only.
    pub(crate) by_push: bool,
}

/// A lease that somebody is responsible for: dropping it releases the lock in the background.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) lease: Arc<Lease>,
    /// `None` once it is given up (H2).
    tenancy: Option<Tenancy>,
}

/// The right to a claim in Redis, whichever lease is on it.
#[derive(Debug)]
struct Tenancy {
    context: Context,
    claim: Arc<Claim>,
    terms: Terms,
    turn: u64,
    watch: u64,
    /// The fencing number of the present lease, and the end of those that are reserved.
    fence: u64,
    fences_end: u64,
    stretch_until: Moment,
    /// H3: Redis was asked whether to keep the claim, and has not answered.
    in_question: bool,
}

impl Hold {
    pub(crate) fn new(
        context: &Context,
        claim: Arc<Claim>,
        terms: &Terms,
        turn: u64,
        won: Won,
    ) -> Self {
        let engine = &context.engine;
        let now = engine.clock.now();
        let lease = Arc::new(Lease::new(
            engine.clock.clone(),
            Arc::clone(&claim.key),
            won.fences.first,
            won.deadline,
            terms.max_hold,
        ));
        let watch = Watch::new(
            Arc::clone(&lease),
            Arc::clone(&claim),
            turn,
            won.deadline,
            terms.renew_every,
            engine.driver.ear(),
            now,
        );
        let watch = if won.by_push {
            watch.granted_by_push(now)
        } else {
            watch
        };
        let mut tenancy = Tenancy {
            context: context.clone(),
            watch: engine.driver.watch(watch),
            claim,
            terms: *terms,
            turn,
            fence: 0,
            fences_end: 0,
            stretch_until: now,
            in_question: false,
        };
        tenancy.begin_stretch(won.fences);
        Self {
            lease,
            tenancy: Some(tenancy),
        }
    }

    pub(crate) fn key(&self) -> &Arc<Key> {
        self.lease.key()
    }

    pub(crate) fn value(&self) -> &str {
        self.tenancy.as_ref().map_or("", |t| &t.claim.value)
    }

    /// Asks Redis now, and extends the lease. The future does not borrow, so that it can run on the
    /// driver's thread.
    pub(crate) fn renew(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let lease = Arc::clone(&self.lease);
        let claim = self.tenancy.as_ref().map(|tenancy| {
            let engine = Arc::clone(&tenancy.context.engine);
            (engine, Arc::clone(&tenancy.claim), tenancy.watch)
        });
        async move {
            lease.ensure_held()?;
            let Some((engine, claim, watch)) = claim else {
                return Err(Error::closed(lease.key().name()));
            };
            let within = engine.settings.command_timeout.min(lease.remaining());
            match engine.backend.renew(&claim, within).await {
                Ok(renewal) => {
                    engine.driver.note_renewal(watch, renewal);
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
        let Some(tenancy) = &mut self.tenancy else {
            return Ok(Released::AlreadyLost);
        };
        match tenancy.next_step(&self.lease) {
            Step::Nothing => {}
            Step::HandOver => {
                if self.hand_on() {
                    return Ok(Released::Freed);
                }
            }
            Step::Keep => {
                tenancy.in_question = true;
                // Without an answer, the release finds out how things stand.
                if let Ok(kept) = tenancy.ask_to_keep().await
                    && let Some(released) = self.go_on(kept)
                {
                    return Ok(released);
                }
            }
            Step::Release => {}
        }
        self.release_alone().await
    }

    /// Gives the lock up to whoever Redis finds.
    async fn release_alone(mut self) -> Result<Released, Error> {
        let Some(tenancy) = &self.tenancy else {
            return Ok(Released::AlreadyLost);
        };
        let engine = Arc::clone(&tenancy.context.engine);
        let claim = Arc::clone(&tenancy.claim);
        let _told_last = engine.driver.unwatch(tenancy.watch);
        if nothing_to_release(&self.lease) {
            self.end();
            return Ok(Released::AlreadyLost);
        }
        let within = engine.settings.command_timeout;
        let until = engine.clock.now() + claim.ttl.min(within);
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        // A question that was not answered may have passed the lock on (H3).
        let mut was_tried = tenancy.in_question;
        loop {
            let fault = match engine.backend.release(&claim, within).await {
                Ok(freed) => {
                    self.end();
                    let is_lost = self.lease.is_lost();
                    return Ok(Released::from_answer(freed, was_tried, is_lost));
                }
                Err(fault) => fault,
            };
            was_tried = true;
            if fault.permanent || engine.clock.now() >= until {
                // Dropping `self` leaves further tries to the driver.
                return Err(fault.about(Some(claim.key.name())));
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Goes on as Redis answered; `None` if the claim is still to be released.
    fn go_on(&mut self, kept: Kept) -> Option<Released> {
        match kept {
            Kept::Ours { fences, deadline } => {
                let tenancy = self.tenancy.as_mut()?;
                let driver = &tenancy.context.engine.driver;
                driver.note_renewal(tenancy.watch, Renewal::Renewed { deadline });
                tenancy.begin_stretch(fences);
                self.hand_on().then_some(Released::Freed)
            }
            Kept::NotOurs => {
                self.end();
                Some(Released::AlreadyLost)
            }
            Kept::PassedOn => {
                self.end();
                Some(Released::Freed)
            }
        }
    }

    /// Hands the lease to the next of this process; says whether there was one.
    fn hand_on(&mut self) -> bool {
        self.tenancy = self.tenancy.take().and_then(Tenancy::hand_over);
        self.tenancy.is_none()
    }

    /// There is nothing left to give up (H2).
    fn end(&mut self) {
        if let Some(tenancy) = self.tenancy.take() {
            tenancy.end();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(tenancy) = self.tenancy.take() else {
            return;
        };
        match tenancy.next_step(&self.lease) {
            Step::Nothing => tenancy.end(),
            Step::Release => tenancy.release(),
            Step::HandOver => {
                if let Some(tenancy) = tenancy.hand_over() {
                    tenancy.release();
                }
            }
            Step::Keep => tenancy.keep_in_background(Arc::clone(&self.lease)),
        }
    }
}

/// What is to be done with a claim that its holder lets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Hand it to the next of this process.
    HandOver,
    /// Ask Redis who else waits.
    Keep,
    Nothing,
    Release,
}

impl Tenancy {
    fn begin_stretch(&mut self, fences: Fences) {
        self.in_question = false;
        self.fence = fences.first;
        self.fences_end = fences.first + fences.count;
        self.stretch_until = self.context.engine.clock.now() + self.terms.handover_for;
        self.claim.note_reserved(fences);
    }

    fn next_step(&self, lease: &Lease) -> Step {
        if nothing_to_release(lease) {
            return Step::Nothing;
        }
        let name = self.claim.key.name();
        let engine = &self.context.engine;
        let goes_on = !self.in_question
            && self.terms.hands_over()
            && !lease.is_lost()
            && !lease.is_in_trouble()
            && self.context.queues.next_fits(name, self.turn, &self.terms);
        if !goes_on {
            Step::Release
        } else if self.fence + 1 < self.fences_end && engine.clock.now() < self.stretch_until {
            Step::HandOver
        } else {
            Step::Keep
        }
    }

    /// Hands the claim to the first who still waits; gives it back if there is none.
    fn hand_over(mut self) -> Option<Self> {
        loop {
            let name = self.claim.key.name();
            let queues = &self.context.queues;
            let Some(waiter) = queues.call_next(name, self.turn, &self.terms) else {
                return Some(self);
            };
            self.turn = waiter.number;
            self.terms = waiter.terms;
            self.fence += 1;
            self.claim.note_fence(self.fence);
            let engine = &self.context.engine;
            let key = Arc::clone(&self.claim.key);
            let max_hold = self.terms.max_hold;
            let lease = engine.driver.hand_over(self.watch, self.turn, |deadline| {
                Lease::new(engine.clock.clone(), key, self.fence, deadline, max_hold)
            });
            let lease = match lease {
                Ok(lease) => lease,
                Err(_told_last) => {
                    // Lost at this moment: the turn goes over without a lease.
                    waiter.call_to_contend(queues, name);
                    self.turn = NO_TURN;
                    return Some(self);
                }
            };
            let hold = Hold {
                lease,
                tenancy: Some(self),
            };
            match waiter.hand(hold) {
                Ok(()) => return None,
                Err(mut hold) => match hold.tenancy.take() {
                    Some(tenancy) if tenancy.fence + 1 < tenancy.fences_end => self = tenancy,
                    other => return other,
                },
            }
        }
    }

    fn ask_to_keep(&self) -> Answer<'_, Kept> {
        let engine = &self.context.engine;
        let fences = Fences::floor(self.terms.fences_of_a_stretch());
        let within = engine.settings.command_timeout;
        engine.driver.cede(self.watch);
        engine.backend.keep(&self.claim, fences, within)
    }

    fn keep_in_background(self, lease: Arc<Lease>) {
        let driver = Arc::clone(&self.context.engine.driver);
        let pending = Token::new(&driver);
        driver.spawn(async move {
            let answer = self.ask_to_keep().await;
            let mut hold = Hold {
                lease,
                tenancy: Some(self),
            };
            let released = answer.ok().and_then(|kept| hold.go_on(kept));
            if released.is_none()
                && let Some(tenancy) = hold.tenancy.take()
            {
                tenancy.release();
            }
            drop(pending);
        });
    }

    /// Releases the claim in the background.
    fn release(self) {
        let driver = &self.context.engine.driver;
        let _told_last = driver.unwatch(self.watch);
        driver.release(Arc::clone(&self.claim), Some(self.turn));
    }

    fn end(self) {
        let driver = &self.context.engine.driver;
        let _told_last = driver.unwatch(self.watch);
        // An earlier request of this value may be on another way yet (P10).
        driver.clean_up(&self.claim, false);
        let name = self.claim.key.name();
        self.context.queues.vacate(name, self.turn);
    }
}

/// Whether it is certain that the key does not hold our value, or somebody else sees to it.
fn nothing_to_release(lease: &Lease) -> bool {
    matches!(
        lease.lost_reason(),
        Some(LostReason::Removed | LostReason::Stolen | LostReason::Closed)
    )
}
