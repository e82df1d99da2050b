//! Calls of scripts, and the way that they take to the server that has the keys.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::backend::Listen;
use crate::backend::redis::Server;
use crate::backend::redis::connection::{Connection, Failure};
use crate::backend::redis::reach::Way;
use crate::backend::redis::reply::Reply;
use crate::backend::redis::rights;
use crate::backend::redis::script::{self, Script};
use crate::backend::redis::unsettled::UnsettledRequest;
use crate::error::Fault;

/// This runtime's connection, that of another, and a new one.
const TRIES: u32 = 3;
/// So many redirections are followed at once. Servers that know of a change at different times can
/// name each other in turn.
const REDIRECTIONS: u32 = 4;

/// A call of a script.
#[derive(Clone, Copy)]
pub(in crate::backend) struct Call<'a> {
    pub(in crate::backend) script: &'a Script,
    /// The first is the lock key; all are on the same server.
    pub(in crate::backend) keys: &'a [&'a str],
    pub(in crate::backend) arguments: &'a script::Arguments<'a>,
    pub(in crate::backend) listen: Listen,
}

/// What is noted of a request before it is sent over a connection. That of a request that failed is
/// dropped.
pub(in crate::backend) trait Note: Send {
    /// The server refused the request, and so did not carry it out.
    fn refused(self)
    where
        Self: Sized,
    {
    }
}

impl Note for () {}

impl Note for UnsettledRequest<'_> {
    fn refused(self) {
        self.forget();
    }
}

impl Server {
    /// Calls a script that may run twice. A server closes connections that are idle, which may
    /// show only now: then the call goes over another one (P13).
    pub(in crate::backend) async fn call(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let call = Call {
            script,
            keys,
            arguments,
            listen: Listen::No,
        };
        let (reply, ()) = self.call_noted(call, within, |_| ()).await?;
        Ok(reply)
    }

    /// As [`call`](Self::call), with a note taken of each try.
    pub(in crate::backend) async fn call_noted<N: Note>(
        &self,
        call: Call<'_>,
        within: Duration,
        note: impl Fn(&Arc<Connection>) -> N + Send + Sync,
    ) -> Result<(Reply, N), Failure> {
        let until = Instant::now() + within;
        let way = Way::Any { within };
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let connection = self.connection(call.keys, way, until).await?;
            let used = Arc::clone(&connection);
            match self.call_over(used, way, call, until, &note).await {
                Err(Failure::Fault(_)) if tries > 0 && connection.is_broken() => {}
                reply => return reply,
            }
        }
    }

    /// Calls a script that must not run twice, over a connection that was just seen to work: an
    /// answer that is lost with a connection leaves open whether the script ran.
    pub(in crate::backend) async fn call_once(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let until = Instant::now() + within;
        let way = Way::Any { within };
        let mut connection = self.connection(keys, way, until).await?;
        for _ in 1..TRIES {
            if connection.ping(until).await.is_ok() || !connection.is_broken() {
                break;
            }
            connection = self.connection(keys, way, until).await?;
        }
        let call = Call {
            script,
            keys,
            arguments,
            listen: Listen::No,
        };
        let called = self.call_over(connection, way, call, until, |_| ());
        called.await.map(|(reply, ())| reply)
    }

    /// A connection to the server that has these keys.
    pub(in crate::backend) async fn connection(
        &self,
        keys: &[&str],
        way: Way,
        until: Instant,
    ) -> Result<Arc<Connection>, Failure> {
        let connection = self.reach.get(keys[0], way, until).await;
        connection.map_err(Failure::Fault)
    }

    /// Calls a script over a connection, or over another if the server does not have the keys.
    pub(in crate::backend) async fn call_over<N: Note>(
        &self,
        mut connection: Arc<Connection>,
        way: Way,
        call: Call<'_>,
        until: Instant,
        note: impl Fn(&Arc<Connection>) -> N + Send + Sync,
    ) -> Result<(Reply, N), Failure> {
        let mut is_once = false;
        let mut redirections = 0;
        loop {
            let note = note(&connection);
            // P3: the lease counts from here, before the connection has the request.
            let sent = self.clock.now();
            let failure = match send(&connection, call, is_once, until).await {
                Ok(value) => {
                    let reply = Reply {
                        connection,
                        sent,
                        value,
                    };
                    return Ok((reply, note));
                }
                Err(failure) => failure,
            };
            let to = match &failure {
                Failure::Redirected(to, _) if redirections < REDIRECTIONS => Some(to.clone()),
                Failure::Redirected(..) | Failure::NotNow(_) => None,
                _ => {
                    let named = rights::name_keys(&connection, call.keys, failure, until);
                    return Err(Box::pin(named).await);
                }
            };
            note.refused();
            (connection, is_once) = match to {
                Some(to) => {
                    redirections += 1;
                    let named = self
                        .reach
                        .follow(call.keys[0], &to, &connection, way, until);
                    (Box::pin(named).await?, to.is_once)
                }
                None if !Box::pin(self.reach.rest(until)).await => return Err(failure),
                None => {
                    redirections = 0;
                    (self.connection(call.keys, way, until).await?, false)
                }
            };
        }
    }

    pub(in crate::backend) fn fault(&self, failure: Failure) -> Fault {
        failure.into_fault(self.reach.name())
    }
}

/// Sends a call; the server is told if it is one that it is to serve for a slot that is moving.
async fn send(
    connection: &Connection,
    call: Call<'_>,
    is_once: bool,
    until: Instant,
) -> Result<Value, Failure> {
    let send = async |command: Cmd| match is_once {
        // C2: both in one write, or another's request would use up what the first allows.
        true => connection.send_asking(command, until).await,
        false => connection.send_owned(command, call.listen, until).await,
    };
    let channel = connection.channel();
    match send(call.script.by_digest(call.keys, call.arguments, channel)).await {
        Err(Failure::NoScript) => {
            send(call.script.in_full(call.keys, call.arguments, channel)).await
        }
        answer => answer,
    }
}
