//! What is told of a lease: that it was lost, or that a renewal failed.

use std::sync::Arc;

use crate::driver::watch::Watch;
use crate::events::emit;
use crate::fault::Fault;
use crate::lease::Lease;

/// A lease that was taken off the roster.
#[derive(Debug)]
pub(crate) struct Unwatched {
    pub(super) watch: Watch,
    is_lost: bool,
}

impl Unwatched {
    pub(super) fn new(watch: Watch, is_lost: bool) -> Self {
        Self { watch, is_lost }
    }
}

impl Drop for Unwatched {
    fn drop(&mut self) {
        if self.is_lost {
            say_lost(&self.watch);
        }
    }
}

/// Tells of a loss that is settled (D3).
pub(super) fn say_lost(watch: &Watch) {
    let (lease, claim) = (Arc::clone(&watch.lease), Arc::clone(&watch.claim));
    let Some(reason) = lease.lost_reason() else {
        return;
    };
    emit(move || {
        tracing::warn!(
            lock = %lease.key().name(),
            owner = %claim.value,
            fence = lease.fence(),
            %reason,
            "the lease was lost"
        );
    });
}

pub(super) fn note_failure(lease: &Arc<Lease>, fault: Fault) {
    lease.note_failure(fault.cause.clone());
    let lease = Arc::clone(lease);
    emit(move || {
        tracing::debug!(
            lock = %lease.key().name(),
            fence = lease.fence(),
            server = %fault.server,
            cause = %fault.cause,
            "a renewal failed and is tried again"
        );
    });
}
