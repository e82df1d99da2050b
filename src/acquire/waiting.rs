//! Waiting in the queue of Redis: heartbeats, grants, and the watch of the first over the holder.

use tokio::time::{Instant, sleep_until, timeout};

use crate::acquire::outage::Outage;
use crate::acquire::queue::Turn;
use crate::acquire::wakeup::{Listener, Nudge};
use crate::acquire::{Contender, LONGEST_POLL, SHORTEST_POLL};
use crate::backend::{Beat, Grant, Queue, Renewal, Standing};
use crate::backoff::{Backoff, jittered};
use crate::error::Error;
use crate::fault::Fault;
use crate::hold::{Hold, Won};

/// A waiter may miss two heartbeats and live.
const BEATS_PER_LIFE: u32 = 3;

impl Contender<'_> {
    /// Waits until a releaser grants the lock, or the key turns out free at a heartbeat; `None` at
    /// `end`.
    pub(super) async fn wait_in_queue(
        mut self,
        turn: Turn<Hold>,
        end: Option<Instant>,
        outage: &mut Outage,
    ) -> Result<Option<Hold>, Error> {
        let context = self.context;
        let Some(queue) = context.engine.backend.queue() else {
            return Ok(None);
        };
        let mut poll = Backoff::new(SHORTEST_POLL, LONGEST_POLL);
        // Leaves the register after the hold is on the roster: see `Wakeups::granted`.
        let mut listener = context.engine.wakeups.listen(&self.claim);
        self.is_queued = true;
        loop {
            // The last heartbeat is at the end: it finds a lock that nobody told us is free.
            let is_last = end.is_some_and(|end| end <= Instant::now());
            let news = match self.beat(queue, &listener, outage).await? {
                Ok(Heard::Beat(Beat::Granted {
                    fences,
                    deadline,
                    told,
                })) => {
                    if told && !listener.has_grant() {
                        queue.note_untold();
                    }
                    context.engine.wakeups.note_calm(self.claim.key.name());
                    match self.won(fences, deadline, false) {
                        Ok(won) => return Ok(Some(self.hold(turn, won))),
                        Err(fault) => {
                            listener = context.engine.wakeups.listen(&self.claim);
                            self.put_up_with(outage, fault).await?;
                            continue;
                        }
                    }
                }
                Ok(Heard::Beat(Beat::Waiting(standing))) => {
                    context
                        .engine
                        .wakeups
                        .note_contention(self.claim.key.name());
                    outage.is_over();
                    if is_last {
                        return Ok(None);
                    }
                    let next = self.next_beat(&standing, &mut poll);
                    let next = end.map_or(next, |end| end.min(next));
                    let least = if standing.first {
                        Nudge::Changed
                    } else {
                        Nudge::Deaf
                    };
                    let news = async {
                        tokio::select! {
                            biased;
                            news = listener.news(least) => match news {
                                Ok(grant) => Some(grant),
                                Err(_) => settle(&listener).await,
                            },
                            () = sleep_until(next) => None,
                        }
                    };
                    self.unless_closed(news).await?
                }
                Ok(Heard::Grant(grant)) => Some(grant),
                Err(fault) => {
                    let next = outage.next_try(fault);
                    let next = next.map_err(|fault| fault.about(Some(self.claim.key.name())))?;
                    let news = async {
                        tokio::select! {
                            biased;
                            grant = listener.grant() => Some(grant),
                            () = sleep_until(next) => None,
                        }
                    };
                    self.unless_closed(news).await?
                }
            };
            if let Some(grant) = news
                && let Some(won) = self.accept(&grant).await
            {
                return Ok(Some(self.hold(turn, won)));
            }
        }
    }

    /// Sends a heartbeat, unless a grant comes first.
    async fn beat(
        &mut self,
        queue: &dyn Queue,
        listener: &Listener,
        outage: &Outage,
    ) -> Result<Result<Heard, Fault>, Error> {
        let engine = &self.context.engine;
        let within = outage.bound(engine.settings.command_timeout);
        let fences = self.context.fences_wanted(&self.claim.key, self.terms);
        self.in_doubt = true;
        listener.heed();
        let heard = async {
            tokio::select! {
                biased;
                grant = listener.grant() => Ok(Heard::Grant(grant)),
                beat = queue.enqueue(&self.claim, fences, within) => beat.map(Heard::Beat),
            }
        };
        self.unless_closed(heard).await
    }

    fn next_beat(&self, standing: &Standing, poll: &mut Backoff) -> Instant {
        let beat = self.claim.waiter_ttl() / BEATS_PER_LIFE;
        let mut wait = if standing.pushes {
            // Never later than the third, a little earlier at random.
            beat - jittered(beat / 20)
        } else {
            poll.next()
        };
        if standing.first
            && let Some(ttl) = standing.ttl
        {
            // A holder that crashed: the key is free a moment after its TTL.
            wait = wait.min(ttl + SHORTEST_POLL);
        }
        Instant::now() + wait
    }

    /// Takes a lock that a releaser granted, unless the lease is over already (then a heartbeat
    /// tells how things stand).
    async fn accept(&mut self, grant: &Grant) -> Option<Won> {
        let engine = &self.context.engine;
        let mut deadline = grant.deadline();
        if engine.clock.now() >= deadline {
            return None;
        }
        if self.terms.renew_every.is_none() {
            // Nobody would make the lease as long as it was asked for.
            let within = engine.settings.command_timeout;
            match engine.backend.renew(&self.claim, within).await {
                Ok(Renewal::Renewed { deadline: full }) => deadline = full,
                Ok(Renewal::Removed | Renewal::Stolen) => return None,
                Err(_) => {}
            }
            if engine.clock.now() >= deadline {
                return None;
            }
        }
        Some(Won {
            fences: grant.fences,
            deadline,
            by_push: true,
        })
    }
}

/// Gives a grant that comes with a change the time to arrive, before the server is asked.
async fn settle(listener: &Listener) -> Option<Grant> {
    timeout(SHORTEST_POLL, listener.grant()).await.ok()
}

/// What came first.
enum Heard {
    Beat(Beat),
    Grant(Grant),
}
