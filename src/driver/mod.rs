//! The background thread: everything that must outlive or outrun the caller.
//!
//! One named thread for each locker, with a runtime and a connection of its own. It renews and
//! expires leases, carries out releases that nobody waits for, and serves the blocking API. So a
//! caller whose runtime is starved, blocked or gone loses no lease by that, and hears of a loss
//! in time (P4, P12).
//!
//! # Invariants
//!
//! * **D1** The thread sleeps no longer than until the earliest wake on the roster, and while a
//!   lease is held no longer than [`LONGEST_SLEEP`], because its timer stands still while the
//!   machine sleeps.
//! * **D2** However the thread ends, the leases on the roster are lost by then (never silently
//!   unrenewed), and the locker is closed: nobody waits for it, or for what it would have to renew.
//! * **D3** No subscriber of `tracing` is called on the thread, nor before a loss is settled: the
//!   lease lost, the token fired, the turn ended (P4).

mod loss;
pub(crate) mod pending;
pub(crate) mod release;
pub(crate) mod watch;
pub(crate) mod watchdog;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{self, Handle};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Claim, Look, Renewal};
use crate::clock::{Clock, Moment};
use crate::contain::contain;
use crate::driver::loss::{Unwatched, note_failure, say_lost};
use crate::driver::pending::Pending;
use crate::driver::watch::{Ear, Watch};
use crate::driver::watchdog::{Due, Roster};
use crate::events::tell_elsewhere;
use crate::fault::Fault;
use crate::lease::Lease;
use crate::lost::LostReason;

const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long the thread goes on with releases that are pending when the locker is gone.
const LONGEST_END: Duration = Duration::from_secs(10);

thread_local! {
    static IS_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// Whether the present thread is the background thread of this or another locker. It must not wait
/// for any of them: its own leases would not be renewed, and two could wait for each other.
pub(crate) fn is_background_thread() -> bool {
    IS_BACKGROUND.get()
}

/// What the driver tells the process' own queue.
pub(crate) trait Vacate: Send + Sync + 'static {
    /// A holder's turn ends: the key, and the turn's number.
    fn vacate(self: Arc<Self>, key: &Arc<str>, turn: u64);

    /// Nobody is to wait any more.
    fn close(&self);
}

/// The thread, as everybody else sees it.
pub(crate) struct Driver {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) clock: Clock,
    pub(crate) command_timeout: Duration,
    pub(crate) pending: Pending,
    /// Fires when the locker is closed, or the thread has ended.
    pub(crate) closing: CancellationToken,
    handle: Handle,
    vacate: Arc<dyn Vacate>,
    roster: Mutex<Roster>,
    wake: Notify,
    stop: Notify,
}

impl Driver {
    pub(crate) fn start(
        backend: Arc<dyn Backend>,
        clock: Clock,
        command_timeout: Duration,
        vacate: Arc<dyn Vacate>,
    ) -> io::Result<Arc<Self>> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let driver = Self::on(handle, backend, clock, command_timeout, vacate);
        let last_will = LastWill(Arc::clone(&driver));
        thread::Builder::new()
            .name("redlease".to_owned())
            .spawn(move || {
                IS_BACKGROUND.set(true);
                tell_elsewhere();
                let last_will = last_will;
                runtime.block_on(last_will.0.run());
            })?;
        Ok(driver)
    }

    /// A driver whose [`run`](Self::run) is still to be called, on the runtime of `handle`.
    fn on(
        handle: Handle,
        backend: Arc<dyn Backend>,
        clock: Clock,
        command_timeout: Duration,
        vacate: Arc<dyn Vacate>,
    ) -> Arc<Self> {
        Arc::new(Self {
            backend,
            clock,
            command_timeout,
            pending: Pending::default(),
            closing: CancellationToken::new(),
            handle,
            vacate,
            roster: Mutex::default(),
            wake: Notify::new(),
            stop: Notify::new(),
        })
    }

    /// The thread's runtime.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.handle
    }

    /// Runs a future on the thread.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(future);
    }

    /// Watches a lease until [`unwatch`](Self::unwatch). If the locker is closed, or the thread gone,
    /// the lease is lost at once.
    pub(crate) fn watch(self: &Arc<Self>, watch: Watch) -> u64 {
        match self.roster.lock().insert(watch) {
            Ok((id, early)) => {
                self.wake_if(early);
                id
            }
            Err(watch) => {
                watch.lease.lose(LostReason::Closed);
                // P10: it was granted after `close` had collected what is to be released.
                self.release(watch.claim, None);
                0
            }
        }
    }

    /// Takes a lease off the roster; `None` if it was lost meanwhile. One that is over by then is
    /// lost (W4), which is told when the value is dropped: after what depends on the loss (D3).
    pub(crate) fn unwatch(&self, id: u64) -> Option<Unwatched> {
        let watch = self.roster.lock().remove(id)?;
        let is_lost = watch.is_to_be_told();
        if is_lost {
            contain(|| watch.lease.expire());
        }
        Some(Unwatched::new(watch, is_lost))
    }

    /// Notes that the holder lets go, and that it may be by its own request that the key is
    /// another's from now on: that is no loss.
    pub(crate) fn cede(&self, id: u64) {
        self.roster.lock().cede(id);
    }

    /// Goes over to the next holder's lease on the same claim, unless that was lost meanwhile.
    pub(crate) fn hand_over(
        &self,
        id: u64,
        turn: u64,
        lease: impl FnOnce(Moment) -> Lease,
    ) -> Result<Arc<Lease>, Option<Unwatched>> {
        let handed = self.roster.lock().hand_over(id, turn, lease);
        let (lease, early) = handed.ok_or_else(|| self.unwatch(id))?;
        self.wake_if(early);
        Ok(lease)
    }

    /// Enters what a caller heard about a claim.
    pub(crate) fn note_renewal(&self, id: u64, renewal: Renewal) {
        self.settle(id, Ok(renewal), false);
    }

    /// Whether a lease with this value is on the roster.
    pub(crate) fn holds(&self, key: &str, value: &str) -> bool {
        self.roster.lock().holds(key, value)
    }

    /// Somebody changed a key, or all: asks Redis about the leases on them.
    pub(crate) fn changed(&self, key: Option<&str>, heard_on: Option<runtime::Id>) {
        let ear = heard_on.map(|runtime| self.ear_of(runtime));
        let now = self.clock.now();
        let early = self.roster.lock().changed(key, ear, now);
        self.wake_if(early);
    }

    /// A connection was lost, and with it what it would have heard.
    pub(crate) fn deaf(&self, runtime: runtime::Id) {
        let now = self.clock.now();
        let early = self.roster.lock().deaf(self.ear_of(runtime), now);
        self.wake_if(early);
    }

    /// Fails all who wait for a lock of the locker, and all who come later.
    pub(crate) fn turn_away(&self) {
        contain(|| self.closing.cancel());
        contain(|| self.vacate.close());
    }

    /// Loses and releases every lease, and every one that is watched later.
    pub(crate) fn close(self: &Arc<Self>) {
        let watches = self.lose_all();
        for watch in &watches {
            self.release(Arc::clone(&watch.claim), None);
        }
        watches.iter().for_each(say_lost);
    }

    fn lose_all(&self) -> Vec<Watch> {
        let watches = self.roster.lock().close();
        for watch in &watches {
            contain(|| watch.lease.lose(LostReason::Closed));
        }
        for watch in &watches {
            contain(|| self.vacate(watch.lease.key().name(), watch.turn));
        }
        watches
    }

    pub(crate) fn vacate(&self, key: &Arc<str>, turn: u64) {
        Arc::clone(&self.vacate).vacate(key, turn);
    }

    /// Blocks until no release is pending, at most `bound`.
    pub(crate) fn flush(&self, bound: Duration) {
        if !is_background_thread() {
            self.pending.wait(bound);
        }
    }

    /// Ends the thread when the pending releases have ended.
    pub(crate) fn finish(&self) {
        self.stop.notify_one();
    }

    fn is_here(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.handle.id())
    }

    /// Whose connection the present thread uses.
    pub(crate) fn ear(&self) -> Ear {
        if self.is_here() {
            Ear::Driver
        } else {
            Ear::Caller
        }
    }

    /// Whether leases are turned away: the locker was closed, or the thread has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.roster.lock().is_closed()
    }

    fn ear_of(&self, runtime: runtime::Id) -> Ear {
        if runtime == self.handle.id() {
            Ear::Driver
        } else {
            Ear::Caller
        }
    }

    fn wake_if(&self, early: bool) {
        if early {
            self.wake.notify_one();
        }
    }

    /// Enters what became of a renewal, over the connection of the present thread.
    fn settle(&self, id: u64, answer: Result<Renewal, Fault>, asked_by_driver: bool) {
        let now = self.clock.now();
        let mut roster = self.roster.lock();
        let (reason, watch) = match answer {
            Ok(Renewal::Renewed { deadline }) => {
                let early = roster.renewed(id, deadline, self.ear(), asked_by_driver, now);
                return self.wake_if(early);
            }
            Ok(Renewal::Removed) => (LostReason::Removed, roster.remove(id)),
            Ok(Renewal::Stolen) => (LostReason::Stolen, roster.remove(id)),
            Err(fault) => {
                let lease = roster.unanswered(id, now).cloned();
                drop(roster);
                self.wake_if(true);
                if let Some(lease) = lease {
                    note_failure(&lease, fault);
                }
                return;
            }
        };
        drop(roster);
        // Whoever cedes a claim ends its turn, too.
        if let Some(watch) = watch.filter(|watch| !watch.is_ceded) {
            contain(|| watch.lease.lose(reason));
            self.after_loss(&watch);
        }
    }

    fn after_loss(&self, watch: &Watch) {
        contain(|| self.vacate(watch.lease.key().name(), watch.turn));
        say_lost(watch);
    }

    /// The thread's life.
    async fn run(self: &Arc<Self>) {
        loop {
            let now = self.clock.now();
            let due = self.roster.lock().due(now, self.command_timeout);
            for due in due {
                self.attend(due);
            }
            let next = self.roster.lock().fall_asleep();
            let sleep = async {
                match next {
                    Some(wake) => {
                        let sleep = wake.since(self.clock.now());
                        tokio::time::sleep(sleep.min(LONGEST_SLEEP)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.notified() => {
                    let pending = self.pending.wait_async();
                    let _ = tokio::time::timeout(LONGEST_END, pending).await;
                    return;
                }
                () = self.wake.notified() => {}
                () = sleep => {}
            }
        }
    }

    fn attend(self: &Arc<Self>, due: Due) {
        match due {
            Due::Lost(watch) => {
                contain(|| watch.lease.expire());
                self.after_loss(&watch);
            }
            Due::Question {
                id,
                claim,
                extend: true,
                within,
            } => {
                tokio::spawn(Arc::clone(self).renew(id, claim, within));
            }
            Due::Question {
                id,
                claim,
                extend: false,
                within,
            } => {
                tokio::spawn(Arc::clone(self).look(id, claim, within));
            }
        }
    }

    async fn renew(self: Arc<Self>, id: u64, claim: Arc<Claim>, within: Duration) {
        let answer = self.backend.renew(&claim, within).await;
        self.settle(id, answer, true);
    }

    /// Asks whether the key is ours still.
    async fn look(self: Arc<Self>, id: u64, claim: Arc<Claim>, within: Duration) {
        let answer = match self.backend.look(&claim, within).await {
            Ok(Look::Ours { until }) => {
                let early = self.roster.lock().looked(id, until, self.clock.now());
                return self.wake_if(early);
            }
            Ok(Look::Removed) => Ok(Renewal::Removed),
            Ok(Look::Stolen) => Ok(Renewal::Stolen),
            Err(fault) => Err(fault),
        };
        self.settle(id, answer, true);
    }
}

/// D2: whatever ends the thread, a panic included.
struct LastWill(Arc<Driver>);

impl Drop for LastWill {
    fn drop(&mut self) {
        self.0.turn_away();
        self.0.lose_all();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
