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
//! * **D2** However the thread ends, the leases on the roster are lost by then, and the roster is
//!   closed (never silently unrenewed).

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::backend::{Backend, Claim, Renewal};
use crate::fault::Fault;
use crate::lease::Lease;
use crate::lease::clock::Clock;
use crate::lease::pending::Pending;
use crate::lease::watchdog::{Due, Roster, Watch};
use crate::lost::LostReason;

const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What the driver tells about the end of a holder's turn: the key, and the turn's number.
pub(crate) trait Vacate: Send + Sync + 'static {
    fn vacate(&self, key: &Arc<str>, turn: u64);
}

/// A handle on the thread.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    handle: Handle,
    thread: ThreadId,
}

pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) clock: Clock,
    pub(crate) command_timeout: Duration,
    pub(crate) pending: Pending,
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
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let shared = Arc::new(Shared::new(backend, clock, command_timeout, vacate));
        let last_will = LastWill(Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("redlease".to_owned())
            .spawn(move || {
                let last_will = last_will;
                runtime.block_on(run(&last_will.0));
            })?;
        Ok(Self {
            shared,
            handle,
            thread: thread.thread().id(),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs a future on the thread.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(future);
    }

    /// Watches a lease until [`unwatch`](Self::unwatch). If the thread is gone, the lease is lost
    /// at once.
    pub(crate) fn watch(&self, watch: Watch) -> u64 {
        match self.shared.roster.lock().insert(watch) {
            Ok((id, early)) => {
                if early {
                    self.shared.wake.notify_one();
                }
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

    /// Takes a lease off the roster; `None` if it was lost meanwhile.
    pub(crate) fn unwatch(&self, id: u64) -> Option<Watch> {
        self.shared.roster.lock().remove(id)
    }

    /// Enters a renewal that a caller made.
    pub(crate) fn note_renewal(&self, id: u64, renewal: Renewal) {
        self.shared.settle(id, Ok(renewal));
    }

    /// Loses every lease, and every one that is watched later; gives them back for their release.
    pub(crate) fn close(&self) -> Vec<Watch> {
        self.shared.lose_all()
    }

    /// Waits for the pending releases, at most `flush`, and ends the thread.
    pub(crate) fn finish(&self, flush: Duration) {
        // The thread cannot wait for itself.
        if thread::current().id() != self.thread {
            self.shared.pending.wait(flush);
        }
        self.shared.stop.notify_one();
    }
}

impl Shared {
    fn new(
        backend: Arc<dyn Backend>,
        clock: Clock,
        command_timeout: Duration,
        vacate: Arc<dyn Vacate>,
    ) -> Self {
        Self {
            backend,
            clock,
            command_timeout,
            pending: Pending::default(),
            vacate,
            roster: Mutex::default(),
            wake: Notify::new(),
            stop: Notify::new(),
        }
    }

    pub(crate) fn vacate(&self, key: &Arc<str>, turn: u64) {
        self.vacate.vacate(key, turn);
    }

    /// Enters what became of a renewal.
    fn settle(&self, id: u64, answer: Result<Renewal, Fault>) {
        let mut roster = self.roster.lock();
        let (reason, watch) = match answer {
            Ok(Renewal::Renewed { deadline }) => {
                if roster.renewed(id, deadline) {
                    self.wake.notify_one();
                }
                return;
            }
            Ok(Renewal::Removed) => (LostReason::Removed, roster.remove(id)),
            Ok(Renewal::Stolen) => (LostReason::Stolen, roster.remove(id)),
            Err(fault) => {
                if let Some(lease) = roster.not_renewed(id, self.clock.now()) {
                    tracing::debug!(
                        lock = %lease.key().name(),
                        fence = lease.fence(),
                        server = %fault.server,
                        cause = %fault.cause,
                        "a renewal failed and is tried again"
                    );
                    lease.note_failure(fault.cause);
                }
                self.wake.notify_one();
                return;
            }
        };
        drop(roster);
        if let Some(watch) = watch {
            watch.lease.lose(reason);
            self.tell_loss(&watch);
        }
    }

    fn tell_loss(&self, watch: &Watch) {
        let lease: &Lease = &watch.lease;
        if let Some(reason) = lease.lost_reason() {
            tracing::warn!(
                lock = %lease.key().name(),
                owner = %watch.claim.value,
                fence = lease.fence(),
                %reason,
                "the lease was lost"
            );
        }
        self.vacate(lease.key().name(), watch.turn);
    }

    fn lose_all(&self) -> Vec<Watch> {
        let watches = self.roster.lock().close();
        for watch in &watches {
            watch.lease.lose(LostReason::Closed);
            self.tell_loss(watch);
        }
        watches
    }
}

/// The thread's life.
async fn run(shared: &Arc<Shared>) {
    loop {
        let due = shared
            .roster
            .lock()
            .due(shared.clock.now(), shared.command_timeout);
        for due in due {
            match due {
                Due::Lost(watch) => {
                    watch.lease.expire();
                    shared.tell_loss(&watch);
                }
                Due::Renewal { id, claim, within } => {
                    tokio::spawn(renew(Arc::clone(shared), id, claim, within));
                }
            }
        }
        let next = shared.roster.lock().fall_asleep();
        let sleep = async {
            match next {
                Some(wake) => {
                    let sleep = wake.since(shared.clock.now());
                    tokio::time::sleep(sleep.min(LONGEST_SLEEP)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Releases that outlast the flush end by themselves, at the latest with their TTL.
            () = shared.stop.notified() => return shared.pending.wait_async().await,
            () = shared.wake.notified() => {}
            () = sleep => {}
        }
    }
}

async fn renew(shared: Arc<Shared>, id: u64, claim: Arc<Claim>, within: Duration) {
    let answer = shared.backend.renew(&claim, within).await;
    shared.settle(id, answer);
}

/// D2: whatever ends the thread, a panic included.
struct LastWill(Arc<Shared>);

impl Drop for LastWill {
    fn drop(&mut self) {
        self.0.lose_all();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
