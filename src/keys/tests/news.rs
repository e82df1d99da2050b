//! What those who wait in Redis hear, and what the others hear of a store that does not answer.

use super::*;
use crate::backend::{Grant, Signals};
use crate::error::{Cause, Fault};

pub(super) fn grant(f: &Fixture, value: &str) -> Grant {
    Grant {
        key: f.key.name().to_string(),
        value: value.to_owned(),
        fences: Fences { first: 1, count: 1 },
        stamp: f.clock.now(),
        life: SECOND,
    }
}

fn heard(user: &User, least: Option<News>) -> Option<Result<Grant, News>> {
    match user.waiter.poll_news(least) {
        Poll::Ready(news) => Some(news),
        Poll::Pending => None,
    }
}

#[test]
fn a_change_is_told_to_those_who_wait_in_redis_for_that_key() {
    let f = Fixture::new();
    let (contender, other) = (f.first(), f.beside("another").first());
    f.keys.changed("k");
    assert!(heard(&contender, Some(News::Changed)).is_none(), "not yet");
    contender.queue("v");
    other.queue("w");
    f.keys.changed("k");
    assert!(
        heard(&contender, Some(News::Missed)).is_none(),
        "not urgent"
    );
    let news = heard(&contender, Some(News::Changed));
    assert!(matches!(news, Some(Err(News::Changed))));
    assert!(heard(&contender, Some(News::Changed)).is_none(), "once");
    assert!(heard(&other, Some(News::Changed)).is_none());
}

#[test]
fn p11_all_hear_that_messages_were_missed() {
    let f = Fixture::new();
    let users = [f.first(), f.beside("another").first()];
    for user in &users {
        user.queue("v");
    }
    // A contender that was not answered yet may be heard of on any connection.
    for connection in [None, Some(1)] {
        f.keys.pushes_missed(connection);
        for user in &users {
            let news = heard(user, Some(News::Missed));
            assert!(matches!(news, Some(Err(News::Missed))));
        }
    }
}

#[test]
fn a_lost_connection_concerns_only_those_that_are_heard_of_on_it() {
    let f = Fixture::new();
    let users = [f.first(), f.beside("another").first()];
    for (user, connection) in users.iter().zip([1, 2]) {
        user.queue("v");
        let claim = user.waiter.queued().unwrap();
        claim.note_heard_on(connection);
    }
    f.keys.pushes_missed(Some(2));
    assert!(heard(&users[0], Some(News::Changed)).is_none());
    let news = heard(&users[1], Some(News::Missed));
    assert!(matches!(news, Some(Err(News::Missed))));
}

#[test]
fn news_is_forgotten_when_it_is_acted_on() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    f.keys.pushes_missed(None);
    contender.waiter.forget_news();
    assert!(heard(&contender, Some(News::Changed)).is_none());
}

#[test]
fn a_grant_is_told_to_the_one_that_waits_with_its_value() {
    let f = Fixture::new();
    let (unpolled, mut contender) = (f.first(), f.behind());
    unpolled.queue("u");
    f.reclaim(&unpolled.state);
    assert!(contender.is_called_to_contend());
    contender.queue("v");
    f.keys.granted(grant(&f, "u"));
    assert!(heard(&contender, None).is_none());
    assert!(unpolled.waiter.has_grant());
    let news = heard(&unpolled, None);
    assert!(matches!(news, Some(Ok(grant)) if grant.value == "u"));
    f.keys.granted(grant(&f, "v"));
    assert!(matches!(heard(&contender, None), Some(Ok(grant)) if grant.value == "v"));
    assert!(f.keys.take_unwanted().is_empty());
}

#[test]
fn p11_a_contender_is_woken_by_what_it_hears() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    contender.waiter.note_poll(&mut Context::from_waker(&waker));
    f.keys.changed("k");
    assert_eq!(woken.times(), 1);
    f.keys.pushes_missed(None);
    assert_eq!(woken.times(), 2, "it may be polled for another reason");
    f.keys.granted(grant(&f, "v"));
    assert_eq!(woken.times(), 3);
}

/// The grant of a contender that left while its last heartbeat was under way.
#[test]
fn p10_a_grant_for_one_that_has_left_is_handed_to_the_driver() {
    let f = Fixture::new();
    let contender = f.first();
    let claim = contender.queue("v");
    drop(contender);
    f.keys.fall_asleep();
    let _ = f.keys.schedule.was_woken();
    f.keys.granted(grant(&f, "v"));
    assert!(f.keys.schedule.was_woken());
    let unwanted = f.keys.take_unwanted();
    assert!(matches!(&unwanted[..], [one] if Arc::ptr_eq(one, &claim)));
    assert!(f.keys.take_unwanted().is_empty(), "once");
}

#[test]
fn p10_a_grant_for_a_claim_that_was_given_up_for_another_is_handed_to_the_driver() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("former");
    contender.queue("present");
    f.keys.granted(grant(&f, "former"));
    assert!(!contender.waiter.has_grant());
    let unwanted = f.keys.take_unwanted();
    assert!(matches!(&unwanted[..], [one] if &*one.value == "former"));
}

#[test]
fn p6_a_grant_for_a_foreign_value_is_left_alone() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    for key in ["k", "another"] {
        f.keys.granted(Grant {
            key: key.to_owned(),
            ..grant(&f, "somebody else's")
        });
    }
    drop(contender);
    f.keys.granted(grant(&f, "somebody else's"));
    f.keys.granted(Grant {
        key: "another".to_owned(),
        ..grant(&f, "v")
    });
    assert!(f.keys.take_unwanted().is_empty());
}

#[test]
fn a_grant_that_was_heard_twice_is_not_passed_on_while_it_is_held() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    let holder = contender.win();
    f.keys.granted(grant(&f, "v"));
    assert!(f.keys.take_unwanted().is_empty());
    drop(holder);
    f.keys.granted(grant(&f, "v"));
    assert_eq!(f.keys.take_unwanted().len(), 1, "it was held before");
}

#[test]
fn so_many_claims_that_left_are_remembered() {
    let f = Fixture::new();
    let contender = f.first();
    for number in 0..300 {
        contender.queue(&number.to_string());
    }
    drop(contender);
    for number in 0..300 {
        f.keys.granted(grant(&f, &number.to_string()));
    }
    let unwanted = f.keys.take_unwanted();
    assert_eq!(unwanted.len(), 256);
    assert_eq!(&*unwanted[0].value, "44", "the latest");
}

fn fault() -> Fault {
    Fault {
        permanent: false,
        server: "server".into(),
        cause: Cause::new(std::io::Error::other("on purpose")),
    }
}

#[tokio::test(start_paused = true)]
async fn p13_waiters_hear_of_an_outage_when_their_own_time_is_over() {
    let mut f = Fixture::new();
    f.options.outage_limit = 2 * SECOND;
    let contender = f.first();
    let mut early = f.behind();
    tokio::time::advance(SECOND).await;
    let mut late = f.behind();
    let note = |since| {
        let keys = &f.keys;
        keys.note_outage(&contender.state, &contender.waiter, since, &fault())
            .wake();
    };
    note(contender.waiter.arrived);
    assert!(early.poll().is_pending() && late.poll().is_pending());
    assert!(matches!(f.enter(false), Arrival::Taken(Some(_))), "K5");
    assert!(f.keys.outage(&contender.state).is_some());
    tokio::time::advance(SECOND).await;
    note(contender.waiter.arrived);
    assert!(matches!(early.poll(), Poll::Ready(Some(Call::Outage(_)))));
    assert!(late.poll().is_pending());
    drop(early);
    f.keys.note_answer(&contender.state, &contender.waiter);
    assert!(f.keys.outage(&contender.state).is_none());
    assert!(matches!(f.enter(false), Arrival::Taken(None)));
}

#[tokio::test(start_paused = true)]
async fn p13_the_next_contender_knows_how_long_the_store_has_been_silent() {
    let f = Fixture::new();
    let contender = f.first();
    tokio::time::advance(SECOND).await;
    let (mut early, mut late) = (f.behind(), f.behind());
    let since = contender.waiter.arrived;
    f.keys
        .note_outage(&contender.state, &contender.waiter, since, &fault())
        .wake();
    tokio::time::advance(SECOND).await;
    drop(contender);
    let Poll::Ready(Some(Call::Contend { silent_since })) = early.poll() else {
        panic!("it is called");
    };
    assert_eq!(
        silent_since,
        Some(early.waiter.arrived),
        "its own time counts"
    );
    assert!(f.keys.outage(&early.state).is_some(), "nobody has answered");
    drop(early.win());
    assert!(f.keys.outage(&late.state).is_none(), "a grant is an answer");
    assert!(late.poll().is_ready());
}

#[test]
fn p13_one_that_has_no_turn_does_not_speak_for_the_store() {
    let f = Fixture::new();
    let (unpolled, mut contender) = (f.first(), f.behind());
    f.reclaim(&unpolled.state);
    assert!(contender.is_called_to_contend());
    let since = unpolled.waiter.arrived;
    f.keys
        .note_outage(&unpolled.state, &unpolled.waiter, since, &fault())
        .wake();
    assert!(f.keys.outage(&contender.state).is_none());
}
