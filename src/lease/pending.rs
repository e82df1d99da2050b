//! How many releases are under way, and the wait until there are none.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Pending {
    count: Mutex<Count>,
    fewer: Condvar,
    none_left_async: Notify,
}

#[derive(Debug, Default)]
struct Count {
    all: usize,
    /// Those that need a caller's only thread. If it blocked until they are done, it would wait
    /// for itself.
    on_callers_thread: usize,
}

impl Pending {
    pub(crate) fn begin(&self, on_callers_thread: bool) {
        let mut count = self.count.lock();
        count.all += 1;
        count.on_callers_thread += usize::from(on_callers_thread);
    }

    /// A release that needed a caller's thread needs it no longer.
    pub(crate) fn leave_callers_thread(&self) {
        self.count.lock().on_callers_thread -= 1;
    }

    pub(crate) fn end(&self, on_callers_thread: bool) {
        let mut count = self.count.lock();
        count.all -= 1;
        count.on_callers_thread -= usize::from(on_callers_thread);
        self.fewer.notify_all();
        if count.all == 0 {
            self.none_left_async.notify_waiters();
        }
    }

    /// Blocks until no release is pending that the present thread could wait for, at most
    /// `bound`; says whether none is.
    pub(crate) fn wait(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut count = self.count.lock();
        while count.all > count.on_callers_thread {
            if self.fewer.wait_until(&mut count, until).timed_out() {
                break;
            }
        }
        count.all <= count.on_callers_thread
    }

    /// Waits until no release is pending.
    pub(crate) async fn wait_async(&self) {
        loop {
            let notified = self.none_left_async.notified();
            if self.count.lock().all == 0 {
                return;
            }
            notified.await;
        }
    }
}
