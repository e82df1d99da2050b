//! What is known of a connection.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::backend::redis::echo::Echoes;

/// How many requests may time out one after the other, with no answer to anything in between,
/// before the connection is taken for dead.
const SILENCES_BEFORE_REOPENING: u32 = 2;

#[derive(Default)]
pub(crate) struct Health {
    pub(crate) echoes: Echoes,
    broken: AtomicBool,
    /// It was opened to the end.
    used: AtomicBool,
    /// Other runtimes have sent requests over it.
    lent: AtomicBool,
    probed: AtomicBool,
    silence: Mutex<Silence>,
}

#[derive(Default)]
struct Silence {
    last_answer: Option<Instant>,
    last_timeout: Option<Instant>,
    count: u32,
}

impl Health {
    pub(crate) fn new(echoes: Echoes) -> Self {
        Self {
            echoes,
            ..Self::default()
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    pub(crate) fn note_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    pub(crate) fn note_used(&self) {
        self.used.store(true, Ordering::Release);
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Acquire)
    }

    pub(crate) fn note_lent(&self) {
        self.lent.store(true, Ordering::Release);
    }

    /// Whether the last requests had no answer in time.
    pub(crate) fn is_silent(&self) -> bool {
        self.silence.lock().count > 0
    }

    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.silence.lock().last_answer
    }

    /// Says whether nobody else is at it.
    pub(crate) fn begin_probe(&self) -> bool {
        !self.probed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn end_probe(&self) {
        self.probed.store(false, Ordering::Release);
    }

    pub(crate) fn note_answer(&self) {
        let mut silence = self.silence.lock();
        silence.last_answer = Some(Instant::now());
        silence.count = 0;
    }

    /// A request that was sent at `sent` had no answer in time.
    pub(crate) fn note_timeout(&self, sent: Instant) {
        let mut silence = self.silence.lock();
        // A server that answered something since is slow, not gone. And of many requests that were
        // sent together, the first speaks for all.
        if silence.last_answer.is_some_and(|answer| answer >= sent)
            || silence.last_timeout.is_some_and(|timeout| timeout > sent)
        {
            return;
        }
        silence.last_timeout = Some(Instant::now());
        silence.count += 1;
        if silence.count >= SILENCES_BEFORE_REOPENING {
            self.note_broken();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LATER: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn silence_after_silence_is_the_end() {
        let health = Health::default();
        let first = Instant::now();
        tokio::time::advance(LATER).await;
        health.note_timeout(first);
        let second = Instant::now();
        tokio::time::advance(LATER).await;
        assert!(!health.is_broken());
        health.note_timeout(second);
        assert!(health.is_broken());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_sent_together_count_once() {
        let health = Health::default();
        let sent = Instant::now();
        tokio::time::advance(LATER).await;
        for _ in 0..1000 {
            health.note_timeout(sent);
        }
        assert!(!health.is_broken());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_something_is_slow_not_gone() {
        let health = Health::default();
        for _ in 0..10 {
            let sent = Instant::now();
            tokio::time::advance(LATER).await;
            health.note_answer();
            health.note_timeout(sent);
        }
        assert!(!health.is_broken());
    }
}
