//! Opening a connection: the protocol, the user, tracking and the subscription.
//!
//! # Protocol
//!
//! 1. RESP3 is tried first, unless the client asks for RESP2. The server knows it by `HELLO`.
//! 2. A server that answers `HELLO` with an error is taken for one that does not speak RESP3,
//!    unless the error is about the user or about a state that passes; so is one that hangs up.
//!    It is tried with RESP2 on a new connection. If that fails as well, it was not the protocol.
//! 3. Servers and proxies put it in many words that they do not know `HELLO`. Where the words are
//!    those that are known, the refusal is remembered for [`REMEMBERED`]. Where they are not, the
//!    refusal may have been a passing fault: the next opening tries RESP3 again, and the
//!    connection is provisional.
//! 4. With RESP2, nothing is sent but what the user asks for (`AUTH`, `SELECT`) and `PING`:
//!    proxies hang up on commands that they do not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::backend::Signals;
use crate::backend::redis::connection::{Connection, Failure, no_answer};
use crate::backend::redis::echo::{Echoes, Evidence};
use crate::backend::redis::error_class::{ErrorClass, Refusal, declines, wants_no_user_name};
use crate::backend::redis::health::Health;
use crate::backend::redis::place::{Place, text_of};
use crate::backend::redis::push::{Missing, NoPushes, Watcher};
use crate::backend::redis::requests::Sender;
use crate::backend::redis::scheme::Scheme;
use crate::backend::redis::server_role;
use crate::backend::redis::settings::OpeningOptions;
use crate::error::{Cause, Fault};

/// More requests than this may wait for their turn to be written without waiting for room.
const QUEUED_REQUESTS: usize = 4096;
/// Requests that are sent together are written together, up to about so many bytes.
const LARGEST_WRITE: usize = 64 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A server that does not know RESP3 can be replaced by one that does.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// How many connections were opened. Their numbers tell them apart in the whole process: claims
/// remember them.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// Opens connections to one server.
pub(super) struct Opener {
    client: Client,
    pub(super) place: Box<dyn Place>,
    server: Arc<str>,
    signals: Arc<dyn Signals>,
    pub(super) options: OpeningOptions,
    /// Until when the server is known to not speak RESP3.
    resp2_until: Mutex<Option<Instant>>,
    /// Something on the way swallows pushes, even those that answer a request.
    swallowed: AtomicBool,
    no_pushes: NoPushes,
    /// Whether the server tells of our own writes.
    evidence: Arc<Evidence>,
    scheme: Scheme,
}

/// Where one connection leads.
struct Target {
    server: Arc<str>,
    info: ConnectionInfo,
}

impl Opener {
    pub(super) fn new(
        client: &Client,
        place: Box<dyn Place>,
        signals: Arc<dyn Signals>,
        options: OpeningOptions,
    ) -> Result<Self, RedisError> {
        let info = client.get_connection_info();
        let settings = info
            .tcp_settings()
            .clone()
            .set_nodelay(true)
            .set_keepalive(redis::io::tcp::socket2::TcpKeepalive::new().with_time(KEEP_ALIVE));
        let info = info.clone().set_tcp_settings(settings);
        Ok(Self {
            server: {
                let present = place.present();
                present.unwrap_or_else(|| text_of(info.addr()).into())
            },
            client: Client::open(info)?,
            place,
            signals,
            options,
            resp2_until: Mutex::default(),
            swallowed: AtomicBool::new(false),
            no_pushes: NoPushes::default(),
            evidence: Arc::default(),
            scheme: Scheme::default(),
        })
    }

    pub(super) fn signals(&self) -> &Arc<dyn Signals> {
        &self.signals
    }

    pub(super) fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// The name of the server that has the place now.
    pub(super) fn present(&self) -> Arc<str> {
        let present = self.place.present();
        present.unwrap_or_else(|| Arc::clone(&self.server))
    }

    /// Whether a connection is to the server that has the place now.
    pub(super) fn leads_here(&self, connection: &Connection) -> bool {
        let present = self.place.present();
        present.is_none_or(|present| present == *connection.server())
    }

    /// Opens a connection that is driven by the present runtime. An opening to a server that loses
    /// the place is begun anew.
    pub(super) async fn open(&self) -> Result<Connection, Fault> {
        loop {
            let moved = self.place.moved();
            tokio::select! {
                biased;
                opened = self.open_here() => return opened,
                () = moved => {}
            }
        }
    }

    async fn open_here(&self) -> Result<Connection, Fault> {
        let until = Instant::now() + self.options.limit;
        let target = self.target(until).await?;
        let opening = async {
            let connection = self.open_by_protocol(&target, until).await?;
            if self.place.is_of_a_master() {
                server_role::check(&connection, until).await?;
            }
            Ok(connection)
        };
        let (server, address) = (&target.server, target.info.addr());
        self.scheme.check(server, address, until, opening).await
    }

    /// Where a connection is to lead now.
    async fn target(&self, until: Instant) -> Result<Target, Fault> {
        let info = self.client.get_connection_info().clone();
        let settings = self
            .options
            .settings(info.redis_settings(), &self.server, until);
        let info = info.clone().set_redis_settings(settings.await?);
        Ok(match self.place.address(until).await? {
            Some(found) => Target {
                server: self.place.name_of(&found),
                info: info.set_addr(found),
            },
            None => Target {
                server: Arc::clone(&self.server),
                info,
            },
        })
    }

    async fn open_by_protocol(&self, target: &Target, until: Instant) -> Result<Connection, Fault> {
        if target.info.redis_settings().protocol() == ProtocolVersion::RESP2 {
            let connection = self.open_resp2(target, until).await?;
            self.no_pushes
                .tell(&self.server, Missing::All, "RESP2 was asked for");
            return Ok(connection);
        }
        let mut refusal = None;
        if self.may_speak_resp3() {
            match self.open_resp3(target, until).await? {
                Ok(connection) => return Ok(connection),
                Err(refused) => refusal = Some(refused),
            }
        }
        let mut connection = self.open_resp2(target, until).await?;
        match refusal {
            Some(Refusal::Known) => {
                *self.resp2_until.lock() = Some(Instant::now() + REMEMBERED);
            }
            Some(Refusal::Other) => connection.is_provisional = true,
            None => {}
        }
        self.no_pushes.tell(
            &self.server,
            Missing::All,
            "the server does not speak RESP3",
        );
        Ok(connection)
    }

    fn may_speak_resp3(&self) -> bool {
        let until = *self.resp2_until.lock();
        until.is_none_or(|until| until <= Instant::now())
    }

    async fn open_resp3(
        &self,
        target: &Target,
        until: Instant,
    ) -> Result<Result<Connection, Refusal>, Fault> {
        loop {
            let settings = target.info.redis_settings().clone();
            let mut connection = match self.connect(target, settings, until).await? {
                Ok(connection) => connection,
                Err(error) => {
                    let refusal = Refusal::of_resp3(&error);
                    return refusal.map(Err).ok_or_else(|| self.fault(error));
                }
            };
            connection.tracks = self.track(&connection, until).await?;
            if self.swallowed.load(Ordering::Relaxed) {
                return Ok(Ok(connection));
            }
            match self.subscribe(&mut connection, until).await? {
                Subscription::Swallowed => {
                    self.swallowed.store(true, Ordering::Relaxed);
                    let why = "something on the way swallows them";
                    self.no_pushes.tell(&self.server, Missing::All, why);
                }
                confirmed_or_refused => {
                    connection.gets_grants = confirmed_or_refused == Subscription::Confirmed;
                    return Ok(Ok(connection));
                }
            }
        }
    }

    async fn open_resp2(&self, target: &Target, until: Instant) -> Result<Connection, Fault> {
        // redis-rs would not tell what is answered to `AUTH`.
        let settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        let connection = self.connect(target, settings, until).await?;
        let connection = connection.map_err(|error| self.fault(error))?;
        let ask = async |command: &mut Cmd| {
            let reply = connection.send(command, until).await;
            reply.map_err(|failure| failure.into_fault(&self.server))
        };
        let wanted = target.info.redis_settings();
        if let Some(password) = wanted.password() {
            let by_password = &mut redis::cmd("AUTH");
            by_password.arg(password);
            let reply = match wanted.username() {
                Some(name) => ask(redis::cmd("AUTH").arg(name).arg(password)).await,
                None => ask(by_password).await,
            };
            match reply {
                // Redis before version 6 knows no users.
                Err(fault) if wants_no_user_name(&fault) => ask(by_password).await?,
                reply => reply?,
            };
        }
        if wanted.db() != 0 {
            ask(redis::cmd("SELECT").arg(wanted.db())).await?;
        }
        connection.ping(until).await?;
        Ok(connection)
    }

    /// Connects and has redis-rs do its part. The inner error is of use to decide what to try next.
    async fn connect(
        &self,
        target: &Target,
        settings: RedisConnectionInfo,
        until: Instant,
    ) -> Result<Result<Connection, RedisError>, Fault> {
        let number = OPENED.fetch_add(1, Ordering::Relaxed) + 1;
        let echoes = Echoes::from(&self.evidence);
        let server = Arc::clone(&target.server);
        let health = Arc::new(Health::new(server, number, echoes));
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUED_REQUESTS)
            .set_write_backpressure_boundary(LARGEST_WRITE);
        let speaks_resp3 = settings.protocol() != ProtocolVersion::RESP2;
        if speaks_resp3 {
            config = config.set_push_sender(Watcher {
                health: Arc::clone(&health),
                signals: Arc::clone(&self.signals),
                number,
            });
        }
        let info = target.info.clone().set_redis_settings(settings);
        let opening = async {
            Client::open(info)?
                .get_multiplexed_async_connection_with_config(&config)
                .await
        };
        match timeout_at(until, opening).await {
            Ok(Ok(stream)) => Ok(Ok(Connection {
                sender: Sender::new(stream),
                health,
                runtime: Handle::current(),
                server: Arc::clone(&target.server),
                number,
                channel: channel(self.place.tag().as_deref()),
                speaks_resp3,
                tracks: false,
                gets_grants: false,
                is_provisional: false,
            })),
            Ok(Err(error)) => Ok(Err(error)),
            Err(_) => Err(no_answer(&target.server, "no connection in time")),
        }
    }

    /// Asks the server to tell when a key changes that was read over the connection by a command
    /// behind a `CLIENT CACHING YES`, which is tried here once.
    async fn track(&self, connection: &Connection, until: Instant) -> Result<bool, Fault> {
        for words in [
            &["TRACKING", "ON", "OPTIN", "NOLOOP"][..],
            &["CACHING", "YES"],
        ] {
            match connection
                .send(redis::cmd("CLIENT").arg(words), until)
                .await
            {
                Ok(_) => {}
                Err(Failure::Fault(fault)) if !declines(&fault) => return Err(fault),
                Err(_) => {
                    let why = "the server does not track keys for clients";
                    self.no_pushes.tell(&self.server, Missing::Changes, why);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Subscribes to the channel on which grants reach this connection.
    ///
    /// The confirmation is a push, and redis-rs takes the next reply for it if it does not come.
    /// So this is done before anybody else uses the connection, with a reply of another kind
    /// behind it that shows whether it came: that of `HELLO`, which needs no right of the user's
    /// and was answered before.
    async fn subscribe(
        &self,
        connection: &mut Connection,
        until: Instant,
    ) -> Result<Subscription, Fault> {
        if connection.channel.contains('{') {
            // Of no use if the release of a lock may not publish there. All users of a cluster's
            // locks have the same rights, as a rule.
            if self.may_publish(connection, until).await? {
                match self
                    .try_to_subscribe("SSUBSCRIBE", connection, until)
                    .await?
                {
                    Subscription::Refused => {}
                    other => return Ok(other),
                }
            }
            // Redis before version 7 has only channels of the whole cluster.
            connection.channel = channel(None);
        }
        let outcome = self
            .try_to_subscribe("SUBSCRIBE", connection, until)
            .await?;
        if outcome == Subscription::Refused {
            let why = "the server does not let us subscribe";
            self.no_pushes.tell(&self.server, Missing::Grants, why);
        }
        Ok(outcome)
    }

    /// Whether the user may publish to the connection's channel, which is one of this server.
    async fn may_publish(&self, connection: &Connection, until: Instant) -> Result<bool, Fault> {
        let mut command = redis::cmd("SPUBLISH");
        command.arg(&connection.channel).arg("");
        match connection.send(&command, until).await {
            Ok(_) => Ok(true),
            // The channel's slot is not there any more: another try has another.
            Err(Failure::Redirected(_, fault) | Failure::NotNow(fault)) => Err(fault),
            Err(Failure::Fault(fault)) if !declines(&fault) => Err(fault),
            Err(_) => Ok(false),
        }
    }

    async fn try_to_subscribe(
        &self,
        command: &str,
        connection: &Connection,
        until: Instant,
    ) -> Result<Subscription, Fault> {
        let mut command = redis::cmd(command);
        command.arg(&connection.channel);
        let mut hello = redis::cmd("HELLO");
        hello.arg("3");
        let behind = async {
            let _ = connection.send(&hello, until).await;
            std::future::pending().await
        };
        let reply = tokio::select! {
            biased;
            reply = connection.send(&command, until) => reply,
            () = behind => unreachable!("it is pending"),
        };
        match reply {
            Ok(Value::Push { .. }) => Ok(Subscription::Confirmed),
            Ok(_) => Ok(Subscription::Swallowed),
            // The channel's slot is not there any more: another try has another.
            Err(Failure::Redirected(_, fault) | Failure::NotNow(fault)) => Err(fault),
            Err(Failure::Fault(fault)) if !declines(&fault) => Err(fault),
            Err(_) => Ok(Subscription::Refused),
        }
    }

    fn fault(&self, error: RedisError) -> Fault {
        Fault {
            permanent: ErrorClass::on_opening(&error) == ErrorClass::Permanent,
            server: self.present(),
            cause: Cause::new(error),
        }
    }
}

#[derive(PartialEq)]
enum Subscription {
    Confirmed,
    Refused,
    /// The confirmation was lost on the way: the connection is out of step with its replies, and
    /// useless.
    Swallowed,
}

fn channel(tag: Option<&str>) -> String {
    let number = Uuid::new_v4();
    match tag {
        Some(tag) => format!("redlease:{{{tag}}}:{number}"),
        None => format!("redlease:{number}"),
    }
}
