//! Calls of scripts on one server, and the connections that they take.

use std::sync::Arc;
use std::time::Duration;

use redis::Cmd;
use tokio::time::Instant;

use crate::backend::Listen;
use crate::backend::redis::Server;
use crate::backend::redis::connection::{Connection, Failure};
use crate::backend::redis::reply::Reply;
use crate::backend::redis::script::{self, Script};
use crate::error::Fault;

/// This runtime's connection, that of another, and a new one.
const TRIES: u32 = 3;

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
        let (reply, ()) = self
            .call_noted(script, keys, arguments, within, Listen::No, |_| ())
            .await?;
        Ok(reply)
    }

    /// As [`call`](Self::call), with a note taken of each try before it is sent. That of a try
    /// that failed is dropped.
    pub(in crate::backend) async fn call_noted<N>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        within: Duration,
        listen: Listen,
        note: impl Fn(&Arc<Connection>) -> N,
    ) -> Result<(Reply, N), Failure> {
        let until = Instant::now() + within;
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let connection = self.connection(until, within).await?;
            let note = note(&connection);
            let used = Arc::clone(&connection);
            let reply = self.call_over(used, script, keys, arguments, until, listen);
            match reply.await {
                Err(Failure::Fault(_)) if tries > 0 && connection.is_broken() => {}
                reply => return reply.map(|reply| (reply, note)),
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
        let mut connection = self.connection(until, within).await?;
        for _ in 1..TRIES {
            if connection.ping(until).await.is_ok() || !connection.is_broken() {
                break;
            }
            connection = self.connection(until, within).await?;
        }
        self.call_over(connection, script, keys, arguments, until, Listen::No)
            .await
    }

    /// A connection for a request that has to arrive: not necessarily this runtime's.
    pub(in crate::backend) async fn connection(
        &self,
        until: Instant,
        within: Duration,
    ) -> Result<Arc<Connection>, Failure> {
        let connection = self.connections.get_or_borrow(until, within).await;
        connection.map_err(Failure::Fault)
    }

    pub(in crate::backend) async fn call_over(
        &self,
        connection: Arc<Connection>,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        until: Instant,
        listen: Listen,
    ) -> Result<Reply, Failure> {
        // P3: the lease counts from here, before the connection has the request.
        let sent = self.clock.now();
        let send = async |command: Cmd| connection.send_owned(command, listen, until).await;
        let value = match send(script.by_digest(keys, arguments)).await {
            Err(Failure::NoScript) => send(script.in_full(keys, arguments)).await?,
            other => other?,
        };
        Ok(Reply {
            connection,
            sent,
            value,
        })
    }

    pub(in crate::backend) fn fault(&self, failure: Failure) -> Fault {
        failure.into_fault(self.connections.server())
    }
}
