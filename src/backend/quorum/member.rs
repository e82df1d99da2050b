//! What a server does beyond its own lock when it is one of a quorum.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::redis::Server;
use crate::backend::redis::script::{self, Argument};
use crate::backend::{Answer, Backend, Claim, Fences, Queue};

/// A backend that can be one of a quorum.
pub(crate) trait Member: Backend {
    /// The queue of those who wait in turn.
    fn as_queue(&self) -> &dyn Queue;

    /// Writes the fencing numbers of a grant, if the lock is ours here and nobody else has
    /// reserved as high a number; says whether they are ours here now.
    fn raise<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, bool>;

    /// Gives the key back to a member that lost it, if it is free here; says whether it is ours.
    fn restore<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, bool>;
}

impl Member for Server {
    fn as_queue(&self) -> &dyn Queue {
        self
    }

    fn raise<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let arguments = [
                Argument::Text(&claim.value),
                Argument::Number(fences.first),
                Argument::Number(fences.last()),
            ];
            let reply = self
                .call(&script::RAISE, &claim.key.of_a_member(), &arguments, within)
                .await
                .map_err(|failure| self.fault(failure))?;
            match reply.number()? {
                -1 => Err(reply.no_counter(claim)),
                raised => Ok(raised == 1),
            }
        })
    }

    fn restore<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let arguments = [
                Argument::Text(&claim.value),
                Argument::Number(claim.ttl_millis()),
                Argument::Number(fences.first),
                Argument::Number(fences.last()),
            ];
            let (reply, request) = self
                .create(
                    claim,
                    &script::RESTORE,
                    &claim.key.of_a_member(),
                    &arguments,
                    within,
                )
                .await?;
            let restored = reply.number()? == 1;
            request.settle();
            Ok(restored)
        })
    }
}
