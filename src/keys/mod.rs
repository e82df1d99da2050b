//! What this process knows of its keys: one record for each, in one table.
//!
//! Pure state: no I/O, no timer, no callback. What follows from a step is returned and done by the
//! caller: whom to wake ([`Wakes`]), what to ask Redis, what to release.
//!
//! # Invariants
//!
//! * **K1** A key is in the table exactly while somebody contends for it, waits, or holds a lease,
//!   and [`REMEMBERED`] longer if somebody else wanted it, too. So a million keys locked once leave
//!   nothing behind.
//! * **K2** At most one user of a key has the turn: the others of the process wait for it, in the
//!   order of their arrival. A user is known by its [`Waiter`], so an end that comes twice, or late,
//!   ends nobody else's turn.
//! * **K3** A turn that ends goes to the first that still waits. Who is called is called under the
//!   key's lock, and leaves under it: so no call goes to one that has left, and a call that is not
//!   taken up goes on to the next (P11).
//! * **K4** A lease is handed to the first waiter or to nobody: never past one whose options differ.
//! * **K5** A contender whose store does not answer tells the others. So those behind it hear of it
//!   when their own time is over, and none of them takes silence for "taken" (P13).
//! * **K6** Nobody depends on a future that is not polled. A key at which somebody waited is watched
//!   (`driver/unpolled.rs`); a call that is not taken up goes on as if the waiter had left, and it
//!   arrives anew when it is polled. A contender that is not polled loses its turn, which it need
//!   not know: it and the next contend as if they were two processes (P1).
//! * **K7** A lease is among the held from its grant until it is let go, handed on or lost; nothing
//!   else is renewed (P5). Whoever takes off one that is over fires its token (P4), unless its
//!   holder had let it go before that: a release fires no token (L4).
//! * **K8** A question whether to keep a claim that was not answered may be carried out at any later
//!   time, and pass the lock on. After one, the claim is only ever released.
//! * **K9** One question of the driver's about a lease is under way at a time; its deadline is
//!   watched all the while.
//! * **K10** The schedule holds exactly one moment for each key that needs attention: the earliest.
//! * **K11** After [`Keys::close`] nobody enters, nobody waits, and a grant is lost at once.

mod changes;
mod held;
mod let_go;
#[cfg(all(test, redlease_loom))]
mod models;
mod schedule;
mod state;
#[cfg(test)]
mod tests;
mod waiter;

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::Claim;
use crate::clock::Clock;
use crate::error::{Fault, LostReason};
use crate::key::Key;
use crate::keys::schedule::Schedule;
use crate::keys::state::{Locked, Outage, State};
use crate::keys::waiter::{Reclaimed, Stage};
use crate::lease::Lease;
use crate::options::CheckedOptions;
use crate::sync::Mutex;

pub(crate) use crate::keys::changes::Due;
pub(crate) use crate::keys::held::{HeldClaim, Question, Won};
pub(crate) use crate::keys::let_go::{LetGo, TakenOff};
pub(crate) use crate::keys::state::{KeyState, Wakes};
pub(crate) use crate::keys::waiter::{Call, Heard, News, Waiter};

/// How long a key is remembered that was contended: a heartbeat or a grant of a waiter that is gone
/// may come as long as a waiter lives without one.
const REMEMBERED: Duration = Duration::from_secs(3);

/// All keys of a locker.
#[derive(Debug)]
pub(crate) struct Keys {
    clock: Clock,
    table: Mutex<Table>,
    schedule: Schedule,
    /// Claims of ours that were granted when nobody waited with them any more.
    unwanted: Mutex<Vec<Arc<Claim>>>,
    /// Keys that are to be watched from now on (K6).
    to_watch: Mutex<Vec<Arc<KeyState>>>,
    somebody_waits: Notify,
}

#[derive(Debug, Default)]
struct Table {
    keys: HashMap<Arc<str>, Arc<KeyState>>,
    is_closed: bool,
}

/// What an arrival meets.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Nobody is there: contend.
    Turn(Arc<KeyState>, Arc<Waiter>),
    /// Others are there: wait to be called.
    Behind(Arc<KeyState>, Arc<Waiter>),
    /// Others are there, and the one that arrived does not wait. The store has not answered them
    /// if there is a fault.
    Taken(Option<Fault>),
    /// The locker is closed.
    Closed,
}

/// What a waiter that goes leaves behind.
#[derive(Debug)]
pub(crate) enum Left {
    Nothing(Wakes),
    /// The lease that it was called to, and nobody has taken.
    Lease(Arc<Lease>, Arc<Claim>),
}

/// What a locker that is closed leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    pub(crate) wakes: Wakes,
    /// The claims that wait in Redis.
    pub(crate) queued: Vec<Arc<Claim>>,
    pub(crate) held: Vec<HeldClaim>,
}

impl Keys {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            table: Mutex::default(),
            schedule: Schedule::default(),
            unwanted: Mutex::default(),
            to_watch: Mutex::default(),
            somebody_waits: Notify::new(),
        }
    }

    /// Enters a user of a key; one that does not wait goes at once if others are there.
    pub(crate) fn enter(&self, key: &Arc<Key>, options: &CheckedOptions, waits: bool) -> Arrival {
        loop {
            let Some(state) = self.state_of(key) else {
                return Arrival::Closed;
            };
            let mut known = state.lock();
            if known.is_retired {
                drop(known);
                self.take_out(&state);
                continue;
            }
            if known.is_closed {
                return Arrival::Closed;
            }
            if known.turn.is_none() {
                let waiter = Waiter::contending(options);
                known.turn = Some(Arc::clone(&waiter));
                self.refile(&state, &mut known);
                drop(known);
                return Arrival::Turn(state, waiter);
            }
            if !waits {
                let outage = known.outage.as_ref();
                return Arrival::Taken(outage.map(|outage| outage.fault.clone()));
            }
            let waiter = Waiter::waiting(options);
            known.push(Arc::clone(&waiter));
            let is_first = !mem::replace(&mut known.is_watched, true);
            drop(known);
            if is_first {
                self.to_watch.lock().push(Arc::clone(&state));
                self.somebody_waits.notify_one();
            }
            return Arrival::Behind(state, waiter);
        }
    }

    /// Ends the part of a user that waits or contends, wherever it stands: the turn goes on, or the
    /// lease that it was called to is given back.
    pub(crate) fn leave(&self, state: &Arc<KeyState>, waiter: &Arc<Waiter>) -> Left {
        let mut known = state.lock();
        let (stage, waker) = waiter.end();
        let left = match stage {
            Stage::Waiting => {
                known.note_left();
                Left::Nothing(Wakes::default())
            }
            Stage::Called(Call::Hold(lease, claim)) => Left::Lease(lease, claim),
            Stage::Called(_) | Stage::Contending | Stage::Closed => {
                self.forget_queued(&mut known, waiter);
                let wakes = known.end_turn(waiter);
                self.settle(state, known);
                drop(waker);
                return Left::Nothing(wakes);
            }
            Stage::Missed | Stage::Done => Left::Nothing(Wakes::default()),
        };
        drop(known);
        drop(waker);
        left
    }

    /// Ends the turn of one that held the lock (K2).
    pub(crate) fn end_turn(&self, state: &Arc<KeyState>, holder: &Arc<Waiter>) -> Wakes {
        let mut known = state.lock();
        let wakes = known.end_turn(holder);
        self.settle(state, known);
        wakes
    }

    /// A contender has the lock: its lease is held from now on. Lost at once if the locker was
    /// closed (K11).
    pub(crate) fn grant(
        &self,
        state: &Arc<KeyState>,
        waiter: &Arc<Waiter>,
        won: Won,
    ) -> Arc<Lease> {
        let now = self.clock.now();
        let mut known = state.lock();
        if known.is_turn(waiter) {
            known.outage = None;
        }
        let (_, waker) = waiter.end();
        self.forget_queued(&mut known, waiter);
        known.overdue.retain(|other| !Arc::ptr_eq(other, waiter));
        let held = HeldClaim::new(won, waiter, &self.clock, now);
        let lease = Arc::clone(&held.lease);
        if known.is_closed {
            // Nobody waits for the turn any more.
            known.turn.take_if(|turn| Arc::ptr_eq(turn, waiter));
            self.settle(state, known);
            lease.lose(LostReason::Closed);
        } else {
            // One is the rule, and a vector makes room for four.
            known.held.reserve_exact(1);
            known.held.push(held);
            self.refile(state, &mut known);
            drop(known);
        }
        drop(waker);
        lease
    }

    /// Whether anybody of this process waits for the key.
    pub(crate) fn has_waiters(&self, state: &Arc<KeyState>) -> bool {
        state.lock().has_waiters()
    }

    /// Whether an attempt at the key would probably be refused.
    pub(crate) fn was_contended(&self, state: &Arc<KeyState>) -> bool {
        let known = state.lock();
        let until = known.remembered_until.filter(|_| known.was_contended);
        until.is_some_and(|until| self.clock.now() < until)
    }

    /// Somebody else has the lock, or has not: a hint for the next who wants it.
    pub(crate) fn note_contention(&self, state: &Arc<KeyState>, is_contended: bool) {
        let mut known = state.lock();
        known.was_contended = is_contended;
        if is_contended {
            known.remembered_until = Some(self.clock.now() + REMEMBERED);
        }
    }

    /// A contender begins to wait in Redis under this claim, or goes on under another: it hears of
    /// a grant and of changes from now on.
    pub(crate) fn queue(&self, state: &Arc<KeyState>, waiter: &Arc<Waiter>, claim: &Arc<Claim>) {
        let mut known = state.lock();
        if let Some(former) = waiter.queue(claim) {
            self.note_left_queue(&mut known, former);
        }
    }

    /// The store does not answer a contender, and has not since (K5).
    pub(crate) fn note_outage(
        &self,
        state: &Arc<KeyState>,
        waiter: &Arc<Waiter>,
        since: Instant,
        fault: &Fault,
    ) -> Wakes {
        let now = Instant::now();
        let mut known = state.lock();
        let mut wakes = Wakes::default();
        if !known.is_turn(waiter) {
            return wakes;
        }
        let fault = fault.clone();
        known.outage = Some(Box::new(Outage {
            since,
            fault: fault.clone(),
        }));
        let is_out_of_time = |waiter: &Waiter| {
            let limit = waiter.options.outage_limit;
            now >= waiter.arrived.max(since) + limit
        };
        for waiter in known.take_waiters_if(is_out_of_time) {
            wakes.add(waiter.call(Call::Outage(fault.clone())));
        }
        wakes
    }

    /// The store has answered a contender.
    pub(crate) fn note_answer(&self, state: &Arc<KeyState>, waiter: &Arc<Waiter>) {
        let mut known = state.lock();
        if known.is_turn(waiter) {
            known.outage = None;
        }
    }

    /// What the contender for a key last heard of a store that does not answer (K5).
    pub(crate) fn outage(&self, state: &Arc<KeyState>) -> Option<Fault> {
        let known = state.lock();
        known.outage.as_ref().map(|outage| outage.fault.clone())
    }

    /// Turns all waiters away, and all who come later; takes all leases off, which are lost (K11).
    pub(crate) fn close(&self) -> Closing {
        let states: Vec<_> = {
            let mut table = self.table.lock();
            table.is_closed = true;
            table.keys.values().cloned().collect()
        };
        let mut closing = Closing::default();
        for state in states {
            let mut known = state.lock();
            known.is_closed = true;
            for waiter in known.contenders() {
                closing.queued.extend(waiter.queued());
            }
            let mut gone: Vec<_> = known.contenders().cloned().collect();
            gone.extend(known.take_waiters_if(|_| true));
            for waiter in gone {
                closing.wakes.add(waiter.turn_away());
            }
            for held in mem::take(&mut known.held) {
                // Nobody waits for the turn any more.
                known.turn.take_if(|turn| Arc::ptr_eq(turn, &held.holder));
                closing.held.push(held);
            }
            known.remembered_until = None;
            self.settle(&state, known);
        }
        closing
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.table.lock().is_closed
    }

    /// The keys at which somebody waits, from now on (K6).
    pub(crate) async fn newly_waited_for(&self) -> Vec<Arc<KeyState>> {
        self.somebody_waits.notified().await;
        self.take_to_watch()
    }

    pub(crate) fn take_to_watch(&self) -> Vec<Arc<KeyState>> {
        mem::take(&mut self.to_watch.lock())
    }

    /// The one whose turn it is, as long as somebody depends on its being polled (K6).
    pub(crate) fn to_be_polled(&self, state: &Arc<KeyState>) -> Option<Arc<Waiter>> {
        let mut known = state.lock();
        let turn = known.turn.clone();
        let turn = turn.filter(|turn| known.has_waiters() || turn.has_to_be_polled());
        known.is_watched = turn.is_some();
        turn
    }

    /// Takes the turn, or the lease, from one that was asked and has not been polled since (K6).
    pub(crate) fn reclaim(&self, state: &Arc<KeyState>, waiter: &Arc<Waiter>) -> Left {
        let mut known = state.lock();
        if !known.is_turn(waiter) {
            return Left::Nothing(Wakes::default());
        }
        match waiter.reclaim() {
            Reclaimed::Call(Call::Hold(lease, claim)) => return Left::Lease(lease, claim),
            Reclaimed::Turn => known.overdue.push(Arc::clone(waiter)),
            Reclaimed::Call(_) => {}
            Reclaimed::Nothing => return Left::Nothing(Wakes::default()),
        }
        let wakes = known.end_turn(waiter);
        self.settle(state, known);
        Left::Nothing(wakes)
    }

    fn state_of(&self, key: &Arc<Key>) -> Option<Arc<KeyState>> {
        let mut table = self.table.lock();
        if table.is_closed {
            return None;
        }
        let state = table.keys.entry(Arc::clone(key.name()));
        let state = state.or_insert_with(|| Arc::new(KeyState::new(key)));
        Some(Arc::clone(state))
    }

    fn known(&self, key: &str) -> Option<Arc<KeyState>> {
        self.table.lock().keys.get(key).cloned()
    }

    fn all(&self) -> Vec<Arc<KeyState>> {
        self.table.lock().keys.values().cloned().collect()
    }

    fn take_out(&self, state: &Arc<KeyState>) {
        let name = state.key.name();
        let mut table = self.table.lock();
        if let Some(other) = table.keys.remove(name).filter(|s| !Arc::ptr_eq(s, state)) {
            // It was taken out before, and somebody has come since.
            table.keys.insert(Arc::clone(name), other);
        }
    }

    /// It waits in Redis no longer.
    fn forget_queued(&self, known: &mut State, waiter: &Waiter) {
        if let Some(claim) = waiter.unqueue() {
            self.note_left_queue(known, claim);
        }
    }

    fn note_left_queue(&self, known: &mut State, claim: Arc<Claim>) {
        known.note_left_queue(claim);
        known.remembered_until = Some(self.clock.now() + REMEMBERED);
    }

    /// Ends a step: restores K10, and takes out a key of which there is nothing left to know (K1).
    fn settle(&self, state: &Arc<KeyState>, mut known: Locked<'_>) {
        known.is_retired = known.is_idle(|| self.clock.now());
        self.refile(state, &mut known);
        let is_retired = known.is_retired;
        drop(known);
        if is_retired {
            self.take_out(state);
        }
    }

    fn refile(&self, state: &Arc<KeyState>, known: &mut State) {
        let wake = known.next_wake();
        if wake != known.wake {
            self.schedule.refile(state, known.wake, wake);
            known.wake = wake;
        }
    }
}
