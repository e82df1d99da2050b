mod closing;
mod outage;
mod unsettled;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::backend::Backend;
use crate::backend::faulty::{Faulty, Nobody, Trouble};
use crate::clock::Clock;
use crate::driver::{Settings, Share, ThreadRuntime};
use crate::holder::Owner;
use crate::keys::Keys;
use crate::options::Options;
use crate::released::Released;

const TIMEOUT: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(5);

/// A process of its own on a store.
fn process(store: &Arc<Faulty>, clock: Clock) -> Share {
    let settings = Settings {
        owner: Owner::of_this_process(),
        prefix: String::new(),
        command_timeout: TIMEOUT,
        flush_timeout: TIMEOUT,
        credentials: None,
        options: Options::default(),
    };
    let runtime = ThreadRuntime::new().unwrap();
    let keys = Arc::new(Keys::new(clock.clone()));
    let backend: Arc<dyn Backend> = store.clone();
    Share::new(Driver::start(runtime, backend, keys, clock, settings).unwrap())
}

struct Fixture {
    store: Arc<Faulty>,
    driver: Share,
    clock: Clock,
    key: Arc<Key>,
    options: CheckedOptions,
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
            driver: process(&store, clock.clone()),
            store,
            clock,
            key: Arc::new(Key::new("", "k".to_owned())),
            options: options.check(None).unwrap(),
        }
    }

    /// Another process on the same store.
    fn beside(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            driver: process(&self.store, self.clock.clone()),
            clock: self.clock.clone(),
            key: Arc::clone(&self.key),
            options: self.options,
        }
    }

    async fn acquire(&self, wait: Wait) -> Result<Option<HeldLock>, Error> {
        acquire(&self.driver, &self.key, &self.options, wait).await
    }

    /// Waits for what is to be done in the background.
    async fn settled(&self) {
        self.driver.pending.wait_async().await;
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
        assert_eq!(self.store.unsettled(), 0, "{what}");
        self.store.always(None);
        let next = self.acquire(Wait::None).await.unwrap();
        assert!(next.is_some(), "the key is blocked: {what}");
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
async fn a_release_whose_answer_was_lost_did_free_the_lock() {
    let f = Fixture::new();
    let lock = f.acquire(Wait::None).await.unwrap().expect("a lock");
    f.store.next([Trouble::LoseAnswer]);
    assert_eq!(lock.release().await.unwrap(), Released::Freed);
    assert_eq!(f.store.releases(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_used_leaves_nothing_behind() {
    let f = Fixture::new();
    for _ in 0..3 {
        let (released, ()) = tokio::join!(
            async {
                let lock = f.acquire(Wait::Unbounded).await.unwrap();
                lock.expect("a lock").release().await
            },
            async {
                let lock = f.acquire(Wait::Unbounded).await.unwrap();
                drop(lock.expect("a lock"));
            },
        );
        released.unwrap();
        f.settled().await;
        assert_eq!(f.driver.keys.len(), 0, "K1");
    }
}
