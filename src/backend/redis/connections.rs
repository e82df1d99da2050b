//! The connections to one server, one for each runtime: shared, lent and replaced.
//!
//! A multiplexed connection is driven by a task on the runtime that opened it, so every runtime
//! gets one of its own: the caller's, and the driver thread's. A connection is replaced when it
//! breaks, when the server says that it is no longer a master, and when requests keep timing out.
//! Requests that are under way on the old one may still be answered.
//!
//! # Invariants
//!
//! * **C1** A connection is opened by a task of its runtime, never inside a caller's future: a
//!   future that nobody polls keeps nobody waiting, and a caller that gives up ends no opening.
//! * **C2** One opening is under way for each runtime, unless it takes longer than a caller has:
//!   then another takes its place.
//! * **C3** Openings that follow each other closely are spaced out, whatever ends the connections:
//!   see [`Pace`]. The first after a time of calm is never delayed.
//! * **C4** What belongs to a runtime ends with it, whether or not a connection was opened.
//! * **C5** Once another server is known to have the place of the one that the connections led to,
//!   the old one gets no request any more, but for the clean-up of what may yet run there (P10), and
//!   those that are under way are not waited for: a server that was deposed may hang, and may go on
//!   as if nothing had happened.

use std::collections::HashMap;
use std::future::pending;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Client, RedisError};
use tokio::runtime::{self, Handle};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::backend::Signals;
use crate::backend::redis::connection::{Connection, no_answer};
use crate::backend::redis::health::tell_not_opened;
use crate::backend::redis::opening::Opener;
use crate::backend::redis::pace::{Episode, Losses, Pace};
use crate::backend::redis::place::Place;
use crate::backend::redis::settings::OpeningOptions;
use crate::error::Fault;

/// An opening gets at least this long before a caller with little time begins another.
const SLOW_OPENING: Duration = Duration::from_millis(250);
/// A provisional connection is used this long before another attempt to open a full one.
const PROVISIONAL: Duration = Duration::from_secs(60);

/// The connections to one server, one for each runtime.
pub(crate) struct Connections {
    opener: Arc<Opener>,
    slots: Arc<Slots>,
    /// Another server has the place of the one that the connections led to.
    moves: watch::Sender<()>,
}

type Slots = Mutex<HashMap<runtime::Id, Arc<Slot>, BuildHasherDefault<IdHasher>>>;

/// Mixes the number of a runtime: nobody chooses those to make them collide.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Connections {
    pub(crate) fn new(
        client: &Client,
        place: Box<dyn Place>,
        signals: Arc<dyn Signals>,
        options: OpeningOptions,
    ) -> Result<Self, RedisError> {
        Ok(Self {
            opener: Arc::new(Opener::new(client, place, signals, options)?),
            slots: Arc::default(),
            moves: watch::Sender::default(),
        })
    }

    pub(crate) fn server(&self) -> &Arc<str> {
        self.opener.server()
    }

    /// The name of the server that the connections lead to now.
    pub(crate) fn present(&self) -> Arc<str> {
        self.opener.present()
    }

    pub(crate) fn signals(&self) -> &Arc<dyn Signals> {
        self.opener.signals()
    }

    /// Whether another server can take the place of the one that the connections lead to.
    pub(super) fn may_move(&self) -> bool {
        self.opener.place.is_of_a_master()
    }

    pub(super) fn moves(&self) -> watch::Receiver<()> {
        self.moves.subscribe()
    }

    /// Another server has the place from now on: leaves the one before, whatever state it is in
    /// (C5).
    pub(crate) fn move_on(&self) {
        let slots: Vec<_> = self.slots.lock().values().map(Arc::clone).collect();
        for slot in slots {
            let left = slot.leave_others(&self.opener);
            drop(left);
        }
        self.moves.send_replace(());
        // All leases are at this place, and the server that has it now may not know them.
        self.signals().pushes_missed(None);
    }

    /// The present runtime's connection, if there is one that nothing is to be done about.
    pub(in crate::backend) fn ready(&self) -> Option<Arc<Connection>> {
        self.slot_of(Handle::current().id(), |slot| slot.ready())
            .flatten()
    }

    /// The present runtime's connection, if there is one and the last requests were answered.
    pub(in crate::backend) fn answering(&self) -> Option<Arc<Connection>> {
        self.slot_of(Handle::current().id(), |slot| slot.usable())
            .flatten()
            .filter(|own| !own.health.is_silent())
    }

    /// The present runtime's connection, opened if there is none that works.
    pub(in crate::backend) async fn open(&self, until: Instant) -> Result<Arc<Connection>, Fault> {
        let within = until.saturating_duration_since(Instant::now());
        self.get_own(until, within, true).await
    }

    /// `within` is all the time that the request had, whatever is left of it: who has waited for
    /// long is in no greater hurry (C3).
    async fn get_own(
        &self,
        until: Instant,
        within: Duration,
        rests: bool,
    ) -> Result<Arc<Connection>, Fault> {
        let slot = self.slot();
        let mut moves = self.moves();
        loop {
            moves.borrow_and_update();
            let mut opening = match slot.find(&self.opener, within) {
                Found::Connection(connection) => return Ok(connection),
                Found::Opening(opening) => opening,
                Found::Rest(over, fault) => {
                    if !rests || fault.permanent || over >= until {
                        return Err(fault);
                    }
                    let _ = timeout_at(over, moves.changed()).await;
                    continue;
                }
            };
            return match timeout_at(until, opening.wait_for(Option::is_some)).await {
                Ok(Ok(outcome)) => match &*outcome {
                    Some(outcome) => outcome.clone(),
                    None => continue,
                },
                // Another took its place, or its runtime is about to end.
                Ok(Err(_)) => continue,
                Err(_) => Err(no_answer(self.server(), "no connection in time")),
            };
        }
    }

    /// Makes sure that the present runtime has a connection, that the driver's has one, and that
    /// the server answers over both.
    pub(crate) async fn connect(
        self: Arc<Self>,
        driver: &Handle,
        until: Instant,
    ) -> Result<(), Fault> {
        self.prove(until).await?;
        let connections = Arc::clone(&self);
        let there = driver.spawn(async move { connections.prove(until).await });
        // The driver's thread cannot end before the locker does.
        let there = there.await;
        there.unwrap_or_else(|_| Err(no_answer(self.server(), "no background thread")))
    }

    async fn prove(&self, until: Instant) -> Result<(), Fault> {
        self.open(until).await?.ping(until).await
    }

    /// The present runtime's connection or, if that cannot be opened or does not answer, one of
    /// another runtime: for requests that have to arrive, and had `within` from the beginning.
    pub(in crate::backend) async fn open_or_borrow(
        &self,
        until: Instant,
        within: Duration,
    ) -> Result<Arc<Connection>, Fault> {
        if self.lender().is_none() {
            return self.get_own(until, within, true).await;
        }
        let now = Instant::now();
        let own = self.get_own(now + (until - now) / 2, within, false);
        let own = own.await;
        let works = own.as_ref().is_ok_and(|own| !own.health.is_silent());
        match self.lender() {
            Some(lender) if !works => {
                if let Ok(own) = own {
                    own.probe(self.opener.options.limit);
                }
                Ok(lender)
            }
            _ => own,
        }
    }

    /// The connection of another runtime that answered last.
    fn lender(&self) -> Option<Arc<Connection>> {
        let here = Handle::current().id();
        let slots = self.slots.lock();
        let others = slots.iter().filter(|(runtime, _)| **runtime != here);
        others
            .filter_map(|(_, slot)| slot.usable())
            .filter(|connection| !connection.health.is_silent())
            .max_by_key(|connection| connection.health.last_answer())
    }

    fn slot_of<T>(&self, runtime: runtime::Id, read: impl FnOnce(&Arc<Slot>) -> T) -> Option<T> {
        self.slots.lock().get(&runtime).map(read)
    }

    fn slot(&self) -> Arc<Slot> {
        let id = Handle::current().id();
        let slot = {
            let mut slots = self.slots.lock();
            if let Some(slot) = slots.get(&id) {
                return Arc::clone(slot);
            }
            Arc::clone(slots.entry(id).or_default())
        };
        // Not under the lock: a runtime that is ending drops the task on the spot.
        let residence = Residence {
            slots: Arc::downgrade(&self.slots),
            id,
        };
        let task = tokio::spawn(async move {
            let _residence = residence;
            pending::<()>().await;
        });
        let _ = slot.residence.set(task.abort_handle());
        slot
    }
}

/// Lives in a task of a runtime, and ends with it (C4).
struct Residence {
    slots: Weak<Slots>,
    id: runtime::Id,
}

impl Drop for Residence {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.upgrade() {
            let slot = slots.lock().remove(&self.id);
            drop(slot);
        }
    }
}

/// One runtime's place for a connection.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    /// The task that marks the end of the runtime.
    residence: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Connection>>,
    opening: Option<Opening>,
    pace: Pace,
    losses: Losses,
    /// The number of the connection that was counted last among them.
    counted: u64,
}

type Outcome = Option<Result<Arc<Connection>, Fault>>;

/// An opening, which may have ended.
struct Opening {
    began: Instant,
    outcome: watch::Receiver<Outcome>,
    task: AbortHandle,
}

enum Found {
    Connection(Arc<Connection>),
    Opening(watch::Receiver<Outcome>),
    /// It is too early for another opening: until when, and why one is needed.
    Rest(Instant, Fault),
}

impl Slot {
    fn usable(&self) -> Option<Arc<Connection>> {
        self.state.lock().usable()
    }

    /// Takes a connection to a server out that does not have the place any more. The next opening
    /// comes at once.
    fn leave_others(&self, opener: &Opener) -> Option<Arc<Connection>> {
        let mut state = self.state.lock();
        state.pace = Pace::default();
        let left = state.current.take_if(|own| !opener.leads_here(own))?;
        left.health.note_left();
        Some(left)
    }

    /// The connection, if there is one that nothing is to be done about.
    fn ready(&self) -> Option<Arc<Connection>> {
        self.usable().filter(|usable| !usable.is_provisional)
    }

    /// What a caller has to do that needs a connection.
    fn find(self: &Arc<Self>, opener: &Arc<Opener>, within: Duration) -> Found {
        let now = Instant::now();
        let mut state = self.state.lock();
        let usable = state.usable();
        if let Some(connection) = &usable
            && !(connection.is_provisional && state.pace.was_calm_for(now, PROVISIONAL))
        {
            return Found::Connection(Arc::clone(connection));
        }
        if let Some(opening) = state.opening.as_ref().filter(|o| o.is_under_way())
            && (usable.is_some() || now - opening.began <= within.max(SLOW_OPENING))
        {
            let outcome = opening.outcome.clone();
            return usable.map_or(Found::Opening(outcome), Found::Connection);
        }
        if let Some(over) = state.pace.rests_until(now, within) {
            let fault = || state.last_fault(opener.server());
            return usable.map_or_else(|| Found::Rest(over, fault()), Found::Connection);
        }
        let outcome = self.begin(&mut state, opener, now);
        usable.map_or(Found::Opening(outcome), Found::Connection)
    }

    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        opener: &Arc<Opener>,
        now: Instant,
    ) -> watch::Receiver<Outcome> {
        state.pace.begin(now);
        let (sender, outcome) = watch::channel(None);
        let (slot, opener) = (Arc::clone(self), Arc::clone(opener));
        if let Some((episode, fault)) = state.note_loss(now) {
            tokio::spawn(async move { episode.tell(fault) });
        }
        let task = tokio::spawn(async move {
            let outcome = loop {
                let outcome = opener.open().await.map(Arc::new);
                if let Ok(connection) = &outcome {
                    let mut state = slot.state.lock();
                    if !opener.leads_here(connection) {
                        continue;
                    }
                    connection.health.note_used();
                    state.current = Some(Arc::clone(connection));
                }
                break outcome;
            };
            let health = match &outcome {
                Ok(connection) => Ok(Arc::clone(&connection.health)),
                Err(fault) => Err(fault.clone()),
            };
            let _ = sender.send(Some(outcome));
            match health {
                Ok(health) => health.tell_opened(),
                Err(fault) => tell_not_opened(fault),
            }
        });
        let opening = Opening {
            began: now,
            outcome: outcome.clone(),
            task: task.abort_handle(),
        };
        if let Some(old) = state.opening.replace(opening) {
            old.task.abort();
        }
        outcome
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(task) = self.residence.get() {
            task.abort();
        }
    }
}

impl State {
    fn usable(&self) -> Option<Arc<Connection>> {
        self.current.as_ref().filter(|c| !c.is_broken()).cloned()
    }

    /// Counts the connection, if it is lost. Returns what is to be told of an episode of losses.
    fn note_loss(&mut self, now: Instant) -> Option<(Episode, Fault)> {
        let lost = self
            .current
            .as_ref()
            .filter(|c| c.number() != self.counted)?;
        let fault = lost.health.end().cloned()?;
        self.counted = lost.number();
        let episode = self.losses.note(now)?;
        Some((episode, fault))
    }

    /// Why there is no connection.
    fn last_fault(&self, server: &Arc<str>) -> Fault {
        let opening = self
            .opening
            .as_ref()
            .map(|opening| opening.outcome.borrow());
        if let Some(Some(Err(fault))) = opening.as_deref() {
            return fault.clone();
        }
        let end = self.current.as_ref().and_then(|c| c.health.end().cloned());
        end.unwrap_or_else(|| no_answer(server, "connections do not last"))
    }
}

impl Opening {
    fn is_under_way(&self) -> bool {
        // Without a sender, its task has ended.
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }
}
