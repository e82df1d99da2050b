use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::acquire::queue::{Queues, reclaim};
use crate::acquire::wakeup::Wakeups;
use crate::backend::Backend;
use crate::backend::faulty::{Faulty, Nobody, Trouble};
use crate::clock::Clock;
use crate::engine::{Engine, Settings};
use crate::holder::Owner;
use crate::options::Options;
use crate::released::Released;

const TIMEOUT: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(5);

/// A process of its own on a store.
fn context(store: &Arc<Faulty>, clock: Clock) -> Context {
    let settings = Settings {
        owner: Owner::of_this_process(),
        prefix: String::new(),
        command_timeout: TIMEOUT,
        flush_timeout: TIMEOUT,
    };
    let backend: Arc<dyn Backend> = store.clone();
    let queues = Arc::new(Queues::default());
    let turns = Arc::clone(&queues) as _;
    let wakeups = Arc::new(Wakeups::default());
    let engine = Engine::start(backend, wakeups, clock, settings, turns).unwrap();
    engine.driver.spawn(reclaim::run(Arc::clone(&queues)));
    Context { engine, queues }
}

struct Fixture {
    store: Arc<Faulty>,
    context: Context,
    key: Arc<Key>,
    terms: Terms,
}

impl Fixture {
    fn new() -> Self {
        let clock = Clock::tokio();
        let store = Faulty::new(clock.clone(), Arc::new(Nobody));
        let options = Options {
            ttl: Duration::from_secs(600),
            outage_limit: GIVE_UP,
            ..Options::default()
        };
        Self {
            context: context(&store, clock),
            store,
            key: Arc::new(Key::new("", "k".to_owned())),
            terms: options.check(&"k".into()).unwrap(),
        }
    }

    /// Another process on the same store.
    fn beside(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            context: context(&self.store, self.context.engine.clock.clone()),
            key: Arc::clone(&self.key),
            terms: self.terms,
        }
    }

    async fn acquire(&self, patience: Patience) -> Result<Option<Hold>, Error> {
        acquire(&self.context, &self.key, &self.terms, patience).await
    }

    /// Waits for what is to be done in the background.
    async fn settled(&self) {
        self.context.engine.driver.pending.wait_async().await;
    }

    async fn is_free(&self) -> bool {
        self.settled().await;
        self.store
            .holder(&self.key, TIMEOUT)
            .await
            .unwrap()
            .is_none()
    }

    async fn assert_nothing_left(&self, what: &str) {
        assert!(self.is_free().await, "P10: {what}");
        assert_eq!(self.store.doubts(), 0, "{what}");
        self.store.always(None);
        let next = self.acquire(Patience::None).await.unwrap();
        assert!(next.is_some(), "the local queue is blocked: {what}");
    }
}

/// Polls a future up to `times` times, each time when it is woken, and drops it then.
async fn poll_times<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        if polled == times {
            return Poll::Ready(None);
        }
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled == times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn p13_faults_are_retried() {
    let f = Fixture::new();
    f.store
        .next([Trouble::Fail, Trouble::Hang, Trouble::LoseAnswer]);
    let hold = f.acquire(Patience::None).await.unwrap().expect("a hold");
    assert_eq!(f.store.acquires(), 4);
    assert!(!hold.lease.is_lost());
}

#[tokio::test(start_paused = true)]
async fn p13_a_dead_store_is_unavailable_after_the_time_told() {
    for trouble in [Trouble::Fail, Trouble::Hang] {
        for patience in [Patience::None, Patience::Unbounded] {
            let f = Fixture::new();
            f.store.always(Some(trouble));
            let began = Instant::now();
            let error = f.acquire(patience).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            let took = began.elapsed();
            assert!(took >= GIVE_UP && took < GIVE_UP + TIMEOUT, "{took:?}");
            f.store.always(None);
            f.assert_nothing_left("after giving up").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p13_those_behind_hear_of_a_dead_store_when_their_own_time_is_over() {
    for trouble in [Trouble::Fail, Trouble::Hang] {
        let f = Fixture::new();
        f.store.always(Some(trouble));
        let waiter = async |late: Duration| {
            tokio::time::sleep(late).await;
            let began = Instant::now();
            let error = f.acquire(Patience::Unbounded).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            let took = began.elapsed();
            let soon = GIVE_UP + 2 * TIMEOUT;
            assert!(took >= GIVE_UP && took < soon, "{took:?} after {late:?}");
        };
        let none = Duration::ZERO;
        tokio::join!(
            waiter(none),
            waiter(none),
            waiter(none),
            waiter(none),
            waiter(GIVE_UP / 2),
            waiter(GIVE_UP / 2),
        );
        f.store.always(None);
        f.assert_nothing_left("after giving up").await;
    }
}

#[tokio::test(start_paused = true)]
async fn p13_a_dead_store_is_never_taken_for_those_behind() {
    let f = Fixture::new();
    f.store.always(Some(Trouble::Fail));
    let mut first = pin!(f.acquire(Patience::Unbounded));
    let limit = Instant::now() + GIVE_UP / 2;
    tokio::select! {
        end = &mut first => panic!("{end:?}"),
        end = f.acquire(Patience::Until(limit)) => {
            assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
        }
    }
    let end = f.acquire(Patience::None).await;
    assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
    f.store.always(None);
    let hold = first.await.unwrap();
    let end = f.acquire(Patience::None).await;
    assert!(matches!(end, Ok(None)), "{end:?}");
    drop(hold);
}

#[tokio::test(start_paused = true)]
async fn a_limited_wait_for_a_dead_store_ends_in_time() {
    let f = Fixture::new();
    f.store.always(Some(Trouble::Hang));
    let limit = Duration::from_millis(1500);
    let began = Instant::now();
    let error = f.acquire(Patience::Until(began + limit)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(began.elapsed() >= limit && began.elapsed() < limit + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn the_time_for_a_dead_store_counts_from_the_last_answer() {
    let f = Fixture::new();
    let other = f.beside();
    let hold = other
        .acquire(Patience::None)
        .await
        .unwrap()
        .expect("a hold");
    let waiting = f.acquire(Patience::Unbounded);
    let trouble = async {
        tokio::time::sleep(10 * GIVE_UP).await;
        f.store.always(Some(Trouble::Fail));
        tokio::time::sleep(GIVE_UP / 2).await;
        f.store.always(None);
        drop(hold);
    };
    let (granted, ()) = tokio::join!(waiting, trouble);
    assert!(granted.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_the_acquire_at_once() {
    let f = Fixture::new();
    f.store.next([Trouble::Refuse]);
    let error = f.acquire(Patience::Unbounded).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(f.store.acquires(), 1);
    f.assert_nothing_left("after a refusal").await;
}

#[tokio::test(start_paused = true)]
async fn p10_an_acquire_dropped_at_any_await_point_leaves_nothing() {
    for times in 0.. {
        let f = Fixture::new();
        let foreign = Arc::new(Claim::new(Arc::clone(&f.key), "theirs".into(), f.terms.ttl));
        f.store
            .acquire(&foreign, Fences::floor(1), TIMEOUT)
            .await
            .unwrap();
        f.store.next([
            Trouble::Dawdle,
            Trouble::HangAfter,
            Trouble::LoseAnswer,
            Trouble::Fail,
        ]);
        let free = async {
            tokio::time::sleep(TIMEOUT * 3 / 2).await;
            f.store.next([Trouble::HangAfter, Trouble::Dawdle]);
            f.store.force_release(&f.key, TIMEOUT).await.unwrap();
        };
        let waiting = async { tokio::join!(f.acquire(Patience::Unbounded), free).0 };
        let outcome = poll_times(waiting, times).await;
        let done = outcome.is_some();
        drop(outcome);
        f.store.clear();
        f.store.release(&foreign, TIMEOUT).await.unwrap();
        f.assert_nothing_left(&format!("after {times} polls")).await;
        if done {
            assert!(times > 5, "{times}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p10_a_doubt_outlasts_an_answer_that_came_another_way() {
    let f = Fixture::new();
    let other = f.beside();
    let hold = other.acquire(Patience::None).await.unwrap();
    // The first request is under way still when a second one is answered.
    f.store.next([Trouble::Hang]);
    let limit = Instant::now() + 2 * TIMEOUT;
    assert!(f.acquire(Patience::Until(limit)).await.unwrap().is_none());
    f.settled().await;
    assert_eq!(f.store.doubts(), 0, "nobody undoes the first request");
    drop(hold);
}

#[tokio::test(start_paused = true)]
async fn p10_a_doubt_outlasts_a_guard_that_was_lost() {
    let f = Fixture::new();
    f.store.next([Trouble::Hang]);
    let hold = f.acquire(Patience::None).await.unwrap().expect("a hold");
    hold.lease.lose(LostReason::Removed);
    drop(hold);
    f.settled().await;
    assert_eq!(f.store.doubts(), 0, "nobody undoes the first request");
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_answer_was_lost_did_free_the_lock() {
    let f = Fixture::new();
    let hold = f.acquire(Patience::None).await.unwrap().expect("a hold");
    f.store.next([Trouble::LoseAnswer]);
    assert_eq!(hold.release().await.unwrap(), Released::Freed);
    assert_eq!(f.store.releases(), 2);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_an_acquire_that_waits() {
    let f = Fixture::new();
    f.store.always(Some(Trouble::Hang));
    let waiting = f.acquire(Patience::Unbounded);
    let close = async { f.context.begin_close() };
    let (end, ()) = tokio::join!(waiting, close);
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    f.store.always(None);
    assert!(f.is_free().await, "P10");
    let late = f.acquire(Patience::None).await;
    assert!(matches!(late, Err(Error::Closed { .. })), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn p10_a_grant_that_comes_as_the_locker_closes_is_given_back() {
    let f = Fixture::new();
    f.store.next([Trouble::Dawdle]);
    let acquire = f.acquire(Patience::Unbounded);
    let close = async { f.context.begin_close() };
    let (end, ()) = tokio::join!(acquire, close);
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    assert!(f.is_free().await);
}

/// D2: as if it had panicked. Nobody else of the test runs meanwhile.
async fn end_the_thread(f: &Fixture) {
    let driver = &f.context.engine.driver;
    driver.finish();
    while !driver.is_closed() || !driver.closing.is_cancelled() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn p10_a_grant_that_comes_when_the_thread_has_ended_is_given_back() {
    let f = Fixture::new();
    f.store.next([Trouble::Dawdle]);
    let acquire = f.acquire(Patience::Unbounded);
    let (end, ()) = tokio::join!(acquire, end_the_thread(&f));
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    let holder = f.store.holder(&f.key, TIMEOUT).await.unwrap();
    assert_eq!(holder, None);
    let late = f.acquire(Patience::None).await;
    assert!(matches!(late, Err(Error::Closed { .. })), "{late:?}");
}

#[tokio::test]
async fn who_waits_behind_a_holder_hears_that_the_thread_has_ended() {
    let f = Fixture::new();
    let hold = f.acquire(Patience::None).await.unwrap().expect("a hold");
    let waiting = f.acquire(Patience::Unbounded);
    let (end, ()) = tokio::join!(waiting, end_the_thread(&f));
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    let reason = hold.lease.lost_reason();
    assert!(matches!(reason, Some(LostReason::Closed)), "{reason:?}");
}
