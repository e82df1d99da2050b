//! What is told of a lease: that it was lost, or that a renewal failed.

use std::sync::Arc;

use crate::backend::Claim;
use crate::error::Fault;
use crate::events::emit;
use crate::keys::HeldClaim;
use crate::lease::Lease;

/// Tells of a loss that is settled (D3).
pub(super) fn say_lost(held: &HeldClaim) {
    say_lease_lost(&held.lease, &held.claim);
}

pub(super) fn say_lease_lost(lease: &Arc<Lease>, claim: &Arc<Claim>) {
    let Some(reason) = lease.lost_reason() else {
        return;
    };
    let (lease, claim) = (Arc::clone(lease), Arc::clone(claim));
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
