mod loss;
mod release;
mod renewal;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::backend::faulty::{Faulty, Nobody, Trouble};
use crate::backend::{Attempt, Claim, Fences, Grant, Signals};
use crate::error::Cause;
use crate::key::Key;
use crate::keys::{Arrival, Call, Heard, Left, Waiter, Won};
use crate::options::{CheckedOptions, Options};

const TTL: Duration = Duration::from_millis(900);
const EVERY: Duration = Duration::from_millis(300);
/// A timer of tokio fires up to a millisecond late.
const TICK: Duration = Duration::from_millis(2);
/// When the driver looks at a lease for the first time.
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// A driver whose life is a task on the test's runtime, where time stands still.
pub(super) struct Fixture {
    pub(super) store: Arc<Faulty>,
    pub(super) driver: Arc<Driver>,
    life: JoinHandle<()>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(|driver| async move { driver.0.run().await })
    }

    /// A driver that does not get to run, as in a process that is stopped.
    pub(super) fn stopped() -> Self {
        Self::with(|driver| async move {
            let _driver = driver;
            std::future::pending().await
        })
    }

    fn with<R: Future<Output = ()> + Send + 'static>(life: impl FnOnce(LastWill) -> R) -> Self {
        let clock = Clock::tokio();
        let keys = Arc::new(Keys::new(clock.clone()));
        let store = Faulty::new(clock.clone(), Arc::new(Nobody));
        let settings = Settings {
            owner: Owner::of_this_process(),
            prefix: String::new(),
            command_timeout: Duration::from_secs(1),
            flush_timeout: Duration::from_secs(1),
            credentials: None,
            options: Options::default(),
        };
        let driver = Driver::on(Handle::current(), store.clone(), keys, clock, settings);
        let life = tokio::spawn(life(LastWill(Arc::clone(&driver))));
        Self {
            store,
            driver,
            life,
        }
    }

    pub(super) fn user(&self, key: &str) -> User {
        self.user_with(key, Options::default())
    }

    fn user_with(&self, key: &str, options: Options) -> User {
        let key = key_of(key);
        match self.driver.keys.enter(&key, &checked(options), true) {
            Arrival::Turn(state, waiter) | Arrival::Behind(state, waiter) => User {
                driver: Arc::clone(&self.driver),
                state,
                waiter,
                is_done: false,
            },
            other => panic!("{other:?}"),
        }
    }

    /// Acquires the lock of a key.
    async fn hold(&self, key: &str) -> HeldLock {
        self.win(self.user(key)).await
    }

    pub(super) async fn win(&self, mut user: User) -> HeldLock {
        let key = Arc::clone(&user.state.key);
        let value = format!("value of {}", key.name());
        let claim = Arc::new(Claim::new(key, value.into(), TTL));
        let fences = Fences::floor(1_000);
        let grant = self.store.acquire(&claim, fences, TTL).await.unwrap();
        let Attempt::Granted { fences, deadline } = grant else {
            panic!("{grant:?}");
        };
        let won = Won {
            claim: Arc::clone(&claim),
            fences,
            deadline,
        };
        user.is_done = true;
        let lease = self.driver.keys.grant(&user.state, &user.waiter, won);
        HeldLock::new(&self.driver, &user.state, lease, claim)
    }

    /// Whether one that does not wait gets the turn of a key.
    fn is_free(&self, key: &str) -> bool {
        match self
            .driver
            .keys
            .enter(&key_of(key), &checked(Options::default()), false)
        {
            Arrival::Turn(state, waiter) => {
                let left = self.driver.keys.leave(&state, &waiter);
                assert!(matches!(left, Left::Nothing(_)));
                true
            }
            Arrival::Taken(_) => false,
            other => panic!("{other:?}"),
        }
    }
}

fn key_of(key: &str) -> Arc<Key> {
    Arc::new(Key::new("", key.to_owned()))
}

fn checked(options: Options) -> CheckedOptions {
    let options = Options {
        ttl: TTL,
        renew_every: Some(EVERY),
        ..options
    };
    options.check(None).unwrap()
}

/// One that waits or contends, and leaves when it is dropped.
pub(super) struct User {
    driver: Arc<Driver>,
    pub(super) state: Arc<KeyState>,
    pub(super) waiter: Arc<Waiter>,
    is_done: bool,
}

impl User {
    pub(super) fn poll(&self) -> Poll<Heard> {
        let mut context = Context::from_waker(Waker::noop());
        self.waiter.poll_called(&mut context)
    }

    pub(super) fn is_called_to_contend(&self) -> bool {
        let heard = self.poll();
        matches!(heard, Poll::Ready(Heard::Called(Call::Contend { .. })))
    }

    /// Takes up the lease that it was called to.
    pub(super) fn taken(&mut self) -> HeldLock {
        let Poll::Ready(Heard::Called(Call::Hold(lease, claim))) = self.poll() else {
            panic!("K4: the lease was not handed on");
        };
        self.is_done = true;
        HeldLock::new(&self.driver, &self.state, lease, claim)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        match self.driver.keys.leave(&self.state, &self.waiter) {
            Left::Nothing(wakes) => wakes.wake(),
            Left::Lease(lease, claim) => {
                drop(HeldLock::new(&self.driver, &self.state, lease, claim));
            }
        }
    }
}
