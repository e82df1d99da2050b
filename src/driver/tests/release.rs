use super::*;

#[tokio::test(start_paused = true)]
async fn a_dropped_guards_release_is_tried_until_it_is_answered() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    f.store
        .next([Trouble::Fail, Trouble::LoseAnswer, Trouble::Fail]);
    drop(lock);
    f.driver.pending.wait_async().await;
    assert_eq!(f.store.releases(), 4);
    assert!(f.is_free("k"));
    let holder = f.store.holder(&key_of("k"), TTL).await.unwrap();
    assert_eq!(holder, None);
}

#[tokio::test(start_paused = true)]
async fn a_release_is_given_up_when_the_ttl_has_freed_the_key() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    f.store.always(Some(Trouble::Fail));
    let began = Instant::now();
    drop(lock);
    f.driver.pending.wait_async().await;
    assert!(began.elapsed() >= TTL);
    assert!(began.elapsed() < 3 * TTL);
    assert!(f.is_free("k"));
}

/// It tells the next by its own request how the store is.
#[tokio::test(start_paused = true)]
async fn p11_the_turn_ends_with_the_first_answer_or_fault_of_a_release() {
    for trouble in [None, Some(Trouble::Fail), Some(Trouble::Refuse)] {
        let f = Fixture::new();
        let lock = f.hold("k").await;
        let other = f.user_with(
            "k",
            Options {
                handover_for: Duration::ZERO,
                ..Options::default()
            },
        );
        f.store.always(trouble);
        drop(lock);
        assert!(other.poll().is_pending(), "not before");
        sleep(TICK).await;
        assert!(other.is_called_to_contend(), "{trouble:?}");
    }
}

/// Whatever the future of a release waits for when it is dropped.
#[tokio::test(start_paused = true)]
async fn p12_a_release_dropped_at_any_await_point_ends_in_the_background() {
    for has_waiter in [false, true] {
        for times in 0..6 {
            let f = Fixture::new();
            let lock = f.hold("k").await;
            let waiter = has_waiter.then(|| f.user("k"));
            // The next release asks Redis who else waits.
            sleep(FIRST_LOOK / 2).await;
            f.store
                .next([Trouble::LoseAnswer, Trouble::Dawdle, Trouble::Dawdle]);
            {
                let mut release = std::pin::pin!(lock.release());
                let mut context = Context::from_waker(Waker::noop());
                for _ in 0..times {
                    if release.as_mut().poll(&mut context).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            f.driver.pending.wait_async().await;
            match waiter {
                Some(waiter) => drop(waiter),
                None => assert!(f.is_free("k"), "{times}"),
            }
            f.driver.pending.wait_async().await;
            let holder = f.store.holder(&key_of("k"), TTL).await.unwrap();
            assert_eq!(holder, None, "{times}");
            assert!(f.is_free("k"), "{times}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_after_its_stretch_has_the_driver_ask() {
    let f = Fixture::new();
    let (lock, mut heir) = (f.hold("k").await, f.user("k"));
    let fence = lock.lease().fence();
    sleep(FIRST_LOOK / 2).await;
    drop(lock);
    assert!(heir.poll().is_pending());
    f.driver.pending.wait_async().await;
    let lock = heir.taken();
    assert!(lock.lease().fence() > fence + 1, "P8: a new stretch");
    assert_eq!(f.store.releases(), 0);
}

/// Asked in vain: the claim may be passed on yet, so it is released.
#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_is_followed_by_a_release() {
    for trouble in [Trouble::Fail, Trouble::LoseAnswer, Trouble::Lie] {
        let f = Fixture::new();
        let (lock, waiter) = (f.hold("k").await, f.user("k"));
        sleep(FIRST_LOOK / 2).await;
        f.store.next([trouble]);
        drop(lock);
        f.driver.pending.wait_async().await;
        assert!(waiter.is_called_to_contend(), "{trouble:?}");
        let releases = u32::from(trouble != Trouble::Lie);
        assert_eq!(f.store.releases(), releases, "{trouble:?}");
    }
}

/// What is left to the thread then is dropped.
#[test]
fn p12_a_guard_that_is_dropped_when_the_runtime_has_ended_ends_its_turn() {
    for after_stretch in [false, true] {
        let runtime = ThreadRuntime::new().unwrap();
        let (f, lock, waiter) = runtime.runtime().block_on(async {
            let f = Fixture::with(|driver| {
                // A thread that has no last will.
                std::mem::forget(driver);
                std::future::ready(())
            });
            let (lock, waiter) = (f.hold("k").await, f.user("k"));
            if after_stretch {
                sleep(FIRST_LOOK).await;
            } else {
                lock.lease()
                    .note_failure(Cause::new(io::Error::other("no hand-over")));
            }
            (f, lock, waiter)
        });
        drop(runtime);
        drop(lock);
        assert!(waiter.is_called_to_contend());
        drop(waiter);
        assert!(f.is_free("k"));
    }
}

#[tokio::test(start_paused = true)]
async fn p10_a_grant_for_one_that_has_left_is_passed_on() {
    let f = Fixture::new();
    let user = f.user("k");
    let claim = Arc::new(Claim::new(key_of("k"), "v".into(), TTL));
    f.driver.keys.queue(&user.state, &user.waiter, &claim);
    drop(user);
    let granted = f.store.acquire(&claim, Fences::floor(1), TTL).await;
    assert!(matches!(granted, Ok(Attempt::Granted { .. })));
    f.driver.keys.granted(Grant {
        key: "k".to_owned(),
        value: "v".to_owned(),
        fences: Fences::floor(1),
        stamp: f.driver.clock.now(),
        life: TTL,
    });
    sleep(TICK).await;
    f.driver.pending.wait_async().await;
    let holder = f.store.holder(&key_of("k"), TTL).await.unwrap();
    assert_eq!(holder, None);
}

#[tokio::test(start_paused = true)]
async fn closing_releases_what_is_held_and_leaves_what_waits() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    let user = f.user("other");
    let claim = Arc::new(Claim::new(key_of("other"), "v".into(), TTL));
    f.driver.keys.queue(&user.state, &user.waiter, &claim);
    let granted = f.store.acquire(&claim, Fences::floor(1), TTL).await;
    assert!(matches!(granted, Ok(Attempt::Granted { .. })));
    f.driver.close();
    assert!(lock.lease().token().is_cancelled());
    f.driver.pending.wait_async().await;
    for key in ["k", "other"] {
        let holder = f.store.holder(&key_of(key), TTL).await.unwrap();
        assert_eq!(holder, None, "{key}");
    }
}
