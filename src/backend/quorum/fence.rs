//! One fencing number out of a majority's.
//!
//! A server keeps the counter and the value of the claim that wrote it. A grant answers the next
//! number, or the floor if that is larger; as all servers get the same floor, they answer the same
//! number as a rule. Then a majority has reserved it and nothing is left to do. (A server whose vote was
//! kept may have reserved fewer numbers than the others: then the rest is written back, too.)
//!
//! Why the order of P8 holds: a token is at a majority of the servers before the acquire returns,
//! and any later acquire's majority shares a server with that one, which answers a larger number.
//! Why tokens are unique: two holders' majorities share a server as well, and that one accepts a
//! number only above its counter, or on top of the same claim's own, but not below it: a larger
//! one of ours can come from a grant that ran late, after somebody else had the token. The model in
//! `tests/` searches for a counterexample, and finds one when any of these rules is taken out.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::fan_out::FanOut;
use crate::backend::quorum::claim_state::Vote;
use crate::backend::quorum::{Quorum, lease};
use crate::backend::{Attempt, Claim, Fences};
use crate::error::Fault;
use crate::events::emit;

impl Quorum {
    /// Turns a majority of grants into one.
    pub(super) async fn settle_fence(
        &self,
        claim: &Arc<Claim>,
        grants: &[Vote],
        asked: Fences,
        within: Duration,
    ) -> Result<Attempt, Fault> {
        let deadline = lease(grants.iter().map(|grant| grant.deadline), self.majority);
        let largest = grants.iter().map(|grant| grant.fences.first).max();
        let fences = Fences {
            first: largest.unwrap_or(asked.first),
            count: asked.count,
        };
        let agreeing: Vec<_> = grants
            .iter()
            .filter(|Vote { fences: own, .. }| {
                own.first == fences.first && own.count >= fences.count
            })
            .map(|grant| grant.member)
            .collect();
        if agreeing.len() < self.majority {
            let granted = self.write_back(claim, fences, &agreeing, within).await?;
            if !granted {
                return Ok(Attempt::Held {
                    ttl: Some(Duration::ZERO),
                });
            }
        }
        self.state(claim).note_fences(fences);
        Ok(Attempt::Granted { fences, deadline })
    }

    /// Has a majority accept the numbers; false if the lock is no longer ours at so many servers
    /// that this cannot be.
    async fn write_back(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        agreeing: &[usize],
        within: Duration,
    ) -> Result<bool, Fault> {
        let (key, fence) = (Arc::clone(&claim.key), fences.first);
        emit(move || {
            tracing::trace!(
                lock = %key.name(),
                fence,
                "the servers granted different fencing numbers; the largest is written back"
            );
        });
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            if !agreeing.contains(&member) {
                let (server, claim) = (Arc::clone(server), Arc::clone(claim));
                fan_out.ask(member, async move {
                    server.backend.raise(&claim, fences, within).await
                });
            }
        }
        let mut accepted = agreeing.len();
        let mut refused = 0;
        let mut faults = Vec::new();
        while let Some((_, answer)) = fan_out.next().await {
            match answer {
                Ok(true) => accepted += 1,
                Ok(false) => refused += 1,
                Err(fault) => faults.push(fault),
            }
            if accepted >= self.majority {
                fan_out.finish_behind();
                return Ok(true);
            }
            if refused > self.minority() {
                return Ok(false);
            }
        }
        Err(self.no_majority(&faults))
    }
}
