//! The requests that are under way on one connection.
//!
//! # Invariants
//!
//! * **R1** A request ends at its limit, or a [`TICK`] later. A timer for each would cost about a
//!   tenth of what redis-rs does for it. So while requests are under way, one task on the
//!   connection's runtime wakes them every tick, and each looks at the clock. One that has little
//!   time, or that comes from another runtime, has a timer of its own.
//! * **R2** The task ticks for as long as a request is under way, and ends when there is none.
//! * **R3** A request that is dropped is taken back from redis-rs: if it was not sent yet, it never
//!   is. Only the box of one that was answered is used again.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::ReusableBoxFuture;

use crate::backend::redis::connection::Connection;
use crate::backend::redis::health::Health;

/// How late a request may end, beside what timers are late anyway.
const TICK: Duration = Duration::from_millis(20);
/// A request that has less time gets a timer of its own: lateness would matter.
const SHORT: Duration = Duration::from_millis(200);
/// How many boxes are kept. One takes a kilobyte and a half.
const SPARES: usize = 256;

/// The requests that are under way on one connection.
pub(crate) struct Requests {
    base: Instant,
    under_way: AtomicUsize,
    is_ticking: AtomicBool,
    /// When the last tick was, in nanoseconds since `base`.
    ticked: AtomicU64,
    tick: Notify,
}

/// Boxes and handles that no request needs at present. Not part of [`Requests`], which the end of
/// the connection that redis-rs drives knows: a handle there would keep it alive.
#[derive(Default)]
pub(super) struct Spares(Mutex<Vec<Spare>>);

/// A box and a handle that no request needs at present. The future that redis-rs makes is so large
/// that the allocator is slow with it, and to clone a handle is dear when threads contend for its
/// counters.
struct Spare {
    stream: MultiplexedConnection,
    request: Request,
}

type Request = ReusableBoxFuture<'static, (MultiplexedConnection, RedisResult<Value>)>;

impl Spares {
    fn prepare(&self, stream: &MultiplexedConnection, cmd: Cmd) -> Request {
        let spare = self.0.lock().pop();
        let send = |mut stream: MultiplexedConnection| async move {
            let reply = stream.send_packed_command(&cmd).await;
            (stream, reply)
        };
        match spare {
            Some(Spare {
                stream,
                mut request,
            }) => {
                request.set(send(stream));
                request
            }
            None => Request::new(send(stream.clone())),
        }
    }

    fn keep(&self, spare: Spare) {
        let mut spares = self.0.lock();
        if spares.len() < SPARES {
            spares.push(spare);
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            under_way: AtomicUsize::new(0),
            is_ticking: AtomicBool::new(false),
            ticked: AtomicU64::new(0),
            tick: Notify::new(),
        }
    }
}

impl Requests {
    fn nanos(&self, instant: Instant) -> u64 {
        let nanos = instant.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    fn note_tick(&self) {
        let now = self.nanos(Instant::now());
        self.ticked.store(now, Ordering::Relaxed);
    }

    fn is_short(&self, until: Instant) -> bool {
        let ticked = self.ticked.load(Ordering::Relaxed);
        self.nanos(until) < ticked.saturating_add(SHORT.as_nanos() as u64)
    }
}

/// Sends a command and awaits the reply, at most until `until`.
pub(super) async fn send(
    connection: &Connection,
    cmd: Cmd,
    until: Instant,
) -> Option<RedisResult<Value>> {
    let mut request = connection.spares.prepare(&connection.stream, cmd);
    let answered = at_most(&connection.health, &connection.runtime, until, &mut request);
    let (stream, reply) = answered.await?;
    connection.spares.keep(Spare { stream, request });
    Some(reply)
}

async fn at_most<T>(
    health: &Arc<Health>,
    runtime: &Handle,
    until: Instant,
    mut request: impl Future<Output = T> + Unpin,
) -> Option<T> {
    let requests = &health.requests;
    let _under_way = UnderWay::begin(health, runtime);
    let needs_timer = health.is_lent() || requests.is_short(until);
    let mut timer: Option<Pin<Box<Sleep>>> = needs_timer.then(|| Box::pin(sleep_until(until)));
    let mut tick = pin!(requests.tick.notified());
    poll_fn(|context| {
        if let Poll::Ready(output) = Pin::new(&mut request).poll(context) {
            return Poll::Ready(Some(output));
        }
        if let Some(timer) = &mut timer {
            return timer.as_mut().poll(context).map(|()| None);
        }
        while tick.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(None);
            }
            tick.set(requests.tick.notified());
        }
        Poll::Pending
    })
    .await
}

struct UnderWay<'a>(&'a Requests);

impl<'a> UnderWay<'a> {
    /// Either the task that ticks sees this request before it ends, or this sees that it has ended.
    fn begin(health: &'a Arc<Health>, runtime: &Handle) -> Self {
        let requests = &health.requests;
        requests.under_way.fetch_add(1, Ordering::SeqCst);
        if !requests.is_ticking.load(Ordering::SeqCst)
            && !requests.is_ticking.swap(true, Ordering::SeqCst)
        {
            requests.note_tick();
            let ticking = Ticking {
                health: Arc::clone(health),
                has_ended: false,
            };
            runtime.spawn(ticking.run());
        }
        Self(requests)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The only task that ticks. A runtime that ends drops it, which makes room for another.
struct Ticking {
    health: Arc<Health>,
    has_ended: bool,
}

impl Ticking {
    async fn run(mut self) {
        let requests = &self.health.requests;
        loop {
            sleep(TICK).await;
            requests.note_tick();
            self.health.note_tick();
            requests.tick.notify_waiters();
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
        if !self.has_ended {
            let requests = &self.health.requests;
            requests.is_ticking.store(false, Ordering::SeqCst);
        }
    }
}
