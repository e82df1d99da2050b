//! Waiting in turn.
//!
//! Contenders of several processes would split the votes. So those who were refused queue at *one*
//! server: the first, by name, of those that answer. Its queue is that of a single server
//! (`acquire/waiting.rs`, `queue.lua`): heartbeats, and a releaser that gives the lock *there* to the
//! first waiter. In a quorum that is a hint of whose turn it is, and no more.
//!
//! # Protocol
//!
//! 1. A contender sends its heartbeats to the queue's server. If that does not answer soon, the
//!    next one serves; it is asked again after a while, and with it the queue moves back.
//! 2. Whoever releases the lock releases it at the queue's server, too, which so passes its key on
//!    to the first that waits, and tells it. That one asks all servers for their votes (the queue's
//!    server, which holds its key already, gives its own at once).
//! 3. Who refuses is asked again, a few times in short order: the releases on their way to them
//!    may be slower. Then the votes are given back, but for that of the queue's server: while that
//!    is kept, it is nobody else's turn. The next heartbeat renews it, and asks the others again.
//! 4. When it has been its turn in vain for [`LONGEST_VAIN`], it is others' turn at another server,
//!    because they name the servers otherwise or reach others, or the holder lacks the queue's
//!    server, whose key it cannot get back. Then all of this process that wait leave the queue, and
//!    for [`AT_RANDOM`] they try at random while there is no holder, and give back all they get.
//!
//! # Invariants
//!
//! * **T1 Safety is the majority's.** What the queue says grants nothing: neither its answer nor its
//!   message is a vote or brings a fencing number. A vote is the answer to an attempt, and counts
//!   under S4. So P1, P2, P3 and P8 do not depend on the queue.
//! * **T2 Nobody contends for ever in vain** (P11). Each wait is bounded by a heartbeat or a poll. A
//!   server that is silent, empty or of another opinion is passed over. A waiter that dies is
//!   passed over after its waiter TTL, and one that dies while it contends after the TTL.
//! * **T3 Nothing is left** (P10). Where a claim has been in the queue it is given up by `leave`, which
//!   takes it out and passes on what it was granted. A grant to one that has left is passed on.
//!
//! `tests/quorum_queue_model.rs` searches for a state from which nobody gets the lock.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend::fan_out::FanOut;
use crate::backend::quorum::claim_state::{ClaimState, Vote};
use crate::backend::quorum::waiters::{Entry, Stage, Waiters};
use crate::backend::quorum::{Quorum, SHARE_OF_TTL, smallest};
use crate::backend::{
    Answer, Attempt, Beat, Claim, Fences, Freed, Grant, Listen, Queue, Renewal, Signals, Standing,
    Tells,
};
use crate::backoff::Backoff;
use crate::error::Fault;

/// So often the servers that refuse are asked in a row, and after such pauses.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
/// Releases are not on their way for so long.
const LONGEST_VAIN: Duration = Duration::from_millis(250);
const AT_RANDOM: Duration = Duration::from_secs(3);
/// The queue's own numbers are not used: they are as small as the counter allows.
const NO_FENCES: Fences = Fences { first: 0, count: 1 };

/// What the servers tell, on its way to those who wait: a server's grant is only a hint here (T1).
#[derive(Debug)]
pub(crate) struct Hints {
    signals: Arc<dyn Signals>,
    pub(super) waiters: Arc<Waiters>,
}

impl Hints {
    pub(crate) fn new(signals: Arc<dyn Signals>) -> Arc<Self> {
        let waiters = Arc::default();
        Arc::new(Self { signals, waiters })
    }
}

impl Signals for Hints {
    fn changed(&self, key: &str) {
        self.signals.changed(key);
    }

    /// A claim is heard of over several connections, and remembers one.
    fn pushes_missed(&self, _connection: Option<u64>) {
        self.signals.pushes_missed(None);
    }

    /// Wakes the waiter by a lease that is over, so that it asks at once.
    fn granted(&self, grant: Grant) {
        if self.waiters.call(&grant.value) {
            self.signals.granted(Grant {
                life: Duration::ZERO,
                ..grant
            });
        }
    }
}

/// A claim that asks for votes, for as long as it lives.
struct Contending<'a>(&'a ClaimState);

impl<'a> Contending<'a> {
    fn new(state: &'a ClaimState) -> Self {
        state.with_entry(|entry| entry.enter(Stage::Contending));
        Self(state)
    }
}

impl Drop for Contending<'_> {
    fn drop(&mut self) {
        self.0.with_entry(|entry| entry.enter(Stage::Waiting));
    }
}

/// The standing of one that is to ask again soon.
fn soon(ttl: Option<Duration>) -> Beat {
    Beat::Waiting(Standing {
        first: true,
        ttl,
        tells: Tells::Nothing,
    })
}

impl Quorum {
    /// A heartbeat, and if it is its turn, an attempt.
    async fn take_turn(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Beat, Fault> {
        let state = self.state(claim);
        if state.has_ended() {
            return Ok(soon(Some(Duration::ZERO)));
        }
        if self.comes_at_random() {
            return self.come_at_random(claim, fences, within).await;
        }
        let within = within.min(claim.ttl / SHARE_OF_TTL);
        if let Some(vote) = state.vote() {
            // Kept alive, so that it stays nobody else's turn.
            let server = &self.servers[vote.member].backend;
            match server.renew(claim, Listen::No, within).await {
                Ok(Renewal::Renewed { deadline }) => {
                    state.keep_vote(Some(Vote { deadline, ..vote }));
                }
                _ => {
                    state.end();
                    return Ok(soon(Some(Duration::ZERO)));
                }
            }
        } else if state.with_entry(Entry::is_called) != Some(true) {
            let beat = self.beat(claim, within).await?;
            if let Beat::Waiting(_) = beat {
                return Ok(beat);
            }
        }
        self.contend(claim, fences, within).await
    }

    /// Tells the queue's server that the claim waits; asks the next if that one does not answer.
    async fn beat(&self, claim: &Arc<Claim>, within: Duration) -> Result<Beat, Fault> {
        let state = self.state(claim);
        let mut faults = Vec::new();
        while faults.len() < self.majority {
            let member = self.queue_server();
            let server = Arc::clone(&self.servers[member]);
            let within = within.min(server.queue_time_out());
            state.note_queueing(member);
            let sent = Instant::now();
            let asked = (Arc::clone(&server), Arc::clone(claim));
            let beat = state.create(member, async move {
                let (server, claim) = asked;
                let beat = server.backend.as_queue().enqueue(&claim, NO_FENCES, within);
                server.timed(beat).await
            });
            let beat = match beat.await {
                Some(Ok(beat)) => beat,
                Some(Err(fault)) => {
                    server.note_failed(sent);
                    faults.push(fault);
                    continue;
                }
                None => return Ok(soon(Some(Duration::ZERO))),
            };
            server.note_served();
            if let Some(before) = state.enter(member, || self.waiters.add(&claim.value)) {
                self.leave_behind(claim, before, within);
            }
            if let Beat::Granted { told: true, .. } = beat
                && state.with_entry(Entry::is_called) == Some(false)
            {
                server.backend.as_queue().note_missed_grant();
            }
            return Ok(beat);
        }
        Err(self.no_majority(&faults))
    }

    /// The first that serves.
    fn queue_server(&self) -> usize {
        let now = Instant::now();
        let mut order = self.queue_order.iter().copied();
        let serves = order.find(|&member| self.servers[member].may_queue(now));
        serves.unwrap_or(self.queue_order[0])
    }

    /// Leaves the queue of a server that was out of service.
    fn leave_behind(&self, claim: &Arc<Claim>, member: usize, within: Duration) {
        let (server, claim) = (Arc::clone(&self.servers[member]), Arc::clone(claim));
        let state = Arc::clone(self.state(&claim));
        state.note_asked(member);
        tokio::spawn(async move {
            let left = server.backend.as_queue().leave(&claim, within).await;
            if left.is_ok() {
                state.note_left(member);
                state.note_answered(member);
            }
        });
    }

    /// Asks for the votes that are missing.
    async fn contend(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Beat, Fault> {
        let state = self.state(claim);
        let _contending = Contending::new(state);
        let mut grants = Vec::from_iter(state.vote());
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut tries = TRIES;
        let ttl = loop {
            tries -= 1;
            let has = |member: usize| grants.iter().any(|grant| grant.member == member);
            let to_ask = (0..self.servers.len()).filter(|&m| !has(m) && state.is_clean(m));
            let to_ask: Vec<_> = to_ask.collect();
            if grants.len() + to_ask.len() < self.majority {
                // Under another value they can be asked again (S4).
                state.end();
                return Ok(soon(Some(Duration::ZERO)));
            }
            let votes = self.ask(claim, fences, within, &to_ask, grants).await;
            if votes.grants.len() >= self.majority {
                let attempt = self.win(claim, votes, fences, within).await?;
                return Ok(answer(attempt));
            }
            let missing = self.majority - votes.grants.len();
            if votes.ttls.len() < missing {
                state.end();
                return Err(self.no_majority(&votes.faults));
            }
            grants = votes.grants;
            if tries == 0 {
                break smallest(votes.ttls, missing);
            }
            sleep(pauses.next()).await;
        };
        let own = state.place();
        let (own, others): (Vec<_>, Vec<_>) = grants
            .into_iter()
            .partition(|vote| Some(vote.member) == own);
        state.keep_vote(own.first().copied());
        self.give_back_votes(claim, &others, within).await;
        if state.in_vain_for() > LONGEST_VAIN {
            *self.at_random_until.lock() = Some(Instant::now() + AT_RANDOM);
            state.end();
        }
        Ok(soon(ttl))
    }

    /// Takes back votes of a claim that goes on.
    async fn give_back_votes(&self, claim: &Arc<Claim>, votes: &[Vote], within: Duration) {
        let state = self.state(claim);
        let mut fan_out = FanOut::new();
        for &Vote { member, .. } in votes {
            state.note_asked(member);
            let (server, claim) = (Arc::clone(&self.servers[member]), Arc::clone(claim));
            fan_out.ask(member, async move {
                server.timed(server.backend.release(&claim, within)).await
            });
        }
        while let Some((member, answer)) = fan_out.next().await {
            if answer.is_ok() {
                state.note_answered(member);
                state.note_gone(member);
            }
        }
    }

    fn comes_at_random(&self) -> bool {
        let mut until = self.at_random_until.lock();
        *until = until.filter(|until| Instant::now() < *until);
        until.is_some()
    }

    /// An attempt out of turn, of which nothing is kept.
    async fn come_at_random(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Beat, Fault> {
        let state = self.state(claim);
        if state.place().is_some() {
            state.end();
            return Ok(soon(Some(Duration::ZERO)));
        }
        // What an attempt sets at a minority would be in the way of a repair.
        if let Ok(Some(holder)) = self.holder(&claim.key, within).await {
            return Ok(soon(holder.ttl));
        }
        let attempt = self.acquire(claim, fences, within).await?;
        Ok(answer(attempt))
    }
}

fn answer(attempt: Attempt) -> Beat {
    match attempt {
        Attempt::Granted { fences, deadline } => Beat::Granted {
            fences,
            deadline,
            told: false,
        },
        Attempt::Held { ttl } => soon(ttl),
    }
}

impl Queue for Quorum {
    fn enqueue<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Beat> {
        Box::pin(self.take_turn(claim, fences, within))
    }

    fn leave<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(self.release(claim, within))
    }

    /// Each server is told when its own message did not come.
    fn note_missed_grant(&self) {}
}
