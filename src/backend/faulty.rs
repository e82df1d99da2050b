//! A store that fails, hangs and lies on the next calls, as it is told. For tests.

use std::collections::{HashSet, VecDeque};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::backend::memory::Memory;
use crate::backend::{
    Answer, Attempt, Backend, Claim, Fences, Freed, Grant, Kept, Listen, Look, Queue, Renewal,
    SentBehind, Signals,
};
use crate::clock::Clock;
use crate::error::{Cause, Fault};
use crate::holder::Holder;
use crate::key::Key;

/// One to whom a store tells what nobody needs to hear.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Signals for Nobody {
    fn changed(&self, _key: &str) {}
    fn pushes_missed(&self, _connection: Option<u64>) {}
    fn granted(&self, _grant: Grant) {}
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is not carried out, and fails for now.
    Fail,
    /// It is not carried out, and fails for good.
    Refuse,
    /// It is carried out, and its answer is lost.
    LoseAnswer,
    /// It is not carried out, and is never answered.
    Hang,
    /// It is carried out, and never answered.
    HangAfter,
    /// It is not carried out; a renewal or a look says that the key is gone, a release that it was not ours.
    Lie,
    /// It is carried out and answered, but not at the first poll.
    Dawdle,
}

#[derive(Debug)]
pub(crate) struct Faulty {
    memory: Arc<Memory>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// For the next calls; then `always`.
    next: VecDeque<Trouble>,
    always: Option<Trouble>,
    acquires: u32,
    renewals: u32,
    looks: u32,
    releases: u32,
    /// Values of which some acquire was not answered.
    unsettled: HashSet<Arc<str>>,
}

impl Faulty {
    pub(crate) fn new(clock: Clock, signals: Arc<dyn Signals>) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::new(Memory::new(clock, signals)),
            state: Mutex::default(),
        })
    }

    pub(crate) fn next(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.state.lock().next.extend(troubles);
    }

    pub(crate) fn always(&self, trouble: Option<Trouble>) {
        self.state.lock().always = trouble;
    }

    /// No more trouble.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        state.next.clear();
        state.always = None;
    }

    pub(crate) fn acquires(&self) -> u32 {
        self.state.lock().acquires
    }

    pub(crate) fn renewals(&self) -> u32 {
        self.state.lock().renewals
    }

    pub(crate) fn looks(&self) -> u32 {
        self.state.lock().looks
    }

    pub(crate) fn releases(&self) -> u32 {
        self.state.lock().releases
    }

    /// How many claims might be granted without anybody's knowing.
    pub(crate) fn unsettled(&self) -> usize {
        self.state.lock().unsettled.len()
    }

    fn trouble(&self, count: fn(&mut State) -> &mut u32) -> Option<Trouble> {
        let mut state = self.state.lock();
        *count(&mut state) += 1;
        let next = state.next.pop_front();
        next.or(state.always)
    }

    async fn answer<T>(
        &self,
        trouble: Option<Trouble>,
        within: Duration,
        lie: Option<T>,
        call: Answer<'_, T>,
    ) -> Result<T, Fault> {
        match trouble {
            None => call.await,
            Some(Trouble::Fail) => Err(fault(false)),
            Some(Trouble::Refuse) => Err(fault(true)),
            Some(Trouble::LoseAnswer) => {
                call.await?;
                Err(fault(false))
            }
            Some(trouble @ (Trouble::Hang | Trouble::HangAfter)) => {
                if trouble == Trouble::HangAfter {
                    call.await?;
                }
                let _ = tokio::time::timeout(within, pending::<()>()).await;
                Err(fault(false))
            }
            Some(Trouble::Dawdle) => {
                tokio::task::yield_now().await;
                call.await
            }
            Some(Trouble::Lie) => lie.ok_or_else(|| fault(false)),
        }
    }
}

fn fault(permanent: bool) -> Fault {
    Fault {
        permanent,
        server: "faulty".into(),
        cause: Cause::new(io::Error::other("on purpose")),
    }
}

// The calls are made when they are polled, as those of a server are.
impl Backend for Faulty {
    fn server(&self) -> Arc<str> {
        "faulty".into()
    }

    fn connect<'a>(&'a self, driver: &'a Handle, within: Duration) -> Answer<'a, ()> {
        self.memory.connect(driver, within)
    }

    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt> {
        Box::pin(async move {
            let trouble = self.trouble(|state| &mut state.acquires);
            let call = Box::pin(async move { self.memory.acquire(claim, fences, within).await });
            let known = !self.state.lock().unsettled.insert(Arc::clone(&claim.value));
            let answer = self.answer(trouble, within, None, call).await;
            if answer.is_ok() && !known {
                self.state.lock().unsettled.remove(&claim.value);
            }
            answer
        })
    }

    fn disown(&self, claim: &Arc<Claim>) -> Option<Vec<SentBehind>> {
        if !self.state.lock().unsettled.remove(&claim.value) {
            return None;
        }
        let (memory, claim) = (Arc::clone(&self.memory), Arc::clone(claim));
        let release = async move { memory.release(&claim, Duration::ZERO).await };
        Some(vec![tokio::spawn(release)])
    }

    fn renew<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        listen: Listen,
        within: Duration,
    ) -> Answer<'a, Renewal> {
        Box::pin(async move {
            let trouble = self.trouble(|state| &mut state.renewals);
            let call = Box::pin(async move { self.memory.renew(claim, listen, within).await });
            let lie = Some(Renewal::Removed);
            self.answer(trouble, within, lie, call).await
        })
    }

    fn look<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Look> {
        Box::pin(async move {
            let trouble = self.trouble(|state| &mut state.looks);
            let call = Box::pin(async move { self.memory.look(claim, within).await });
            let lie = Some(Look::Removed);
            self.answer(trouble, within, lie, call).await
        })
    }

    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(async move {
            let trouble = self.trouble(|state| &mut state.releases);
            let call = Box::pin(async move { self.memory.release(claim, within).await });
            let lie = Some(Freed::NotOurs);
            self.answer(trouble, within, lie, call).await
        })
    }

    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Kept> {
        Box::pin(async move {
            let trouble = self.trouble(|state| &mut state.renewals);
            let call = Box::pin(async move { self.memory.keep(claim, fences, within).await });
            self.answer(trouble, within, Some(Kept::NotOurs), call)
                .await
        })
    }

    fn queue(&self) -> Option<&dyn Queue> {
        None
    }

    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>> {
        self.memory.holder(key, within)
    }

    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool> {
        self.memory.force_release(key, within)
    }
}
