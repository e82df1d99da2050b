//! One server of a quorum, and how a claim is given up there.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::backend::quorum::claim_state::ClaimState;
use crate::backend::quorum::member::Member;
use crate::backend::{Claim, Freed, SentBehind};
use crate::backoff::Backoff;
use crate::error::Fault;
use crate::events::emit;

/// So many releases at a time are tried again at a server that does not answer. The keys of
/// further ones stay there until their TTL.
const RETRIES: usize = 64;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// One answer counts for this share of what is usual.
const NEWEST_SHARE: u32 = 4;

/// The server of the queue gets so many times as long as it usually takes, and at least this long.
const QUEUE_LATENESS: u32 = 8;
const LEAST_QUEUE_TIME_OUT: Duration = Duration::from_millis(250);
/// How long it is left alone when it did not answer: longer each time, up to half a minute.
const SHORTEST_REST: Duration = Duration::from_secs(1);
const MOST_DOUBLINGS: u32 = 5;

/// A server of the quorum.
pub(super) struct QuorumServer {
    pub(super) backend: Arc<dyn Member>,
    retries: Arc<Semaphore>,
    usual: Mutex<Option<Duration>>,
    has_warned: AtomicBool,
    /// How it has served as the queue's server.
    service: Mutex<Service>,
}

#[derive(Default)]
struct Service {
    failures: u32,
    failed_at: Option<Instant>,
    /// It is left alone until then.
    out_until: Option<Instant>,
}

impl QuorumServer {
    pub(super) fn new(backend: Arc<dyn Member>) -> Arc<Self> {
        Arc::new(Self {
            backend,
            retries: Arc::new(Semaphore::new(RETRIES)),
            usual: Mutex::new(None),
            has_warned: AtomicBool::new(false),
            service: Mutex::default(),
        })
    }

    /// How long the server takes to answer, as a rule; nothing before its first answer.
    pub(super) fn usual(&self) -> Duration {
        self.usual.lock().unwrap_or_default()
    }

    /// Whether to ask the server for its queue. After a failure it is left alone for a while, and
    /// then one asks it, before others do.
    pub(super) fn may_queue(&self, now: Instant) -> bool {
        let mut service = self.service.lock();
        match &mut service.out_until {
            Some(until) if now < *until => false,
            Some(until) => {
                *until = now + SHORTEST_REST;
                true
            }
            None => true,
        }
    }

    /// How long the server gets to answer for its queue: others can serve.
    pub(super) fn queue_time_out(&self) -> Duration {
        (self.usual() * QUEUE_LATENESS).max(LEAST_QUEUE_TIME_OUT)
    }

    pub(super) fn note_served(&self) {
        *self.service.lock() = Service::default();
    }

    /// A request of then came to no answer. Those that were under way together fail together, which
    /// is one failure.
    pub(super) fn note_failed(&self, sent: Instant) {
        let mut service = self.service.lock();
        if service.failed_at.is_some_and(|failed_at| sent < failed_at) {
            return;
        }
        let now = Instant::now();
        let rest = SHORTEST_REST * (1 << service.failures.min(MOST_DOUBLINGS));
        service.failures += 1;
        service.failed_at = Some(now);
        service.out_until = Some(now + rest);
    }

    /// Watches a request to the server: how long an answer takes, and whether it refuses for good,
    /// which nobody else would tell while the others are a majority.
    pub(super) async fn timed<T>(
        &self,
        request: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let start = Instant::now();
        let answer = request.await;
        match &answer {
            Ok(_) => {
                let newest = start.elapsed();
                let mut usual = self.usual.lock();
                let before = usual.unwrap_or(newest);
                *usual = Some((before * (NEWEST_SHARE - 1) + newest) / NEWEST_SHARE);
            }
            Err(fault) if fault.permanent => {
                if !self.has_warned.swap(true, Ordering::Relaxed) {
                    let fault = fault.clone();
                    emit(move || {
                        tracing::warn!(
                            server = %fault.server,
                            cause = %fault.cause,
                            "a server of the quorum refuses requests"
                        );
                    });
                }
            }
            Err(_) => {}
        }
        answer
    }

    /// Frees the key at one server. What cannot be done at once is done behind the scenes.
    pub(super) fn free(
        self: &Arc<Self>,
        claim: &Arc<Claim>,
        state: Arc<ClaimState>,
        member: usize,
        within: Duration,
    ) -> impl Future<Output = Result<Freed, Fault>> + Send + use<> {
        let (server, claim) = (Arc::clone(self), Arc::clone(claim));
        let releasing = state.releasing(member);
        async move {
            let _releasing = releasing;
            let answer = server
                .timed(server.give_up(&claim, &state, member, within))
                .await;
            let answer = answer.map(|freed| state.note_release(member, freed));
            if let Some(sent) = server.backend.disown(&claim) {
                tokio::spawn(server.await_releases_behind(claim, state, member, sent, within));
            } else if answer.as_ref().is_err_and(|fault| !fault.permanent) {
                server.keep_releasing(claim, state, member, within);
            }
            answer
        }
    }

    /// Who has been in the queue here leaves it, too.
    async fn give_up(
        &self,
        claim: &Arc<Claim>,
        state: &ClaimState,
        member: usize,
        within: Duration,
    ) -> Result<Freed, Fault> {
        if state.is_queued(member) {
            self.backend.as_queue().leave(claim, within).await
        } else {
            self.backend.release(claim, within).await
        }
    }

    /// S2: waits for the releases behind unsettled requests.
    async fn await_releases_behind(
        self: Arc<Self>,
        claim: Arc<Claim>,
        state: Arc<ClaimState>,
        member: usize,
        sent: Vec<SentBehind>,
        within: Duration,
    ) {
        let mut is_free = true;
        for sent in sent {
            is_free &= sent.await.is_ok_and(|answer| answer.is_ok());
        }
        // It is not known what ran last.
        if !is_free {
            let answer = self.give_up(&claim, &state, member, within).await;
            if answer.is_err_and(|fault| !fault.permanent) {
                self.keep_releasing(claim, state, member, within);
            }
        }
    }

    /// Tries to free the key until it is, or is gone by its TTL.
    fn keep_releasing(
        self: Arc<Self>,
        claim: Arc<Claim>,
        state: Arc<ClaimState>,
        member: usize,
        within: Duration,
    ) {
        let Ok(permit) = Arc::clone(&self.retries).try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let until = Instant::now() + claim.ttl;
            let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
            while Instant::now() < until {
                tokio::time::sleep(backoff.next()).await;
                match self.give_up(&claim, &state, member, within).await {
                    Err(fault) if !fault.permanent => {}
                    _ => return,
                }
            }
        });
    }
}
