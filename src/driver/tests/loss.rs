use std::error::Error as _;

use super::*;

#[tokio::test(start_paused = true)]
async fn p4_the_token_fires_at_the_deadline_whatever_the_store_does() {
    for trouble in [Trouble::Fail, Trouble::Refuse, Trouble::Hang] {
        let f = Fixture::new();
        let (lock, waiter) = (f.hold("k").await, f.user("k"));
        let lease = lock.lease();
        f.store.always(Some(trouble));
        let began = Instant::now();
        let life = lease.remaining();
        lease.token().cancelled().await;
        let fired = began.elapsed();
        assert!(
            fired >= life && fired <= life + TICK,
            "{trouble:?}: {fired:?}"
        );
        let lost = lease.ensure_held().unwrap_err();
        assert_eq!(lost.reason(), LostReason::Expired, "{trouble:?}");
        let cause = lost.source().expect("what renewing failed with");
        assert_eq!(cause.to_string(), "on purpose");
        assert!(waiter.is_called_to_contend());
    }
}

#[tokio::test(start_paused = true)]
async fn p5_a_lost_lease_is_not_renewed_again() {
    let f = Fixture::new();
    let (lock, waiters) = (f.hold("k").await, [f.user("k"), f.user("k")]);
    let lease = lock.lease();
    sleep(2 * FIRST_LOOK).await;
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
    assert!(waiters[0].is_called_to_contend());
    drop(lock);
    assert!(waiters[1].poll().is_pending(), "K2: the turn ends once");
}

#[tokio::test(start_paused = true)]
async fn p5_a_holders_renewal_that_is_answered_after_the_deadline_changes_nothing() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    f.store.always(Some(Trouble::Hang));
    let renewal = tokio::spawn(lock.renew());
    lock.lease().token().cancelled().await;
    let error = renewal.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
    assert!(lock.lease().is_lost());
}

#[tokio::test(start_paused = true)]
async fn p4_a_lease_that_is_over_is_lost_by_whoever_takes_it_off() {
    for is_released in [false, true] {
        for has_waiter in [false, true] {
            let f = Fixture::stopped();
            let lock = f.hold("k").await;
            let waiter = has_waiter.then(|| f.user("k"));
            let token = lock.lease().token();
            sleep(TTL).await;
            assert!(!token.is_cancelled(), "the driver stands still");
            if is_released {
                lock.release().await.unwrap();
            } else {
                drop(lock);
            }
            assert!(token.is_cancelled());
            f.driver.pending.wait_async().await;
            assert!(waiter.is_none_or(|waiter| waiter.is_called_to_contend()));
        }
    }
}

/// While its holder's request is under way.
#[tokio::test(start_paused = true)]
async fn p4_a_lease_that_was_let_go_in_time_fires_no_token() {
    for fixture in [Fixture::new, Fixture::stopped] {
        let f = fixture();
        let (lock, waiter) = (f.hold("k").await, f.user("k"));
        let lease = Arc::clone(lock.lease());
        let token = lease.token();
        // The next release asks Redis who else waits.
        sleep(FIRST_LOOK / 2).await;
        f.store.always(Some(Trouble::Hang));
        let release = tokio::spawn(lock.release());
        sleep(2 * TTL).await;
        assert!(lease.is_lost() && !token.is_cancelled());
        f.store.clear();
        let _ = release.await.unwrap();
        f.driver.pending.wait_async().await;
        assert!(!token.is_cancelled(), "L4");
        assert!(waiter.is_called_to_contend());
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_dies_loses_its_leases_and_closes_the_locker() {
    let f = Fixture::new();
    let (lock, waiter) = (f.hold("k").await, f.user("k"));
    let late = f.user("other");
    let token = lock.lease().token();
    f.life.abort();
    token.cancelled().await;
    assert!(matches!(
        lock.lease().lost_reason(),
        Some(LostReason::Closed)
    ));
    assert!(matches!(waiter.poll(), Poll::Ready(Heard::Closed)));
    let late = f.win(late).await;
    let reason = late.lease().lost_reason();
    assert!(
        matches!(reason, Some(LostReason::Closed)),
        "nobody would renew it"
    );
    assert!(f.driver.keys.is_closed());
}

/// What wakes a task may panic.
struct Panics(AtomicUsize);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose");
    }
}

#[tokio::test(start_paused = true)]
async fn p4_a_panic_at_one_loss_keeps_no_other_from_being_told() {
    let f = Fixture::new();
    let locks = [f.hold("k").await, f.hold("other").await];
    let waiters = [f.user("k"), f.user("other")];
    let panics = Arc::new(Panics(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&panics));
    for waiter in &waiters {
        let mut context = Context::from_waker(&waker);
        assert!(waiter.waiter.poll_called(&mut context).is_pending());
    }
    let tokens = locks.each_ref().map(|lock| lock.lease().token());
    f.store.always(Some(Trouble::Hang));
    sleep(2 * TTL).await;
    assert_eq!(panics.0.load(Ordering::SeqCst), 2);
    assert!(tokens.iter().all(|token| token.is_cancelled()));
    assert!(waiters.iter().all(User::is_called_to_contend));
    assert!(!f.life.is_finished() && !f.driver.keys.is_closed());
}

#[tokio::test(start_paused = true)]
async fn p4_the_token_of_an_heir_fires_at_its_own_max_hold() {
    let f = Fixture::new();
    let limit = EVERY / 10;
    let lock = f.hold("k").await;
    let mut heir = f.user_with(
        "k",
        Options {
            max_hold: Some(limit),
            ..Options::default()
        },
    );
    // The driver has gone to sleep until the first look.
    sleep(TICK).await;
    drop(lock);
    let heir = heir.taken();
    let began = Instant::now();
    heir.lease().token().cancelled().await;
    assert!(began.elapsed() <= limit + TICK, "{:?}", began.elapsed());
    assert!(matches!(
        heir.lease().lost_reason(),
        Some(LostReason::MaxHold)
    ));
}
