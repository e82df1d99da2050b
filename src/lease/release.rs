//! Releases that nobody waits for: by a dropped guard, or after a cancelled acquire.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::backend::{Claim, Cleanup, Freed};
use crate::backoff::Backoff;
use crate::fault::Fault;
use crate::lease::driver::{Driver, Shared};

/// How long a release that was answered counts as pending for the sake of what is left of it: the
/// slowest server of a quorum.
const LINGER: Duration = Duration::from_millis(100);

/// How many releases are still to be confirmed.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    count: Mutex<usize>,
    none_left: Condvar,
    none_left_async: Notify,
}

impl Pending {
    /// Blocks until no release is pending, at most `bound`; says whether none is.
    pub(crate) fn wait(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut count = self.count.lock();
        while *count > 0 {
            if self.none_left.wait_until(&mut count, until).timed_out() {
                break;
            }
        }
        *count == 0
    }

    /// Waits until no release is pending.
    pub(crate) async fn wait_async(&self) {
        loop {
            let notified = self.none_left_async.notified();
            if *self.count.lock() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One release, from the moment it is handed over until it is confirmed or given up.
///
/// Dropped unfinished only when the thread is gone.
struct Errand {
    shared: Arc<Shared>,
    claim: Arc<Claim>,
    /// The holder's turn in the process' queue, if this release ends one.
    turn: Option<u64>,
}

impl Errand {
    fn new(shared: &Arc<Shared>, claim: Arc<Claim>, turn: Option<u64>) -> Self {
        *shared.pending.count.lock() += 1;
        Self {
            shared: Arc::clone(shared),
            claim,
            turn,
        }
    }

    fn vacate(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.shared.vacate(self.claim.key.name(), turn);
        }
    }

    /// Tries until Redis has answered, or the key is gone by its TTL.
    async fn run(mut self) {
        let clock = self.shared.clock.clone();
        let until = clock.now() + self.claim.ttl;
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(500));
        loop {
            let within = self.shared.command_timeout;
            let answer = self.shared.backend.release(&self.claim, within).await;
            let fault = match answer {
                Ok(_) => {
                    self.vacate();
                    return self.shared.backend.settle(&self.claim, LINGER).await;
                }
                Err(fault) => fault,
            };
            // A waiter of this process that tries now hears for itself how Redis is.
            self.vacate();
            if fault.permanent || clock.now() >= until {
                return self.give_up(&fault);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn give_up(&self, fault: &Fault) {
        tracing::warn!(
            lock = %self.claim.key.name(),
            owner = %self.claim.value,
            server = %fault.server,
            cause = %fault.cause,
            "a release was not confirmed; the ttl frees the key"
        );
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.vacate();
        let mut count = self.shared.pending.count.lock();
        *count -= 1;
        if *count == 0 {
            self.shared.pending.none_left.notify_all();
            self.shared.pending.none_left_async.notify_waiters();
        }
    }
}

impl Driver {
    /// Releases a claim in the background, and then ends the turn.
    pub(crate) fn release(&self, claim: Arc<Claim>, turn: Option<u64>) {
        self.spawn(Errand::new(self.shared(), claim, turn).run());
    }

    /// Undoes an acquire that was cut short, whether or not it was carried out (P10).
    pub(crate) fn clean_up(&self, claim: &Arc<Claim>) {
        for Cleanup { runtime, run } in self.shared().backend.disown(claim) {
            let errand = Errand::new(self.shared(), Arc::clone(claim), None);
            runtime.spawn(CleaningUp {
                run,
                errand: Some(errand),
                driver: self.handle().clone(),
            });
        }
    }
}

/// A clean-up on the caller's runtime. If that ends first, or the way is broken, the driver does
/// it.
struct CleaningUp {
    run: Pin<Box<dyn Future<Output = Result<Freed, Fault>> + Send>>,
    errand: Option<Errand>,
    driver: tokio::runtime::Handle,
}

impl Future for CleaningUp {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.run.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(answer) => {
                if answer.is_ok() {
                    self.errand = None;
                }
                Poll::Ready(())
            }
        }
    }
}

impl Drop for CleaningUp {
    fn drop(&mut self) {
        if let Some(errand) = self.errand.take() {
            self.driver.spawn(errand.run());
        }
    }
}
