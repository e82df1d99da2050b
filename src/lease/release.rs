//! Releases that nobody waits for: by a dropped guard, or after a cancelled acquire.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::RuntimeFlavor;

use crate::backend::{Claim, Cleanup, Freed};
use crate::backoff::Backoff;
use crate::fault::Fault;
use crate::lease::driver::{Driver, Shared};

/// One release, from the moment it is handed over until it is confirmed or given up.
///
/// Dropped unfinished only when the thread is gone.
struct Errand {
    shared: Arc<Shared>,
    claim: Arc<Claim>,
    /// The holder's turn in the process' queue, if this release ends one.
    turn: Option<u64>,
    on_callers_thread: bool,
}

impl Errand {
    fn new(
        shared: &Arc<Shared>,
        claim: Arc<Claim>,
        turn: Option<u64>,
        on_callers_thread: bool,
    ) -> Self {
        shared.pending.begin(on_callers_thread);
        Self {
            shared: Arc::clone(shared),
            claim,
            turn,
            on_callers_thread,
        }
    }

    /// From here on, the driver's thread carries it out.
    fn leave_callers_thread(&mut self) {
        if std::mem::take(&mut self.on_callers_thread) {
            self.shared.pending.leave_callers_thread();
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
                Ok(_) => return,
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
        self.shared.pending.end(self.on_callers_thread);
    }
}

impl Driver {
    /// Releases a claim in the background, and then ends the turn.
    pub(crate) fn release(&self, claim: Arc<Claim>, turn: Option<u64>) {
        self.spawn(Errand::new(self.shared(), claim, turn, false).run());
    }

    /// Undoes an acquire that was cut short, whether or not it was carried out (P10).
    pub(crate) fn clean_up(&self, claim: &Arc<Claim>) {
        for Cleanup { runtime, run } in self.shared().backend.disown(claim) {
            let one_thread = runtime.runtime_flavor() == RuntimeFlavor::CurrentThread;
            let callers = runtime.id() != self.handle().id();
            let errand = Errand::new(
                self.shared(),
                Arc::clone(claim),
                None,
                one_thread && callers,
            );
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
        if let Some(mut errand) = self.errand.take() {
            errand.leave_callers_thread();
            self.driver.spawn(errand.run());
        }
    }
}
