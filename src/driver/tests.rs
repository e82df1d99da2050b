use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::backend::faulty::{Faulty, Nobody, Trouble};
use crate::backend::{Attempt, Fences};
use crate::key::Key;

const TTL: Duration = Duration::from_millis(900);
const EVERY: Duration = Duration::from_millis(300);
/// A timer of tokio fires up to a millisecond late.
const TICK: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Queue {
    vacated: Mutex<Vec<u64>>,
    panics: AtomicBool,
    is_closed: AtomicBool,
}

impl Vacate for Queue {
    fn vacate(self: Arc<Self>, _key: &Arc<str>, turn: u64) {
        self.vacated.lock().push(turn);
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on purpose");
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }
}

/// A driver whose life is a task on the test's runtime, where time stands still.
struct Fixture {
    store: Arc<Faulty>,
    driver: Arc<Driver>,
    queue: Arc<Queue>,
    life: JoinHandle<()>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|driver| async move { driver.0.run().await })
    }

    /// A driver that does not get to run, as in a process that is stopped.
    fn stopped() -> Self {
        Self::with(|driver| async move {
            let _driver = driver;
            std::future::pending().await
        })
    }

    fn with<R: Future<Output = ()> + Send + 'static>(life: impl FnOnce(LastWill) -> R) -> Self {
        let clock = Clock::tokio();
        let store = Faulty::new(clock.clone(), Arc::new(Nobody));
        let queue = Arc::new(Queue::default());
        let driver = Driver::on(
            Handle::current(),
            store.clone(),
            clock,
            Duration::from_secs(1),
            queue.clone(),
        );
        let life = tokio::spawn(life(LastWill(Arc::clone(&driver))));
        Self {
            store,
            driver,
            queue,
            life,
        }
    }

    /// Acquires the lock of a key and has it watched under a turn's number.
    async fn hold(&self, key: &str, turn: u64) -> (u64, Arc<Lease>) {
        let key = Arc::new(Key::new("", key.to_owned()));
        let claim = Arc::new(Claim::new(
            Arc::clone(&key),
            format!("value of {}", key.name()).into(),
            TTL,
        ));
        let grant = self
            .store
            .acquire(&claim, Fences::floor(1), TTL)
            .await
            .unwrap();
        let Attempt::Granted { fences, deadline } = grant else {
            panic!("{grant:?}");
        };
        let clock = self.driver.clock.clone();
        let now = clock.now();
        let lease = Arc::new(Lease::new(clock, key, fences.first, deadline, None));
        let watch = Watch::new(
            Arc::clone(&lease),
            claim,
            turn,
            deadline,
            Some(EVERY),
            Ear::Driver,
            now,
        );
        (self.driver.watch(watch), lease)
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_lease_is_renewed_three_times_per_ttl() {
    let f = Fixture::new();
    let (_, lease) = f.hold("k", 1).await;
    sleep(10 * TTL + EVERY / 2).await;
    assert!(!lease.is_lost());
    let renewals = f.store.renewals();
    assert!((29..=30).contains(&renewals), "{renewals}");
}

#[tokio::test(start_paused = true)]
async fn p13_renewals_that_fail_are_tried_again_within_the_lease() {
    for trouble in [
        Trouble::Fail,
        Trouble::Refuse,
        Trouble::Hang,
        Trouble::LoseAnswer,
        Trouble::HangAfter,
    ] {
        let f = Fixture::new();
        let (_, lease) = f.hold("k", 1).await;
        let token = lease.token();
        for _ in 0..5 {
            f.store.next([trouble; 2]);
            // Both are over by then, and a renewal was granted.
            sleep(EVERY * 3).await;
            assert!(!lease.is_lost(), "{trouble:?}");
        }
        assert!(!token.is_cancelled(), "{trouble:?}");
        assert!(f.queue.vacated.lock().is_empty(), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn p4_the_token_fires_at_the_deadline_whatever_the_store_does() {
    for trouble in [Trouble::Fail, Trouble::Refuse, Trouble::Hang] {
        let f = Fixture::new();
        let (_, lease) = f.hold("k", 7).await;
        f.store.always(Some(trouble));
        let began = Instant::now();
        let life = lease.remaining();
        lease.token().cancelled().await;
        let fired = began.elapsed();
        assert!(
            fired >= life && fired <= life + TICK,
            "{trouble:?}: {fired:?}"
        );
        match lease.lost_reason() {
            Some(LostReason::Expired { last_error }) => {
                let cause = last_error.expect("what renewing failed with").to_string();
                assert_eq!(cause, "on purpose");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(*f.queue.vacated.lock(), [7]);
    }
}

#[tokio::test(start_paused = true)]
async fn p5_a_lost_lease_is_not_renewed_again() {
    let f = Fixture::new();
    let (_, lease) = f.hold("k", 1).await;
    f.store.next([Trouble::Lie]);
    let began = Instant::now();
    lease.token().cancelled().await;
    assert!(
        began.elapsed() <= EVERY + TICK,
        "at once, not at the deadline"
    );
    assert!(matches!(lease.lost_reason(), Some(LostReason::Removed)));
    let renewals = f.store.renewals();
    sleep(5 * TTL).await;
    assert_eq!(f.store.renewals(), renewals);
    assert_eq!(*f.queue.vacated.lock(), [1], "told once");
}

#[tokio::test(start_paused = true)]
async fn p5_a_renewal_that_is_answered_after_the_deadline_changes_nothing() {
    let f = Fixture::new();
    let (id, lease) = f.hold("k", 1).await;
    f.store.always(Some(Trouble::Hang));
    lease.token().cancelled().await;
    let deadline = f.driver.clock.now() + TTL;
    f.driver.note_renewal(id, Renewal::Renewed { deadline });
    assert!(lease.is_lost());
}

#[tokio::test(start_paused = true)]
async fn an_unwatched_lease_is_left_alone() {
    let f = Fixture::new();
    let (id, lease) = f.hold("k", 1).await;
    assert!(f.driver.unwatch(id).is_some());
    sleep(5 * TTL).await;
    assert_eq!(f.store.renewals(), 0);
    assert!(!lease.token().is_cancelled(), "a release is no loss");
    assert!(f.queue.vacated.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn p4_a_lease_that_is_over_is_lost_by_whoever_takes_it_off() {
    type TakeOff = fn(&Fixture, u64);
    let ways: [(&str, TakeOff); 4] = [
        ("unwatch", |f, id| drop(f.driver.unwatch(id))),
        ("hand over", |f, id| {
            let heir = |_| panic!("nobody inherits a lease that is over");
            assert!(f.driver.hand_over(id, 2, heir).is_err());
        }),
        ("cede, then unwatch", |f, id| {
            f.driver.cede(id);
            drop(f.driver.unwatch(id));
        }),
        ("close", |f, _| drop(f.driver.lose_all())),
    ];
    for (way, take_off) in ways {
        for was_read in [false, true] {
            let f = Fixture::stopped();
            let (id, lease) = f.hold("k", 1).await;
            let token = lease.token();
            sleep(TTL).await;
            assert!(!token.is_cancelled(), "the driver stands still");
            if was_read {
                assert!(lease.is_lost());
            }
            take_off(&f, id);
            assert!(token.is_cancelled(), "{way}");
            assert!(f.driver.unwatch(id).is_none(), "{way}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p4_a_lease_that_was_let_go_in_time_fires_no_token() {
    let f = Fixture::new();
    let (id, lease) = f.hold("k", 1).await;
    f.store.always(Some(Trouble::Hang));
    let token = lease.token();
    f.driver.cede(id);
    // While its holder's request is under way.
    sleep(2 * TTL).await;
    assert!(lease.is_lost() && !token.is_cancelled());
    assert!(f.driver.unwatch(id).is_none(), "nobody watches it any more");
    assert!(f.queue.vacated.lock().is_empty(), "its holder does that");

    let stopped = Fixture::stopped();
    let (id, lease) = stopped.hold("k", 1).await;
    let token = lease.token();
    stopped.driver.cede(id);
    sleep(2 * TTL).await;
    assert!(stopped.driver.unwatch(id).is_some());
    assert!(lease.is_lost() && !token.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn an_old_failure_is_not_told_after_a_success() {
    let f = Fixture::new();
    let (id, lease) = f.hold("k", 1).await;
    f.store.next([Trouble::Fail]);
    sleep(2 * EVERY).await;
    assert!(f.store.renewals() >= 2);
    assert!(f.driver.unwatch(id).is_some());
    sleep(2 * TTL).await;
    let reason = lease.lost_reason();
    assert!(
        matches!(reason, Some(LostReason::Expired { last_error: None })),
        "{reason:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn p4_a_change_is_looked_at_at_once_and_nothing_is_written() {
    let f = Fixture::new();
    let (_, lease) = f.hold("k", 1).await;
    f.driver.changed(Some("k"), None);
    sleep(TICK).await;
    assert_eq!((f.store.looks(), f.store.renewals()), (1, 0));
    assert!(!lease.is_lost());
    let key = Arc::new(Key::new("", "k".to_owned()));
    assert!(f.store.force_release(&key, TTL).await.unwrap());
    f.driver.changed(Some("k"), None);
    sleep(TICK).await;
    assert!(lease.token().is_cancelled());
    assert!(matches!(lease.lost_reason(), Some(LostReason::Removed)));
    assert_eq!((f.store.looks(), f.store.renewals()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_dies_loses_its_leases_and_closes_the_locker() {
    let f = Fixture::new();
    let (_, lease) = f.hold("k", 1).await;
    let token = lease.token();
    f.life.abort();
    token.cancelled().await;
    assert!(matches!(lease.lost_reason(), Some(LostReason::Closed)));
    let (_, late) = f.hold("other", 2).await;
    assert!(late.is_lost(), "nobody would renew it");
    assert!(matches!(late.lost_reason(), Some(LostReason::Closed)));
    assert!(f.driver.closing.is_cancelled());
    assert!(f.queue.is_closed.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn p4_a_panic_at_one_loss_keeps_no_other_from_being_told() {
    let f = Fixture::new();
    let (_, first) = f.hold("k", 1).await;
    let (_, second) = f.hold("other", 2).await;
    let tokens = [first.token(), second.token()];
    // Both expire; what the first to go wakes panics.
    f.store.always(Some(Trouble::Hang));
    f.queue.panics.store(true, Ordering::SeqCst);
    sleep(2 * TTL).await;
    assert!(tokens.iter().all(CancellationToken::is_cancelled));
    let mut vacated = f.queue.vacated.lock().clone();
    vacated.sort_unstable();
    assert_eq!(vacated, [1, 2]);
    assert!(!f.life.is_finished() && !f.driver.closing.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guards_release_is_tried_until_it_is_answered() {
    let f = Fixture::new();
    let (id, _) = f.hold("k", 1).await;
    let watch = f.driver.unwatch(id).expect("a lease");
    f.store
        .next([Trouble::Fail, Trouble::LoseAnswer, Trouble::Fail]);
    f.driver.release(Arc::clone(&watch.watch.claim), Some(1));
    f.driver.pending.wait_async().await;
    assert_eq!(f.store.releases(), 4);
    assert_eq!(*f.queue.vacated.lock(), [1]);
    let key = Arc::new(Key::new("", "k".to_owned()));
    assert_eq!(f.store.holder(&key, TTL).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_release_is_given_up_when_the_ttl_has_freed_the_key() {
    let f = Fixture::new();
    let (id, _) = f.hold("k", 1).await;
    let watch = f.driver.unwatch(id).expect("a lease");
    f.store.always(Some(Trouble::Fail));
    let began = Instant::now();
    f.driver.release(Arc::clone(&watch.watch.claim), Some(1));
    f.driver.pending.wait_async().await;
    assert!(began.elapsed() >= TTL);
    assert!(began.elapsed() < 3 * TTL);
    assert_eq!(*f.queue.vacated.lock(), [1]);
}

#[tokio::test(start_paused = true)]
async fn p4_the_token_of_an_heir_fires_at_his_own_max_hold() {
    let f = Fixture::new();
    let (id, _) = f.hold("k", 1).await;
    // The driver has gone to sleep until the next renewal.
    sleep(TICK).await;
    let limit = EVERY / 10;
    let clock = f.driver.clock.clone();
    let heir = f.driver.hand_over(id, 2, |deadline| {
        let key = Arc::new(Key::new("", "k".to_owned()));
        Lease::new(clock, key, 2, deadline, Some(limit))
    });
    let heir = heir.unwrap();
    let began = Instant::now();
    heir.token().cancelled().await;
    assert!(began.elapsed() <= limit + TICK, "{:?}", began.elapsed());
    assert!(matches!(heir.lost_reason(), Some(LostReason::MaxHold)));
}
