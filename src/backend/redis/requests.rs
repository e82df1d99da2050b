//! The requests that are under way on one connection.
//!
//! # Invariants
//!
//! * **R1** A request ends at its limit, or a [`TICK`] later, or when all are given up. A timer for
//!   each would cost about a tenth of what redis-rs does for it. So while requests are under way,
//!   one task on the connection's runtime wakes them every tick, and each looks at the clock. One
//!   that has little time, or that comes from another runtime, has a timer of its own.
//! * **R2** The task ticks for as long as a request is under way, and ends when there is none.
//! * **R4** A busy connection gets the requests of all tasks that are ready together, and writes
//!   them together. Sent one by one, each would be written alone: tokio runs redis-rs' task right
//!   after the one that wakes it. So requests are staged, and another task hands them over when the
//!   others that were ready have run. Callers need not be polled for that. It is not the task of
//!   R2: the thread whose task has woken it may be blocked, and no other takes it from there. Then
//!   the task of R2 hands over.
//! * **R3** A request that is dropped is taken back from redis-rs: if it was not sent yet, it never
//!   is. Only the box of one that was answered is used again.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, unconstrained};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::ReusableBoxFuture;

use crate::contain::contain;

/// How late a request may end, beside what timers are late anyway.
const TICK: Duration = Duration::from_millis(20);
/// A request that has less time gets a timer of its own: lateness would matter.
const SHORT: Duration = Duration::from_millis(200);
/// With so many others under way, a request is staged.
const BUSY: usize = 3;
/// How many boxes are kept. One takes a kilobyte and a half.
const SPARES: usize = 256;

/// The requests that are under way on one connection.
#[derive(Default)]
pub(crate) struct Requests {
    base: Base,
    under_way: AtomicUsize,
    is_ticking: AtomicBool,
    /// When the last tick was, in nanoseconds since `base`.
    ticked: AtomicU64,
    tick: Notify,
    /// The replies are of no interest any more.
    is_given_up: AtomicBool,
    /// Since the last tick.
    was_answered: AtomicBool,
    last_answer: Mutex<Option<Instant>>,
    staged: Mutex<Vec<Staged>>,
    /// How many are staged, or being handed over.
    staged_count: AtomicUsize,
    /// Held by whoever hands over, so that what was staged first is sent first (R4).
    order: Mutex<()>,
    stage: Notify,
}

/// The moment that others are counted from.
struct Base(Instant);

/// What is sent as one.
pub(super) enum Message {
    One(Cmd),
    /// A command, and one before it that counts for the next; the reply is that to the second.
    Pair(Pipeline),
}

/// Sends requests over one connection. Not part of [`Requests`], which the end of the connection
/// that redis-rs drives knows: a handle there would keep it alive.
pub(super) struct Sender {
    stream: MultiplexedConnection,
    spares: Mutex<Vec<Spare>>,
}

/// A box and a handle that no request needs at present. The future that redis-rs makes is so large
/// that the allocator is slow with it, and to clone a handle is dear when threads contend for its
/// counters.
struct Spare {
    stream: MultiplexedConnection,
    slot: Arc<Slot>,
}

type Reply = (MultiplexedConnection, RedisResult<Value>);
type Request = ReusableBoxFuture<'static, Reply>;

/// One request, which its caller polls, and the task that hands over what is staged (R4).
struct Slot(Mutex<State>);

struct State {
    /// Tells the request from those that used the slot before.
    number: u64,
    /// redis-rs has it.
    is_sent: bool,
    /// What the request ended with when it was handed over.
    reply: Option<Reply>,
    /// `None`, once the request was dropped (R3).
    request: Option<Request>,
}

impl Slot {
    fn poll(&self, context: &mut Context<'_>, requests: &Requests) -> Poll<Reply> {
        let mut state = self.0.lock();
        if !state.is_sent {
            drop(state);
            requests.hand_over_what_is_staged();
            state = self.0.lock();
            state.is_sent = true;
        }
        match (state.reply.take(), &mut state.request) {
            (Some(reply), _) => Poll::Ready(reply),
            (None, Some(request)) => request.poll(context),
            (None, None) => unreachable!("only the caller drops the request"),
        }
    }
}

struct Staged {
    slot: Arc<Slot>,
    number: u64,
    caller: Waker,
}

impl Staged {
    /// Has redis-rs wake the caller from now on. Whether the request has ended already, so that
    /// somebody else must.
    fn hand_over(&self) -> bool {
        let mut state = self.slot.0.lock();
        if state.number != self.number || state.is_sent {
            return false;
        }
        state.is_sent = true;
        let Some(request) = &mut state.request else {
            return false;
        };
        // What redis-rs does of it counts as the caller's work, not as that of the task that hands
        // over: a task may do so much at a time, and then redis-rs would not take it (R4).
        let poll = unconstrained(poll_fn(|_| {
            Poll::Ready(request.poll(&mut Context::from_waker(&self.caller)))
        }));
        match pin!(poll).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Poll::Ready(reply)) => state.reply = Some(reply),
            Poll::Ready(Poll::Pending) | Poll::Pending => return false,
        }
        true
    }
}

/// A request of a caller: dropped before it is answered, it is taken back (R3).
struct Call {
    slot: Arc<Slot>,
    is_answered: bool,
}

impl Sender {
    pub(super) fn new(stream: MultiplexedConnection) -> Self {
        Self {
            stream,
            spares: Mutex::default(),
        }
    }

    /// Sends a command and awaits the reply, at most until `until`.
    ///
    /// The tasks of R2 and R4 run on `runtime`, the connection's; `is_borrowed` says whether the
    /// request comes from elsewhere, and so must not depend on it.
    pub(super) async fn send(
        &self,
        requests: &Arc<Requests>,
        runtime: &Handle,
        is_borrowed: bool,
        message: Message,
        until: Instant,
    ) -> Option<RedisResult<Value>> {
        let under_way = UnderWay::begin(requests, runtime);
        let mut call = self.begin(message);
        let needs_timer = is_borrowed || requests.is_short(until);
        let mut timer: Option<Pin<Box<Sleep>>> = needs_timer.then(|| Box::pin(sleep_until(until)));
        let mut tick = pin!(requests.tick.notified());
        let mut is_to_stage = !is_borrowed && under_way.others >= BUSY;
        let (stream, reply) = poll_fn(|context| {
            if is_to_stage {
                is_to_stage = false;
                requests.stage(&call.slot, context.waker());
            } else if let Poll::Ready(reply) = call.slot.poll(context, requests) {
                return Poll::Ready(Some(reply));
            }
            while tick.as_mut().poll(context).is_ready() {
                if Instant::now() >= until || requests.is_given_up() {
                    return Poll::Ready(None);
                }
                tick.set(requests.tick.notified());
            }
            match &mut timer {
                Some(timer) => timer.as_mut().poll(context).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await?;
        call.is_answered = true;
        self.keep(stream, &call);
        Some(reply)
    }

    fn begin(&self, message: Message) -> Call {
        let spare = self.spares.lock().pop();
        let send = |mut stream: MultiplexedConnection| async move {
            let reply = match message {
                Message::One(cmd) => stream.send_packed_command(&cmd).await,
                Message::Pair(pair) => {
                    let replies = stream.send_packed_commands(&pair, 1, 1).await;
                    replies.map(|mut replies| replies.pop().unwrap_or(Value::Nil))
                }
            };
            (stream, reply)
        };
        let slot = match spare {
            Some(Spare { stream, slot }) => {
                let mut state = slot.0.lock();
                state.number += 1;
                state.is_sent = false;
                let request = state
                    .request
                    .get_or_insert_with(|| unreachable!("it is kept"));
                request.set(send(stream));
                drop(state);
                slot
            }
            None => Arc::new(Slot(Mutex::new(State {
                number: 0,
                is_sent: false,
                reply: None,
                request: Some(Request::new(send(self.stream.clone()))),
            }))),
        };
        Call {
            slot,
            is_answered: false,
        }
    }

    fn keep(&self, stream: MultiplexedConnection, call: &Call) {
        let slot = Arc::clone(&call.slot);
        let mut spares = self.spares.lock();
        if spares.len() < SPARES {
            spares.push(Spare { stream, slot });
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_answered {
            let request = self.slot.0.lock().request.take();
            drop(request);
        }
    }
}

impl Default for Base {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Requests {
    fn nanos(&self, instant: Instant) -> u64 {
        let nanos = instant.saturating_duration_since(self.base.0).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    fn note_tick(&self) {
        let now = Instant::now();
        self.ticked.store(self.nanos(now), Ordering::Relaxed);
        if self.was_answered.swap(false, Ordering::Relaxed) {
            *self.last_answer.lock() = Some(now);
        }
    }

    /// Ends all requests that are under way, without replies.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
        self.tick.notify_waiters();
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    pub(super) fn note_answer(&self) {
        self.was_answered.store(true, Ordering::Relaxed);
    }

    /// When the last answer came, give or take a tick.
    pub(super) fn last_answer(&self) -> Option<Instant> {
        *self.last_answer.lock()
    }

    /// Leaves a request to the task of R4, which hands it over before long.
    fn stage(&self, slot: &Arc<Slot>, caller: &Waker) {
        let number = slot.0.lock().number;
        let mut staged = self.staged.lock();
        staged.push(Staged {
            slot: Arc::clone(slot),
            number,
            caller: caller.clone(),
        });
        self.staged_count.fetch_add(1, Ordering::Release);
        let is_first = staged.len() == 1;
        drop(staged);
        if is_first {
            self.stage.notify_one();
        }
    }

    /// Nothing overtakes what is staged: a release may follow the acquire that it undoes.
    fn hand_over_what_is_staged(&self) {
        if self.staged_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let order = self.order.lock();
        let batch = std::mem::take(&mut *self.staged.lock());
        let count = batch.len();
        let mut ended = Vec::new();
        for staged in batch {
            // The caller's waker may be a user's.
            contain(|| {
                if staged.hand_over() {
                    ended.push(staged.caller);
                }
            });
        }
        self.staged_count.fetch_sub(count, Ordering::Release);
        drop(order);
        for caller in ended {
            contain(|| caller.wake());
        }
    }

    fn is_short(&self, until: Instant) -> bool {
        let ticked = self.ticked.load(Ordering::Relaxed);
        self.nanos(until) < ticked.saturating_add(SHORT.as_nanos() as u64)
    }
}

struct UnderWay<'a> {
    requests: &'a Requests,
    others: usize,
}

impl<'a> UnderWay<'a> {
    /// Either the task that ticks sees this request before it ends, or this sees that it has ended.
    fn begin(requests: &'a Arc<Requests>, runtime: &Handle) -> Self {
        let others = requests.under_way.fetch_add(1, Ordering::SeqCst);
        if !requests.is_ticking.load(Ordering::SeqCst)
            && !requests.is_ticking.swap(true, Ordering::SeqCst)
        {
            requests.note_tick();
            let ticking = Ticking {
                requests: Arc::clone(requests),
                handing_over: None,
                has_ended: false,
            };
            runtime.spawn(ticking.run());
        }
        Self { requests, others }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.requests.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Hands over what is staged when all tasks that are ready have run (R4).
async fn hand_over_batches(requests: Arc<Requests>) {
    loop {
        requests.stage.notified().await;
        let_others_run().await;
        requests.hand_over_what_is_staged();
    }
}

/// Goes to the end of the queue of tasks that are ready.
async fn let_others_run() {
    let mut has_waited = false;
    poll_fn(|context| {
        if has_waited {
            return Poll::Ready(());
        }
        has_waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The only task that ticks. A runtime that ends drops it, which makes room for another.
struct Ticking {
    requests: Arc<Requests>,
    handing_over: Option<AbortHandle>,
    has_ended: bool,
}

impl Ticking {
    async fn run(mut self) {
        let handing_over = hand_over_batches(Arc::clone(&self.requests));
        self.handing_over = Some(tokio::spawn(handing_over).abort_handle());
        let requests = &self.requests;
        loop {
            sleep(TICK).await;
            requests.hand_over_what_is_staged();
            requests.note_tick();
            contain(|| requests.tick.notify_waiters());
            if requests.under_way.load(Ordering::SeqCst) > 0 {
                continue;
            }
            requests.is_ticking.store(false, Ordering::SeqCst);
            if requests.under_way.load(Ordering::SeqCst) == 0
                || requests.is_ticking.swap(true, Ordering::SeqCst)
            {
                self.has_ended = true;
                return;
            }
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        if let Some(task) = &self.handing_over {
            task.abort();
        }
        if !self.has_ended {
            let requests = &self.requests;
            requests.is_ticking.store(false, Ordering::SeqCst);
        }
    }
}
