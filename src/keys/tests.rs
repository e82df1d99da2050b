//! What the tests and the models have in common: users that do what `acquire` and `driver` do for
//! the real ones, without I/O.

mod close;
mod held;
mod let_go;
mod looks;
mod news;
mod remembered;
mod schedule;
mod turns;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::backend::{Fences, Look, Renewal};
use crate::clock::Moment;
use crate::options::Options;

pub(super) const SECOND: Duration = Duration::from_secs(1);

impl Keys {
    /// How many keys are known.
    pub(crate) fn len(&self) -> usize {
        self.table.lock().keys.len()
    }

    /// Enters the answer to a question of the driver's.
    pub(super) fn answer_renewal(
        &self,
        state: &Arc<KeyState>,
        question: &Question,
        renewal: Renewal,
    ) -> Option<(HeldClaim, LostReason)> {
        self.renewed(state, &question.claim, renewal, true)
    }

    pub(super) fn answer_look(
        &self,
        state: &Arc<KeyState>,
        question: &Question,
        look: Look,
    ) -> Option<(HeldClaim, LostReason)> {
        self.looked(state, &question.claim, look)
    }

    /// Who has the turn.
    fn turn_of(&self, state: &KeyState) -> Arc<Waiter> {
        Arc::clone(state.lock().turn.as_ref().expect("nobody has the turn"))
    }
}

/// A process that uses one key.
#[derive(Clone)]
pub(super) struct Fixture {
    pub(super) clock: Clock,
    pub(super) keys: Arc<Keys>,
    pub(super) key: Arc<Key>,
    pub(super) options: Options,
    /// How many hold the lock: never two (P1). The models see only what has a lock of theirs.
    holders: Arc<Mutex<usize>>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let clock = Clock::manual();
        Self {
            keys: Arc::new(Keys::new(clock.clone())),
            clock,
            key: Arc::new(Key::new("", "k".to_owned())),
            options: Options::default(),
            holders: Arc::default(),
        }
    }

    /// Another key of the same process.
    pub(super) fn beside(&self, key: &str) -> Self {
        Self {
            key: Arc::new(Key::new("", key.to_owned())),
            holders: Arc::default(),
            ..self.clone()
        }
    }

    pub(super) fn options(&self) -> CheckedOptions {
        self.options.check(Some(self.key.name())).unwrap()
    }

    pub(super) fn enter(&self, waits: bool) -> Arrival {
        self.keys.enter(&self.key, &self.options(), waits)
    }

    pub(super) fn first(&self) -> User {
        match self.enter(true) {
            Arrival::Turn(state, waiter) => self.user(state, waiter),
            other => panic!("somebody is there: {other:?}"),
        }
    }

    pub(super) fn behind(&self) -> User {
        match self.enter(true) {
            Arrival::Behind(state, waiter) => self.user(state, waiter),
            other => panic!("nobody is there: {other:?}"),
        }
    }

    pub(super) fn user(&self, state: Arc<KeyState>, waiter: Arc<Waiter>) -> User {
        User {
            f: self.clone(),
            state,
            waiter,
            is_done: false,
        }
    }

    /// Whether one that does not wait gets the turn. It ends it at once.
    pub(super) fn is_free(&self) -> bool {
        match self.enter(false) {
            Arrival::Turn(state, waiter) => {
                drop(self.user(state, waiter));
                true
            }
            Arrival::Taken(_) => false,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn claim(&self, value: &str) -> Arc<Claim> {
        let key = Arc::clone(&self.key);
        Arc::new(Claim::new(key, value.into(), self.options().ttl))
    }

    /// One that holds a lease granted now.
    pub(super) fn hold(&self) -> Holder {
        self.first().win()
    }

    /// A lease that is not young any more, and was asked about.
    pub(super) fn grown_up(&self) -> Holder {
        let holder = self.hold();
        self.clock.advance(super::held::YOUTH);
        for due in self.due() {
            match due {
                Due::Ask(question) if question.extend => {
                    holder.renewed(holder.claim.deadline(self.clock.now()), true);
                }
                Due::Ask(_) => holder.looked(Some(holder.lease.deadline())),
                lost @ Due::Expire(_) => panic!("{lost:?}"),
            }
        }
        holder
    }

    /// Takes back what one does not poll that has the turn, as after a second (K6).
    pub(super) fn reclaim(&self, state: &Arc<KeyState>) {
        if let Some(waiter) = self.keys.to_be_polled(state) {
            waiter.ask();
            let left = self.keys.reclaim(state, &waiter);
            self.give_back(state, left);
        }
    }

    fn give_back(&self, state: &Arc<KeyState>, left: Left) {
        match left {
            Left::Nothing(wakes) => wakes.wake(),
            Left::Lease(lease, claim) => drop(Holder::new(self, state, lease, claim)),
        }
    }

    /// What is due, as the driver asks for it.
    pub(super) fn due(&self) -> Vec<Due> {
        let due = self.keys.due(self.clock.now(), SECOND);
        due.into_iter().map(|(_, due)| due).collect()
    }

    /// K1, K10.
    pub(super) fn assert_consistent(&self) {
        let entries = self.keys.schedule.entries();
        let states = self.keys.all();
        for state in &states {
            let known = state.lock();
            assert_eq!(known.wake, known.next_wake(), "K10");
            let mut moments = entries.iter().filter(|(_, key)| Arc::ptr_eq(key, state));
            assert_eq!(moments.next().map(|(at, _)| *at), known.wake, "K10");
            assert!(moments.next().is_none(), "K10: one moment for each key");
            assert!(known.turn.is_some() || !known.has_waiters(), "K3");
            let is_used = known.turn.is_some()
                || !known.overdue.is_empty()
                || !known.held.is_empty()
                || known.remembered_until.is_some();
            assert!(is_used && !known.is_retired, "K1");
        }
        let known = |(_, key): &(Moment, _)| states.iter().any(|state| Arc::ptr_eq(state, key));
        assert!(entries.iter().all(known), "K10: nothing of other keys");
    }

    pub(super) fn assert_nothing_left(&self) {
        assert_eq!(self.keys.len(), 0, "K1");
        assert!(self.keys.schedule.entries().is_empty(), "K10");
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// One that waits or contends, and leaves when it is dropped (`acquire::local::LocalWaiter`).
pub(super) struct User {
    f: Fixture,
    pub(super) state: Arc<KeyState>,
    pub(super) waiter: Arc<Waiter>,
    is_done: bool,
}

impl User {
    /// Waits to be called; `None` if the locker was closed.
    pub(super) async fn called(&mut self) -> Option<Call> {
        loop {
            match poll_fn(|context| self.waiter.poll_called(context)).await {
                Heard::Called(call) => return Some(call),
                Heard::Closed => return None,
                Heard::Missed => match self.f.enter(true) {
                    Arrival::Turn(state, waiter) => {
                        *self = self.f.user(state, waiter);
                        return Some(Call::Contend { silent_since: None });
                    }
                    Arrival::Behind(state, waiter) => *self = self.f.user(state, waiter),
                    Arrival::Taken(_) => panic!("it waits"),
                    Arrival::Closed => return None,
                },
            }
        }
    }

    /// Polls it once.
    pub(super) fn poll(&mut self) -> Poll<Option<Call>> {
        let mut context = Context::from_waker(Waker::noop());
        pin!(self.called()).poll(&mut context)
    }

    pub(super) fn is_called_to_contend(&mut self) -> bool {
        matches!(self.poll(), Poll::Ready(Some(Call::Contend { .. })))
    }

    /// Shows that it is polled while it contends; says whether the locker is open.
    pub(super) fn note_poll(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.waiter.note_poll(&mut context)
    }

    /// Begins to wait in Redis.
    pub(super) fn queue(&self, value: &str) -> Arc<Claim> {
        let claim = self.f.claim(value);
        self.f.keys.queue(&self.state, &self.waiter, &claim);
        claim
    }

    /// Wins the lock in Redis, with many fencing numbers.
    pub(super) fn win(self) -> Holder {
        self.win_with("v", 1_000)
    }

    pub(super) fn win_with(mut self, value: &str, fences: u64) -> Holder {
        self.is_done = true;
        let claim = self.f.claim(value);
        let won = Won {
            claim: Arc::clone(&claim),
            fences: Fences {
                first: 1,
                count: fences,
            },
            deadline: claim.deadline(self.f.clock.now()),
        };
        let lease = self.f.keys.grant(&self.state, &self.waiter, won);
        Holder::new(&self.f, &self.state, lease, claim)
    }

    /// Takes the lease that it was called to.
    pub(super) fn take(&mut self, call: Call) -> Holder {
        let Call::Hold(lease, claim) = call else {
            panic!("K4: it was called to something else");
        };
        self.is_done = true;
        Holder::new(&self.f, &self.state, lease, claim)
    }

    /// Takes up the lease that it was called to.
    pub(super) fn taken(&mut self) -> Holder {
        match self.poll() {
            Poll::Ready(Some(call)) => self.take(call),
            _ => panic!("K4: the lease was not handed on"),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if !self.is_done {
            let left = self.f.keys.leave(&self.state, &self.waiter);
            self.f.give_back(&self.state, left);
        }
    }
}

/// One that holds the lock, and lets go of it when it is dropped (`driver::HeldLock`). Redis says
/// yes to everything.
pub(super) struct Holder {
    f: Fixture,
    pub(super) state: Arc<KeyState>,
    pub(super) lease: Arc<Lease>,
    pub(super) claim: Arc<Claim>,
    is_done: bool,
}

impl Holder {
    fn new(f: &Fixture, state: &Arc<KeyState>, lease: Arc<Lease>, claim: Arc<Claim>) -> Self {
        let others = {
            let mut holders = f.holders.lock();
            *holders += 1;
            *holders - 1
        };
        assert!(others == 0 || lease.is_lost(), "P1: two leases");
        Self {
            f: f.clone(),
            state: Arc::clone(state),
            lease,
            claim,
            is_done: false,
        }
    }

    /// Begins to let go; what follows is the caller's to do.
    pub(super) fn let_go(mut self) -> LetGo {
        self.is_done = true;
        self.f.keys.let_go(&self.state, &self.lease)
    }

    /// Redis was asked, and keeps the claim.
    pub(super) fn kept(&self) -> LetGo {
        let fences = Fences {
            first: self.lease.fence() + 1_000,
            count: 1_000,
        };
        let deadline = self.claim.deadline(self.f.clock.now());
        self.f.keys.kept(&self.state, &self.lease, fences, deadline)
    }

    fn end(&self, taken_off: TakenOff) {
        if let Some(holder) = taken_off.holder {
            self.f.keys.end_turn(&self.state, &holder).wake();
        }
    }

    pub(super) fn renewed(&self, deadline: Moment, asked_by_driver: bool) {
        let renewal = Renewal::Renewed { deadline };
        let keys = &self.f.keys;
        let lost = keys.renewed(&self.state, &self.claim, renewal, asked_by_driver);
        assert!(lost.is_none());
    }

    pub(super) fn looked(&self, until: Option<Moment>) {
        let look = Look::Ours { until };
        let lost = self.f.keys.looked(&self.state, &self.claim, look);
        assert!(lost.is_none());
    }

    pub(super) fn unanswered(&self) -> bool {
        let cause = crate::error::Cause::new(std::io::Error::other("on purpose"));
        let lease = self.f.keys.unanswered(&self.state, &self.claim, cause);
        lease.is_some_and(|lease| Arc::ptr_eq(&lease, &self.lease))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        *self.f.holders.lock() -= 1;
        if self.is_done {
            return;
        }
        match self.f.keys.let_go(&self.state, &self.lease) {
            LetGo::HandedOver(wakes) => wakes.wake(),
            LetGo::Release(taken_off) | LetGo::Nothing(taken_off) => self.end(taken_off),
            LetGo::Ask { .. } => match self.kept() {
                LetGo::HandedOver(wakes) => wakes.wake(),
                LetGo::Release(taken_off) | LetGo::Nothing(taken_off) => self.end(taken_off),
                LetGo::Ask { .. } => panic!("K8: a stretch has just begun"),
            },
        }
    }
}
