//! What is under way in the background: releases, and clean-ups on callers' runtimes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::backend::Claim;

/// How many releases are still to be confirmed.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    count: Mutex<usize>,
    none_left: Condvar,
    none_left_async: Notify,
}

impl Pending {
    pub(crate) fn begin(&self) {
        *self.count.lock() += 1;
    }

    pub(crate) fn end(&self) {
        let mut count = self.count.lock();
        *count -= 1;
        if *count == 0 {
            self.none_left.notify_all();
            self.none_left_async.notify_waiters();
        }
    }

    /// Blocks until no release is pending, at most `bound`; says whether none is.
    pub(crate) fn wait(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut count = self.count.lock();
        while *count > 0 {
            if self.none_left.wait_until(&mut count, until).timed_out() {
                break;
            }
        }
        *count == 0
    }

    /// Waits until no release is pending.
    pub(crate) async fn wait_async(&self) {
        loop {
            let notified = self.none_left_async.notified();
            if *self.count.lock() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// The claims that callers' runtimes are cleaning up.
#[derive(Debug, Default)]
pub(crate) struct Cleanups(Mutex<Vec<Arc<Claim>>>);

impl Cleanups {
    pub(crate) fn add(&self, claim: &Arc<Claim>) {
        self.0.lock().push(Arc::clone(claim));
    }

    pub(crate) fn take_all(&self) -> Vec<Arc<Claim>> {
        std::mem::take(&mut *self.0.lock())
    }

    /// Says whether the claim was still there.
    pub(crate) fn remove(&self, claim: &Arc<Claim>) -> bool {
        let mut claims = self.0.lock();
        let place = claims.iter().position(|known| Arc::ptr_eq(known, claim));
        place.map(|place| claims.swap_remove(place)).is_some()
    }
}
