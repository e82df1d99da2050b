//! Giving a claim up: at all servers, whatever is known of it there.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::backend::quorum::round::Round;
use crate::backend::quorum::stake::Stake;
use crate::backend::quorum::{Member, Quorum};
use crate::backend::{Claim, Cleanup, Freed};
use crate::backoff::Backoff;
use crate::fault::Fault;
use crate::key::Key;

/// The longest that a clean-up waits for one server.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);
/// So many releases at a time are tried again at a server that does not answer. The keys of
/// further ones stay there until their TTL.
const RETRIES: usize = 64;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(500);

/// A server of the quorum.
pub(super) struct Seat {
    pub(super) member: Arc<dyn Member>,
    retries: Arc<Semaphore>,
}

impl Seat {
    pub(super) fn new(member: Arc<dyn Member>) -> Arc<Self> {
        Arc::new(Self {
            member,
            retries: Arc::new(Semaphore::new(RETRIES)),
        })
    }

    /// Frees the key at one server. What cannot be done at once is done behind the scenes.
    pub(super) fn free(
        self: &Arc<Self>,
        claim: &Arc<Claim>,
        stake: Arc<Stake>,
        member: usize,
        within: Duration,
    ) -> impl Future<Output = Result<Freed, Fault>> + Send + use<> {
        let (seat, claim) = (Arc::clone(self), Arc::clone(claim));
        let releasing = stake.begin_release();
        async move {
            let _releasing = releasing;
            let overtakes = !stake.is_quiet(member);
            let answer = seat.member.release(&claim, within).await;
            let answer = answer.map(|freed| stake.note_release(member, freed));
            if overtakes {
                tokio::spawn(seat.free_again(claim, stake, member, within));
            } else if answer.as_ref().is_err_and(|fault| !fault.permanent) {
                seat.insist(claim, within);
            }
            answer
        }
    }

    /// S2: frees the key behind requests that may have set it after the first release.
    async fn free_again(
        self: Arc<Self>,
        claim: Arc<Claim>,
        stake: Arc<Stake>,
        member: usize,
        within: Duration,
    ) {
        stake.quiet(member).await;
        let answer = self.member.release(&claim, within).await;
        if answer.is_err_and(|fault| !fault.permanent) {
            self.insist(claim, within);
        }
    }

    /// Tries to free the key until it is, or is gone by its TTL.
    fn insist(self: Arc<Self>, claim: Arc<Claim>, within: Duration) {
        let Ok(permit) = Arc::clone(&self.retries).try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let until = Instant::now() + claim.ttl;
            let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
            while Instant::now() < until {
                tokio::time::sleep(backoff.next()).await;
                match self.member.release(&claim, within).await {
                    Err(fault) if !fault.permanent => {}
                    _ => return,
                }
            }
        });
    }
}

impl Quorum {
    /// Freed if a majority had the key, not ours if a majority had not.
    pub(super) async fn release(
        &self,
        claim: &Arc<Claim>,
        within: Duration,
    ) -> Result<Freed, Fault> {
        let stake = self.stake(claim);
        stake.end();
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
