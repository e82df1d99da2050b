//! Requests that may set a lock key and were not answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::backend::Claim;
use crate::backend::redis::connection::Connection;

/// The requests that were cut short and can set the key of their claim, by the claim's value: the
/// connections over which they were sent. They may be carried out yet (P10).
#[derive(Default)]
pub(in crate::backend) struct UnsettledRequests {
    connections: Mutex<HashMap<Arc<str>, Vec<Arc<Connection>>>>,
    /// How many values there are: as a rule none, which every release asks. Whoever asks about a
    /// value comes after its requests were cut short, and so sees at least that one.
    count: AtomicUsize,
}

impl UnsettledRequests {
    /// Notes that a request is about to be sent. It is unsettled until its answer was understood.
    pub(in crate::backend) fn begin<'a>(
        &'a self,
        claim: &'a Claim,
        connection: &Arc<Connection>,
    ) -> UnsettledRequest<'a> {
        UnsettledRequest {
            all: self,
            claim,
            connection: Some(Arc::clone(connection)),
        }
    }

    /// Forgets the requests of a claim. Returns the connections over which its key may yet be set,
    /// if there are any.
    pub(in crate::backend) fn take(&self, claim: &Claim) -> Option<Vec<Arc<Connection>>> {
        if self.is_empty() {
            return None;
        }
        let mut unsettled = self.connections.lock();
        let connections = unsettled.remove(&claim.value);
        self.count.store(unsettled.len(), Ordering::Release);
        connections
    }

    /// A request of this value was answered over a connection, and so every earlier one on it has
    /// run. What was sent over other connections stays unsettled.
    pub(in crate::backend) fn settle(&self, claim: &Claim, connection: &Arc<Connection>) {
        if self.is_empty() {
            return;
        }
        let mut unsettled = self.connections.lock();
        if let Some(connections) = unsettled.get_mut(&claim.value) {
            connections.retain(|known| !Arc::ptr_eq(known, connection));
            if connections.is_empty() {
                unsettled.remove(&claim.value);
                self.count.store(unsettled.len(), Ordering::Release);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }
}

/// A request that may set the key, from before it is sent until it is answered. Dropped before
/// that, it stays unsettled.
pub(in crate::backend) struct UnsettledRequest<'a> {
    all: &'a UnsettledRequests,
    claim: &'a Claim,
    connection: Option<Arc<Connection>>,
}

impl UnsettledRequest<'_> {
    /// The request was refused. An earlier one of the claim may have set the key all the same, and
    /// stays unsettled.
    pub(in crate::backend) fn forget(mut self) {
        self.connection = None;
    }

    /// The request was answered.
    pub(in crate::backend) fn settle(mut self) {
        if let Some(connection) = self.connection.take() {
            self.all.settle(self.claim, &connection);
        }
    }
}

impl Drop for UnsettledRequest<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let mut unsettled = self.all.connections.lock();
            let connections = unsettled.entry(Arc::clone(&self.claim.value)).or_default();
            if !connections
                .iter()
                .any(|known| Arc::ptr_eq(known, &connection))
            {
                connections.push(connection);
            }
            self.all.count.store(unsettled.len(), Ordering::Release);
        }
    }
}
