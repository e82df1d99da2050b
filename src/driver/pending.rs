//! How many releases are under way in the background.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

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
            // Not under the lock: a waker may drop the future that it wakes.
            drop(count);
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
