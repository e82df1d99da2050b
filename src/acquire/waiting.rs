//! Waiting in the queue of Redis: heartbeats, grants, and the watch of the first over the holder.
//!
//! # Limitations
//!
//! * The order is that of the arrival in Redis' queue, among waiters that are alive. A contender
//!   that finds the key free takes it, which happens after a crash only: a release never leaves
//!   the key free while somebody waits.
//! * Holders in other languages know nothing of the queue. Among them and us it is whoever comes
//!   first; among us the order holds.
//! * Liveness is measured by the server's wall clock, like every expiry in Redis.
//! * In a quorum the queue is one server's, and says no more than whose turn it is: see
//!   `backend/quorum/turn.rs`.
//!
//! # Protocol
//!
//! Beside the lock key there is, while somebody waits, a sorted set of the waiters' values by
//! arrival and a hash of their records (`queue.lua`). All steps are scripts, so each is atomic.
//!
//! 1. A contender whose attempt was refused sends `enqueue`, and sends it again every third of its
//!    waiter TTL (the lock's TTL within 0.5 s and 3 s): the heartbeat. It carries a stamp, the
//!    contender's own clock when it was sent; the record keeps that of the last one that ran.
//! 2. A holder's `release` takes the first of the queue that lives, sets the lock key to its value
//!    for the rest of its waiter TTL (or its TTL, if that is shorter), and publishes the value, the
//!    fencing number, the record's stamp and the *life*: the time from that heartbeat to the key's
//!    expiry, by the server's clock. It drops a thousand dead waiters at most; the key is left free
//!    if there are more, and a heartbeat that meets that many is followed by the next at once, until
//!    the first that lives is the first of the queue. The channel is that of the connection that
//!    brought the heartbeat. An empty message to the holder's own channel comes before it and means
//!    nothing: it only has the server write the grant before the answer to the holder.
//! 3. Who hears of its grant holds from the stamp for the life, less the margin of P3, and renews.
//!    A grant from a stamp that is yet to come, or for longer than a waiter lives, is no releaser's:
//!    the next heartbeat tells how things stand.
//! 4. `enqueue` finds its own value in the lock key if it was granted and did not hear; and if the
//!    key is free with somebody before it, it makes the grant in the releaser's place.
//! 5. Who gives up sends `leave`, which passes on what it was granted meanwhile. A grant for a
//!    value that waited here, and that nobody waits for or holds any more, is answered by `leave`,
//!    too. The process remembers the values of a key for 3 s, the last few hundred of them; a grant
//!    for another is left alone.
//! 6. The first of the queue asks again when the holder's PTTL has passed and when Redis tells that
//!    the lock key changed. Nobody else does either.
//!
//! # Invariants
//!
//! * **G1 No two holders.** The lock key holds one value at a time, and only the process of that
//!   value counts a lease on it (P6). Every script that sets the key first finds it free, or
//!   holding the caller's value.
//! * **G2 A grant's lease never outlives the server's.** The stamp was read before the heartbeat
//!   was sent, so before the server ran it. The key lives for *life* from that run by the server's
//!   clock; the lease ends *life* less the margin after the stamp by ours. The argument is about
//!   one heartbeat, that whose stamp the grant echoes: counted from the message's arrival, from
//!   the last heartbeat sent or from the last one answered, it would be about another one, which
//!   may be later than the one that the server had run when it granted.
//! * **G3 No lost wake-up** (P11). Messages are hints. A live waiter's heartbeat finds a grant that
//!   was not told, a key that is free, and a queue that lost it; so a waiter tries within a third
//!   of its waiter TTL whatever is lost.
//! * **G4 A dead waiter costs at most its waiter TTL, once.** At the head of the queue it is passed
//!   over if it has not been heard of for that long. Granted before, its key expires that long
//!   after its last heartbeat, and it is off the queue.
//! * **G5 Nothing is left.** A record goes with its place. Both keys expire 10 s after the last
//!   heartbeat, longer than any waiter lives, and an emptied set and hash are gone at once.
//! * **G6 A ghost is harmless.** A heartbeat that runs after its waiter left puts it back. It is
//!   passed over after its waiter TTL, or granted, and then step 5 passes the lock on at once, or
//!   if the process has forgotten the value, the key expires after a waiter TTL.
//!
//! `tests/queue_model/main.rs` checks these exhaustively on a model.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::acquire::{Contender, LONGEST_POLL, SHORTEST_POLL};
use crate::backend::{Beat, Fences, Grant, Listen, Queue, Renewal, Standing, Tells};
use crate::backoff::{Backoff, jittered};
use crate::driver::HeldLock;
use crate::error::{Error, Fault};
use crate::keys::{News, Won};

/// A waiter may miss two heartbeats and live.
const BEATS_PER_LIFE: u32 = 3;
/// How often the first of the queue looks for a key that a foreign holder has freed, where the
/// server tells of grants and not of changes.
const WATCH: Duration = Duration::from_millis(200);

impl Contender<'_> {
    /// Waits until a releaser grants the lock, or the key turns out free at a heartbeat; `None` at
    /// `end`.
    pub(super) async fn wait_in_queue(
        mut self,
        end: Option<Instant>,
    ) -> Result<Option<HeldLock>, Error> {
        let driver = self.driver;
        let Some(queue) = driver.backend.queue() else {
            return Ok(None);
        };
        let mut poll = Backoff::new(SHORTEST_POLL, LONGEST_POLL);
        // Until it holds: see `Keys::granted`.
        self.listen();
        self.is_queued = true;
        let mut has_waited = false;
        loop {
            // The last heartbeat is at the end: it finds a lock that nobody told us is free.
            let is_last = end.is_some_and(|end| end <= Instant::now());
            let grant = match self.beat(queue).await {
                Ok(Heard::Beat(Beat::Granted {
                    fences,
                    deadline,
                    told,
                })) => {
                    if told && !self.waiter().has_grant() {
                        queue.note_missed_grant();
                    }
                    if !has_waited {
                        driver.keys.note_contention(self.state(), false);
                    }
                    match self.won(fences, deadline) {
                        Ok(won) => return self.hold(won).await,
                        Err(fault) => {
                            self.pause_after(fault).await?;
                            continue;
                        }
                    }
                }
                Ok(Heard::Beat(Beat::Waiting(standing))) => {
                    driver.keys.note_contention(self.state(), true);
                    self.note_answer();
                    has_waited = true;
                    self.withdraw();
                    if is_last {
                        return Ok(None);
                    }
                    let next = self.next_beat(&standing, &mut poll);
                    let next = end.map_or(next, |end| end.min(next));
                    let least = if standing.first {
                        News::Changed
                    } else {
                        News::Missed
                    };
                    tokio::select! {
                        biased;
                        news = self.news(Some(least)) => match news {
                            Ok(grant) => Some(grant),
                            Err(_) => self.late_grant().await,
                        },
                        () = sleep_until(next) => None,
                    }
                }
                Ok(Heard::Grant(grant)) => Some(grant),
                Err(fault) => {
                    self.withdraw();
                    let next = self.next_try(fault)?;
                    tokio::select! {
                        biased;
                        grant = self.news(None) => grant.ok(),
                        () = sleep_until(next) => None,
                    }
                }
            };
            if let Some(grant) = grant
                && let Some(won) = self.accept(&grant).await
            {
                return self.hold(won).await;
            }
        }
    }

    /// Sends a heartbeat, unless a grant comes first.
    async fn beat(&mut self, queue: &dyn Queue) -> Result<Heard, Fault> {
        let within = self.within();
        let fences = Fences::floor(self.fences_wanted());
        self.may_be_granted = true;
        self.waiter().forget_news();
        tokio::select! {
            biased;
            Ok(grant) = self.news(None) => Ok(Heard::Grant(grant)),
            beat = queue.enqueue(&self.claim, fences, within) => beat.map(Heard::Beat),
        }
    }

    /// Gives a grant that comes with a change the time to arrive, before the server is asked.
    async fn late_grant(&self) -> Option<Grant> {
        let grant = timeout(SHORTEST_POLL, self.news(None)).await;
        grant.ok()?.ok()
    }

    fn next_beat(&self, standing: &Standing, poll: &mut Backoff) -> Instant {
        let beat = self.claim.waiter_ttl() / BEATS_PER_LIFE;
        // Never later than the third, a little earlier at random.
        let regular = beat - jittered(beat / 20);
        let mut wait = match standing.tells {
            Tells::All => regular,
            // A holder that is not one of us frees the key and tells nobody: the first looks for
            // it. All others can only be granted the lock, and hear of that.
            Tells::Grants if standing.first => regular.min(WATCH - jittered(WATCH / 20)),
            Tells::Grants => regular,
            Tells::Nothing => poll.next(),
        };
        if standing.first
            && let Some(ttl) = standing.ttl
        {
            // A holder that crashed: the key is free a moment after its TTL.
            wait = wait.min(ttl + SHORTEST_POLL);
        }
        Instant::now() + wait
    }

    /// Takes a lock that a releaser granted, unless the lease is over already, or was never given
    /// by our scripts (then a heartbeat tells how things stand).
    async fn accept(&mut self, grant: &Grant) -> Option<Won> {
        let driver = self.driver;
        let now = driver.clock.now();
        let mut deadline = self.claim.lease_of(grant, now)?;
        if now >= deadline {
            return None;
        }
        if self.options.renew_every.is_none() {
            // Nobody would make the lease as long as it was asked for.
            let within = driver.settings.command_timeout;
            match driver.backend.renew(&self.claim, Listen::No, within).await {
                Ok(Renewal::Renewed { deadline: full }) => deadline = full,
                Ok(Renewal::Removed | Renewal::Stolen) => return None,
                Err(_) => {}
            }
            if driver.clock.now() >= deadline {
                return None;
            }
        }
        Some(Won {
            claim: std::sync::Arc::clone(&self.claim),
            fences: grant.fences,
            deadline,
        })
    }
}

/// What came first.
enum Heard {
    Beat(Beat),
    Grant(Grant),
}
