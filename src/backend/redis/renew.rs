//! What one server is asked about a lock that is held.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::redis::Server;
use crate::backend::redis::call::{Call, Note};
use crate::backend::redis::connection::Connection;
use crate::backend::redis::reply::remaining;
use crate::backend::redis::script::{self, Argument};
use crate::backend::{Claim, Listen, Look, Renewal, Signals};
use crate::clock::Moment;
use crate::error::Fault;

impl Server {
    pub(super) async fn renew(
        &self,
        claim: &Claim,
        listen: Listen,
        within: Duration,
    ) -> Result<Renewal, Fault> {
        let keys = [&**claim.key.name()];
        let arguments = [
            Argument::Text(&claim.value),
            Argument::Number(claim.ttl_millis()),
        ];
        // What the server does not tell, it does not echo.
        let is_told = listen == Listen::Yes;
        let begin =
            |connection: &Arc<Connection>| is_told.then(|| self.begin_write(connection, claim));
        let call = Call {
            script: &script::RENEW,
            keys: &keys,
            arguments: &arguments,
            listen,
        };
        let called = self.call_noted(call, within, begin);
        let (reply, write) = called.await.map_err(|failure| self.fault(failure))?;
        match reply.number()? {
            1 => {
                let deadline = claim.deadline(reply.sent);
                if let Some(write) = write {
                    write.done(deadline);
                }
                Ok(Renewal::Renewed { deadline })
            }
            0 => Ok(Renewal::Stolen),
            _ => Ok(Renewal::Removed),
        }
    }

    /// Extends several locks in one request: what it costs to send and to read is shared.
    pub(super) async fn renew_many(
        &self,
        claims: &[Arc<Claim>],
        within: Duration,
    ) -> Result<Vec<Option<Moment>>, Fault> {
        let keys: Vec<&str> = claims.iter().map(|claim| &**claim.key.name()).collect();
        let arguments: Vec<_> = claims
            .iter()
            .flat_map(|claim| {
                let ttl = Argument::Number(claim.ttl_millis());
                [Argument::Text(&claim.value), ttl]
            })
            .collect();
        let begin = |way: &Arc<Connection>| -> Vec<Write> {
            let writes = claims.iter().map(|claim| self.begin_write(way, claim));
            writes.collect()
        };
        let call = Call {
            script: &script::RENEW_MANY,
            keys: &keys,
            arguments: &arguments,
            listen: Listen::Yes,
        };
        let called = self.call_noted(call, within, begin);
        let (reply, writes) = called.await.map_err(|failure| self.fault(failure))?;
        let extended = reply.flags(claims.len())?;
        let deadlines = claims.iter().zip(writes).zip(extended);
        Ok(deadlines
            .map(|((claim, write), is_extended)| {
                let deadline = is_extended.then(|| claim.deadline(reply.sent))?;
                write.done(deadline);
                Some(deadline)
            })
            .collect())
    }

    pub(super) async fn look(&self, claim: &Claim, within: Duration) -> Result<Look, Fault> {
        let began = Instant::now();
        let keys = [&**claim.key.name()];
        let arguments = [Argument::Text(&claim.value)];
        let call = Call {
            script: &script::LOOK,
            keys: &keys,
            arguments: &arguments,
            listen: Listen::Yes,
        };
        let listen = |connection: &Arc<Connection>| claim.note_tracked_on(connection.number());
        let (reply, ()) = self
            .call_noted(call, within, listen)
            .await
            .map_err(|failure| self.fault(failure))?;
        let look = match reply.number()? {
            -3 => Look::Stolen,
            -2 => Look::Removed,
            ttl => Look::Ours {
                until: remaining(ttl).map(|ttl| reply.sent + ttl),
            },
        };
        let lives_until = match look {
            Look::Ours { until } => until,
            Look::Removed | Look::Stolen => None,
        };
        let echoes = reply.connection.echoes();
        echoes.looked(claim.key.name(), began, lives_until);
        Ok(look)
    }

    /// Notes that a request is about to be sent that may write a key that it reads, and after which
    /// the server tells of changes to it.
    fn begin_write(&self, connection: &Arc<Connection>, claim: &Claim) -> Write {
        claim.note_tracked_on(connection.number());
        let key = Arc::clone(claim.key.name());
        connection.echoes().begin(&key);
        Write {
            connection: Arc::clone(connection),
            key,
            signals: Arc::clone(self.reach.signals()),
            lives_until: None,
        }
    }
}

/// A request that may write a lock key, and may be echoed, for as long as it is under way.
struct Write {
    connection: Arc<Connection>,
    key: Arc<str>,
    signals: Arc<dyn Signals>,
    lives_until: Option<Moment>,
}

impl Write {
    /// It was carried out, and the key lives until then.
    fn done(mut self, lives_until: Moment) {
        self.lives_until = Some(lives_until);
    }
}

impl Note for Option<Write> {}
impl Note for Vec<Write> {}

impl Drop for Write {
    fn drop(&mut self) {
        if self.connection.echoes().end(&self.key, self.lives_until) {
            self.signals.changed(&self.key);
        }
    }
}
