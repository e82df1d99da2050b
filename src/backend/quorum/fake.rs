//! A member of a quorum that does what a test tells it, in memory and on paused time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::backend::faulty::Nobody;
use crate::backend::memory::Memory;
use crate::backend::quorum::member::Member;
use crate::backend::{
    Answer, Attempt, Backend, Beat, Claim, Fences, Freed, Kept, Listen, Look, Queue, Renewal,
    SentBehind,
};
use crate::clock::Clock;
use crate::error::{Cause, Fault};
use crate::holder::Holder;
use crate::key::Key;

/// A member that can fail, and can hold requests back and carry them out later.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) memory: Memory,
    fails: AtomicBool,
    holds: AtomicBool,
    thaw: Notify,
    distance: Mutex<Duration>,
    /// Requests that can set the key get lost on the way, and arrive much later.
    delays: AtomicBool,
    pub(super) late: Mutex<Vec<Late>>,
    pub(super) log: Mutex<Vec<&'static str>>,
}

/// A request that was cut short, and whether a release went the same way behind it.
#[derive(Debug)]
pub(super) struct Late {
    claim: Arc<Claim>,
    is_released: bool,
}

/// On its way until it is dropped: then it is a request that was cut short.
struct OnItsWay<'a>(&'a Fake, &'a Arc<Claim>);

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.late.lock().push(Late {
            claim: Arc::clone(self.1),
            is_released: false,
        });
    }
}

impl Fake {
    pub(super) fn new(clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            memory: Memory::new(clock.clone(), Arc::new(Nobody)),
            fails: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            thaw: Notify::new(),
            distance: Mutex::default(),
            delays: AtomicBool::new(false),
            late: Mutex::default(),
            log: Mutex::default(),
        })
    }

    pub(super) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    pub(super) fn hold(&self) {
        self.holds.store(true, Ordering::SeqCst);
    }

    pub(super) fn let_go(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.thaw.notify_waiters();
    }

    pub(super) fn answer_after(&self, distance: Duration) {
        *self.distance.lock() = distance;
    }

    async fn pass<T>(
        &self,
        name: &'static str,
        within: Duration,
        answer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let thawed = self.thaw.notified();
        if self.holds.load(Ordering::SeqCst) && tokio::time::timeout(within, thawed).await.is_err()
        {
            return Err(fault());
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(fault());
        }
        self.log.lock().push(name);
        let distance = *self.distance.lock();
        if !distance.is_zero() {
            tokio::time::sleep(distance).await;
        }
        answer.await
    }

    pub(super) fn delay(&self) {
        self.delays.store(true, Ordering::SeqCst);
    }

    async fn arrive(&self, claim: &Arc<Claim>) {
        if self.delays.load(Ordering::SeqCst) {
            let _on_its_way = OnItsWay(self, claim);
            std::future::pending::<()>().await;
        }
    }

    /// Carries out what was delayed.
    pub(super) async fn run_late(&self) -> usize {
        let late = std::mem::take(&mut *self.late.lock());
        for late in &late {
            let fences = Fences::floor(1);
            self.memory
                .acquire(&late.claim, fences, Duration::from_secs(1))
                .await
                .unwrap();
            if late.is_released {
                self.memory
                    .release(&late.claim, Duration::from_secs(1))
                    .await
                    .unwrap();
            }
        }
        late.len()
    }

    pub(super) fn calls(&self, name: &str) -> usize {
        self.log.lock().iter().filter(|call| **call == name).count()
    }
}

fn fault() -> Fault {
    Fault {
        permanent: false,
        server: "fake".into(),
        cause: Cause::new(std::io::Error::other("told to")),
    }
}

impl Backend for Fake {
    fn server(&self) -> Arc<str> {
        "fake".into()
    }

    fn connect<'a>(&'a self, _driver: &'a Handle, within: Duration) -> Answer<'a, ()> {
        Box::pin(self.pass("connect", within, async { Ok(()) }))
    }

    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt> {
        let answer = async move {
            self.arrive(claim).await;
            self.memory.acquire(claim, fences, within).await
        };
        Box::pin(self.pass("acquire", within, answer))
    }

    fn disown(&self, claim: &Arc<Claim>) -> Option<Vec<SentBehind>> {
        let mut late = self.late.lock();
        let in_doubt = |late: &Late| late.claim.value == claim.value && !late.is_released;
        let mut sent = Vec::new();
        for late in late.iter_mut().filter(|late| in_doubt(late)) {
            late.is_released = true;
            sent.push(tokio::spawn(async { Ok(Freed::NotOurs) }));
        }
        (!sent.is_empty()).then_some(sent)
    }

    fn renew<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        listen: Listen,
        within: Duration,
    ) -> Answer<'a, Renewal> {
        let answer = async move { self.memory.renew(claim, listen, within).await };
        Box::pin(self.pass("renew", within, answer))
    }

    fn look<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Look> {
        let answer = async move { self.memory.look(claim, within).await };
        Box::pin(self.pass("look", within, answer))
    }

    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        let answer = async move { self.memory.release(claim, within).await };
        Box::pin(self.pass("release", within, answer))
    }

    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Kept> {
        let answer = async move { self.memory.keep(claim, fences, within).await };
        Box::pin(self.pass("keep", within, answer))
    }

    fn queue(&self) -> Option<&dyn Queue> {
        None
    }

    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>> {
        let answer = async move { self.memory.holder(key, within).await };
        Box::pin(self.pass("holder", within, answer))
    }

    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool> {
        let answer = async move { self.memory.force_release(key, within).await };
        Box::pin(self.pass("force_release", within, answer))
    }
}

/// It has no queue that would answer.
impl Queue for Fake {
    fn enqueue<'a>(
        &'a self,
        _claim: &'a Arc<Claim>,
        _fences: Fences,
        within: Duration,
    ) -> Answer<'a, Beat> {
        Box::pin(self.pass("enqueue", within, async { Err(fault()) }))
    }

    fn leave<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        self.release(claim, within)
    }

    fn note_missed_grant(&self) {}
}

impl Member for Fake {
    fn as_queue(&self) -> &dyn Queue {
        self
    }

    fn raise<'a>(
        &'a self,
        _claim: &'a Arc<Claim>,
        _fences: Fences,
        within: Duration,
    ) -> Answer<'a, bool> {
        Box::pin(self.pass("raise", within, async { Ok(true) }))
    }

    fn restore<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, bool> {
        let answer = async move {
            self.arrive(claim).await;
            let attempt = self.memory.acquire(claim, fences, within).await?;
            Ok(matches!(attempt, Attempt::Granted { .. }))
        };
        Box::pin(self.pass("restore", within, answer))
    }
}
