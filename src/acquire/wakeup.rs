//! What Redis tells without being asked, routed to the waiters and holders of this process.
//!
//! All of it is hints: a waiter's heartbeat and a holder's renewal bound how long a missing one
//! can matter (P11).

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio::runtime;
use tokio::sync::Notify;

use crate::backend::{Claim, Grant, Signals};
use crate::driver::Driver;

const CONTENDED_KEYS: usize = 1024;
/// The grant of one that waited before these stays until it expires, after a waiter's life.
const GONE_WAITERS: usize = 4096;

#[derive(Default)]
pub(crate) struct Wakeups {
    /// The contenders of each key: more than one only if an earlier one was not polled (Q6).
    waiting: Mutex<HashMap<Arc<str>, Vec<Arc<Slot>>>>,
    /// The contenders that left the register last, the newest in front: a heartbeat of theirs may
    /// yet run.
    gone: Mutex<VecDeque<Arc<Claim>>>,
    /// Keys that somebody else had when they were last asked for. Only a hint: forgotten when
    /// there are too many.
    contended: Mutex<HashSet<Arc<str>>>,
    driver: OnceLock<Weak<Driver>>,
}

/// Where a contender finds what came for it.
struct Slot {
    claim: Arc<Claim>,
    news: Mutex<News>,
    arrived: Notify,
}

#[derive(Default)]
struct News {
    grant: Option<Grant>,
    nudge: Option<Nudge>,
}

/// Why a contender should ask Redis now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nudge {
    /// The lock's key changed: of interest to the first of the queue.
    Changed,
    /// A connection was lost, and perhaps news with it, or all keys changed: of interest to all.
    Deaf,
}

impl Wakeups {
    /// Names the driver that looks after the holders.
    pub(crate) fn attach(&self, driver: &Arc<Driver>) {
        let _ = self.driver.set(Arc::downgrade(driver));
    }

    /// Registers a contender, from before its first heartbeat until it holds or has left.
    pub(crate) fn listen(self: &Arc<Self>, claim: &Arc<Claim>) -> Listener {
        let slot = Arc::new(Slot {
            claim: Arc::clone(claim),
            news: Mutex::default(),
            arrived: Notify::new(),
        });
        let key = Arc::clone(claim.key.name());
        let mut waiting = self.waiting.lock();
        let slots = waiting.entry(Arc::clone(&key)).or_default();
        slots.push(Arc::clone(&slot));
        Listener {
            wakeups: Arc::clone(self),
            key,
            slot,
        }
    }

    /// The claims of all contenders that are registered.
    pub(crate) fn waiting(&self) -> Vec<Arc<Claim>> {
        let waiting = self.waiting.lock();
        waiting
            .values()
            .flatten()
            .map(|slot| Arc::clone(&slot.claim))
            .collect()
    }

    /// Whether an attempt at the key would probably be refused.
    pub(crate) fn was_contended(&self, key: &str) -> bool {
        self.contended.lock().contains(key)
    }

    pub(crate) fn note_contention(&self, key: &Arc<str>) {
        let mut contended = self.contended.lock();
        if contended.len() >= CONTENDED_KEYS {
            contended.clear();
        }
        contended.insert(Arc::clone(key));
    }

    pub(crate) fn note_calm(&self, key: &str) {
        self.contended.lock().remove(key);
    }

    fn nudge(&self, key: Option<&str>, nudge: Nudge) {
        let waiting = self.waiting.lock();
        let slots: Vec<_> = match key {
            Some(key) => waiting.get(key).into_iter().flatten().cloned().collect(),
            None => waiting.values().flatten().cloned().collect(),
        };
        drop(waiting);
        // Not under a lock: a waker may drop the future that it wakes.
        for slot in slots {
            {
                let mut news = slot.news.lock();
                news.nudge = news.nudge.max(Some(nudge));
            }
            slot.arrived.notify_one();
        }
    }

    fn note_gone(&self, claim: &Arc<Claim>) {
        let mut gone = self.gone.lock();
        gone.truncate(GONE_WAITERS - 1);
        gone.push_front(Arc::clone(claim));
    }

    /// The claim of a contender that waited for what was granted, and does not any more.
    fn gone(&self, grant: &Grant) -> Option<Arc<Claim>> {
        let gone = self.gone.lock();
        let mut same = gone
            .iter()
            .filter(|claim| *claim.value == *grant.value && **claim.key.name() == *grant.key);
        same.next().cloned()
    }

    fn driver(&self) -> Option<Arc<Driver>> {
        self.driver.get()?.upgrade()
    }
}

impl Signals for Wakeups {
    fn changed(&self, key: Option<&str>, runtime: Option<runtime::Id>) {
        let nudge = match key {
            Some(_) => Nudge::Changed,
            // The queue may be gone, too.
            None => Nudge::Deaf,
        };
        self.nudge(key, nudge);
        if let Some(driver) = self.driver() {
            driver.changed(key, runtime);
        }
    }

    fn deaf(&self, runtime: runtime::Id) {
        self.nudge(None, Nudge::Deaf);
        if let Some(driver) = self.driver() {
            driver.deaf(runtime);
        }
    }

    fn granted(&self, grant: Grant) {
        let waiting = self.waiting.lock();
        let slots = waiting.get(&*grant.key);
        let is_for = |slot: &&Arc<Slot>| *slot.claim.value == *grant.value;
        if let Some(slot) = slots.and_then(|slots| slots.iter().find(is_for)).cloned() {
            slot.news.lock().grant = Some(grant);
            drop(waiting);
            slot.arrived.notify_one();
            return;
        }
        drop(waiting);
        // A contender registers before it asks and holds before it leaves the register, so a value
        // that is in neither place belongs to nobody any more: pass the lock on, at once. But only
        // one of ours: anybody may write to the channel, and name a value of somebody else's (P6).
        if let Some(claim) = self.gone(&grant)
            && let Some(driver) = self.driver()
            && !driver.holds(&grant.key, &grant.value)
        {
            driver.leave(claim);
        }
    }
}

impl fmt::Debug for Wakeups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wakeups").finish_non_exhaustive()
    }
}

/// A contender's place in the register.
pub(crate) struct Listener {
    wakeups: Arc<Wakeups>,
    key: Arc<str>,
    slot: Arc<Slot>,
}

impl Listener {
    /// Waits for a grant.
    ///
    /// # Cancel safety
    ///
    /// A grant that was not returned stays for the next call.
    pub(crate) async fn grant(&self) -> Grant {
        loop {
            if let Some(grant) = self.slot.news.lock().grant.take() {
                return grant;
            }
            self.slot.arrived.notified().await;
        }
    }

    /// Whether a grant is there that was not returned yet.
    pub(crate) fn has_grant(&self) -> bool {
        self.slot.news.lock().grant.is_some()
    }

    /// Waits for a grant (`Ok`) or for a nudge of at least this urgency.
    pub(crate) async fn news(&self, least: Nudge) -> Result<Grant, Nudge> {
        loop {
            {
                let mut news = self.slot.news.lock();
                if let Some(grant) = news.grant.take() {
                    return Ok(grant);
                }
                if let Some(nudge) = news.nudge.take_if(|nudge| *nudge >= least) {
                    return Err(nudge);
                }
            }
            self.slot.arrived.notified().await;
        }
    }

    /// Forgets the nudges so far: what they ask for is about to be done.
    pub(crate) fn heed(&self) {
        self.slot.news.lock().nudge = None;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Before it leaves the register: see `granted`.
        self.wakeups.note_gone(&self.slot.claim);
        let mut waiting = self.wakeups.waiting.lock();
        if let Some(slots) = waiting.get_mut(&self.key) {
            slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
            if slots.is_empty() {
                waiting.remove(&self.key);
            }
        }
    }
}
