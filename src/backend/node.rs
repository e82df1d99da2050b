//! One Redis server.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redis::{Client, RedisError, Value};
use tokio::time::Instant;

use crate::backend::connection::{Connection, Connections, Failure};
use crate::backend::script::{self, Argument, Script};
use crate::backend::{
    Answer, Attempt, Backend, Beat, Claim, Cleanup, Fences, Freed, Kept, Queue, Renewal, Signals,
    Standing,
};
use crate::fault::Fault;
use crate::key::Key;
use crate::lease::clock::{Clock, Moment};
use crate::options::whole_millis;
use crate::owner::Holder;

/// How long a fencing counter outlives its last use: 7 days, in milliseconds.
const FENCE_TTL: Argument<'static> = Argument::Number(7 * 24 * 60 * 60 * 1000);
/// How long a queue outlives the last heartbeat of its last waiter, in milliseconds: longer than
/// any waiter lives.
const QUEUE_TTL: Argument<'static> = Argument::Number(10_000);

pub(crate) struct Node {
    connections: Connections,
    clock: Clock,
    /// Values whose acquire was cut short, and the ways it was sent: the key may be set yet (P10).
    doubts: Mutex<HashMap<Arc<str>, Vec<Arc<Connection>>>>,
}

impl Node {
    pub(crate) fn new(
        client: &Client,
        clock: Clock,
        signals: Arc<dyn Signals>,
    ) -> Result<Self, RedisError> {
        Ok(Self {
            connections: Connections::new(client, signals)?,
            clock,
            doubts: Mutex::default(),
        })
    }

    async fn call(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let until = Instant::now() + within;
        let connection = self.connections.get(until).await.map_err(Failure::Fault)?;
        self.call_over(connection, script, keys, arguments, until)
            .await
    }

    async fn call_over(
        &self,
        connection: Arc<Connection>,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        until: Instant,
    ) -> Result<Reply, Failure> {
        // P3: the lease counts from here, before the connection has the request.
        let sent = self.clock.now();
        let by_digest = script.by_digest(keys, arguments);
        let value = match connection.send(&by_digest, until).await {
            Err(Failure::NoScript) => {
                connection
                    .send(&script.in_full(keys, arguments), until)
                    .await?
            }
            other => other?,
        };
        let sent = match cfg!(redlease_mutation = "deadline_from_reply") {
            true => self.clock.now(),
            false => sent,
        };
        Ok(Reply {
            connection,
            sent,
            value,
        })
    }

    fn fault(&self, failure: Failure) -> Fault {
        failure.into_fault(self.connections.server())
    }

    async fn acquire(
        &self,
        claim: &Arc<Claim>,
        fences: u64,
        within: Duration,
    ) -> Result<Attempt, Fault> {
        let until = Instant::now() + within;
        let connection = self.connections.get(until).await?;
        let doubt = Doubt::raise(self, claim, &connection);
        let reply = self
            .call_over(
                connection,
                &script::ACQUIRE,
                &[claim.key.name(), claim.key.fence()],
                &[
                    Argument::Text(&claim.value),
                    Argument::Number(claim.ttl_millis()),
                    floor(),
                    Argument::Number(fences),
                    FENCE_TTL,
                ],
                until,
            )
            .await
            .map_err(|failure| self.fault(failure))?;
        let attempt = match reply.pair()? {
            (1, first) => Attempt::Granted {
                fences: Fences {
                    first: first as u64,
                    count: fences,
                },
                deadline: claim.deadline(reply.sent),
            },
            (_, ttl) => Attempt::Held {
                ttl: remaining(ttl),
            },
        };
        doubt.settle();
        Ok(attempt)
    }

    async fn beat(&self, claim: &Arc<Claim>, fences: u64, within: Duration) -> Result<Beat, Fault> {
        let until = Instant::now() + within;
        let connection = self.connections.get(until).await?;
        let channel = self.connections.listen(&connection, until).await?;
        let doubt = Doubt::raise(self, claim, &connection);
        let reply = self
            .call_over(
                Arc::clone(&connection),
                &script::ENQUEUE,
                &claim.key.with_queue(),
                &[
                    Argument::Text(&claim.value),
                    Argument::Number(claim.ttl_millis()),
                    floor(),
                    Argument::Number(fences),
                    FENCE_TTL,
                    Argument::Number(whole_millis(claim.waiter_ttl())),
                    // Read before the request is sent, so no later than the server's beat.
                    Argument::Number(self.clock.now().nanos()),
                    Argument::Text(channel),
                    QUEUE_TTL,
                ],
                until,
            )
            .await
            .map_err(|failure| self.fault(failure))?;
        let beat = match reply.numbers()[..] {
            [granted @ (1 | 2), first] => {
                if granted == 2 {
                    // The same connection would have brought the message first.
                    self.connections.note_deaf("a grant was not told");
                }
                Beat::Granted {
                    fences: Fences {
                        first: first as u64,
                        count: fences,
                    },
                    deadline: claim.deadline(reply.sent),
                }
            }
            [0, first, ttl] => Beat::Waiting(Standing {
                first: first == 1,
                ttl: remaining(ttl),
                pushes: self.connections.hears_pushes(),
            }),
            _ => return Err(reply.unexpected()),
        };
        doubt.settle();
        Ok(beat)
    }

    fn freed(&self, reply: Result<Reply, Failure>) -> Result<Freed, Fault> {
        match reply {
            Ok(reply) => reply.freed(),
            Err(Failure::WrongType(_)) => Ok(Freed::NotOurs),
            Err(failure) => Err(self.fault(failure)),
        }
    }
}

impl Backend for Node {
    fn server(&self) -> Arc<str> {
        Arc::clone(self.connections.server())
    }

    fn connect(&self, within: Duration) -> Answer<'_, ()> {
        Box::pin(async move {
            let until = Instant::now() + within;
            let connection = self.connections.get(until).await?;
            let ping = redis::cmd("PING");
            match connection.send(&ping, until).await {
                Ok(_) => Ok(()),
                Err(failure) => Err(self.fault(failure)),
            }
        })
    }

    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: u64,
        within: Duration,
    ) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim, fences, within))
    }

    fn disown(&self, claim: &Arc<Claim>) -> Vec<Cleanup> {
        let ways = self.doubts.lock().remove(&claim.value).unwrap_or_default();
        ways.into_iter()
            .map(|connection| Cleanup {
                runtime: connection.runtime().clone(),
                run: Box::pin(leave_over(connection, Arc::clone(claim))),
            })
            .collect()
    }

    fn renew<'a>(&'a self, claim: &'a Claim, within: Duration) -> Answer<'a, Renewal> {
        Box::pin(async move {
            let arguments = [
                Argument::Text(&claim.value),
                Argument::Number(claim.ttl_millis()),
            ];
            let reply = self
                .call(&script::RENEW, &[claim.key.name()], &arguments, within)
                .await;
            match reply {
                Ok(reply) => match reply.number()? {
                    1 => Ok(Renewal::Renewed {
                        deadline: claim.deadline(reply.sent),
                    }),
                    0 => Ok(Renewal::Stolen),
                    _ => Ok(Renewal::Removed),
                },
                // Somebody put a hash or a list where our string was.
                Err(Failure::WrongType(_)) => Ok(Renewal::Stolen),
                Err(failure) => Err(self.fault(failure)),
            }
        })
    }

    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(async move {
            let reply = self
                .call(
                    &script::RELEASE,
                    &claim.key.with_queue(),
                    &[
                        Argument::Text(&claim.value),
                        floor(),
                        FENCE_TTL,
                        last_fence(claim),
                    ],
                    within,
                )
                .await;
            // A request that was retried was granted, and an earlier try of it may run yet: it
            // must find a leave behind it, too (P10).
            for cleanup in self.disown(claim) {
                cleanup.runtime.spawn(cleanup.run);
            }
            self.freed(reply)
        })
    }

    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: u64,
        within: Duration,
    ) -> Answer<'a, Kept> {
        Box::pin(async move {
            let arguments = [
                Argument::Text(&claim.value),
                floor(),
                FENCE_TTL,
                last_fence(claim),
                Argument::Number(claim.ttl_millis()),
                Argument::Number(fences),
            ];
            let reply = self
                .call(&script::KEEP, &claim.key.with_queue(), &arguments, within)
                .await;
            match reply {
                Ok(reply) => match reply.pair()? {
                    (1, first) => Ok(Kept::Ours {
                        fences: Fences {
                            first: first as u64,
                            count: fences,
                        },
                        deadline: claim.deadline(reply.sent),
                    }),
                    (0, _) => Ok(Kept::PassedOn),
                    _ => Ok(Kept::NotOurs),
                },
                Err(Failure::WrongType(_)) => Ok(Kept::NotOurs),
                Err(failure) => Err(self.fault(failure)),
            }
        })
    }

    fn queue(&self) -> Option<&dyn Queue> {
        Some(self)
    }

    fn holder<'a>(&'a self, key: &'a Key, within: Duration) -> Answer<'a, Option<Holder>> {
        Box::pin(async move {
            let reply = self
                .call(&script::HOLDER, &[key.name()], &[], within)
                .await
                .map_err(|failure| self.fault(failure))?;
            match &reply.value {
                Value::Nil => Ok(None),
                Value::Array(pair) => match &pair[..] {
                    [Value::BulkString(value), Value::Int(ttl)] => {
                        Ok(Some(Holder::new(value.clone(), remaining(*ttl))))
                    }
                    _ => Err(reply.unexpected()),
                },
                _ => Err(reply.unexpected()),
            }
        })
    }

    fn force_release<'a>(&'a self, key: &'a Key, within: Duration) -> Answer<'a, bool> {
        Box::pin(async move {
            let reply = self
                .call(
                    &script::FORCE_RELEASE,
                    &key.with_queue(),
                    &[floor(), FENCE_TTL],
                    within,
                )
                .await
                .map_err(|failure| self.fault(failure))?;
            Ok(reply.number()? > 0)
        })
    }
}

impl Queue for Node {
    fn enqueue<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: u64,
        within: Duration,
    ) -> Answer<'a, Beat> {
        Box::pin(self.beat(claim, fences, within))
    }

    fn leave<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(async move {
            let arguments = leaving(claim);
            let reply = self
                .call(&script::LEAVE, &claim.key.with_queue(), &arguments, within)
                .await;
            self.freed(reply)
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node")
            .field(self.connections.server())
            .finish()
    }
}

/// The clean-up of P10: behind the acquire on the same connection, so that it runs after it.
async fn leave_over(connection: Arc<Connection>, claim: Arc<Claim>) -> Result<Freed, Fault> {
    // A frozen server answers when it thaws; a key that it sets then would live for a TTL.
    let until = Instant::now() + claim.ttl;
    // In full, so that no second request is needed whatever the server remembers.
    let command = script::LEAVE.in_full(&claim.key.with_queue(), &leaving(&claim));
    match connection.send(&command, until).await {
        Ok(value) => Reply {
            connection,
            sent: Moment::NEVER,
            value,
        }
        .freed(),
        Err(Failure::WrongType(_)) => Ok(Freed::NotOurs),
        Err(Failure::Fault(fault)) => Err(fault),
        Err(Failure::NoScript) => unreachable!("EVAL carries the script"),
    }
}

/// Marks a claim as possibly granted, from before the request is sent until it is answered.
struct Doubt<'a> {
    node: &'a Node,
    claim: &'a Claim,
    way: Option<Arc<Connection>>,
}

impl<'a> Doubt<'a> {
    fn raise(node: &'a Node, claim: &'a Claim, way: &Arc<Connection>) -> Self {
        Self {
            node,
            claim,
            way: Some(Arc::clone(way)),
        }
    }

    /// The request was answered, and so every earlier one of this value on the same way has run;
    /// what was sent on other ways stays in doubt.
    fn settle(mut self) {
        let Some(way) = self.way.take() else { return };
        let mut doubts = self.node.doubts.lock();
        if let Some(ways) = doubts.get_mut(&self.claim.value) {
            ways.retain(|known| !Arc::ptr_eq(known, &way));
            if ways.is_empty() {
                doubts.remove(&self.claim.value);
            }
        }
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(way) = self.way.take() {
            let mut doubts = self.node.doubts.lock();
            let ways = doubts.entry(Arc::clone(&self.claim.value)).or_default();
            if !ways.iter().any(|known| Arc::ptr_eq(known, &way)) {
                ways.push(way);
            }
        }
    }
}

struct Reply {
    connection: Arc<Connection>,
    sent: Moment,
    value: Value,
}

impl Reply {
    fn number(&self) -> Result<i64, Fault> {
        match self.value {
            Value::Int(number) => Ok(number),
            _ => Err(self.unexpected()),
        }
    }

    fn pair(&self) -> Result<(i64, i64), Fault> {
        match self.numbers()[..] {
            [first, second] => Ok((first, second)),
            _ => Err(self.unexpected()),
        }
    }

    fn numbers(&self) -> Vec<i64> {
        let Value::Array(items) = &self.value else {
            return Vec::new();
        };
        let numbers = items.iter().map(|item| match item {
            Value::Int(number) => Some(*number),
            _ => None,
        });
        numbers.collect::<Option<_>>().unwrap_or_default()
    }

    fn freed(&self) -> Result<Freed, Fault> {
        Ok(match self.number()? {
            0 => Freed::NotOurs,
            _ => Freed::Freed,
        })
    }

    fn unexpected(&self) -> Fault {
        self.connection.unexpected(&self.value)
    }
}

/// A PTTL as Redis answers it: negative for a key without one.
fn remaining(pttl: i64) -> Option<Duration> {
    u64::try_from(pttl).ok().map(Duration::from_millis)
}

fn leaving(claim: &Claim) -> [Argument<'_>; 3] {
    [Argument::Text(&claim.value), floor(), FENCE_TTL]
}

/// The last fencing number in use, as the scripts take it: empty if no more were reserved.
fn last_fence(claim: &Claim) -> Argument<'static> {
    match claim.last_fence() {
        Some(fence) => Argument::Number(fence),
        None => Argument::Text(""),
    }
}

/// The floor of the fence (P8): the wall clock in microseconds.
fn floor() -> Argument<'static> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    Argument::Number(since_epoch.map_or(0, |elapsed| elapsed.as_micros() as u64))
}
