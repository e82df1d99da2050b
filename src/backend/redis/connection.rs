//! One connection to a server: requests over it, and what their answers say of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::backend::Listen;
use crate::backend::redis::echo::Echoes;
use crate::backend::redis::error_class::{ErrorClass, is_forbidden, mentions};
use crate::backend::redis::health::{Health, Seen};
use crate::backend::redis::redirection::Redirection;
use crate::backend::redis::requests::{Message, Sender};
use crate::error::{Cause, Fault};
use crate::tls;

/// A connection and what is known of its health.
pub(crate) struct Connection {
    pub(super) sender: Sender,
    pub(super) health: Arc<Health>,
    pub(super) runtime: Handle,
    pub(super) server: Arc<str>,
    /// Tells it from all others of this process; never 0.
    pub(super) number: u64,
    pub(super) channel: String,
    pub(super) speaks_resp3: bool,
    /// Whether the server can be asked to tell of changes over it.
    pub(super) tracks: bool,
    /// Whether the server tells of grants over it.
    pub(super) gets_grants: bool,
    /// RESP3 was refused in a way that may have been a passing fault.
    pub(super) is_provisional: bool,
}

impl Connection {
    pub(crate) fn echoes(&self) -> &Echoes {
        &self.health.echoes
    }

    /// The runtime that drives this connection.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn server(&self) -> &Arc<str> {
        &self.server
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn speaks_resp3(&self) -> bool {
        self.speaks_resp3
    }

    /// The channel on which grants reach this connection.
    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    pub(crate) fn gets_grants(&self) -> bool {
        self.gets_grants
    }

    /// Whether the server tells of the changes that it is asked to tell of.
    pub(crate) fn tracks(&self) -> bool {
        self.tracks
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.health.is_broken()
    }

    /// Sends one command and waits for its reply.
    pub(crate) async fn send(&self, cmd: &Cmd, until: Instant) -> Result<Value, Failure> {
        self.send_owned(cmd.clone(), Listen::No, until).await
    }

    /// As [`send`](Self::send), where the command is of no use afterwards. The server may be asked
    /// to tell of the next change to the keys that it reads.
    pub(super) async fn send_owned(
        &self,
        cmd: Cmd,
        listen: Listen,
        until: Instant,
    ) -> Result<Value, Failure> {
        let message = match listen {
            Listen::Yes if self.tracks => {
                // It counts for the command that the server reads next, so the two are written as
                // one.
                let mut pair = Pipeline::with_capacity(2);
                pair.cmd("CLIENT").arg("CACHING").arg("YES");
                pair.add_command(cmd);
                Message::Pair(pair)
            }
            _ => Message::One(cmd),
        };
        self.send_message(message, until).await
    }

    async fn send_message(&self, message: Message, until: Instant) -> Result<Value, Failure> {
        let seen = self.health.seen();
        // Whoever borrows the connection is not to depend on what its runtime does.
        let is_borrowed = Handle::try_current().is_ok_and(|here| here.id() != self.runtime.id());
        let requests = &self.health.requests;
        let sent = self
            .sender
            .send(requests, &self.runtime, is_borrowed, message, until);
        let reply = sent.await;
        let judged = self.judge(reply, seen);
        if self.is_broken() {
            drop(self.health.closing());
        }
        judged
    }

    /// What the reply to a request means, for the connection as well.
    fn judge(&self, reply: Option<RedisResult<Value>>, seen: Seen) -> Result<Value, Failure> {
        if self.health.is_out_of_step() {
            // The reply may be that to another request.
            return Err(Failure::Fault(no_answer(
                &self.server,
                "replies were mixed up",
            )));
        }
        match reply {
            Some(Ok(Value::ServerError(error))) => Err(self.note(error.into())),
            Some(Ok(value)) => {
                self.health.note_answer();
                Ok(value)
            }
            Some(Err(error)) => Err(self.note(error)),
            None if self.health.requests.is_given_up() => Err(Failure::Fault(no_answer(
                &self.server,
                "it is not the master any more",
            ))),
            None => {
                self.health.note_timeout(seen);
                Err(Failure::Fault(no_answer(&self.server, "no answer in time")))
            }
        }
    }

    /// As [`send_owned`](Self::send_owned), to a server that takes over the slot of the keys. It does
    /// not tell of changes then: both are asked for by a command that counts for the next.
    pub(super) async fn send_asking(&self, cmd: Cmd, until: Instant) -> Result<Value, Failure> {
        let mut pair = Pipeline::with_capacity(2);
        pair.cmd("ASKING").add_command(cmd);
        self.send_message(Message::Pair(pair), until).await
    }

    /// Makes sure that the server answers. A user may have no right to PING; to be told so is an
    /// answer.
    pub(crate) async fn ping(&self, until: Instant) -> Result<(), Fault> {
        match self.send(&redis::cmd("PING"), until).await {
            Err(Failure::Fault(fault)) if is_forbidden(&fault) => Ok(()),
            reply => reply
                .map(drop)
                .map_err(|failure| failure.into_fault(&self.server)),
        }
    }

    /// Finds out in the background whether a connection that fell silent is alive. If it is not,
    /// the next request opens another.
    pub(super) fn probe(self: &Arc<Self>, within: Duration) {
        if self.health.begin_probe() {
            let connection = Arc::clone(self);
            self.runtime.spawn(async move {
                let _ = connection.ping(Instant::now() + within).await;
                connection.health.end_probe();
            });
        }
    }

    /// Judges an error, and the connection by it.
    fn note(&self, error: RedisError) -> Failure {
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) {
            self.health.note_answer();
            return Failure::NoScript;
        }
        if mentions(&error, "WRONGTYPE") {
            self.health.note_answer();
            return Failure::WrongType(self.fault(true, error));
        }
        let redirection = Redirection::of(&error);
        let is_for_now = matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ClusterDown | ServerErrorKind::TryAgain)
        );
        let class = ErrorClass::on_request(&error);
        // A server may refuse our certificate when the connection is open already.
        let permanent = class == ErrorClass::Permanent || tls::is_refusal(&error);
        let fault = self.fault(permanent, error);
        match class {
            ErrorClass::Reopen => {
                self.health.note_broken_by(fault.clone());
            }
            ErrorClass::Permanent | ErrorClass::Retry => self.health.note_answer(),
        }
        match redirection {
            Some(to) => Failure::Redirected(to, fault),
            None if is_for_now => Failure::NotNow(fault),
            None => Failure::Fault(fault),
        }
    }

    fn fault(&self, permanent: bool, error: RedisError) -> Fault {
        Fault {
            permanent,
            server: Arc::clone(&self.server),
            cause: Cause::new(error),
        }
    }

    /// The fault of a reply that no script of ours gives.
    pub(crate) fn unexpected(&self, reply: &Value) -> Fault {
        self.refusal(format!("unexpected reply {reply:?}"))
    }

    /// A fault that no retry can help.
    pub(crate) fn refusal(&self, text: String) -> Fault {
        Fault {
            permanent: true,
            server: Arc::clone(&self.server),
            cause: Cause::new(io::Error::new(io::ErrorKind::InvalidData, text)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Not here: whoever drops the last handle may hold a lock.
        if let Some(closing) = self.health.closing() {
            self.runtime.spawn(async move { drop(closing) });
        }
    }
}

/// Why a command has no reply of use.
pub(crate) enum Failure {
    Fault(Fault),
    /// The server does not know the script by its digest.
    NoScript,
    /// A server of a cluster names another.
    Redirected(Redirection, Fault),
    /// The cluster cannot serve the keys for now.
    NotNow(Fault),
    /// The key holds something that is not a string.
    WrongType(Fault),
}

impl Failure {
    pub(crate) fn into_fault(self, server: &Arc<str>) -> Fault {
        match self {
            Self::Fault(fault)
            | Self::NotNow(fault)
            | Self::Redirected(_, fault)
            | Self::WrongType(fault) => fault,
            Self::NoScript => no_answer(server, "the server forgets scripts at once"),
        }
    }
}

pub(crate) fn no_answer(server: &Arc<str>, what: &'static str) -> Fault {
    Fault {
        permanent: false,
        server: Arc::clone(server),
        cause: Cause::new(io::Error::new(io::ErrorKind::TimedOut, what)),
    }
}
