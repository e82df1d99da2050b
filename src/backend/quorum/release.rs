//! Giving a claim up: at all servers, whatever is known of it there.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::fan_out::FanOut;
use crate::backend::quorum::claim_state::Vote;
use crate::backend::quorum::{Quorum, known};
use crate::backend::{Claim, Freed, SentBehind};
use crate::error::Fault;
use crate::key::Key;

impl Quorum {
    /// Freed if a majority had the key, not ours if a majority had not, or it was never granted.
    pub(super) async fn release(
        &self,
        claim: &Arc<Claim>,
        within: Duration,
    ) -> Result<Freed, Fault> {
        let state = self.state(claim);
        state.begin_release();
        let was_granted = state.fences().is_some();
        let mut freed = 0;
        let mut gone = 0;
        let mut faults = Vec::new();
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            if state.may_be_at(member) {
                fan_out.ask(
                    member,
                    server.free(claim, Arc::clone(state), member, within),
                );
            } else {
                gone += 1;
            }
        }
        loop {
            if freed >= self.majority {
                fan_out.finish_behind();
                return Ok(Freed::Freed);
            }
            if gone > self.minority() {
                fan_out.finish_behind();
                return Ok(Freed::NotOurs);
            }
            match fan_out.next().await {
                Some((_, Ok(Freed::Freed))) if was_granted => freed += 1,
                Some((_, Ok(_))) => gone += 1,
                Some((_, Err(fault))) => faults.push(fault),
                None => return Err(self.no_majority(&faults)),
            }
        }
    }

    /// Takes back what a lost race left at servers that answered, which others wait for. The rest is
    /// left to [`disown`](Self::disown), and so is all of it if this is cut short.
    pub(super) async fn give_back(&self, claim: &Arc<Claim>, grants: &[Vote], within: Duration) {
        let state = self.state(claim);
        state.end();
        let mut fan_out = FanOut::new();
        for &Vote { member, .. } in grants {
            let free = self.servers[member].free(claim, Arc::clone(state), member, within);
            fan_out.ask(member, free);
        }
        while let Some((member, answer)) = fan_out.next().await {
            if answer.is_ok() {
                state.note_gone(member);
            }
        }
    }

    /// Ends the claim, and sends a release behind each request that is cut short (S2).
    pub(super) fn disown(&self, claim: &Arc<Claim>) -> Option<Vec<SentBehind>> {
        let state = known(&**claim.at_store.get()?);
        state.end();
        let others = self.servers.iter().enumerate();
        let others = others.filter(|(member, _)| !state.is_releasing(*member));
        let sent = others.filter_map(|(_, server)| server.backend.disown(claim));
        let sent: Vec<_> = sent.flatten().collect();
        (state.is_left() || !sent.is_empty()).then_some(sent)
    }

    /// True if a majority had a holder's key.
    pub(super) async fn force_release(
        &self,
        key: &Arc<Key>,
        within: Duration,
    ) -> Result<bool, Fault> {
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            let (server, key) = (Arc::clone(server), Arc::clone(key));
            fan_out.ask(member, async move {
                server.backend.force_release(&key, within).await
            });
        }
        let mut freed = 0;
        let mut free = 0;
        let mut faults = Vec::new();
        while let Some((_, answer)) = fan_out.next().await {
            match answer {
                Ok(true) => freed += 1,
                Ok(false) => free += 1,
                Err(fault) => faults.push(fault),
            }
            if freed >= self.majority || free > self.minority() {
                fan_out.finish_behind();
                return Ok(freed >= self.majority);
            }
        }
        Err(self.no_majority(&faults))
    }
}
