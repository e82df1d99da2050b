use std::error::Error as _;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_idle_lease_is_renewed_three_times_per_ttl() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    sleep(10 * TTL + EVERY / 2).await;
    assert!(!lock.lease().is_lost());
    let renewals = f.store.renewals();
    assert!((29..=31).contains(&renewals), "{renewals}");
    assert_eq!(f.store.looks(), 1, "when it was young");
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
        let lock = f.hold("k").await;
        let waiter = f.user("k");
        let token = lock.lease().token();
        for _ in 0..5 {
            f.store.next([trouble; 2]);
            // Both are over by then, and a renewal was granted.
            sleep(EVERY * 3).await;
            assert!(!lock.lease().is_lost(), "{trouble:?}");
        }
        assert!(!token.is_cancelled(), "{trouble:?}");
        assert!(waiter.poll().is_pending(), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_failure_is_not_told_after_a_success() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    sleep(FIRST_LOOK).await;
    f.store.next([Trouble::Fail]);
    sleep(2 * EVERY).await;
    assert!(f.store.renewals() >= 2);
    let lease = Arc::clone(lock.lease());
    drop(lock);
    sleep(2 * TTL).await;
    let lost = lease.ensure_held().unwrap_err();
    assert_eq!(lost.reason(), LostReason::Expired);
    assert!(lost.source().is_none(), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_let_go_is_left_alone() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    let lease = Arc::clone(lock.lease());
    let token = lease.token();
    drop(lock);
    sleep(5 * TTL).await;
    assert_eq!((f.store.renewals(), f.store.looks()), (0, 0));
    assert!(!token.is_cancelled(), "a release is no loss");
    assert!(f.is_free("k"));
}

#[tokio::test(start_paused = true)]
async fn p4_a_young_lease_is_looked_at_and_not_renewed() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    let key = key_of("k");
    sleep(FIRST_LOOK / 2).await;
    assert_eq!(f.store.looks(), 0);
    // Nobody tells of it.
    f.store.force_release(&key, TTL).await.unwrap();
    sleep(FIRST_LOOK).await;
    assert_eq!((f.store.looks(), f.store.renewals()), (1, 0));
    assert!(lock.lease().token().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn p4_a_change_is_looked_at_at_once_and_nothing_is_written() {
    let f = Fixture::new();
    let lock = f.hold("k").await;
    let lease = lock.lease();
    sleep(FIRST_LOOK + TICK).await;
    f.driver.keys.changed("k");
    sleep(TICK).await;
    assert_eq!((f.store.looks(), f.store.renewals()), (2, 0));
    assert!(!lease.is_lost());
    assert!(f.store.force_release(&key_of("k"), TTL).await.unwrap());
    f.driver.keys.changed("k");
    sleep(TICK).await;
    assert!(lease.token().is_cancelled());
    assert!(matches!(lease.lost_reason(), Some(LostReason::Removed)));
    assert_eq!((f.store.looks(), f.store.renewals()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_renews_hears_that_the_key_is_gone() {
    let f = Fixture::new();
    let (lock, waiter) = (f.hold("k").await, f.user("k"));
    lock.renew().await.unwrap();
    f.store.next([Trouble::Lie]);
    let error = lock.renew().await.unwrap_err();
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
    assert!(lock.lease().token().is_cancelled());
    assert!(waiter.is_called_to_contend());
}

/// The driver's renewal is under way when its lease goes to the next of the process.
#[tokio::test(start_paused = true)]
async fn p9_an_heirs_lease_is_renewed_although_the_driver_was_asking() {
    let f = Fixture::new();
    let options = Options {
        handover_for: 10 * TTL,
        ..Options::default()
    };
    let lock = f.win(f.user_with("k", options)).await;
    let mut heir = f.user_with("k", options);
    sleep(FIRST_LOOK + TICK).await;
    f.store.next([Trouble::HangAfter]);
    sleep(EVERY).await;
    assert_eq!(f.store.renewals(), 1, "it is under way");
    drop(lock);
    let lock = heir.taken();
    sleep(10 * TTL).await;
    assert!(!lock.lease().is_lost());
}

#[tokio::test(start_paused = true)]
async fn p13_a_renewal_that_has_little_time_is_sent_apart_from_those_that_have_more() {
    let f = Fixture::new();
    let key = key_of("k");
    let options = Options::default().check(None).unwrap();
    let Arrival::Turn(state, _waiter) = f.driver.keys.enter(&key, &options, false) else {
        panic!("nobody is there");
    };
    let claim = Arc::new(Claim::new(key, "v".into(), TTL));
    let renewals = [1000, 3, 700, 4, 900, 1000].map(|millis| {
        let question = Question {
            claim: Arc::clone(&claim),
            extend: true,
            within: Duration::from_millis(millis),
        };
        (Arc::clone(&state), question)
    });
    let batches = in_batches(renewals.into(), 3);
    let millis = |batch: &Vec<(_, Question)>| -> Vec<_> {
        batch.iter().map(|(_, q)| q.within.as_millis()).collect()
    };
    let batches: Vec<_> = batches.iter().map(millis).collect();
    assert_eq!(batches, [vec![3, 4], vec![700, 900, 1000], vec![1000]]);
}
