use super::*;

#[tokio::test(start_paused = true)]
async fn p13_faults_are_retried() {
    let f = Fixture::new();
    f.store
        .next([Trouble::Fail, Trouble::Hang, Trouble::LoseAnswer]);
    let lock = f.acquire(Wait::None).await.unwrap().expect("a lock");
    assert_eq!(f.store.acquires(), 4);
    assert!(!lock.lease().is_lost());
}

#[tokio::test(start_paused = true)]
async fn p13_a_dead_store_is_unavailable_after_the_time_told() {
    for trouble in [Trouble::Fail, Trouble::Hang] {
        for wait in [Wait::None, Wait::Unbounded] {
            let f = Fixture::new();
            f.store.always(Some(trouble));
            let began = Instant::now();
            let error = f.acquire(wait).await.unwrap_err();
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
            let error = f.acquire(Wait::Unbounded).await.unwrap_err();
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
    let mut first = pin!(f.acquire(Wait::Unbounded));
    let limit = Instant::now() + GIVE_UP / 2;
    tokio::select! {
        end = &mut first => panic!("{end:?}"),
        end = f.acquire(Wait::Until(limit)) => {
            assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
        }
    }
    let end = f.acquire(Wait::None).await;
    assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
    f.store.always(None);
    let lock = first.await.unwrap();
    let end = f.acquire(Wait::None).await;
    assert!(matches!(end, Ok(None)), "{end:?}");
    drop(lock);
}

#[tokio::test(start_paused = true)]
async fn a_limited_wait_for_a_dead_store_ends_in_time() {
    let f = Fixture::new();
    f.store.always(Some(Trouble::Hang));
    let limit = Duration::from_millis(1500);
    let began = Instant::now();
    let error = f.acquire(Wait::Until(began + limit)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(began.elapsed() >= limit && began.elapsed() < limit + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn the_time_for_a_dead_store_counts_from_the_last_answer() {
    let f = Fixture::new();
    let other = f.beside();
    let lock = other.acquire(Wait::None).await.unwrap().expect("a lock");
    let waiting = f.acquire(Wait::Unbounded);
    let trouble = async {
        tokio::time::sleep(10 * GIVE_UP).await;
        f.store.always(Some(Trouble::Fail));
        tokio::time::sleep(GIVE_UP / 2).await;
        f.store.always(None);
        drop(lock);
    };
    let (granted, ()) = tokio::join!(waiting, trouble);
    assert!(granted.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_the_acquire_at_once() {
    let f = Fixture::new();
    f.store.next([Trouble::Refuse]);
    let error = f.acquire(Wait::Unbounded).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(f.store.acquires(), 1);
    f.assert_nothing_left("after a refusal").await;
}

/// The next contender hears an answer, which ends what the one before it told of.
#[tokio::test(start_paused = true)]
async fn p13_an_outage_that_is_over_is_not_told_any_more() {
    let f = Fixture::new();
    let other = f.beside();
    let lock = other.acquire(Wait::None).await.unwrap();
    f.store.always(Some(Trouble::Fail));
    let limit = Instant::now() + TIMEOUT;
    let mut second = pin!(async {
        tokio::time::sleep(TIMEOUT / 2).await;
        f.acquire(Wait::Unbounded).await
    });
    tokio::select! {
        end = &mut second => panic!("{end:?}"),
        end = f.acquire(Wait::Until(limit)) => {
            assert!(matches!(end, Err(Error::Unavailable { .. })), "{end:?}");
        }
    }
    f.store.always(None);
    let soon = tokio::time::timeout(TIMEOUT, &mut second).await;
    assert!(soon.is_err(), "somebody else has the lock");
    let end = f.acquire(Wait::None).await;
    assert!(matches!(end, Ok(None)), "{end:?}");
    drop(lock);
}
