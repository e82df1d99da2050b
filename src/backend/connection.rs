//! Supervised connections to one server: open, watch, reopen.
//!
//! A multiplexed connection is driven by a task on the runtime that opened it, so every runtime
//! gets one of its own: the caller's, and the driver thread's. A connection is replaced when it
//! breaks, when the server says that it is no longer a master, when requests keep timing out, and
//! when its runtime is gone. Requests that are under way on the old one may still be answered.

use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, ProtocolVersion, PushInfo,
    PushKind, RedisError, ServerErrorKind, Value,
};
use tokio::runtime::{self, Handle};
use tokio::time::{Instant, timeout_at};

use crate::fault::{Cause, Fault};

/// How many requests may time out in a row before the connection is taken for dead.
const TIMEOUTS_BEFORE_REOPENING: u32 = 2;
/// More requests than this may wait for their turn to be written without waiting for room.
const QUEUED_REQUESTS: usize = 4096;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The connections to one server, one a runtime.
pub(crate) struct Connections {
    client: Client,
    server: Arc<str>,
    /// The server does not speak RESP3, so there will be no pushes.
    plain: AtomicBool,
    slots: Mutex<HashMap<runtime::Id, Arc<Slot>>>,
}

/// One runtime's place for a connection.
#[derive(Default)]
struct Slot {
    current: Mutex<Option<Arc<Connection>>>,
    /// Held while opening: contenders wait for one attempt instead of each making their own.
    opening: tokio::sync::Mutex<Option<(Instant, Fault)>>,
}

impl Connections {
    pub(crate) fn new(client: &Client) -> Result<Self, RedisError> {
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
            plain: AtomicBool::new(false),
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
        if let Some((when, fault)) = &*last_failure
            && *when >= asked
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
                *last_failure = Some((Instant::now(), fault.clone()));
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
            config = config.set_push_sender(Watcher(Arc::clone(&health)));
        }
        let opening = async {
            Client::open(info)?
                .get_multiplexed_async_connection_with_config(&config)
                .await
        };
        match timeout_at(until, opening).await {
            Ok(Ok(stream)) => Ok(Connection {
                stream,
                health,
                runtime: Handle::current(),
                server: Arc::clone(&self.server),
            }),
            Ok(Err(error)) if error.kind() == ErrorKind::RESP3NotSupported && !plain => {
                tracing::warn!(
                    server = %self.server,
                    "the server does not speak RESP3: no pushes, locks fall back to polling"
                );
                self.plain.store(true, Ordering::Relaxed);
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
}

impl Connection {
    /// The runtime that drives this connection.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Sends one command and waits for its reply.
    pub(crate) async fn send(&self, cmd: &Cmd, until: Instant) -> Result<Value, Failure> {
        let mut stream = self.stream.clone();
        self.watch(stream.req_packed_command(cmd), until).await
    }

    async fn watch(
        &self,
        request: impl Future<Output = Result<Value, RedisError>>,
        until: Instant,
    ) -> Result<Value, Failure> {
        match timeout_at(until, request).await {
            Ok(Ok(Value::ServerError(error))) => Err(self.note(error.into())),
            Ok(Ok(value)) => {
                self.health.note_answer();
                Ok(value)
            }
            Ok(Err(error)) => Err(self.note(error)),
            Err(_) => {
                self.health.note_timeout();
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
        let text = format!("unexpected reply {reply:?}");
        Fault {
            permanent: true,
            server: Arc::clone(&self.server),
            cause: Cause::new(io::Error::new(io::ErrorKind::InvalidData, text)),
        }
    }

    fn runtime_has_ended(&self) -> bool {
        self.health.ended.load(Ordering::Relaxed)
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

#[derive(Default)]
struct Health {
    broken: AtomicBool,
    ended: AtomicBool,
    timeouts: AtomicU32,
}

impl Health {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn note_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn note_answer(&self) {
        self.timeouts.store(0, Ordering::Relaxed);
    }

    fn note_timeout(&self) {
        if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_BEFORE_REOPENING {
            self.note_broken();
        }
    }
}

/// Hears the connection's pushes. redis-rs drops it together with the task that drives the
/// connection, so its end also tells that the runtime is gone.
struct Watcher(Arc<Health>);

impl redis::aio::AsyncPushSender for Watcher {
    fn send(&self, push: PushInfo) -> Result<(), redis::aio::SendError> {
        if push.kind == PushKind::Disconnection {
            self.0.note_broken();
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.note_broken();
    }
}

/// What an error means for the request and for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// No retry can help.
    Permanent,
    /// The connection is of no more use; a new one may be.
    Reopen,
    /// The same connection may serve later.
    Retry,
}

impl Verdict {
    fn on_opening(error: &RedisError) -> Self {
        match error.kind() {
            // Not a Redis server: what it said made no sense.
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Permanent,
            ErrorKind::AuthenticationFailed if mentions(error, "LOADING") => Self::Retry,
            _ => Self::on_request(error),
        }
    }

    fn on_request(error: &RedisError) -> Self {
        use ServerErrorKind as Kind;

        match error.kind() {
            ErrorKind::Io => match io_kind(error) {
                Some(io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                    Self::Permanent
                }
                _ => Self::Reopen,
            },
            ErrorKind::Parse => Self::Reopen,
            ErrorKind::Server(Kind::ReadOnly | Kind::MasterDown) => Self::Reopen,
            ErrorKind::Server(
                Kind::BusyLoading | Kind::ClusterDown | Kind::TryAgain | Kind::Moved | Kind::Ask,
            ) => Self::Retry,
            ErrorKind::InvalidClientConfig if mentions(error, "No address found") => Self::Retry,
            // Servers before version 7 report what a script's command ran into as plain text.
            _ if mentions(error, "READONLY") || mentions(error, "MASTERDOWN") => Self::Reopen,
            _ if PASSING.iter().any(|word| mentions(error, word)) => Self::Retry,
            _ => Self::Permanent,
        }
    }
}

/// States that a server gets out of by itself or by an operator's hand.
const PASSING: [&str; 8] = [
    "OOM",
    "BUSY",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "max number of clients reached",
    "UNBLOCKED",
];

fn mentions(error: &RedisError, word: &str) -> bool {
    error.code() == Some(word) || error.detail().is_some_and(|detail| detail.contains(word))
}

fn io_kind(error: &RedisError) -> Option<io::ErrorKind> {
    error
        .source()?
        .downcast_ref::<io::Error>()
        .map(io::Error::kind)
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
