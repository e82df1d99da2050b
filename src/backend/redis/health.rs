//! What is known of a connection.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use crate::backend::redis::echo::Echoes;
use crate::backend::redis::requests::Requests;
use crate::error::{Cause, Fault};
use crate::events::emit_debug;

/// How many requests may time out one after the other, with no answer to anything in between,
/// before the connection is taken for dead.
const SILENCES_BEFORE_REOPENING: u64 = 2;
/// The bits of `answers` that count the silences; those above count events.
const SILENCES: u64 = 0xff;
const EVENT: u64 = SILENCES + 1;

#[derive(Default)]
pub(crate) struct Health {
    server: Arc<str>,
    /// The connection's number.
    number: u64,
    pub(crate) echoes: Echoes,
    pub(super) requests: Arc<Requests>,
    /// What broke it.
    end: OnceLock<Fault>,
    broken: AtomicBool,
    /// It was opened to the end.
    used: AtomicBool,
    /// It was told that it has ended.
    told: AtomicBool,
    probed: AtomicBool,
    /// Replies may be those to other requests.
    out_of_step: AtomicBool,
    /// How many requests were answered or found the connection silent, and, in the lowest bits,
    /// how many of the latter since the last answer. One word, so that an answer and a time-out
    /// that come together are in an order.
    events: AtomicU64,
}

/// What a connection had seen when a request was sent.
#[derive(Clone, Copy)]
pub(crate) struct Seen(u64);

/// The end of a connection; tells of it when it is dropped, so that a runtime that ends does not
/// keep it back.
pub(crate) struct Closing {
    server: Arc<str>,
    connection: u64,
    /// What broke it. Nothing did if it is of no more use to us.
    cause: Option<Cause>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let (server, connection) = (Arc::clone(&self.server), self.connection);
        let cause = self.cause.as_deref().map(ToString::to_string);
        emit_debug(move || {
            tracing::debug!(%server, connection, cause, "a connection to redis was closed");
        });
    }
}

impl Health {
    /// That of the connection of this number to a server.
    pub(crate) fn new(server: Arc<str>, number: u64, echoes: Echoes) -> Self {
        Self {
            server,
            number,
            echoes,
            ..Self::default()
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    pub(crate) fn note_broken(&self, why: &'static str) {
        let cause = io::Error::new(io::ErrorKind::ConnectionAborted, why);
        self.note_broken_by(Fault {
            permanent: false,
            server: Arc::clone(&self.server),
            cause: Cause::new(cause),
        });
    }

    pub(crate) fn note_broken_by(&self, fault: Fault) {
        let _ = self.end.set(fault);
        self.broken.store(true, Ordering::Release);
    }

    /// Its server has lost its place: what it answers is of no interest any more (C5).
    pub(crate) fn note_left(&self) {
        self.note_broken("it is not the master any more");
        self.requests.give_up();
    }

    /// What broke it first.
    pub(crate) fn end(&self) -> Option<&Fault> {
        self.end.get()
    }

    pub(crate) fn is_out_of_step(&self) -> bool {
        self.out_of_step.load(Ordering::Acquire)
    }

    /// A push came that redis-rs takes for the reply to the oldest request, and it is none. From now
    /// on each request gets the reply to another.
    pub(crate) fn note_out_of_step(&self) {
        self.out_of_step.store(true, Ordering::Release);
        self.note_broken("replies were mixed up");
    }

    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    pub(crate) fn note_used(&self) {
        self.used.store(true, Ordering::Release);
    }

    pub(crate) fn tell_opened(&self) {
        let (server, connection) = (Arc::clone(&self.server), self.number);
        emit_debug(move || {
            tracing::debug!(%server, connection, "a connection to redis was opened");
        });
    }

    /// What is to be told, once, of the end of a connection of which it was told that it was opened.
    pub(crate) fn closing(&self) -> Option<Closing> {
        if !self.is_used() || self.told.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Closing {
            server: Arc::clone(&self.server),
            connection: self.number,
            cause: self.end().map(|fault| fault.cause.clone()),
        })
    }

    /// Whether the last requests had no answer in time.
    pub(crate) fn is_silent(&self) -> bool {
        self.events.load(Ordering::Acquire) & SILENCES > 0
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen(self.events.load(Ordering::Acquire))
    }

    /// Says whether nobody else is at it.
    pub(crate) fn begin_probe(&self) -> bool {
        !self.probed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn end_probe(&self) {
        self.probed.store(false, Ordering::Release);
    }

    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.requests.last_answer()
    }

    pub(crate) fn note_answer(&self) {
        let before = self.events.fetch_add(EVENT, Ordering::AcqRel);
        if before & SILENCES > 0 {
            self.events.fetch_and(!SILENCES, Ordering::AcqRel);
        }
        self.requests.note_answer();
    }

    /// A request had no answer in time, and this had been `seen` when it was sent.
    pub(crate) fn note_timeout(&self, seen: Seen) {
        let silences = (seen.0 & SILENCES) + 1;
        let now = (seen.0 & !SILENCES) + EVENT + silences.min(SILENCES);
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        let counted = self.events.compare_exchange(seen.0, now, success, failure);
        // If it fails: a server that answered something since is slow, not gone. And of many
        // requests that were sent together, the first speaks for all.
        if counted.is_ok() && silences >= SILENCES_BEFORE_REOPENING {
            self.note_broken("no answer in time, again and again");
        }
    }
}

pub(super) fn tell_not_opened(fault: Fault) {
    emit_debug(move || {
        tracing::debug!(
            server = %fault.server,
            cause = %fault.cause,
            "a connection to redis could not be opened"
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_after_silence_is_the_end() {
        let health = Health::default();
        let first = health.seen();
        health.note_timeout(first);
        let second = health.seen();
        assert!(!health.is_broken());
        health.note_timeout(second);
        assert!(health.is_broken());
    }

    #[test]
    fn requests_that_were_sent_together_count_once() {
        let health = Health::default();
        let seen = health.seen();
        for _ in 0..1000 {
            health.note_timeout(seen);
        }
        assert!(!health.is_broken());
    }

    #[test]
    fn a_server_that_answers_something_is_slow_not_gone() {
        let health = Health::default();
        for _ in 0..10 {
            let seen = health.seen();
            health.note_answer();
            health.note_timeout(seen);
        }
        assert!(!health.is_broken());
    }

    #[test]
    fn an_answer_ends_the_silence() {
        let health = Health::default();
        for _ in 0..10 {
            health.note_timeout(health.seen());
            assert!(health.is_silent());
            health.note_answer();
            assert!(!health.is_silent());
        }
        assert!(!health.is_broken());
    }
}
