use super::*;

#[tokio::test(start_paused = true)]
async fn p10_an_acquire_dropped_at_any_await_point_leaves_nothing() {
    for times in 0.. {
        let f = Fixture::new();
        let foreign = Arc::new(Claim::new(
            Arc::clone(&f.key),
            "theirs".into(),
            f.options.ttl,
        ));
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
        let waiting = async { tokio::join!(f.acquire(Wait::Unbounded), free).0 };
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
    let lock = other.acquire(Wait::None).await.unwrap();
    // The first request is under way still when a second one is answered.
    f.store.next([Trouble::Hang]);
    let limit = Instant::now() + 2 * TIMEOUT;
    assert!(f.acquire(Wait::Until(limit)).await.unwrap().is_none());
    f.settled().await;
    assert_eq!(f.store.unsettled(), 0, "nobody undoes the first request");
    drop(lock);
}

#[tokio::test(start_paused = true)]
async fn p10_a_doubt_outlasts_a_guard_that_was_lost() {
    let f = Fixture::new();
    f.store.next([Trouble::Hang]);
    let lock = f.acquire(Wait::None).await.unwrap().expect("a lock");
    lock.lease().lose(LostReason::Removed);
    drop(lock);
    f.settled().await;
    assert_eq!(f.store.unsettled(), 0, "nobody undoes the first request");
}
