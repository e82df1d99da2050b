//! Takes turns and leases back from futures that are not polled (Q6), on the driver's thread.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::acquire::queue::waiter::Reclaimed;
use crate::acquire::queue::{Queues, Waiter};
use crate::contain::contain;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long one may be without a poll after it was woken.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(1);

/// Looks at the keys at which somebody waits, as long as there are any.
pub(crate) async fn run<L>(queues: Arc<Queues<L>>) {
    let mut watch = Watch::default();
    loop {
        queues.somebody_waits.notified().await;
        // By then most waits are over.
        sleep(LOOK_EVERY).await;
        while watch.look(&queues, Instant::now()) {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Since when the one whose turn it is at a key has been known not to be polled.
#[derive(Default)]
pub(super) struct Watch(HashMap<Arc<str>, Instant>);

impl Watch {
    /// Says whether there is still a key to watch.
    pub(super) fn look<L>(&mut self, queues: &Arc<Queues<L>>, now: Instant) -> bool {
        for key in queues.take_to_watch() {
            self.0.insert(key, now);
        }
        self.0.retain(|key, since| {
            let Some(waiter) = queues.watched(key) else {
                return false;
            };
            contain(|| {
                if !waiter.ask() {
                    *since = now;
                } else if now >= *since + LONGEST_STANDSTILL {
                    queues.reclaim(key, &waiter);
                }
            });
            true
        });
        !self.0.is_empty()
    }
}

impl<L> Queues<L> {
    /// The keys that are to be watched from now on, until [`watched`](Self::watched) ends it.
    fn take_to_watch(&self) -> Vec<Arc<str>> {
        mem::take(&mut self.state.lock().to_watch)
    }

    /// The one whose turn it is, as long as somebody depends on its being polled (Q6).
    pub(super) fn watched(&self, key: &Arc<str>) -> Option<Arc<Waiter<L>>> {
        let mut state = self.state.lock();
        let occupied = state.keys.get_mut(key)?;
        if !occupied.has_waiters() && !occupied.present.is_called() {
            occupied.is_watched = false;
            return None;
        }
        Some(Arc::clone(&occupied.present))
    }

    /// Takes the turn, or the lease, from one that was asked and has not been polled since (Q6).
    pub(super) fn reclaim(self: &Arc<Self>, key: &Arc<str>, waiter: &Waiter<L>) {
        match waiter.reclaim() {
            Reclaimed::Call(called) => drop(called),
            Reclaimed::Turn => self.vacate(key, waiter.number),
            Reclaimed::Nothing => {}
        }
    }
}
