//! Renewal by majority.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::quorum::round::Round;
use crate::backend::quorum::{Quorum, lease};
use crate::backend::{Claim, Renewal};
use crate::fault::Fault;

impl Quorum {
    pub(super) async fn renew(
        &self,
        claim: &Arc<Claim>,
        within: Duration,
    ) -> Result<Renewal, Fault> {
        let mut round = Round::new();
        for (member, seat) in self.seats.iter().enumerate() {
            let (seat, claim) = (Arc::clone(seat), Arc::clone(claim));
            round.ask(
                member,
                async move { seat.member.renew(&claim, within).await },
            );
        }
        let mut deadlines = Vec::new();
        let mut removed = Vec::new();
        let mut stolen = 0;
        let mut faults = Vec::new();
        while let Some((member, answer)) = round.next().await {
            match answer {
                Ok(Renewal::Renewed { deadline }) => deadlines.push(deadline),
                Ok(Renewal::Removed) => removed.push(member),
                Ok(Renewal::Stolen) => stolen += 1,
                Err(fault) => faults.push(fault),
            }
            if deadlines.len() >= self.majority {
                self.mend(claim, removed, round, within);
                let deadline = lease(deadlines.into_iter(), self.majority);
                return Ok(Renewal::Renewed { deadline });
            }
            let gone = removed.len() + stolen;
            if gone > self.minority() {
                self.abandon(claim, within);
                return Ok(if stolen >= removed.len() {
                    Renewal::Stolen
                } else {
                    Renewal::Removed
                });
            }
            let open = round.open();
            if deadlines.len() + open < self.majority && gone + open <= self.minority() {
                break;
            }
        }
        Err(self.no_majority(&faults))
    }

    /// Undoes what a minority may have of a claim that is lost.
    fn abandon(&self, claim: &Arc<Claim>, within: Duration) {
        let stake = self.stake(claim);
        if !stake.end() {
            // A release is under way, and the renewal met its traces: the answers are the
            // release's to count.
            return;
        }
        for (member, seat) in self.seats.iter().enumerate() {
            if stake.may_be_at(member) {
                tokio::spawn(seat.free(claim, Arc::clone(stake), member, within));
            }
        }
    }
}
