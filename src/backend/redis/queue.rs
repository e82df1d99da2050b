//! The queue between processes that one server keeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::redis::call::Call;
use crate::backend::redis::connection::Connection;
use crate::backend::redis::reach::Way;
use crate::backend::redis::reply::remaining;
use crate::backend::redis::script::{self, Argument};
use crate::backend::redis::{Role, Server, leaving};
use crate::backend::{Answer, Beat, Claim, Fences, Freed, Listen, Queue, Standing, Tells};
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
        let keys = claim.key.with_queue();
        let connection = self.reach.get(keys[0], Way::Own, until).await?;
        let count = match self.role {
            Role::Alone => fences.count,
            // The quorum takes numbers when it has a majority.
            Role::Member => 0,
        };
        let call = Call {
            script: &script::ENQUEUE,
            keys: &keys,
            arguments: &[
                Argument::Text(&claim.value),
                Argument::Number(claim.ttl_millis()),
                Argument::Number(fences.first),
                Argument::Number(count),
                Argument::Number(whole_millis(claim.waiter_ttl())),
                // Read before the request is sent, so no later than the server's beat.
                Argument::Number(self.clock.now().nanos()),
                Argument::Channel,
            ],
            listen: Listen::Yes,
        };
        let begin = |connection: &Arc<Connection>| self.unsettled.begin(claim, connection);
        let called = self.call_over(connection, Way::Own, call, until, begin);
        let (reply, request) = called.await.map_err(|failure| self.fault(failure))?;
        let connection = &reply.connection;
        let beat = match reply.numbers()[..] {
            [granted @ (1 | 2), first] => {
                // The same connection brings the message first.
                let heard_on = claim.note_heard_on(0);
                let told =
                    granted == 2 && connection.gets_grants() && heard_on == connection.number();
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
                    tells: match self.missing.is_to_be_done_without() {
                        // P11: its end may have been told before it was noted above.
                        _ if connection.is_broken() => Tells::Nothing,
                        false if connection.gets_grants() && connection.tracks() => Tells::All,
                        false if connection.gets_grants() => Tells::Grants,
                        _ => Tells::Nothing,
                    },
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
        self.missing.note(self.reach.name());
    }
}
