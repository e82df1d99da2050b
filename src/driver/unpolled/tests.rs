use std::task::{Context, Waker};

use super::*;
use crate::driver::tests::Fixture;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn p11_a_call_that_is_not_taken_up_for_a_second_goes_on() {
    let f = Fixture::stopped();
    let (turn, unpolled, next) = (f.user("k"), f.user("k"), f.user("k"));
    let (mut watched, began) = (Watched::default(), Instant::now());
    drop(turn);
    assert!(watched.look(&f.driver, began));
    watched.look(&f.driver, began + SECOND * 9 / 10);
    assert!(next.poll().is_pending());
    watched.look(&f.driver, began + SECOND);
    assert!(next.is_called_to_contend(), "K6: the next is called");
    drop(unpolled);
    drop(next);
    assert_eq!(f.driver.keys.len(), 0, "K1");
    assert!(
        !watched.look(&f.driver, began + SECOND),
        "nobody is watched"
    );
}

#[tokio::test]
async fn p9_a_lease_that_is_not_taken_up_is_released_though_nobody_waits() {
    let f = Fixture::stopped();
    let (lock, unpolled) = (f.win(f.user("k")).await, f.user("k"));
    drop(lock);
    let (mut watched, began) = (Watched::default(), Instant::now());
    watched.look(&f.driver, began);
    f.driver.pending.wait_async().await;
    assert_eq!(f.store.releases(), 0);
    watched.look(&f.driver, began + SECOND);
    f.driver.pending.wait_async().await;
    assert_eq!(f.store.releases(), 1, "K6");
    assert_eq!(f.driver.keys.len(), 0, "K1");
    drop(unpolled);
}

#[tokio::test]
async fn a_contender_that_is_not_polled_has_its_turn_ended() {
    let f = Fixture::stopped();
    let (turn, next) = (f.user("k"), f.user("k"));
    let (mut watched, mut now) = (Watched::default(), Instant::now());
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10 {
        watched.look(&f.driver, now);
        now += SECOND;
        assert!(turn.waiter.note_poll(&mut context));
    }
    assert!(next.poll().is_pending(), "it was polled");
    watched.look(&f.driver, now);
    watched.look(&f.driver, now + SECOND);
    assert!(next.is_called_to_contend(), "K6: it contends beside it");
    drop(turn);
    assert_eq!(f.driver.keys.len(), 1, "K2: the turn is the next one's");
    drop(next);
    assert_eq!(f.driver.keys.len(), 0, "K1");
}

#[tokio::test]
async fn a_holder_and_those_who_wait_for_it_need_not_be_polled() {
    let f = Fixture::stopped();
    let (lock, mut waiter) = (f.win(f.user("k")).await, f.user("k"));
    assert!(waiter.poll().is_pending());
    let (mut watched, began) = (Watched::default(), Instant::now());
    for seconds in 0..10 {
        assert!(watched.look(&f.driver, began + SECOND * seconds));
    }
    assert!(waiter.poll().is_pending());
    drop(lock);
    drop(waiter.taken());
}

#[tokio::test]
async fn a_key_is_watched_only_while_somebody_waits() {
    let f = Fixture::stopped();
    let _turn = f.user("k");
    let (mut watched, now) = (Watched::default(), Instant::now());
    for _ in 0..2 {
        assert!(!watched.look(&f.driver, now));
        let waiter = f.user("k");
        assert!(watched.look(&f.driver, now));
        drop(waiter);
    }
}
