//! Claims that may be granted without anybody's knowing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::backend::Claim;
use crate::backend::redis::connection::Connection;

/// Values of which a request was cut short that can set the key, and the ways it was sent: it may
/// be carried out yet (P10).
#[derive(Default)]
pub(in crate::backend) struct Doubts {
    ways: Mutex<HashMap<Arc<str>, Vec<Arc<Connection>>>>,
    /// How many values there are: as a rule none, which every release asks. Whoever asks about a
    /// value comes after those that put it in doubt, and so sees at least that one.
    count: AtomicUsize,
}

impl Doubts {
    /// Holds a claim in doubt until the answer was understood.
    pub(in crate::backend) fn raise<'a>(
        &'a self,
        claim: &'a Claim,
        way: &Arc<Connection>,
    ) -> Doubt<'a> {
        Doubt {
            doubts: self,
            claim,
            way: Some(Arc::clone(way)),
        }
    }

    /// Ends the doubt about a claim: the ways on which its key may yet be set, if there are any.
    pub(in crate::backend) fn take(&self, claim: &Claim) -> Option<Vec<Arc<Connection>>> {
        if self.is_empty() {
            return None;
        }
        let mut doubts = self.ways.lock();
        let ways = doubts.remove(&claim.value);
        self.count.store(doubts.len(), Ordering::Release);
        ways
    }

    /// A request of this value was answered on a way, and so every earlier one on it has run; what
    /// was sent on other ways stays in doubt.
    pub(in crate::backend) fn settle(&self, claim: &Claim, way: &Arc<Connection>) {
        if self.is_empty() {
            return;
        }
        let mut doubts = self.ways.lock();
        if let Some(ways) = doubts.get_mut(&claim.value) {
            ways.retain(|known| !Arc::ptr_eq(known, way));
            if ways.is_empty() {
                doubts.remove(&claim.value);
                self.count.store(doubts.len(), Ordering::Release);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }
}

/// A claim as possibly granted, from before a request is sent until it is answered. Dropped before
/// that, it stays in doubt.
pub(in crate::backend) struct Doubt<'a> {
    doubts: &'a Doubts,
    claim: &'a Claim,
    way: Option<Arc<Connection>>,
}

impl Doubt<'_> {
    /// The request was answered.
    pub(in crate::backend) fn settle(mut self) {
        if let Some(way) = self.way.take() {
            self.doubts.settle(self.claim, &way);
        }
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(way) = self.way.take() {
            let mut doubts = self.doubts.ways.lock();
            let ways = doubts.entry(Arc::clone(&self.claim.value)).or_default();
            if !ways.iter().any(|known| Arc::ptr_eq(known, &way)) {
                ways.push(way);
            }
            self.doubts.count.store(doubts.len(), Ordering::Release);
        }
    }
}
