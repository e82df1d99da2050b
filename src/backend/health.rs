//! What is known of a connection's health.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many requests may time out in a row before the connection is taken for dead.
const TIMEOUTS_BEFORE_REOPENING: u32 = 2;

#[derive(Default)]
pub(crate) struct Health {
    broken: AtomicBool,
    ended: AtomicBool,
    timeouts: AtomicU32,
}

impl Health {
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    pub(crate) fn note_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    pub(crate) fn note_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.note_broken();
    }

    /// Whether the task that drove the connection is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn note_answer(&self) {
        self.timeouts.store(0, Ordering::Relaxed);
    }

    pub(crate) fn note_timeout(&self) {
        if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_BEFORE_REOPENING {
            self.note_broken();
        }
    }
}
