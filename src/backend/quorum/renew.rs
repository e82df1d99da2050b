//! Renewal by majority.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::fan_out::FanOut;
use crate::backend::quorum::{Quorum, lease};
use crate::backend::{Claim, Listen, Look, Renewal};
use crate::error::Fault;

impl Quorum {
    pub(super) async fn renew(
        &self,
        claim: &Arc<Claim>,
        listen: Listen,
        within: Duration,
    ) -> Result<Renewal, Fault> {
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            let (server, claim) = (Arc::clone(server), Arc::clone(claim));
            fan_out.ask(member, async move {
                server.backend.renew(&claim, listen, within).await
            });
        }
        let mut deadlines = Vec::new();
        let mut removed = Vec::new();
        let mut stolen = 0;
        let mut faults = Vec::new();
        while let Some((member, answer)) = fan_out.next().await {
            match answer {
                Ok(Renewal::Renewed { deadline }) => deadlines.push(deadline),
                Ok(Renewal::Removed) => removed.push(member),
                Ok(Renewal::Stolen) => stolen += 1,
                Err(fault) => faults.push(fault),
            }
            if deadlines.len() >= self.majority {
                self.mend(claim, removed, fan_out, within);
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
            let open = fan_out.open();
            if deadlines.len() + open < self.majority && gone + open <= self.minority() {
                break;
            }
        }
        Err(self.no_majority(&faults))
    }

    /// Looks at the key on all servers. Who answers much later than the majority is not waited for.
    pub(super) async fn look(&self, claim: &Arc<Claim>, within: Duration) -> Result<Look, Fault> {
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            let (server, claim) = (Arc::clone(server), Arc::clone(claim));
            fan_out.ask(
                member,
                async move { server.backend.look(&claim, within).await },
            );
        }
        let mut untils = Vec::new();
        let (mut removed, mut stolen) = (0, 0);
        let mut faults = Vec::new();
        let start = Instant::now();
        let mut end = start + within * 2;
        while let Ok(Some((_, answer))) = timeout_at(end, fan_out.next()).await {
            match answer {
                Ok(Look::Ours { until }) => untils.push(until),
                Ok(Look::Removed) => removed += 1,
                Ok(Look::Stolen) => stolen += 1,
                Err(fault) => faults.push(fault),
            }
            if removed + stolen > self.minority() {
                self.abandon(claim, within);
                return Ok(if stolen >= removed {
                    Look::Stolen
                } else {
                    Look::Removed
                });
            }
            if untils.len() == self.majority {
                end = end.min(start + self.longest_wait(start, &fan_out));
            }
        }
        if untils.len() < self.majority {
            return Err(self.no_majority(&faults));
        }
        let untils: Option<Vec<_>> = untils.into_iter().collect();
        Ok(Look::Ours {
            until: untils
                .filter(|_| removed == 0)
                .map(|untils| lease(untils.into_iter(), self.majority)),
        })
    }

    /// Undoes what a minority may have of a claim that is lost.
    fn abandon(&self, claim: &Arc<Claim>, within: Duration) {
        let state = self.state(claim);
        if !state.end() {
            // A release is under way, and the renewal met its traces: the answers are the
            // release's to count.
            return;
        }
        for (member, server) in self.servers.iter().enumerate() {
            if state.may_be_at(member) {
                tokio::spawn(server.free(claim, Arc::clone(state), member, within));
            }
        }
    }
}
