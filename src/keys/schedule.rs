//! When the driver is to look after which key.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::clock::Moment;
use crate::keys::state::KeyState;
use crate::sync::Mutex;

/// One moment for each key that needs attention, the earliest at which it does (K10). Its lock is
/// taken under a key's, never the other way round.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    wakes: Mutex<Wakes>,
    /// The driver is to wake up before the moment until which it sleeps.
    early: Notify,
}

#[derive(Debug)]
struct Wakes {
    entries: BTreeSet<Wake>,
    /// Until when the driver sleeps if nobody wakes it.
    asleep_until: Moment,
}

impl Default for Wakes {
    fn default() -> Self {
        Self {
            entries: BTreeSet::new(),
            asleep_until: Moment::NEVER,
        }
    }
}

/// The place of a key in the schedule.
#[derive(Debug)]
struct Wake {
    at: Moment,
    key: Arc<KeyState>,
}

impl Schedule {
    /// Moves a key from one moment to another.
    pub(super) fn refile(&self, key: &Arc<KeyState>, from: Option<Moment>, to: Option<Moment>) {
        let mut wakes = self.wakes.lock();
        let wake = |at| Wake {
            at,
            key: Arc::clone(key),
        };
        if let Some(from) = from {
            wakes.entries.remove(&wake(from));
        }
        let early = to.filter(|to| *to < wakes.asleep_until);
        wakes.entries.extend(to.map(wake));
        if let Some(early) = early {
            wakes.asleep_until = early;
            drop(wakes);
            self.early.notify_one();
        }
    }

    /// The keys that need attention until then.
    pub(super) fn due(&self, until: Moment) -> Vec<Arc<KeyState>> {
        let wakes = self.wakes.lock();
        let due = wakes.entries.iter().take_while(|wake| wake.at <= until);
        due.map(|wake| Arc::clone(&wake.key)).collect()
    }

    /// Notes until when the driver sleeps now. It does not sleep past a moment that it was woken for:
    /// the lease may be gone, but most are followed by others, and none of them needs to wake it.
    pub(super) fn fall_asleep(&self, now: Moment) -> Option<Moment> {
        let mut wakes = self.wakes.lock();
        let first = wakes.entries.first().map(|wake| wake.at);
        let woken_for = Some(wakes.asleep_until).filter(|at| now < *at && *at < Moment::NEVER);
        let next = first.into_iter().chain(woken_for).min();
        wakes.asleep_until = next.unwrap_or(Moment::NEVER);
        next
    }

    pub(super) fn wake(&self) {
        self.early.notify_one();
    }

    /// Waits for what is to be done before the moment until which the driver sleeps.
    pub(super) async fn early(&self) {
        self.early.notified().await;
    }
}

impl Wake {
    fn place(&self) -> (Moment, *const KeyState) {
        (self.at, Arc::as_ptr(&self.key))
    }
}

impl PartialEq for Wake {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Wake {}

impl PartialOrd for Wake {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Wake {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

#[cfg(test)]
mod tests;
