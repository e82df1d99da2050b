//! Giving a claim up: at all servers, whatever is known of it there.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::quorum::Quorum;
use crate::backend::quorum::round::Round;
use crate::backend::{Claim, Cleanup, Freed};
use crate::fault::Fault;
use crate::key::Key;

/// The longest that a clean-up waits for one server.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);
impl Quorum {
    /// Freed if a majority had the key, not ours if a majority had not.
    pub(super) async fn release(
        &self,
        claim: &Arc<Claim>,
        within: Duration,
    ) -> Result<Freed, Fault> {
        let stake = self.stake(claim);
        stake.end();
        // Every server is told now: that leaves nothing to a clean-up.
        stake.take_touched();
        let mut round = Round::new();
        for (member, seat) in self.seats.iter().enumerate() {
            round.ask(member, seat.free(claim, Arc::clone(stake), member, within));
        }
        let mut freed = 0;
        let mut gone = 0;
        let mut faults = Vec::new();
        while let Some((_, answer)) = round.next().await {
            match answer {
                Ok(Freed::Freed) => freed += 1,
                Ok(Freed::NotOurs) => gone += 1,
                Err(fault) => faults.push(fault),
            }
            if freed >= self.majority {
                round.finish_behind();
                return Ok(Freed::Freed);
            }
            if gone > self.minority() {
                round.finish_behind();
                return Ok(Freed::NotOurs);
            }
        }
        Err(self.no_majority(&faults))
    }

    /// One clean-up for all servers that may have the key, on the runtime of the acquire. At each
    /// server it goes the way of the acquire: see S2, and `disown` of the server itself.
    pub(super) fn disown(&self, claim: &Arc<Claim>) -> Vec<Cleanup> {
        let Some(stake) = claim.stake.get() else {
            return Vec::new();
        };
        stake.end();
        let touched = stake.take_touched();
        if touched.is_empty() {
            return Vec::new();
        }
        let within = CLEANUP_TIMEOUT.min(claim.ttl);
        let mut round = Round::new();
        for member in touched {
            let free = self.seats[member].free(claim, Arc::clone(stake), member, within);
            round.ask(member, free);
        }
        let run = async move {
            let mut result = Ok(Freed::NotOurs);
            while let Some((_, answer)) = round.next().await {
                if answer.is_err() {
                    result = answer;
                }
            }
            result
        };
        vec![Cleanup {
            runtime: stake.runtime().clone(),
            run: Box::pin(run),
        }]
    }

    /// True if a majority had a holder's key.
    pub(super) async fn force_release(
        &self,
        key: &Arc<Key>,
        within: Duration,
    ) -> Result<bool, Fault> {
        let mut round = Round::new();
        for (member, seat) in self.seats.iter().enumerate() {
            let (seat, key) = (Arc::clone(seat), Arc::clone(key));
            round.ask(member, async move {
                seat.member.force_release(&key, within).await
            });
        }
        let mut freed = 0;
        let mut free = 0;
        let mut faults = Vec::new();
        while let Some((_, answer)) = round.next().await {
            match answer {
                Ok(true) => freed += 1,
                Ok(false) => free += 1,
                Err(fault) => faults.push(fault),
            }
            if freed >= self.majority || free > self.minority() {
                round.finish_behind();
                return Ok(freed >= self.majority);
            }
        }
        Err(self.no_majority(&faults))
    }
}
