//! One round: all sentinels are asked at once for the master.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, Pipeline, RedisConnectionInfo, RedisError, Value,
};
use tokio::time::{Instant, timeout_at};

use crate::backend::fan_out::FanOut;
use crate::backend::redis::error_class::ErrorClass;
use crate::backend::redis::place::text_of;
use crate::error::{Cause, Fault};

/// How long after the first that names a master the others are waited for.
const LATENESS: Duration = Duration::from_millis(50);

/// One sentinel.
pub(super) struct Sentinel {
    pub(super) client: Client,
    /// Without credentials: redis-rs would not tell what is answered to `AUTH`.
    bare: Client,
    pub(super) name: Arc<str>,
    /// It did not answer when it was asked last. Others are not kept waiting for it.
    is_silent: AtomicBool,
}

/// How often a sentinel is asked that hangs up.
const TRIES: u32 = 3;

/// What a sentinel says of a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) host: String,
    pub(super) port: u16,
    /// `None` if the user may not ask for it.
    pub(super) epoch: Option<u64>,
}

/// The answers that are still to come.
pub(super) type Late = FanOut<Result<Named, Silence>>;

/// Why a sentinel named none.
#[derive(Debug)]
pub(super) enum Silence {
    /// It knows no master of that name.
    Unknown,
    Error(RedisError),
    /// No answer in time.
    Late,
}

impl Sentinel {
    pub(super) fn new(client: &Client) -> Result<Self, RedisError> {
        let info = client.get_connection_info().clone();
        let settings = RedisConnectionInfo::default();
        let settings = match info.addr() {
            // A certificate may be refused after the handshake. redis-rs tells that only if a
            // request of its own is under way then.
            ConnectionAddr::TcpTls { .. } => settings,
            _ => settings.set_skip_set_lib_name(),
        };
        Ok(Self {
            client: client.clone(),
            name: text_of(info.addr()).into(),
            bare: Client::open(info.set_redis_settings(settings))?,
            is_silent: AtomicBool::new(false),
        })
    }

    pub(super) fn note_answer(&self) {
        self.is_silent.store(false, Ordering::Relaxed);
    }

    async fn ask(&self, master: &str) -> Result<Named, Silence> {
        let address = self.client.get_connection_info().addr();
        let has_tls = matches!(address, ConnectionAddr::TcpTls { .. });
        for _ in 1..TRIES {
            match self.ask_once(master).await {
                // What the server said of a certificate may have been lost with the connection.
                Err(Silence::Error(error)) if has_tls && error.is_connection_dropped() => {}
                answer => return answer,
            }
        }
        self.ask_once(master).await
    }

    async fn ask_once(&self, master: &str) -> Result<Named, Silence> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let connection = { &self.bare }.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connection.await.map_err(Silence::Error)?;
        let mut all = Pipeline::with_capacity(3);
        let settings = self.client.get_connection_info().redis_settings();
        if let Some(password) = settings.password() {
            all.cmd("AUTH").arg(settings.username()).arg(password);
        }
        all.cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(master);
        all.cmd("SENTINEL").arg("MASTER").arg(master);
        let replies = connection.send_packed_commands(&all, 0, all.len()).await;
        let mut replies = replies.map_err(Silence::Error)?.into_iter();
        if settings.password().is_some()
            && let Some(Value::ServerError(error)) = replies.next()
        {
            return Err(Silence::Error(error.into()));
        }
        let (address, state) = (replies.next(), replies.next());
        let (host, port) = address_in(address.unwrap_or(Value::Nil))?;
        let epoch = state.and_then(epoch_in);
        Ok(Named { host, port, epoch })
    }
}

fn address_in(reply: Value) -> Result<(String, u16), Silence> {
    if let Value::ServerError(error) = reply {
        return Err(Silence::Error(error.into()));
    }
    let address: Option<(String, u16)> =
        redis::from_redis_value(reply).map_err(|error| Silence::Error(error.into()))?;
    address.ok_or(Silence::Unknown)
}

fn epoch_in(reply: Value) -> Option<u64> {
    let state: HashMap<String, String> = redis::from_redis_value(reply).ok()?;
    state.get("config-epoch")?.parse().ok()
}

/// Asks all sentinels for the master of a name; `place` is that in messages. Returns the answer with
/// the highest epoch, and those that were not waited for. An answer older than what is `known` may be
/// that of a sentinel that is cut off from the others, so these get half of the time.
pub(super) async fn ask_all(
    sentinels: &[Arc<Sentinel>],
    master: &Arc<str>,
    place: &Arc<str>,
    known: Option<u64>,
    until: Instant,
) -> Result<(Named, Late), Fault> {
    let half = Instant::now() + until.saturating_duration_since(Instant::now()) / 2;
    let mut fan_out = FanOut::new();
    for (number, sentinel) in sentinels.iter().enumerate() {
        let (sentinel, master) = (Arc::clone(sentinel), Arc::clone(master));
        fan_out.ask(number, async move { sentinel.ask(&master).await });
    }
    let mut over = until;
    let mut is_doubtful = true;
    let mut named: Vec<(usize, Named)> = Vec::new();
    let mut silent: Vec<(usize, Silence)> = Vec::new();
    while let Ok(Some((number, answer))) = timeout_at(over, fan_out.next()).await {
        sentinels[number].note_answer();
        match answer {
            Ok(answer) => {
                is_doubtful &= answer.epoch < known;
                over = match is_doubtful {
                    true => over.min(half),
                    false => over.min(Instant::now() + LATENESS),
                };
                named.push((number, answer));
            }
            Err(silence) => silent.push((number, silence)),
        }
        let is_silent = |number: usize| sentinels[number].is_silent.load(Ordering::Relaxed);
        if !is_doubtful && fan_out.servers().all(is_silent) {
            break;
        }
    }
    for number in fan_out.servers() {
        sentinels[number].is_silent.store(true, Ordering::Relaxed);
        silent.push((number, Silence::Late));
    }
    match best(named) {
        Some(answer) => Ok((answer, fan_out)),
        None => Err(no_master(sentinels, master, place, silent)),
    }
}

/// The answer of the highest epoch; of several, the one that most sentinels give.
fn best(named: Vec<(usize, Named)>) -> Option<Named> {
    let votes = |answer: &Named| named.iter().filter(|(_, other)| other == answer).count();
    let best = named
        .iter()
        .max_by_key(|(number, answer)| (answer.epoch, votes(answer), Reverse(*number)));
    best.map(|(_, answer)| answer.clone())
}

fn no_master(
    sentinels: &[Arc<Sentinel>],
    master: &Arc<str>,
    place: &Arc<str>,
    mut silent: Vec<(usize, Silence)>,
) -> Fault {
    silent.sort_by_key(|(number, _)| *number);
    let permanent = silent.iter().all(|(_, silence)| silence.is_permanent());
    let reasons = silent
        .iter()
        .map(|(number, silence)| format!("{}: {silence}", sentinels[*number].name));
    let reasons = reasons.collect();
    let errors = silent.into_iter().filter_map(|(_, silence)| match silence {
        Silence::Error(error) => Some(Cause::new(error)),
        Silence::Unknown | Silence::Late => None,
    });
    Fault {
        permanent,
        server: Arc::clone(place),
        cause: Cause::new(NoMaster {
            master: Arc::clone(master),
            reasons,
            source: errors.last(),
        }),
    }
}

impl Silence {
    fn is_permanent(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Error(error) => ErrorClass::on_opening(error) == ErrorClass::Permanent,
            Self::Late => false,
        }
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("it knows no master of that name"),
            Self::Error(error) => write!(f, "{error}"),
            Self::Late => f.write_str("no answer in time"),
        }
    }
}

/// Why no master is known: what each of the sentinels said.
#[derive(Debug, thiserror::Error)]
#[error("no sentinel names a master {master:?}: {}", reasons.join("; "))]
struct NoMaster {
    master: Arc<str>,
    reasons: Vec<String>,
    source: Option<Cause>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(port: u16, epoch: Option<u64>) -> Named {
        Named {
            host: "host".to_owned(),
            port,
            epoch,
        }
    }

    fn best_of(answers: &[Named]) -> Option<u16> {
        let answers = answers.iter().cloned().enumerate().collect();
        best(answers).map(|named| named.port)
    }

    #[test]
    fn the_highest_epoch_wins_whoever_is_more() {
        let (old, new) = (named(1, Some(9)), named(2, Some(10)));
        assert_eq!(best_of(&[old.clone(), old.clone(), new.clone()]), Some(2));
        assert_eq!(best_of(&[new, old.clone(), old]), Some(2));
    }

    #[test]
    fn without_epochs_most_win_and_of_as_many_the_first() {
        let (one, other) = (named(1, None), named(2, None));
        assert_eq!(
            best_of(&[one.clone(), other.clone(), other.clone()]),
            Some(2)
        );
        assert_eq!(best_of(&[other.clone(), one.clone()]), Some(2));
        assert_eq!(best_of(&[named(1, Some(0)), other.clone(), other]), Some(1));
        assert_eq!(best_of(&[]), None);
    }
}
