//! A majority of independent servers is a server: Redlock, with fencing tokens.
//!
//! # Limitations
//!
//! * It excludes as long as a majority of the servers keeps the keys that it was given. A server
//!   that restarts without its data, or a replica that takes a server's place, is data loss: the
//!   next renewal repairs it, unless those that forgot and those that missed the grant make a
//!   majority. A server without persistence should be restarted only a TTL after it ended.
//! * Waiters are served in turn while one server's queue serves them all; the first attempt of a
//!   fresh contender may come between. While the servers' queues disagree, they come at random.
//! * It costs requests to all servers for each step, and answers when the majority has.
//!
//! # Protocol
//!
//! 1. **Acquire**: all servers are asked at once, with the same value, TTL and floor. With a
//!    majority of grants it is ours; the lease counts until the majority-th largest of their
//!    deadlines. Without, whatever may have been set is released, and the next attempt, a random
//!    while later, takes another value, so that no release of the old one can hit it.
//! 2. **Token**: the largest number that the majority granted. If a majority granted just that, it
//!    is settled; if not, it is written back, and a majority must accept it. A server accepts it if
//!    the lock is ours there, and its counter is smaller, or was written by us and not beyond it.
//! 3. **Renew**: a majority extends. So many "not ours" that there can be no majority are a loss.
//!    Everything else is unknown.
//! 4. **Repair**: while a majority has the key, a server without it gets it if it is free there,
//!    with the token: the one exception to P7. A repair begins when a server refuses what the
//!    majority grants, as a rule because of a loser of the race that gives its minority back a
//!    moment later, when a server is in trouble meanwhile, and when it has nothing to renew. It is
//!    tried for a short while, on the driver's thread. No repair follows a release: see
//!    [`claim_state`].
//! 5. **Release**: everywhere, also where no answer came; but not where each request was refused.
//! 6. **Wait**: in turn, in the queue of one server, which says who is to ask for votes: see [`turn`].
//!
//! Answers after the majority's arrive behind the scenes, on the runtime of the request: a late
//! grant is kept, or undone if the claim has ended meanwhile.

pub(crate) mod claim_state;
#[cfg(test)]
mod fake;
mod fence;
mod holder;
mod member;
mod release;
mod renew;
mod repair;
mod server;
mod turn;
mod waiters;

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use crate::backend::{
    Answer, Attempt, Backend, Claim, Fences, Freed, Kept, Listen, Look, Queue, Renewal, SentBehind,
};
use crate::clock::Moment;
use crate::error::{Cause, Fault};
use crate::holder::Holder;
use crate::key::Key;

use self::claim_state::{ClaimState, Vote};
pub(crate) use self::member::Member;
use self::server::QuorumServer;
pub(crate) use self::turn::Hints;
use self::waiters::Waiters;
use crate::backend::fan_out::FanOut;

/// One server gets at most this share of the TTL to answer an acquire, so that a grant is worth
/// having.
const SHARE_OF_TTL: u32 = 4;
/// When a majority has answered and none has granted, the others get so many times as long to
/// tip the balance, and at least this long, and so many times what they usually take.
const LATENESS: u32 = 4;
const LATENESS_OF_ITS_OWN: u32 = 2;
const LEAST_WAIT: Duration = Duration::from_millis(2);

/// P8: what is reserved and not used is not given back, as the servers could not agree on that. So
/// an acquisition reserves no more numbers than it takes microseconds, and the counters do not run
/// ahead of the clock.
const LARGEST_BLOCK: u64 = 100;

/// A majority of backends, as one.
pub(crate) struct Quorum {
    servers: Vec<Arc<QuorumServer>>,
    majority: usize,
    name: Arc<str>,
    /// The servers by name, which is the order in which their queues are used.
    queue_order: Vec<usize>,
    waiters: Arc<Waiters>,
    /// Until when contenders come at random: the servers' queues disagree.
    at_random_until: Mutex<Option<Instant>>,
    /// Where repairs run, which nobody waits for.
    driver: OnceLock<Handle>,
}

impl Quorum {
    /// The servers tell of their grants by way of `hints`.
    pub(crate) fn new(members: Vec<Arc<dyn Member>>, hints: &Hints) -> Self {
        let addresses: Vec<_> = members.iter().map(|member| member.server()).collect();
        let mut queue_order: Vec<_> = (0..members.len()).collect();
        queue_order.sort_by_key(|&member| &addresses[member]);
        Self {
            queue_order,
            waiters: Arc::clone(&hints.waiters),
            at_random_until: Mutex::default(),
            majority: members.len() / 2 + 1,
            name: format!("{} servers ({})", members.len(), addresses.join(", ")).into(),
            servers: members.into_iter().map(QuorumServer::new).collect(),
            driver: OnceLock::new(),
        }
    }

    fn state<'a>(&self, claim: &'a Claim) -> &'a Arc<ClaimState> {
        let members = self.servers.len();
        let state = || Box::new(Arc::new(ClaimState::new(members))) as _;
        known(&**claim.at_store.get_or_init(state))
    }

    /// How many servers can fail without preventing a majority.
    fn minority(&self) -> usize {
        self.servers.len() - self.majority
    }

    async fn acquire(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Attempt, Fault> {
        let within = within.min(claim.ttl / SHARE_OF_TTL);
        let all: Vec<_> = (0..self.servers.len()).collect();
        let votes = self.ask(claim, fences, within, &all, Vec::new()).await;
        if votes.grants.len() >= self.majority {
            return self.win(claim, votes, fences, within).await;
        }
        self.state(claim).end();
        if votes.grants.len() + votes.ttls.len() < self.majority {
            return Err(self.no_majority(&votes.faults));
        }
        // So many have to become free for a majority.
        let missing = self.majority - votes.grants.len();
        self.give_back(claim, &votes.grants, within).await;
        Ok(Attempt::Held {
            ttl: smallest(votes.ttls, missing),
        })
    }

    /// Asks some of the servers for their votes, until there is a majority with those that there
    /// are, or none can be had for now.
    async fn ask(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
        members: &[usize],
        grants: Vec<Vote>,
    ) -> Votes {
        let state = self.state(claim);
        let mut votes = Votes {
            without_key: Vec::new(),
            ttls: Vec::new(),
            faults: Vec::new(),
            late: FanOut::new(),
            grants,
        };
        for &member in members {
            let (server, claim) = (Arc::clone(&self.servers[member]), Arc::clone(claim));
            state.note_asked(member);
            let asked = state.create(member, async move {
                let request = server.backend.acquire(&claim, fences, within);
                server.timed(request).await
            });
            let state = Arc::clone(state);
            votes.late.ask(member, async move {
                let answer = asked.await;
                if let Some(Ok(attempt)) = &answer {
                    state.note_answered(member);
                    if let Attempt::Held { .. } = attempt {
                        state.note_gone(member);
                    }
                }
                answer
            });
        }
        let start = Instant::now();
        let mut until = start + within * 2;
        while votes.grants.len() < self.majority {
            let Ok(Some((member, answer))) = timeout_at(until, votes.late.next()).await else {
                break;
            };
            votes.count(member, answer);
            let granted = votes.grants.len();
            let answers = granted + votes.ttls.len();
            let open = votes.late.open();
            let lost = granted + open < self.majority;
            let known = answers >= self.majority || answers + open < self.majority;
            if lost && known {
                break;
            }
            if answers >= self.majority {
                until = until.min(start + self.longest_wait(start, &votes.late));
            }
        }
        votes
    }

    /// Turns a majority of votes into a grant, and sees to the other servers.
    async fn win(
        &self,
        claim: &Arc<Claim>,
        votes: Votes,
        fences: Fences,
        within: Duration,
    ) -> Result<Attempt, Fault> {
        let attempt = self
            .settle_fence(claim, &votes.grants, fences, within)
            .await;
        if let Ok(Attempt::Granted { .. }) = attempt {
            self.complete(claim, votes.without_key, votes.late, within);
        } else {
            self.state(claim).end();
        }
        attempt
    }

    /// How long after its start a fan-out waits for the others when a majority has answered and has
    /// not decided: they may split the vote for as long as a silent server is waited for.
    fn longest_wait<T>(&self, start: Instant, fan_out: &FanOut<T>) -> Duration {
        let missing = fan_out.servers().map(|member| self.servers[member].usual());
        let usual = missing.max().unwrap_or_default() * LATENESS_OF_ITS_OWN;
        (start.elapsed() * (LATENESS + 1) + LEAST_WAIT).max(usual)
    }

    /// A server from which only one of the two connections can be had counts as failed.
    async fn connect(&self, driver: &Handle, within: Duration) -> Result<(), Fault> {
        let _ = self.driver.set(driver.clone());
        let mut fan_out = FanOut::new();
        for (member, server) in self.servers.iter().enumerate() {
            let (server, driver) = (Arc::clone(server), driver.clone());
            fan_out.ask(member, async move {
                server.timed(server.backend.connect(&driver, within)).await
            });
        }
        let mut connected = 0;
        let mut faults = Vec::new();
        while let Some((_, answer)) = fan_out.next().await {
            match answer {
                Ok(()) => connected += 1,
                Err(fault) => faults.push(fault),
            }
            if connected >= self.majority {
                fan_out.finish_behind();
                return Ok(());
            }
        }
        Err(self.no_majority(&faults))
    }

    fn no_majority(&self, faults: &[Fault]) -> Fault {
        let permanent = faults.iter().filter(|fault| fault.permanent).count();
        Fault {
            permanent: permanent > self.minority(),
            server: Arc::clone(&self.name),
            cause: Cause::new(NoMajority {
                needed: self.majority,
                reasons: faults
                    .iter()
                    .map(|fault| format!("{}: {}", fault.server, fault.cause))
                    .collect(),
                source: faults.last().map(|fault| fault.cause.clone()),
            }),
        }
    }
}

/// What was kept of a claim, which belongs to one store.
fn known(at_store: &(dyn Any + Send + Sync)) -> &Arc<ClaimState> {
    let state = at_store.downcast_ref();
    state.expect("nobody but the quorum keeps anything")
}

impl Backend for Quorum {
    fn server(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn connect<'a>(&'a self, driver: &'a Handle, within: Duration) -> Answer<'a, ()> {
        Box::pin(self.connect(driver, within))
    }

    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim, fences, within))
    }

    fn disown(&self, claim: &Arc<Claim>) -> Option<Vec<SentBehind>> {
        self.disown(claim)
    }

    /// It has ended: releases of its value may be on their way.
    fn is_spent(&self, claim: &Claim) -> bool {
        claim
            .at_store
            .get()
            .is_some_and(|at| known(&**at).has_ended())
    }

    fn largest_block(&self) -> u64 {
        LARGEST_BLOCK
    }

    fn renew<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        listen: Listen,
        within: Duration,
    ) -> Answer<'a, Renewal> {
        Box::pin(self.renew(claim, listen, within))
    }

    fn look<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Look> {
        Box::pin(self.look(claim, within))
    }

    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(self.release(claim, within))
    }

    /// The numbers are reserved at acquire only, so the lock is given up when they are used up, or
    /// the stretch is over.
    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        _fences: Fences,
        within: Duration,
    ) -> Answer<'a, Kept> {
        Box::pin(async move {
            Ok(match self.release(claim, within).await? {
                Freed::Freed => Kept::PassedOn,
                Freed::NotOurs => Kept::NotOurs,
            })
        })
    }

    fn queue(&self) -> Option<&dyn Queue> {
        Some(self)
    }

    fn settle<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        within: Duration,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            // Those that are late are bounded by their own time-outs.
            let _ = tokio::time::timeout(within, self.state(claim).released()).await;
        })
    }

    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>> {
        Box::pin(self.holder(key, within))
    }

    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool> {
        Box::pin(self.force_release(key, within))
    }
}

impl fmt::Debug for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quorum").field(&self.name).finish()
    }
}

/// The answers of servers that were asked for their votes.
struct Votes {
    grants: Vec<Vote>,
    /// Who refused, or failed for now.
    without_key: Vec<usize>,
    /// How long the keys live of those who refused.
    ttls: Vec<Option<Duration>>,
    faults: Vec<Fault>,
    /// Those that have not answered.
    late: FanOut<Option<Result<Attempt, Fault>>>,
}

impl Votes {
    fn count(&mut self, member: usize, answer: Option<Result<Attempt, Fault>>) {
        match answer {
            Some(Ok(Attempt::Granted { fences, deadline })) => self.grants.push(Vote {
                member,
                fences,
                deadline,
            }),
            Some(Ok(Attempt::Held { ttl })) => {
                self.without_key.push(member);
                self.ttls.push(ttl);
            }
            Some(Err(fault)) => {
                if !fault.permanent {
                    self.without_key.push(member);
                }
                self.faults.push(fault);
            }
            // Somebody else has ended the claim, and cleans up.
            None => {}
        }
    }
}

/// Why there was no majority: what each of the servers that failed said.
#[derive(Debug, thiserror::Error)]
#[error("no majority of {needed}: {}", reasons.join("; "))]
struct NoMajority {
    needed: usize,
    reasons: Vec<String>,
    source: Option<Cause>,
}

/// The majority-th largest deadline: until then a majority keeps the key.
fn lease(deadlines: impl Iterator<Item = Moment>, majority: usize) -> Moment {
    let mut deadlines: Vec<_> = deadlines.collect();
    deadlines.sort_unstable_by(|a, b| b.cmp(a));
    deadlines[majority - 1]
}

/// The `rank`-th smallest of some TTLs, from 1 on; `None` is the largest.
fn smallest(mut ttls: Vec<Option<Duration>>, rank: usize) -> Option<Duration> {
    ttls.sort_unstable_by_key(|ttl| ttl.unwrap_or(Duration::MAX));
    ttls.get(rank - 1).copied().flatten()
}

#[cfg(test)]
mod tests;
