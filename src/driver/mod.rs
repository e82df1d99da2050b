//! The background thread: everything that must outlive or outrun the caller.
//!
//! One named thread for each locker, with a runtime and a connection of its own. It renews and
//! expires leases, carries out releases that nobody waits for, and serves the blocking API. So a
//! caller whose runtime is starved, blocked or gone loses no lease by that, and hears of a loss
//! in time (P4, P12).
//!
//! # Invariants
//!
//! * **D1** The thread sleeps no longer than until the earliest moment in the schedule of the keys,
//!   and while a lease is held no longer than [`LONGEST_SLEEP`], because its timer stands still
//!   while the machine sleeps.
//! * **D2** However the thread ends, the leases that are held are lost by then (never silently
//!   unrenewed), and the locker is closed: nobody waits for it, or for what it would have to renew.
//! * **D3** No subscriber of `tracing` is called on the thread, nor before a loss is settled: the
//!   lease lost, the token fired, the turn ended (P4).

pub(crate) mod held_lock;
mod pending;
mod release;
mod share;
mod told;
mod unpolled;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::Notify;

use crate::backend::{Backend, Claim, Listen, Renewal};
use crate::clock::Clock;
use crate::contain::contain;
use crate::credentials::CredentialsProvider;
use crate::driver::pending::Pending;
use crate::driver::told::{note_failure, say_lost};
use crate::error::{Error, Fault, LostReason};
use crate::events::tell_elsewhere;
use crate::holder::Owner;
use crate::keys::{Closing, Due, HeldClaim, KeyState, Keys, Question};
use crate::options::Options;

pub(crate) use crate::driver::held_lock::HeldLock;
pub(crate) use crate::driver::share::Share;

const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long the thread goes on with releases that are pending when the locker is gone.
const LONGEST_END: Duration = Duration::from_secs(10);

thread_local! {
    static IS_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// The settings of a locker.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) owner: Owner,
    pub(crate) prefix: String,
    pub(crate) command_timeout: Duration,
    pub(crate) flush_timeout: Duration,
    pub(crate) credentials: Option<CredentialsProvider>,
    /// Those of a lock that names no others.
    pub(crate) options: Options,
}

/// The inside of a locker: what its handles and the background thread share.
pub(crate) struct Driver {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    pub(crate) keys: Arc<Keys>,
    pub(crate) pending: Pending,
    runtime: Handle,
    is_connected: AtomicBool,
    stop: Notify,
}

/// The runtime of a driver's thread. It may be dropped anywhere, which a runtime of tokio may not.
pub(crate) struct ThreadRuntime(Option<Runtime>);

impl ThreadRuntime {
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.map(|runtime| Self(Some(runtime)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken by the drop only")
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.runtime().handle()
    }
}

impl Drop for ThreadRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Driver {
    /// Starts the thread of a locker. `keys` are told by `backend` what changes.
    pub(crate) fn start(
        runtime: ThreadRuntime,
        backend: Arc<dyn Backend>,
        keys: Arc<Keys>,
        clock: Clock,
        settings: Settings,
    ) -> io::Result<Arc<Self>> {
        let driver = Self::on(runtime.handle().clone(), backend, keys, clock, settings);
        let last_will = LastWill(Arc::clone(&driver));
        thread::Builder::new()
            .name("redlease".to_owned())
            .spawn(move || {
                IS_BACKGROUND.set(true);
                tell_elsewhere();
                let last_will = last_will;
                let runtime = runtime.runtime();
                runtime.spawn(unpolled::watch(Arc::clone(&last_will.0)));
                runtime.block_on(last_will.0.run());
            })?;
        Ok(driver)
    }

    /// A driver whose [`run`](Self::run) is still to be called, on the runtime of `handle`.
    fn on(
        runtime: Handle,
        backend: Arc<dyn Backend>,
        keys: Arc<Keys>,
        clock: Clock,
        settings: Settings,
    ) -> Arc<Self> {
        Arc::new(Self {
            backend,
            clock,
            settings,
            keys,
            pending: Pending::default(),
            runtime,
            is_connected: AtomicBool::new(false),
            stop: Notify::new(),
        })
    }

    /// Whether it was seen that the store can be reached and is usable.
    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Makes sure that the store can be reached and is usable.
    pub(crate) async fn connect(&self, within: Duration) -> Result<(), Fault> {
        // P4, P13: without the driver's connection a lock would be lost one TTL later.
        self.backend.connect(&self.runtime, within).await?;
        self.is_connected.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Runs a future on the thread.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// Runs a future on the thread and blocks until it is done. The error is about `key` if the
    /// thread is gone, or is the present one.
    pub(crate) fn block_on<T: Send + 'static>(
        &self,
        key: Option<&Arc<str>>,
        future: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        check_may_block(key)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        self.spawn(async move {
            // What the future holds is dropped before the caller goes on, so that the last handle
            // of a locker is never dropped on this thread, which cannot wait for itself.
            let output = future.await;
            let _ = sender.send(output);
        });
        let output = receiver.recv();
        output.unwrap_or_else(|_| Err(Error::Closed { key: key.cloned() }))
    }

    /// Fails all who wait for a lock of the locker, and all who come later; loses and releases
    /// every lease.
    pub(crate) fn close(self: &Arc<Self>) {
        let Closing {
            wakes,
            queued,
            held,
        } = self.keys.close();
        lose(&held);
        wakes.wake();
        // Those who wait in Redis may not be polled in time to leave for themselves.
        for claim in queued {
            self.leave(claim);
        }
        for held in &held {
            self.release(Arc::clone(&held.claim), None);
        }
        held.iter().for_each(say_lost);
    }

    /// Blocks until no release is pending, at most `bound`.
    fn flush(&self, bound: Duration) {
        if !is_background_thread() {
            self.pending.wait(bound);
        }
    }

    /// Ends the thread when the pending releases have ended.
    fn finish(&self) {
        self.stop.notify_one();
    }

    /// The thread's life.
    async fn run(self: &Arc<Self>) {
        loop {
            for claim in self.keys.take_unwanted() {
                self.leave(claim);
            }
            self.attend();
            let next = self.keys.fall_asleep();
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
                () = self.keys.early() => {}
                () = sleep => {}
            }
        }
    }

    /// Does what is due.
    fn attend(self: &Arc<Self>) {
        let timeout = self.settings.command_timeout;
        let mut renewals = Vec::new();
        for (state, due) in self.keys.due(self.clock.now(), timeout) {
            match due {
                Due::Expire(held) => {
                    contain(|| held.lease.expire());
                    self.after_loss(&state, &held);
                }
                Due::Ask(question) if question.extend => renewals.push((state, question)),
                Due::Ask(question) => {
                    tokio::spawn(Arc::clone(self).ask(state, question));
                }
            }
        }
        for mut together in in_batches(renewals, self.backend.most_renewed()) {
            match together.pop() {
                Some((state, question)) if together.is_empty() => {
                    tokio::spawn(Arc::clone(self).ask(state, question));
                }
                last => {
                    together.extend(last);
                    tokio::spawn(Arc::clone(self).renew_many(together));
                }
            }
        }
    }

    async fn renew_many(self: Arc<Self>, questions: Vec<(Arc<KeyState>, Question)>) {
        let claims: Vec<_> = questions
            .iter()
            .map(|(_, q)| Arc::clone(&q.claim))
            .collect();
        let within = questions.iter().map(|(_, question)| question.within).min();
        let within = within.unwrap_or_default();
        match self.backend.renew_many(&claims, within).await {
            Ok(deadlines) => {
                for ((state, question), deadline) in questions.into_iter().zip(deadlines) {
                    match deadline.map(|deadline| Renewal::Renewed { deadline }) {
                        Some(renewal) => {
                            let claim = &question.claim;
                            let lost = self.keys.renewed(&state, claim, renewal, true);
                            debug_assert!(lost.is_none(), "it was extended");
                        }
                        None => {
                            tokio::spawn(Arc::clone(&self).ask(state, question));
                        }
                    }
                }
            }
            Err(fault) => {
                for (state, question) in questions {
                    self.unanswered(&state, &question.claim, fault.clone());
                }
            }
        }
    }

    async fn ask(self: Arc<Self>, state: Arc<KeyState>, question: Question) {
        let Question {
            claim,
            extend,
            within,
        } = question;
        let answer = if extend {
            let renewal = self.backend.renew(&claim, Listen::Yes, within).await;
            renewal.map(|renewal| self.keys.renewed(&state, &claim, renewal, true))
        } else {
            let look = self.backend.look(&claim, within).await;
            look.map(|look| self.keys.looked(&state, &claim, look))
        };
        match answer {
            Ok(None) => {}
            Ok(Some((held, reason))) => self.lose(&state, &held, reason),
            Err(fault) => self.unanswered(&state, &claim, fault),
        }
    }

    fn unanswered(&self, state: &Arc<KeyState>, claim: &Arc<Claim>, fault: Fault) {
        let lease = self.keys.unanswered(state, claim, fault.cause.clone());
        if let Some(lease) = lease {
            note_failure(&lease, fault);
        }
    }

    /// Ends a lease that Redis says is lost, and its turn.
    fn lose(&self, state: &Arc<KeyState>, held: &HeldClaim, reason: LostReason) {
        contain(|| held.lease.lose(reason));
        self.after_loss(state, held);
    }

    fn after_loss(&self, state: &Arc<KeyState>, held: &HeldClaim) {
        self.keys.end_turn(state, &held.holder).wake();
        say_lost(held);
    }
}

/// Puts renewals together, at most so many. Those that have much less time than others are kept
/// apart: a request that ends early for the sake of one would end for all (P13).
fn in_batches(
    mut renewals: Vec<(Arc<KeyState>, Question)>,
    most: usize,
) -> Vec<Vec<(Arc<KeyState>, Question)>> {
    renewals.sort_by_key(|(_, question)| question.within);
    let mut batches: Vec<Vec<_>> = Vec::new();
    for renewal in renewals {
        match batches.last_mut() {
            Some(batch) if batch.len() < most && fits(batch, &renewal.1) => batch.push(renewal),
            _ => batches.push(vec![renewal]),
        }
    }
    batches
}

/// The first of a batch has the least time.
fn fits(batch: &[(Arc<KeyState>, Question)], question: &Question) -> bool {
    let least = batch.first().map(|(_, first)| first.within);
    least.is_none_or(|least| question.within <= 2 * least)
}

/// Whether the present thread is the background thread of this or another locker. It must not wait
/// for any of them: its own leases would not be renewed, and two could wait for each other.
fn is_background_thread() -> bool {
    IS_BACKGROUND.get()
}

/// A waker that a user passed in, for instance, runs on the background thread.
pub(crate) fn check_may_block(key: Option<&Arc<str>>) -> Result<(), Error> {
    if is_background_thread() {
        let problem = "a blocking call is not possible on the background thread of a locker";
        return Err(Error::invalid(key, problem));
    }
    Ok(())
}

/// The locker is closed: these leases are lost by that.
fn lose(held: &[HeldClaim]) {
    for held in held {
        contain(|| held.lease.lose(LostReason::Closed));
    }
}

/// D2: whatever ends the thread, a panic included.
struct LastWill(Arc<Driver>);

impl Drop for LastWill {
    fn drop(&mut self) {
        let closing = self.0.keys.close();
        lose(&closing.held);
        closing.wakes.wake();
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
