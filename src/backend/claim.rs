//! What a contender asks for.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::backend::answer::{Fences, Grant};
use crate::clock::Moment;
use crate::key::Key;
use crate::options::{margin, whole_millis};

/// A waiter in the queue of Redis lives this long after its last heartbeat, at most.
const LONGEST_WAITER_TTL: Duration = Duration::from_secs(3);
const SHORTEST_WAITER_TTL: Duration = Duration::from_millis(500);

/// What a contender asks for: the same from the first attempt to the release.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) key: Arc<Key>,
    /// Tells this acquisition from all others (P6).
    pub(crate) value: Arc<str>,
    /// In whole milliseconds.
    pub(crate) ttl: Duration,
    /// The last fencing number in use, if more were reserved; else 0. The release gives the rest
    /// back, so that the counter does not run ahead of the clock (P8).
    last_fence: AtomicU64,
    /// The last that was reserved.
    last_reserved: AtomicU64,
    /// The number of the connection that the last heartbeat was answered on, else 0: that one
    /// hears of the grant.
    heard_on: AtomicU64,
    /// The number of the connection over which it was last asked to be told of changes to the key,
    /// else 0.
    tracked_on: AtomicU64,
    /// What the store that is asked keeps of the claim: a quorum, what it knows at its servers.
    pub(super) at_store: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Claim {
    pub(crate) fn new(key: Arc<Key>, value: Arc<str>, ttl: Duration) -> Self {
        Self {
            key,
            value,
            ttl,
            last_fence: AtomicU64::new(0),
            last_reserved: AtomicU64::new(0),
            heard_on: AtomicU64::new(0),
            tracked_on: AtomicU64::new(0),
            at_store: OnceLock::new(),
        }
    }

    pub(crate) fn ttl_millis(&self) -> u64 {
        whole_millis(self.ttl)
    }

    /// P3: until when a lease counts that was asked for at `sent`.
    pub(crate) fn deadline(&self, sent: Moment) -> Moment {
        sent + (self.ttl - margin(self.ttl))
    }

    /// When the request was sent that was granted until `deadline`.
    pub(crate) fn sent(&self, deadline: Moment) -> Moment {
        deadline.minus(self.ttl - margin(self.ttl))
    }

    /// How long a waiter for this claim lives without a heartbeat.
    pub(crate) fn waiter_ttl(&self) -> Duration {
        self.ttl.clamp(SHORTEST_WAITER_TTL, LONGEST_WAITER_TTL)
    }

    /// Until when a lease counts that a releaser granted. `None` if none of our scripts can have
    /// said so: whoever may write to the queue, or to the channel, can say anything.
    pub(crate) fn lease_of(&self, grant: &Grant, now: Moment) -> Option<Moment> {
        let is_ours =
            grant.stamp <= now && grant.life <= self.waiter_ttl() && grant.fences.are_in_range();
        // P3: a releaser grants no more than the TTL, and did so before now.
        is_ours.then(|| grant.deadline().min(self.deadline(now)))
    }

    /// Notes a reservation, of which the first number is in use. One of a single number leaves
    /// nothing to give back, and replaces one that did.
    pub(crate) fn note_reserved(&self, fences: Fences) {
        if fences.count > 1 || self.last_fence.load(Ordering::Relaxed) > 0 {
            self.note_fence(fences.first);
            self.last_reserved.store(fences.last(), Ordering::Relaxed);
        }
    }

    pub(crate) fn note_fence(&self, fence: u64) {
        self.last_fence.store(fence, Ordering::Relaxed);
    }

    /// Notes which connection a grant would be heard on, and returns the one of before.
    pub(crate) fn note_heard_on(&self, connection: u64) -> u64 {
        self.heard_on.swap(connection, Ordering::Relaxed)
    }

    /// Whether a grant may have been told over this connection. Before the first answer, it may have
    /// been told over any.
    pub(crate) fn may_be_heard_on(&self, connection: u64) -> bool {
        let heard_on = self.heard_on.load(Ordering::Relaxed);
        heard_on == 0 || heard_on == connection
    }

    /// Notes over which connection the server is about to be asked to tell of changes.
    pub(crate) fn note_tracked_on(&self, connection: u64) {
        self.tracked_on.store(connection, Ordering::Relaxed);
    }

    pub(crate) fn is_tracked_on(&self, connection: u64) -> bool {
        self.tracked_on.load(Ordering::Relaxed) == connection
    }

    /// Whether it has waited in the queue: where one waits, others may.
    pub(crate) fn has_waited(&self) -> bool {
        self.heard_on.load(Ordering::Relaxed) != 0
    }

    /// The last fencing numbers in use and reserved, if more were reserved than are in use.
    pub(crate) fn to_give_back(&self) -> Option<(u64, u64)> {
        match self.last_fence.load(Ordering::Relaxed) {
            0 => None,
            fence => Some((fence, self.last_reserved.load(Ordering::Relaxed))),
        }
    }
}
