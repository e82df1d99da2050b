//! Renewal by majority, and the repair of servers that lost the key.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::quorum::round::Round;
use crate::backend::quorum::seat::Seat;
use crate::backend::quorum::stake::Stake;
use crate::backend::quorum::{Quorum, lease};
use crate::backend::{Claim, Renewal};
use crate::events::emit;
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

    /// Sees to the servers that did not renew although the majority did.
    fn mend(
        &self,
        claim: &Arc<Claim>,
        removed: Vec<usize>,
        mut late: Round<Result<Renewal, Fault>>,
        within: Duration,
    ) {
        if removed.is_empty() && late.open() == 0 {
            return;
        }
        let seats = self.seats.clone();
        let claim = Arc::clone(claim);
        let stake = Arc::clone(self.stake(&claim));
        let repair = move |member: usize| {
            let (seat, claim) = (Arc::clone(&seats[member]), Arc::clone(&claim));
            tokio::spawn(repair(seat, claim, Arc::clone(&stake), member, within));
        };
        removed.into_iter().for_each(&repair);
        tokio::spawn(async move {
            while let Some((member, answer)) = late.next().await {
                if let Ok(Renewal::Removed) = answer {
                    repair(member);
                }
            }
        });
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

/// Gives a server the key that it lost.
async fn repair(
    seat: Arc<Seat>,
    claim: Arc<Claim>,
    stake: Arc<Stake>,
    member: usize,
    within: Duration,
) {
    let Some(fences) = stake.fences() else { return };
    let request = seat.member.restore(&claim, fences, within);
    if let Some(Ok(true)) = stake.create(member, request).await {
        let server = seat.member.server();
        emit(move || {
            tracing::debug!(
                lock = %claim.key.name(),
                fence = fences.first,
                %server,
                "a server of the quorum had lost the key and got it back"
            );
        });
    }
}
