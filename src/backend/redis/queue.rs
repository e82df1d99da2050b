//! The queue between processes that one server keeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::redis::reply::remaining;
use crate::backend::redis::script::{self, Argument};
use crate::backend::redis::{Role, Server, leaving};
use crate::backend::{Answer, Beat, Claim, Fences, Freed, Listen, Queue, Standing};
use crate::error::Fault;
use crate::options::whole_millis;

impl Server {
    async fn beat(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Beat, Fault> {
        let until = Instant::now() + within;
        let connection = self.connections.get(until).await?;
        let request = self.unsettled.begin(claim, &connection);
        let count = match self.role {
            Role::Alone => fences.count,
            // The quorum takes numbers when it has a majority.
            Role::Member => 0,
        };
        let reply = self
            .call_over(
                Arc::clone(&connection),
                &script::ENQUEUE,
                &claim.key.with_queue(),
                &[
                    Argument::Text(&claim.value),
                    Argument::Number(claim.ttl_millis()),
                    Argument::Number(fences.first),
                    Argument::Number(count),
                    Argument::Number(whole_millis(claim.waiter_ttl())),
                    // Read before the request is sent, so no later than the server's beat.
                    Argument::Number(self.clock.now().nanos()),
                    Argument::Text(connection.channel()),
                ],
                until,
                Listen::Yes,
            )
            .await
            .map_err(|failure| self.fault(failure))?;
        let beat = match reply.numbers()[..] {
            [granted @ (1 | 2), first] => {
                // The same connection brings the message first.
                let told = granted == 2 && claim.note_heard_on(0) == connection.number();
                Ok(Beat::Granted {
                    fences: fences.granted_from(first),
                    deadline: claim.deadline(reply.sent),
                    told,
                })
            }
            [0, first, ttl] => {
                claim.note_heard_on(connection.number());
                Ok(Beat::Waiting(Standing {
                    first: first == 1,
                    ttl: remaining(ttl),
                    pushes: self.connections.counts_on_pushes(&connection),
                }))
            }
            [3, _] => Err(reply.no_counter(claim)),
            _ => return Err(reply.unexpected()),
        };
        request.settle();
        beat
    }
}

impl Queue for Server {
    fn enqueue<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Beat> {
        Box::pin(self.beat(claim, fences, within))
    }

    fn leave<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(async move {
            let (keys, arguments) = (claim.key.with_queue(), leaving(claim));
            let reply = self.call(&script::LEAVE, &keys, &arguments, within).await;
            if let Ok(reply) = &reply {
                self.unsettled.settle(claim, &reply.connection);
            }
            self.freed(reply)
        })
    }

    fn note_missed_grant(&self) {
        self.connections.note_missed_push();
    }
}
