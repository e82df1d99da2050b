//! Those that wait in turn, and what the servers' queues said to them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Claims that wait, by their values. What is said of others is not kept.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    waiting: Mutex<HashMap<Arc<str>, Stage>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Waiting,
    /// The queue's server has said that it is its turn.
    Called,
    /// It asks for votes, and is not to be disturbed.
    Contending,
}

impl Waiters {
    pub(super) fn add(self: &Arc<Self>, value: &Arc<str>) -> Entry {
        let mut waiting = self.waiting.lock();
        waiting.insert(Arc::clone(value), Stage::Waiting);
        Entry {
            waiters: Arc::clone(self),
            value: Arc::clone(value),
        }
    }

    /// A queue's server has said that it is the turn of this value; says whether that is news.
    pub(super) fn call(&self, value: &str) -> bool {
        match self.waiting.lock().get_mut(value) {
            Some(stage @ Stage::Waiting) => {
                *stage = Stage::Called;
                true
            }
            Some(Stage::Called | Stage::Contending) => false,
            // It does not wait any more: its turn is to go on to the next.
            None => true,
        }
    }
}

/// A claim's entry among those that wait.
#[derive(Debug)]
pub(super) struct Entry {
    waiters: Arc<Waiters>,
    value: Arc<str>,
}

impl Entry {
    pub(super) fn enter(&self, stage: Stage) -> Option<Stage> {
        let mut waiting = self.waiters.waiting.lock();
        waiting.insert(Arc::clone(&self.value), stage)
    }

    pub(super) fn is_called(&self) -> bool {
        self.waiters.waiting.lock().get(&self.value) == Some(&Stage::Called)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.waiters.waiting.lock().remove(&self.value);
    }
}
