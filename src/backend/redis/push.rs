//! What a server says without being asked, on a RESP3 connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{AsyncPushSender, SendError};
use redis::{PushInfo, PushKind, Value};
use tokio::time::Instant;

use crate::backend::redis::health::Health;
use crate::backend::{Fences, Grant, Signals};
use crate::clock::Moment;
use crate::events::emit;

/// How long waiters do without pushes after one did not come.
const WITHOUT_PUSHES: Duration = Duration::from_secs(10);

/// Hears one connection's pushes. redis-rs drops it together with the task that drives the
/// connection.
pub(crate) struct Watcher {
    pub(crate) health: Arc<Health>,
    pub(crate) signals: Arc<dyn Signals>,
    /// The connection's number.
    pub(crate) number: u64,
}

impl AsyncPushSender for Watcher {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match push.kind {
            PushKind::Disconnection => self.health.note_broken("it was closed at the other end"),
            PushKind::Invalidate => self.invalidated(push.data.first()),
            // Nobody unsubscribes: the server does so, when the channel's slot leaves it.
            PushKind::Unsubscribe | PushKind::PUnsubscribe | PushKind::SUnsubscribe => {
                self.health.note_out_of_step();
            }
            PushKind::Message | PushKind::SMessage => {
                if let Some(grant) = push.data.get(1).and_then(parse_grant) {
                    self.signals.granted(grant);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Watcher {
    fn invalidated(&self, keys: Option<&Value>) {
        match keys {
            Some(Value::Array(keys)) => {
                for key in keys {
                    // A key that is not UTF-8 is not one of ours.
                    if let Value::BulkString(key) = key
                        && let Ok(key) = std::str::from_utf8(key)
                        && self.health.echoes.hear(key)
                    {
                        self.signals.changed(key);
                    }
                }
            }
            // FLUSHALL, or the server forgot what it tracked.
            _ => self.signals.pushes_missed(Some(self.number)),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.health.note_broken("its runtime has ended");
        // Nothing was read over one that could not be opened.
        if self.health.is_used() {
            self.signals.pushes_missed(Some(self.number));
        }
        drop(self.health.closing());
    }
}

/// Grants that were not told, though the server tells of them. One may have been lost with a
/// connection, or never have been sent.
#[derive(Default)]
pub(super) struct MissingPushes {
    without_until: Mutex<Option<Instant>>,
    warning: NoPushes,
}

impl MissingPushes {
    pub(super) fn note(&self, server: &Arc<str>) {
        *self.without_until.lock() = Some(Instant::now() + WITHOUT_PUSHES);
        let why = "a grant was not told";
        self.warning.tell(server, Missing::Grants, why);
    }

    /// Whether waiters do without for now.
    pub(super) fn is_to_be_done_without(&self) -> bool {
        let until = *self.without_until.lock();
        until.is_some_and(|until| until > Instant::now())
    }
}

/// What a server does not tell.
#[derive(Clone, Copy, Debug)]
pub(super) enum Missing {
    All,
    /// That a key was changed by somebody else.
    Changes,
    /// That a waiter was granted a lock.
    Grants,
}

impl Missing {
    /// What is lost by that, and what is not.
    fn in_words(self) -> &'static str {
        match self {
            Self::All => {
                "no pushes from redis: waiters ask every 50 ms at the latest, and thefts are \
                 noticed at the next renewal"
            }
            Self::Changes => {
                "no pushes of changed keys from redis: thefts are noticed at the next renewal; \
                 waiters are told of their grants at once as ever"
            }
            Self::Grants => "no pushes of grants from redis: waiters ask every 50 ms at the latest",
        }
    }
}

/// Tells once of each thing that a server does not tell.
#[derive(Default)]
pub(super) struct NoPushes([AtomicBool; 3]);

impl NoPushes {
    pub(super) fn tell(&self, server: &Arc<str>, missing: Missing, why: &'static str) {
        if !self.0[missing as usize].swap(true, Ordering::Relaxed) {
            let server = Arc::clone(server);
            let words = missing.in_words();
            emit(move || {
                tracing::warn!(%server, why, "{words}");
            });
        }
    }
}

/// Reads the message that `queue.lua` publishes: the fencing number, how many are reserved, the
/// stamp, the life, the value and the key, a line each; the key may hold line breaks itself.
fn parse_grant(message: &Value) -> Option<Grant> {
    let Value::BulkString(message) = message else {
        return None;
    };
    let mut parts = std::str::from_utf8(message).ok()?.splitn(6, '\n');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (first, count, stamp, life) = (number()?, number()?, number()?, number()?);
    Some(Grant {
        fences: Fences { first, count },
        stamp: Moment::from_nanos(stamp),
        life: Duration::from_millis(life),
        value: parts.next()?.to_owned(),
        key: parts.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(message: &str) -> Option<Grant> {
        parse_grant(&Value::BulkString(message.as_bytes().to_vec()))
    }

    #[test]
    fn a_grant_is_read_from_its_message() {
        let grant =
            parse("1795000000000001\n3\n12345\n3000\nuuid:host/1\nkey\nwith break").unwrap();
        let fences = Fences {
            first: 1_795_000_000_000_001,
            count: 3,
        };
        assert_eq!(grant.fences, fences);
        assert_eq!(grant.stamp.nanos(), 12_345);
        assert_eq!(grant.life, Duration::from_secs(3));
        assert_eq!(grant.value, "uuid:host/1");
        assert_eq!(grant.key, "key\nwith break");
    }

    #[test]
    fn what_is_not_a_grant_is_left_alone() {
        for message in ["", "hello", "1\n2\n3", "1\n2\nx\n4\nv\nk"] {
            assert!(parse(message).is_none(), "{message:?}");
        }
    }
}
