//! Those that wait in turn, and what the servers' queues said to them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Claims that wait, by their values. What is said of others is not kept.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    waiting: Mutex<HashMap<Arc<str>, Call>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Waiting,
    /// The queue's server has said that it is its turn.
    Called,
    /// It asks for votes, and is not to be disturbed.
    Contending,
}

impl Calls {
    pub(super) fn ticket(self: &Arc<Self>, value: &Arc<str>) -> Ticket {
        let mut waiting = self.waiting.lock();
        waiting.insert(Arc::clone(value), Call::Waiting);
        Ticket {
            calls: Arc::clone(self),
            value: Arc::clone(value),
        }
    }

    /// A queue's server has said that it is the turn of this value; says whether that is news.
    pub(super) fn call(&self, value: &str) -> bool {
        match self.waiting.lock().get_mut(value) {
            Some(call @ Call::Waiting) => {
                *call = Call::Called;
                true
            }
            Some(Call::Called | Call::Contending) => false,
            // It does not wait any more: its turn is to go on to the next.
            None => true,
        }
    }
}

/// A claim's entry among those that wait.
#[derive(Debug)]
pub(super) struct Ticket {
    calls: Arc<Calls>,
    value: Arc<str>,
}

impl Ticket {
    pub(super) fn enter(&self, call: Call) -> Option<Call> {
        let mut waiting = self.calls.waiting.lock();
        waiting.insert(Arc::clone(&self.value), call)
    }

    pub(super) fn is_called(&self) -> bool {
        self.calls.waiting.lock().get(&self.value) == Some(&Call::Called)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.calls.waiting.lock().remove(&self.value);
    }
}
