//! What all handles of one locker share, and what a guard owns of it.

use std::future::Future;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::acquire::queue::Queues;
use crate::backend::{Backend, Claim, Freed};
use crate::backoff::Backoff;
use crate::error::Error;
use crate::key::Key;
use crate::lease::Lease;
use crate::lease::clock::{Clock, Moment};
use crate::lease::driver::{Driver, Vacate};
use crate::lease::watchdog::Watch;
use crate::lost::{Lost, LostReason};
use crate::options::Terms;
use crate::owner::Owner;

/// The settings of a locker.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) owner: Owner,
    pub(crate) prefix: String,
    pub(crate) command_timeout: Duration,
    pub(crate) flush_timeout: Duration,
}

/// The inside of a locker. Dropped with its last handle, which waits for pending releases.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) driver: Driver,
    pub(crate) queues: Arc<Queues>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    /// Fires when the locker is closed.
    pub(crate) closing: CancellationToken,
}

impl Engine {
    pub(crate) fn start(
        backend: Arc<dyn Backend>,
        clock: Clock,
        settings: Settings,
    ) -> std::io::Result<Arc<Self>> {
        let queues = Arc::new(Queues::default());
        let driver = Driver::start(
            Arc::clone(&backend),
            clock.clone(),
            settings.command_timeout,
            Arc::new(Turns(Arc::clone(&queues))),
        )?;
        Ok(Arc::new(Self {
            backend,
            driver,
            queues,
            clock,
            settings,
            closing: CancellationToken::new(),
        }))
    }

    /// Runs a future on the driver's thread and blocks until it is done; `None` if the thread is
    /// gone.
    pub(crate) fn block_on<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.driver.spawn(async move {
            // What the future holds is dropped before the caller goes on, so that the last handle
            // of a locker is never dropped on this thread, which could not flush then.
            let output = future.await;
            let _ = sender.send(output);
        });
        receiver.recv().ok()
    }

    /// Fails all waiters, loses and releases all guards. The releases are pending afterwards.
    pub(crate) fn begin_close(&self) {
        self.closing.cancel();
        self.queues.close();
        for watch in self.driver.close() {
            self.driver.release(watch.claim, None);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.driver.finish(self.settings.flush_timeout);
    }
}

#[derive(Debug)]
struct Turns(Arc<Queues>);

impl Vacate for Turns {
    fn vacate(&self, key: &Arc<str>, turn: u64) {
        self.0.vacate(key, turn);
    }
}

/// What became of a release that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The key was no longer ours when the release arrived: the lease had been lost before.
    AlreadyLost,
    /// The key was ours until now, and is free.
    Freed,
}

/// A lease that somebody is responsible for: dropping it releases the lock in the background.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) engine: Arc<Engine>,
    pub(crate) lease: Arc<Lease>,
    claim: Arc<Claim>,
    turn: u64,
    watch: u64,
    released: bool,
}

impl Hold {
    pub(crate) fn new(
        engine: &Arc<Engine>,
        claim: Arc<Claim>,
        terms: &Terms,
        turn: u64,
        fence: u64,
        deadline: Moment,
    ) -> Self {
        let lease = Arc::new(Lease::new(
            engine.clock.clone(),
            Arc::clone(&claim.key),
            fence,
            deadline,
            terms.max_hold,
        ));
        let watch = engine.driver.watch(Watch::new(
            Arc::clone(&lease),
            Arc::clone(&claim),
            turn,
            deadline,
            terms.renew_every,
        ));
        Self {
            engine: Arc::clone(engine),
            lease,
            claim,
            turn,
            watch,
            released: false,
        }
    }

    pub(crate) fn key(&self) -> &Arc<Key> {
        self.lease.key()
    }

    pub(crate) fn value(&self) -> &str {
        &self.claim.value
    }

    /// Asks Redis now, and extends the lease. The future does not borrow, so that it can run on the
    /// driver's thread.
    pub(crate) fn renew(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let engine = Arc::clone(&self.engine);
        let claim = Arc::clone(&self.claim);
        let lease = Arc::clone(&self.lease);
        let watch = self.watch;
        async move {
            lease.ensure_held()?;
            let within = engine.settings.command_timeout.min(lease.remaining());
            let answer = engine.backend.renew(&claim, within).await;
            match answer {
                Ok(renewal) => {
                    engine.driver.note_renewal(watch, renewal);
                    Ok(lease.ensure_held()?)
                }
                Err(fault) => {
                    lease.ensure_held()?;
                    Err(fault.about(Some(claim.key.name())))
                }
            }
        }
    }

    /// Releases the lock and waits for the answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped in the middle, it leaves the release to the background.
    pub(crate) async fn release(mut self) -> Result<Released, Error> {
        self.engine.driver.unwatch(self.watch);
        if self.has_nothing_to_release() {
            self.engine.driver.clean_up(&self.claim);
            self.finish();
            return Ok(Released::AlreadyLost);
        }
        let clock = self.engine.clock.clone();
        let until = clock.now() + self.claim.ttl.min(self.engine.settings.command_timeout);
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(100));
        loop {
            let within = self.engine.settings.command_timeout;
            let answer = self.engine.backend.release(&self.claim, within).await;
            let fault = match answer {
                Ok(freed) => {
                    self.finish();
                    return Ok(match freed {
                        Freed::Freed => Released::Freed,
                        Freed::NotOurs => Released::AlreadyLost,
                    });
                }
                Err(fault) => fault,
            };
            if fault.permanent || clock.now() >= until {
                // Dropping `self` leaves further tries to the driver.
                return Err(fault.about(Some(self.key().name())));
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Whether it is certain that the key does not hold our value, or somebody else sees to it.
    fn has_nothing_to_release(&self) -> bool {
        matches!(
            self.lease.lost_reason(),
            Some(LostReason::Removed | LostReason::Stolen | LostReason::Closed)
        )
    }

    fn finish(&mut self) {
        self.released = true;
        self.engine.queues.vacate(self.key().name(), self.turn);
    }

    pub(crate) fn ensure_held(&self) -> Result<(), Lost> {
        self.lease.ensure_held()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        self.engine.driver.unwatch(self.watch);
        if self.has_nothing_to_release() {
            self.engine.driver.clean_up(&self.claim);
            self.finish();
        } else {
            let claim = Arc::clone(&self.claim);
            self.engine.driver.release(claim, Some(self.turn));
        }
    }
}
