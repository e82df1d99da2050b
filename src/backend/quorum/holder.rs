//! Who has a lock, without a write.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::fan_out::FanOut;
use crate::backend::quorum::{Quorum, smallest};
use crate::error::Fault;
use crate::holder::Holder;
use crate::key::Key;

impl Quorum {
    /// The holder that a majority agrees on.
    pub(super) async fn holder(
        &self,
        key: &Arc<Key>,
        within: Duration,
    ) -> Result<Option<Holder>, Fault> {
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            let (server, key) = (Arc::clone(server), Arc::clone(key));
            fan_out.ask(
                member,
                async move { server.backend.holder(&key, within).await },
            );
        }
        let mut holders: Vec<Option<Holder>> = Vec::new();
        let mut faults = Vec::new();
        while let Some((_, answer)) = fan_out.next().await {
            let holder = match answer {
                Ok(holder) => holder,
                Err(fault) => {
                    faults.push(fault);
                    continue;
                }
            };
            holders.push(holder.clone());
            let value = holder.as_ref().map(|holder| &holder.value);
            let same = holders
                .iter()
                .filter(|other| other.as_ref().map(|other| &other.value) == value);
            let ttls: Vec<_> = same.flatten().map(|holder| holder.ttl).collect();
            let Some(holder) = holder else {
                let free = holders.iter().filter(|holder| holder.is_none());
                if free.count() >= self.majority {
                    return Ok(None);
                }
                continue;
            };
            if ttls.len() >= self.majority {
                // When the first of them expires, there is no majority any more.
                let ttl = smallest(ttls, 1);
                return Ok(Some(Holder { ttl, ..holder }));
            }
        }
        // P13: servers that did not answer may have the key of one who has a majority with them.
        let could_hold = |holder: &Holder| {
            let same = holders.iter().flatten().filter(|h| h.value == holder.value);
            same.count() + faults.len() >= self.majority
        };
        if holders.len() < self.majority || holders.iter().flatten().any(could_hold) {
            return Err(self.no_majority(&faults));
        }
        Ok(None)
    }
}
