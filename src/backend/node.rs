//! One Redis server.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Client, RedisError, Value};
use tokio::time::Instant;

use crate::backend::connection::{Connection, Connections, Failure};
use crate::backend::script::{self, Argument, Script};
use crate::backend::{Answer, Attempt, Backend, Claim, Cleanup, Fences, Freed, Renewal};
use crate::fault::Fault;
use crate::key::Key;
use crate::lease::clock::{Clock, Moment};
use crate::owner::Holder;

/// How long a fencing counter outlives its last use.
pub(super) const FENCE_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

pub(crate) struct Node {
    connections: Connections,
    clock: Clock,
    role: Role,
    /// Values whose acquire was cut short, and the ways it was sent: the key may be set yet (P10).
    doubts: Mutex<HashMap<Arc<str>, Vec<Arc<Connection>>>>,
}

/// How a server keeps the fencing counter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Its own word decides the number.
    Alone,
    /// It remembers who wrote the counter, so that the number can be agreed on with the others.
    Member,
}

impl Node {
    pub(crate) fn new(client: &Client, clock: Clock, role: Role) -> Result<Self, RedisError> {
        Ok(Self {
            connections: Connections::new(client)?,
            clock,
            role,
            doubts: Mutex::default(),
        })
    }

    pub(super) async fn call(
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

    pub(super) async fn call_over(
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
        Ok(Reply {
            connection,
            sent,
            value,
        })
    }

    pub(super) fn fault(&self, failure: Failure) -> Fault {
        failure.into_fault(self.connections.server())
    }

    async fn acquire(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Attempt, Fault> {
        let key = &claim.key;
        let keys = [&**key.name(), key.fence(), key.fence_owner()];
        let (script, keys) = match self.role {
            Role::Alone => (&script::ACQUIRE, &keys[..2]),
            Role::Member => (&script::ACQUIRE_MEMBER, &keys[..]),
        };
        let arguments = [
            Argument::Text(&claim.value),
            Argument::Number(claim.ttl_millis()),
            Argument::Number(fences.from),
            Argument::Number(fences.count),
            Argument::Number(FENCE_TTL.as_millis() as u64),
        ];
        let (reply, doubt) = self.create(claim, script, keys, &arguments, within).await?;
        let attempt = match reply.pair()? {
            (1, fence) => Attempt::Granted {
                fence: fence as u64,
                deadline: claim.deadline(reply.sent),
            },
            (_, ttl) => Attempt::Held {
                ttl: remaining(ttl),
            },
        };
        doubt.settle();
        Ok(attempt)
    }

    /// Calls a script that may set the lock key. The claim is in doubt until the reply was
    /// understood.
    pub(super) async fn create<'a>(
        &'a self,
        claim: &'a Claim,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        within: Duration,
    ) -> Result<(Reply, Doubt<'a>), Fault> {
        let until = Instant::now() + within;
        let connection = self.connections.get(until).await?;
        let doubt = Doubt::raise(self, claim, &connection);
        let reply = self
            .call_over(connection, script, keys, arguments, until)
            .await
            .map_err(|failure| self.fault(failure))?;
        Ok((reply, doubt))
    }

    /// Ends the doubt about a claim: the ways on which its key may yet be set.
    fn doubtful_ways(&self, claim: &Claim) -> Vec<Arc<Connection>> {
        self.doubts.lock().remove(&claim.value).unwrap_or_default()
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
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim, fences, within))
    }

    fn disown(&self, claim: &Arc<Claim>) -> Vec<Cleanup> {
        self.doubtful_ways(claim)
            .into_iter()
            .map(|connection| Cleanup {
                runtime: connection.runtime().clone(),
                run: Box::pin(release_over(connection, Arc::clone(claim))),
            })
            .collect()
    }

    fn renew<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Renewal> {
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
            let arguments = [Argument::Text(&claim.value)];
            let reply = self
                .call(&script::RELEASE, &[claim.key.name()], &arguments, within)
                .await;
            // A retried acquire was granted, and an earlier try of it may run yet: it must find a
            // release behind it, too (P10). On the way that this one went it has.
            for way in self.doubtful_ways(claim) {
                if !reply
                    .as_ref()
                    .is_ok_and(|reply| Arc::ptr_eq(&reply.connection, &way))
                {
                    let runtime = way.runtime().clone();
                    runtime.spawn(release_over(way, Arc::clone(claim)));
                }
            }
            match reply {
                Ok(reply) => reply.freed(),
                Err(Failure::WrongType(_)) => Ok(Freed::NotOurs),
                Err(failure) => Err(self.fault(failure)),
            }
        })
    }

    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>> {
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

    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool> {
        Box::pin(async move {
            let reply = self
                .call(&script::FORCE_RELEASE, &[key.name()], &[], within)
                .await
                .map_err(|failure| self.fault(failure))?;
            Ok(reply.number()? > 0)
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
async fn release_over(connection: Arc<Connection>, claim: Arc<Claim>) -> Result<Freed, Fault> {
    // A frozen server answers when it thaws; a key that it sets then would live for a TTL.
    let until = Instant::now() + claim.ttl;
    // In full, so that no second request is needed whatever the server remembers.
    let command = script::RELEASE.in_full(&[claim.key.name()], &[Argument::Text(&claim.value)]);
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
pub(super) struct Doubt<'a> {
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
    pub(super) fn settle(mut self) {
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

pub(super) struct Reply {
    connection: Arc<Connection>,
    sent: Moment,
    value: Value,
}

impl Reply {
    pub(super) fn number(&self) -> Result<i64, Fault> {
        match self.value {
            Value::Int(number) => Ok(number),
            _ => Err(self.unexpected()),
        }
    }

    fn pair(&self) -> Result<(i64, i64), Fault> {
        match &self.value {
            Value::Array(pair) => match pair[..] {
                [Value::Int(first), Value::Int(second)] => Ok((first, second)),
                _ => Err(self.unexpected()),
            },
            _ => Err(self.unexpected()),
        }
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
