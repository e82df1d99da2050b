//! Which leases are to be renewed, or given up for lost, and when. Pure: no I/O, no timer.
//!
//! A lease on the roster costs nothing until its first renewal is due. The driver asks what is
//! due, does it, and reports back.
//!
//! # Invariants
//!
//! * **W1** A lease is on the roster from its grant until it is released or lost; off it, nothing
//!   is renewed (P5).
//! * **W2** One renewal of a lease is under way at a time; its deadline is watched all the while.
//! * **W3** `wakes` holds exactly one moment for each entry: the earliest at which it needs
//!   attention.
//! * **W4** Whoever takes a lease off that is over fires its token, if nobody has (P4). The only
//!   exception is a lease that its holder ceded before it was over: a release fires no token (L4).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Claim;
use crate::clock::Moment;
use crate::driver::watch::{Ear, GATHER, SHORTEST_RETRY, Watch};
use crate::lease::Lease;

/// What the driver has to do now.
#[derive(Debug)]
pub(crate) enum Due {
    /// The lease is over: tell.
    Lost(Watch),
    /// Ask Redis about the claim, and perhaps extend it.
    Question {
        id: u64,
        claim: Arc<Claim>,
        extend: bool,
        within: Duration,
    },
}

/// All leases of a locker.
#[derive(Debug)]
pub(crate) struct Roster {
    entries: HashMap<u64, Watch>,
    /// The latest entry of a key. An earlier one is a lease that is over and not told yet, or that
    /// of a contender whose turn was taken from it (Q6): a change is told to the latest only.
    by_key: HashMap<Arc<str>, u64>,
    wakes: BTreeSet<(Moment, u64)>,
    last_id: u64,
    /// Until when the driver sleeps if nobody wakes it.
    asleep_until: Moment,
    closed: bool,
}

impl Default for Roster {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            by_key: HashMap::new(),
            wakes: BTreeSet::new(),
            last_id: 0,
            asleep_until: Moment::NEVER,
            closed: false,
        }
    }
}

impl Roster {
    /// Puts a lease on the roster. Says under which number, and whether the driver would sleep
    /// past its first renewal; gives it back if nobody would watch it any more.
    pub(crate) fn insert(&mut self, mut watch: Watch) -> Result<(u64, bool), Watch> {
        if self.closed {
            return Err(watch);
        }
        self.last_id += 1;
        let id = self.last_id;
        watch.wake = watch.next_wake();
        let early = watch.wake < self.asleep_until;
        self.wakes.insert((watch.wake, id));
        self.by_key.insert(Arc::clone(watch.claim.key.name()), id);
        self.entries.insert(id, watch);
        Ok((id, early))
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Watch> {
        let watch = self.entries.remove(&id)?;
        self.wakes.remove(&(watch.wake, id));
        let name = watch.claim.key.name();
        if self.by_key.get(name) == Some(&id) {
            self.by_key.remove(name);
        }
        Some(watch)
    }

    /// Marks a lease whose holder lets go, until the next one has it. One that is over is lost
    /// all the same.
    pub(crate) fn cede(&mut self, id: u64) {
        if let Some(watch) = self.entries.get_mut(&id) {
            watch.is_ceded = !watch.lease.is_lost();
        }
    }

    /// Puts a new holder's lease in the place of the present one's: the claim lives on. Says, too,
    /// whether the driver must be woken: the new holder's `max_hold` may end before anything else
    /// does (P4). `None` if the present lease is over or off the roster.
    pub(crate) fn hand_over(
        &mut self,
        id: u64,
        turn: u64,
        lease: impl FnOnce(Moment) -> Lease,
    ) -> Option<(Arc<Lease>, bool)> {
        let watch = self.entries.get_mut(&id)?;
        if watch.lease.is_lost() {
            return None;
        }
        watch.lease = Arc::new(lease(watch.granted_until));
        watch.turn = turn;
        watch.is_ceded = false;
        let lease = Arc::clone(&watch.lease);
        Some((lease, self.refile(id)))
    }

    pub(crate) fn holds(&self, key: &str, value: &str) -> bool {
        let id = self.by_key.get(key);
        let watch = id.and_then(|id| self.entries.get(id));
        watch.is_some_and(|watch| &*watch.claim.value == value)
    }

    /// Somebody changed a key, or all of them, as `heard` by one of our connections, or for sure.
    /// Says whether the driver must be woken.
    pub(crate) fn changed(&mut self, key: Option<&str>, heard: Option<Ear>, now: Moment) -> bool {
        let ids: Vec<u64> = match key {
            Some(key) => self.by_key.get(key).copied().into_iter().collect(),
            None => self.entries.keys().copied().collect(),
        };
        let mut early = false;
        for id in ids {
            if let Some(watch) = self.entries.get_mut(&id)
                && (watch.ear.is_none() || heard.is_none() || watch.ear == heard)
            {
                watch.doubt(now);
                early |= self.refile(id);
            }
        }
        early
    }

    /// A connection was lost, and with it what it would have heard.
    pub(crate) fn deaf(&mut self, ear: Ear, now: Moment) -> bool {
        let early = self.changed(None, Some(ear), now);
        for watch in self.entries.values_mut().filter(|w| w.ear == Some(ear)) {
            watch.ear = None;
        }
        early
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes all leases off; later ones are turned away.
    pub(crate) fn close(&mut self) -> Vec<Watch> {
        self.closed = true;
        self.wakes.clear();
        self.by_key.clear();
        self.entries.drain().map(|(_, watch)| watch).collect()
    }

    /// What is due at `now`.
    pub(crate) fn due(&mut self, now: Moment, command_timeout: Duration) -> Vec<Due> {
        let mut due = Vec::new();
        let soon: Vec<u64> = self
            .wakes
            .range(..=(now + GATHER, u64::MAX))
            .map(|&(_, id)| id)
            .collect();
        for id in soon {
            let Some(watch) = self.entries.get_mut(&id) else {
                continue;
            };
            if watch.lease.is_lost() {
                due.extend(self.remove(id).filter(Watch::is_to_be_told).map(Due::Lost));
                continue;
            }
            if watch.wants_attention(now) {
                let extend = watch.ask(now);
                due.push(Due::Question {
                    id,
                    claim: Arc::clone(&watch.claim),
                    extend,
                    // Three tries fit into what is left of the lease.
                    within: command_timeout
                        .min(watch.lease.remaining() / 3)
                        .max(SHORTEST_RETRY),
                });
            }
            self.refile(id);
        }
        due
    }

    /// Notes until when the driver sleeps now.
    pub(crate) fn fall_asleep(&mut self) -> Option<Moment> {
        let next = self.wakes.first().map(|&(wake, _)| wake);
        self.asleep_until = next.unwrap_or(Moment::NEVER);
        next
    }

    /// The claim was extended until `deadline`, by a request over `ear`'s connection, in answer to
    /// the question of the driver or to one of the holder's own. Says whether the driver must be
    /// woken.
    pub(crate) fn renewed(
        &mut self,
        id: u64,
        deadline: Moment,
        ear: Ear,
        asked_by_driver: bool,
        now: Moment,
    ) -> bool {
        let Some(watch) = self.entries.get_mut(&id) else {
            return false;
        };
        // W2: a caller's answer says nothing of a question of the driver's.
        watch.in_flight &= !asked_by_driver;
        watch.renewed(deadline, ear, now);
        watch.lease.forget_failure();
        watch.lease.extend(deadline);
        self.refile(id)
    }

    /// The key still holds the claim's value, until then at least; it was not extended.
    pub(crate) fn looked(&mut self, id: u64, until: Option<Moment>, now: Moment) -> bool {
        let Some(watch) = self.entries.get_mut(&id) else {
            return false;
        };
        watch.in_flight = false;
        watch.looked(until, now);
        self.refile(id)
    }

    /// A question came to no answer.
    pub(crate) fn unanswered(&mut self, id: u64, now: Moment) -> Option<&Arc<Lease>> {
        let watch = self.entries.get_mut(&id)?;
        watch.in_flight = false;
        watch.ear = None;
        watch.plan_retry(now);
        self.refile(id);
        self.entries.get(&id).map(|watch| &watch.lease)
    }

    /// Restores W3; says whether the entry now needs attention before the driver wakes up.
    fn refile(&mut self, id: u64) -> bool {
        let Some(watch) = self.entries.get_mut(&id) else {
            return false;
        };
        let wake = watch.next_wake();
        if wake != watch.wake {
            self.wakes.remove(&(watch.wake, id));
            self.wakes.insert((wake, id));
            watch.wake = wake;
        }
        wake < self.asleep_until
    }
}

#[cfg(test)]
mod tests;
