//! Supervised connections to one server: open, watch, reopen.
//!
//! A multiplexed connection is driven by a task on the runtime that opened it, so every runtime
//! gets one of its own: the caller's, and the driver thread's. A connection is replaced when it
//! breaks, when the server says that it is no longer a master, when requests keep timing out, and
//! when its runtime is gone. Requests that are under way on the old one may still be answered.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, ProtocolVersion, RedisError,
    ServerErrorKind, Value,
};
use tokio::runtime::{self, Handle};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::backend::Signals;
use crate::backend::health::Health;
use crate::backend::push::Watcher;
use crate::backend::verdict::{Verdict, lacks_resp3, mentions};
use crate::events::emit;
use crate::fault::{Cause, Fault};

/// More requests than this may wait for their turn to be written without waiting for room.
const QUEUED_REQUESTS: usize = 4096;
/// Connections that fail at once are at least this far apart.
const REST: Duration = Duration::from_millis(10);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long waiters do without pushes after one did not come.
const DOUBT: Duration = Duration::from_secs(10);

/// The connections to one server, one a runtime.
pub(crate) struct Connections {
    client: Client,
    server: Arc<str>,
    signals: Arc<dyn Signals>,
    /// The server does not speak RESP3, so there will be no pushes.
    plain: AtomicBool,
    /// Something on the way swallows pushes, even those that answer a request.
    swallowed: AtomicBool,
    opened: AtomicU64,
    /// Pushes do not come, or not all of them: for good, or as it seems.
    deaf: AtomicBool,
    deaf_until: Mutex<Option<Instant>>,
    said_deaf: AtomicBool,
    slots: Mutex<HashMap<runtime::Id, Arc<Slot>>>,
}

/// One runtime's place for a connection.
#[derive(Default)]
struct Slot {
    current: Mutex<Option<Arc<Connection>>>,
    /// Held while opening: contenders wait for one attempt instead of each making their own. What
    /// failed last, and until when that answers for others.
    opening: tokio::sync::Mutex<Option<(Instant, Fault)>>,
}

impl Connections {
    pub(crate) fn new(client: &Client, signals: Arc<dyn Signals>) -> Result<Self, RedisError> {
        let info = client.get_connection_info();
        let settings = info
            .tcp_settings()
            .clone()
            .set_nodelay(true)
            .set_keepalive(redis::io::tcp::socket2::TcpKeepalive::new().with_time(KEEP_ALIVE));
        let info = info.clone().set_tcp_settings(settings);
        Ok(Self {
            server: address(info.addr()).into(),
            client: Client::open(info)?,
            signals,
            plain: AtomicBool::new(false),
            swallowed: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            deaf_until: Mutex::default(),
            said_deaf: AtomicBool::new(false),
            slots: Mutex::default(),
        })
    }

    pub(crate) fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// The present runtime's connection, opened if there is none that works.
    pub(crate) async fn get(&self, until: Instant) -> Result<Arc<Connection>, Fault> {
        let slot = self.slot();
        if let Some(connection) = slot.usable() {
            return Ok(connection);
        }
        let asked = Instant::now();
        let Ok(mut last_failure) = timeout_at(until, slot.opening.lock()).await else {
            return Err(self.no_answer("no connection in time"));
        };
        if let Some(connection) = slot.usable() {
            return Ok(connection);
        }
        if let Some((until, fault)) = &*last_failure
            && *until >= asked
        {
            return Err(fault.clone());
        }
        match self.open(until).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *slot.current.lock() = Some(Arc::clone(&connection));
                *last_failure = None;
                Ok(connection)
            }
            Err(fault) => {
                let now = Instant::now();
                // A server that refuses at once would be stormed by all who could do without it.
                let rest = REST.saturating_sub(now - asked);
                *last_failure = Some((now + rest, fault.clone()));
                Err(fault)
            }
        }
    }

    fn slot(&self) -> Arc<Slot> {
        let id = Handle::current().id();
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(&id) {
            return Arc::clone(slot);
        }
        // A new runtime is a rare moment, so this is where those that have ended are cleared away.
        slots.retain(|_, slot| {
            let current = slot.current.lock();
            current.as_ref().is_none_or(|c| !c.runtime_has_ended())
        });
        Arc::clone(slots.entry(id).or_default())
    }

    async fn open(&self, until: Instant) -> Result<Connection, Fault> {
        let plain = self.plain.load(Ordering::Relaxed);
        let health = Arc::new(Health::default());
        let info = self.client.get_connection_info();
        let protocol = if plain {
            ProtocolVersion::RESP2
        } else {
            ProtocolVersion::RESP3
        };
        let redis_settings = info.redis_settings().clone().set_protocol(protocol);
        let info = info.clone().set_redis_settings(redis_settings);
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUED_REQUESTS);
        if !plain {
            config = config.set_push_sender(Watcher {
                health: Arc::clone(&health),
                signals: Arc::clone(&self.signals),
                runtime: Handle::current().id(),
            });
        }
        let opening = async {
            Client::open(info)?
                .get_multiplexed_async_connection_with_config(&config)
                .await
        };
        match timeout_at(until, opening).await {
            Ok(Ok(stream)) => {
                let connection = Connection {
                    stream,
                    health,
                    runtime: Handle::current(),
                    server: Arc::clone(&self.server),
                    number: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
                    channel: format!("redlease:{}", Uuid::new_v4()),
                };
                if plain {
                    return Ok(connection);
                }
                self.track(&connection, until).await?;
                if self.swallowed.load(Ordering::Relaxed)
                    || self.subscribe(&connection, until).await?
                {
                    return Ok(connection);
                }
                self.swallowed.store(true, Ordering::Relaxed);
                self.note_deaf("something on the way swallows them");
                Box::pin(self.open(until)).await
            }
            Ok(Err(error)) if !plain && lacks_resp3(&error) => {
                self.plain.store(true, Ordering::Relaxed);
                self.note_deaf("the server does not speak RESP3");
                Box::pin(self.open(until)).await
            }
            Ok(Err(error)) => Err(Fault {
                permanent: Verdict::on_opening(&error) == Verdict::Permanent,
                server: Arc::clone(&self.server),
                cause: Cause::new(error),
            }),
            Err(_) => Err(self.no_answer("no connection in time")),
        }
    }

    /// Asks the server to tell when a key changes that was read over the connection.
    async fn track(&self, connection: &Connection, until: Instant) -> Result<(), Fault> {
        let mut command = redis::cmd("CLIENT");
        command.arg("TRACKING").arg("ON").arg("NOLOOP");
        match connection.send(&command, until).await {
            Ok(_) => Ok(()),
            Err(Failure::Fault(fault)) if !fault.permanent => Err(fault),
            Err(_) => {
                self.note_deaf("the server does not track keys for clients");
                Ok(())
            }
        }
    }

    /// Subscribes to the channel on which grants reach this connection. False if the confirmation
    /// is lost on the way: then the connection is out of step with its replies, and useless.
    ///
    /// The confirmation is a push, and redis-rs takes the next reply for it if it does not come.
    /// So this is done before anybody else uses the connection, with a reply of another kind
    /// behind it that shows whether it came.
    async fn subscribe(&self, connection: &Connection, until: Instant) -> Result<bool, Fault> {
        let mut command = redis::cmd("SUBSCRIBE");
        command.arg(&connection.channel);
        let ping = redis::cmd("PING");
        let behind = async {
            let _ = connection.send(&ping, until).await;
            std::future::pending().await
        };
        let reply = tokio::select! {
            biased;
            reply = connection.send(&command, until) => reply,
            () = behind => unreachable!("it is pending"),
        };
        match reply {
            Ok(Value::Push { .. }) => Ok(true),
            Ok(_) => Ok(false),
            Err(Failure::Fault(fault)) if !fault.permanent => Err(fault),
            Err(_) => {
                self.note_deaf("the server does not let us subscribe");
                Ok(true)
            }
        }
    }

    /// Whether pushes can be counted on for speed. They never are for correctness (P11).
    pub(crate) fn hears_pushes(&self) -> bool {
        if self.deaf.load(Ordering::Relaxed) {
            return false;
        }
        let deaf_until = *self.deaf_until.lock();
        deaf_until.is_none_or(|until| until <= Instant::now())
    }

    /// A push did not come: does without for a while. It may have been lost with a connection, or
    /// never be sent.
    pub(crate) fn note_missed_push(&self) {
        *self.deaf_until.lock() = Some(Instant::now() + DOUBT);
        self.say_deaf("a grant was not told");
    }

    /// Falls back to heartbeats alone for good.
    fn note_deaf(&self, why: &'static str) {
        self.deaf.store(true, Ordering::Relaxed);
        self.say_deaf(why);
    }

    fn say_deaf(&self, why: &'static str) {
        if !self.said_deaf.swap(true, Ordering::Relaxed) {
            let server = Arc::clone(&self.server);
            emit(move || {
                tracing::warn!(
                    %server,
                    why,
                    "no pushes from redis: waiters and holders notice changes by heartbeats alone"
                );
            });
        }
    }

    fn no_answer(&self, what: &'static str) -> Fault {
        no_answer(&self.server, what)
    }
}

impl Slot {
    fn usable(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock();
        current.as_ref().filter(|c| !c.health.is_broken()).cloned()
    }
}

/// A connection and what is known of its health.
pub(crate) struct Connection {
    stream: MultiplexedConnection,
    health: Arc<Health>,
    runtime: Handle,
    server: Arc<str>,
    /// Tells it from the others to this server; never 0.
    number: u64,
    channel: String,
}

impl Connection {
    /// The runtime that drives this connection.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The channel on which grants reach this connection.
    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    /// Sends one command and waits for its reply.
    pub(crate) async fn send(&self, cmd: &Cmd, until: Instant) -> Result<Value, Failure> {
        let mut stream = self.stream.clone();
        match self.watch(stream.req_packed_command(cmd), until).await? {
            Value::ServerError(error) => Err(self.note(error.into())),
            value => Ok(value),
        }
    }

    async fn watch<T>(
        &self,
        request: impl Future<Output = Result<T, RedisError>>,
        until: Instant,
    ) -> Result<T, Failure> {
        let sent = Instant::now();
        match timeout_at(until, request).await {
            Ok(Ok(value)) => {
                self.health.note_answer();
                Ok(value)
            }
            Ok(Err(error)) => Err(self.note(error)),
            Err(_) => {
                self.health.note_timeout(sent);
                Err(Failure::Fault(no_answer(&self.server, "no answer in time")))
            }
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
        let verdict = Verdict::on_request(&error);
        match verdict {
            Verdict::Reopen => self.health.note_broken(),
            Verdict::Permanent | Verdict::Retry => self.health.note_answer(),
        }
        Failure::Fault(self.fault(verdict == Verdict::Permanent, error))
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

    fn runtime_has_ended(&self) -> bool {
        self.health.has_ended()
    }
}

/// Why a command has no reply of use.
pub(crate) enum Failure {
    Fault(Fault),
    /// The server does not know the script by its digest.
    NoScript,
    /// The key holds something that is not a string.
    WrongType(Fault),
}

impl Failure {
    pub(crate) fn into_fault(self, server: &Arc<str>) -> Fault {
        match self {
            Self::Fault(fault) | Self::WrongType(fault) => fault,
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

fn address(address: &ConnectionAddr) -> String {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            format!("{host}:{port}")
        }
        ConnectionAddr::Unix(path) => path.display().to_string(),
        other => format!("{other:?}"),
    }
}
