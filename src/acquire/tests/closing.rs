use super::*;

#[tokio::test(start_paused = true)]
async fn closing_ends_an_acquire_that_waits() {
    let f = Fixture::new();
    f.store.always(Some(Trouble::Hang));
    let waiting = f.acquire(Wait::Unbounded);
    let close = async { f.driver.close() };
    let (end, ()) = tokio::join!(waiting, close);
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    f.store.always(None);
    assert!(f.is_free().await, "P10");
    let late = f.acquire(Wait::None).await;
    assert!(matches!(late, Err(Error::Closed { .. })), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn p10_a_grant_that_comes_as_the_locker_closes_is_given_back() {
    let f = Fixture::new();
    f.store.next([Trouble::Dawdle]);
    let acquire = f.acquire(Wait::Unbounded);
    let close = async { f.driver.close() };
    let (end, ()) = tokio::join!(acquire, close);
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    assert!(f.is_free().await);
}

/// D2: as if it had panicked. Nobody else of the test runs meanwhile.
async fn end_the_thread(f: &Fixture) {
    drop(Share::new(Arc::clone(&f.driver)));
    while !f.driver.keys.is_closed() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn p10_a_grant_that_comes_when_the_thread_has_ended_is_given_back() {
    let f = Fixture::new();
    f.store.next([Trouble::Dawdle]);
    let acquire = f.acquire(Wait::Unbounded);
    let (end, ()) = tokio::join!(acquire, end_the_thread(&f));
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    let holder = f.store.holder(&f.key, TIMEOUT).await.unwrap();
    assert_eq!(holder, None);
    let late = f.acquire(Wait::None).await;
    assert!(matches!(late, Err(Error::Closed { .. })), "{late:?}");
}

#[tokio::test]
async fn who_waits_behind_a_holder_hears_that_the_thread_has_ended() {
    let f = Fixture::new();
    let lock = f.acquire(Wait::None).await.unwrap().expect("a lock");
    let waiting = f.acquire(Wait::Unbounded);
    let (end, ()) = tokio::join!(waiting, end_the_thread(&f));
    assert!(matches!(end, Err(Error::Closed { .. })), "{end:?}");
    let reason = lock.lease().lost_reason();
    assert!(matches!(reason, Some(LostReason::Closed)), "{reason:?}");
}

/// Whatever its future waits for when it is dropped.
#[tokio::test(start_paused = true)]
async fn p10_a_grant_that_came_after_the_close_is_given_back_by_the_driver() {
    let f = Fixture::new();
    let met = LocalWaiter::enter(&f.driver, &f.key, &f.options, true);
    let Ok(Met::Turn(local)) = met else {
        panic!("somebody is there");
    };
    let mut contender = Contender::new(&f.driver, &f.key, &f.options, local, Instant::now(), None);
    let attempt = contender.attempt().await.unwrap();
    let Attempt::Granted { fences, deadline } = attempt else {
        panic!("{attempt:?}");
    };
    let won = contender.won(fences, deadline).unwrap();
    f.driver.close();
    f.store.always(Some(Trouble::Dawdle));
    let end = poll_times(contender.hold(won), 1).await;
    assert!(end.is_none(), "it waits for the release");
    assert!(f.is_free().await);
}
