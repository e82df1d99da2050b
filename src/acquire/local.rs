//! A wait behind others of this process, and the turn that ends it.

use std::future::poll_fn;
use std::sync::Arc;

use crate::backend::Claim;
use crate::driver::{Driver, HeldLock};
use crate::error::{Error, Fault};
use crate::key::Key;
use crate::keys::{Arrival, Call, Heard, KeyState, Left, Waiter, Won};
use crate::lease::Lease;
use crate::options::CheckedOptions;

/// A user of a key in this process, from its arrival until it holds the lock. Dropped before that,
/// it leaves: the turn, or a lease that it has not taken, goes on to the next (K3).
pub(super) struct LocalWaiter<'a> {
    driver: &'a Arc<Driver>,
    pub(super) state: Arc<KeyState>,
    pub(super) waiter: Arc<Waiter>,
    is_done: bool,
}

/// What an arrival meets.
pub(super) enum Met<'a> {
    /// Nobody is there: contend.
    Turn(LocalWaiter<'a>),
    /// Others are there: wait to be called.
    Others(LocalWaiter<'a>),
    /// Others are there, and it was not to wait; the store has not answered them if there is a
    /// fault.
    Taken(Option<Fault>),
}

impl<'a> LocalWaiter<'a> {
    /// Enters; the error is that the locker is closed.
    pub(super) fn enter(
        driver: &'a Arc<Driver>,
        key: &Arc<Key>,
        options: &CheckedOptions,
        waits: bool,
    ) -> Result<Met<'a>, Error> {
        let new = |state, waiter| Self {
            driver,
            state,
            waiter,
            is_done: false,
        };
        match driver.keys.enter(key, options, waits) {
            Arrival::Turn(state, waiter) => Ok(Met::Turn(new(state, waiter))),
            Arrival::Behind(state, waiter) => Ok(Met::Others(new(state, waiter))),
            Arrival::Taken(fault) => Ok(Met::Taken(fault)),
            Arrival::Closed => Err(Error::closed(key.name())),
        }
    }

    /// Waits to be called.
    ///
    /// # Cancel safety
    ///
    /// A call that was not taken up when this waiter is dropped goes on to the next.
    pub(super) async fn called(&mut self) -> Result<Call, Error> {
        loop {
            match poll_fn(|context| self.waiter.poll_called(context)).await {
                Heard::Called(call) => return Ok(call),
                Heard::Closed => return Err(Error::closed(self.state.key.name())),
                Heard::Missed => {
                    let (key, options) = (&self.state.key, self.waiter.options);
                    match Self::enter(self.driver, key, &options, true)? {
                        Met::Turn(anew) => {
                            *self = anew;
                            return Ok(Call::Contend { silent_since: None });
                        }
                        Met::Others(anew) => *self = anew,
                        Met::Taken(_) => unreachable!("it waits"),
                    }
                }
            }
        }
    }

    /// It has won the lock.
    pub(super) fn hold(mut self, won: Won) -> HeldLock {
        self.is_done = true;
        let claim = Arc::clone(&won.claim);
        let lease = self.driver.keys.grant(&self.state, &self.waiter, won);
        HeldLock::new(self.driver, &self.state, lease, claim)
    }

    /// It was called to hold a lease.
    pub(super) fn take(mut self, lease: Arc<Lease>, claim: Arc<Claim>) -> HeldLock {
        self.is_done = true;
        HeldLock::new(self.driver, &self.state, lease, claim)
    }
}

impl Drop for LocalWaiter<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        match self.driver.keys.leave(&self.state, &self.waiter) {
            Left::Nothing(wakes) => wakes.wake(),
            Left::Lease(lease, claim) => {
                drop(HeldLock::new(self.driver, &self.state, lease, claim));
            }
        }
    }
}
