//! Takes turns and leases back from futures that are not polled (K6).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::contain::contain;
use crate::driver::Driver;
use crate::driver::held_lock::HeldLock;
use crate::keys::{KeyState, Left};

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long one may be without a poll after it was woken.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(1);

/// Looks at the keys at which somebody waits, as long as there are any.
pub(super) async fn watch(driver: Arc<Driver>) {
    loop {
        let mut watched = Watched::default();
        watched.add(driver.keys.newly_waited_for().await);
        // By then most waits are over.
        sleep(LOOK_EVERY).await;
        while watched.look(&driver, Instant::now()) {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Keys, and since when the one that has the turn has been known not to be polled.
#[derive(Default)]
struct Watched(Vec<(Arc<KeyState>, Instant)>);

impl Watched {
    fn add(&mut self, keys: Vec<Arc<KeyState>>) {
        let now = Instant::now();
        self.0.extend(keys.into_iter().map(|key| (key, now)));
    }

    /// Says whether there is still a key to watch.
    fn look(&mut self, driver: &Arc<Driver>, now: Instant) -> bool {
        self.add(driver.keys.take_to_watch());
        self.0.retain_mut(|(state, since)| {
            let Some(waiter) = driver.keys.to_be_polled(state) else {
                return false;
            };
            contain(|| {
                if !waiter.ask() {
                    *since = now;
                } else if now >= *since + LONGEST_STANDSTILL {
                    match driver.keys.reclaim(state, &waiter) {
                        Left::Nothing(wakes) => wakes.wake(),
                        Left::Lease(lease, claim) => {
                            drop(HeldLock::new(driver, state, lease, claim));
                        }
                    }
                }
            });
            true
        });
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
