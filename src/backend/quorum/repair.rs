//! The repair of servers that lack the key of a claim that a majority has.
//!
//! It is subject to S1 and S2 of [`claim_state`](crate::backend::quorum::claim_state), so it does
//! not outlive a release. It runs on the driver's thread. A server in trouble is asked again until the repair
//! ends, which is long before the grant or the renewal that it follows does, so the majority
//! stands.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::backend::fan_out::FanOut;
use crate::backend::quorum::Quorum;
use crate::backend::quorum::claim_state::ClaimState;
use crate::backend::quorum::server::QuorumServer;
use crate::backend::{Attempt, Claim, Renewal};
use crate::backoff::Backoff;
use crate::error::Fault;
use crate::events::emit;

/// A loser of a race gives its minority back within some milliseconds.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(250);
/// A repair goes on for so long, or for this share of the TTL, whichever is shorter: then it is the
/// next renewal's business.
const LONGEST_REPAIR: Duration = Duration::from_secs(2);
const SHARE_OF_TTL: u32 = 3;

impl Quorum {
    /// Sees to the servers that did not grant although the majority did.
    pub(super) fn complete(
        &self,
        claim: &Arc<Claim>,
        without_key: Vec<usize>,
        late: FanOut<Option<Result<Attempt, Fault>>>,
        within: Duration,
    ) {
        let is_without_key = |answer: &Option<Result<Attempt, Fault>>| match answer {
            Some(Ok(Attempt::Held { .. })) => true,
            Some(Err(fault)) => !fault.permanent,
            Some(Ok(Attempt::Granted { .. })) | None => false,
        };
        self.repair_all(
            claim,
            without_key,
            late,
            is_without_key,
            FIRST_RETRY,
            within,
        );
    }

    /// Sees to the servers that did not renew although the majority did.
    pub(super) fn mend(
        &self,
        claim: &Arc<Claim>,
        removed: Vec<usize>,
        late: FanOut<Result<Renewal, Fault>>,
        within: Duration,
    ) {
        let is_removed = |answer: &_| matches!(answer, Ok(Renewal::Removed));
        self.repair_all(claim, removed, late, is_removed, Duration::ZERO, within);
    }

    /// Repairs those that lack the key, and those whose late answers tell that they do.
    fn repair_all<T: Send + 'static>(
        &self,
        claim: &Arc<Claim>,
        without_key: Vec<usize>,
        mut late: FanOut<T>,
        is_without_key: impl Fn(&T) -> bool + Send + 'static,
        pause: Duration,
        within: Duration,
    ) {
        if without_key.is_empty() && late.open() == 0 {
            return;
        }
        // The caller's runtime may not be driven any more when the grant is in its hands.
        let driver = self.driver.get().cloned();
        let driver = driver.unwrap_or_else(Handle::current);
        let servers = self.servers.clone();
        let state = Arc::clone(self.state(claim));
        let claim = Arc::clone(claim);
        let repair = move |member: usize| {
            let (server, claim) = (Arc::clone(&servers[member]), Arc::clone(&claim));
            let state = Arc::clone(&state);
            driver.spawn(async move {
                sleep(pause).await;
                repair(server, claim, state, member, within).await;
            });
        };
        without_key.into_iter().for_each(&repair);
        tokio::spawn(async move {
            while let Some((member, answer)) = late.next().await {
                if is_without_key(&answer) {
                    repair(member);
                }
            }
        });
    }
}

/// Gives a server the key, as soon as nobody else has it there.
async fn repair(
    server: Arc<QuorumServer>,
    claim: Arc<Claim>,
    state: Arc<ClaimState>,
    member: usize,
    within: Duration,
) {
    let Some(fences) = state.fences() else { return };
    let until = Instant::now() + LONGEST_REPAIR.min(claim.ttl / SHARE_OF_TTL);
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    while Instant::now() < until {
        let (asked, claimed) = (Arc::clone(&server), Arc::clone(&claim));
        let request = async move { asked.backend.restore(&claimed, fences, within).await };
        match state.create(member, request).await {
            Some(Ok(true)) => {
                let server = server.backend.server();
                return emit(move || {
                    tracing::debug!(
                        lock = %claim.key.name(),
                        fence = fences.first,
                        %server,
                        "a server of the quorum lacked the key and got it"
                    );
                });
            }
            Some(Ok(false)) => state.note_gone(member),
            Some(Err(fault)) if !fault.permanent => {}
            // A server that refuses for good, or the end of the claim.
            Some(Err(_)) | None => return,
        }
        sleep(backoff.next()).await;
    }
}
