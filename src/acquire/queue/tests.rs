use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::reclaim::Watch;
use super::*;

fn key() -> Arc<str> {
    "k".into()
}

type Queues = super::Queues<&'static str>;
type Place = super::Place<&'static str>;
type Turn = super::Turn<&'static str>;

fn terms() -> Terms {
    let options = crate::options::Options::default();
    options.check(&key()).unwrap()
}

fn first(queues: &Arc<Queues>) -> Turn {
    match queues.enter(&key(), &terms()) {
        Arrival::First(turn) => turn,
        _ => panic!("somebody is there"),
    }
}

fn behind(queues: &Arc<Queues>) -> Place {
    match queues.enter(&key(), &terms()) {
        Arrival::Behind(place) => place,
        _ => panic!("nobody is there"),
    }
}

#[tokio::test]
async fn turns_go_in_the_order_of_arrival() {
    let queues = Arc::new(Queues::default());
    let turn = first(&queues);
    let mut places: Vec<Place> = (0..3).map(|_| behind(&queues)).collect();
    drop(turn);
    for place in &mut places {
        drop(place.called().await.unwrap());
    }
    assert_eq!(queues.len(), 0, "Q1");
}

#[tokio::test]
async fn a_waiter_that_leaves_is_passed_over() {
    let queues = Arc::new(Queues::default());
    let turn = first(&queues);
    let leaver = behind(&queues);
    let mut stayer = behind(&queues);
    drop(leaver);
    drop(turn);
    drop(stayer.called().await.unwrap());
    assert_eq!(queues.len(), 0, "Q1");
}

#[tokio::test]
async fn p11_a_turn_sent_to_a_waiter_that_leaves_goes_on() {
    let queues = Arc::new(Queues::default());
    let turn = first(&queues);
    let called_but_leaves = behind(&queues);
    let mut next = behind(&queues);
    drop(turn);
    drop(called_but_leaves);
    assert!(next.called().await.is_some());
}

#[test]
fn a_turn_ends_once() {
    let queues = Arc::new(Queues::default());
    let number = first(&queues).keep();
    queues.vacate(&key(), number);
    let second = first(&queues);
    queues.vacate(&key(), number);
    assert!(
        queues.try_enter(&key(), &terms()).is_none(),
        "Q2: the second has it"
    );
    drop(second);
    assert!(queues.try_enter(&key(), &terms()).is_some());
}

#[tokio::test]
async fn closing_turns_waiters_away() {
    let queues = Arc::new(Queues::default());
    let turn = first(&queues);
    let mut place = behind(&queues);
    queues.close();
    assert!(place.called().await.is_none());
    drop(turn);
    assert!(matches!(queues.enter(&key(), &terms()), Arrival::Closed));
}

#[tokio::test]
async fn a_lease_goes_to_the_first_who_still_waits() {
    let queues = Arc::new(Queues::default());
    let number = first(&queues).keep();
    let leaver = behind(&queues);
    let mut heir = behind(&queues);
    drop(leaver);
    let waiter = queues.call_next(&key(), number, &terms()).unwrap();
    waiter.hand("lease").unwrap();
    assert!(matches!(heir.called().await, Some(Called::Lease("lease"))));
    queues.vacate(&key(), number);
    assert_eq!(queues.len(), 1, "Q2: the turn is the heir's");
}

#[test]
fn a_lease_is_not_handed_past_a_waiter_with_other_options() {
    let queues = Arc::new(Queues::default());
    let number = first(&queues).keep();
    let other = Terms {
        ttl: Duration::from_secs(1),
        ..terms()
    };
    let _first = queues.enter(&key(), &other);
    let _second = behind(&queues);
    assert!(queues.call_next(&key(), number, &terms()).is_none(), "Q4");
}

/// What the clock of this thread shows: how long it has run, however busy the machine is.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.try_into().expect("a time since the thread began")
}

/// How long it takes until `count` waiters of one key have left in any order: the best of three.
fn time_of_leaving(count: usize) -> Duration {
    let times = (0..3).map(|_| {
        let queues = Arc::new(Queues::default());
        let _turn = first(&queues);
        let mut places: Vec<Place> = (0..count).map(|_| behind(&queues)).collect();
        fastrand::shuffle(&mut places);
        let began = thread_time();
        drop(places);
        thread_time() - began
    });
    times.min().unwrap_or_default()
}

#[test]
fn leaving_costs_about_the_same_however_many_wait() {
    let few = time_of_leaving(20_000);
    let many = time_of_leaving(80_000);
    // In proportion it would be 4 times as long; if each had to pass all others, 16 times.
    assert!(many < few * 9, "{many:?} against {few:?}");
}

/// Polls a place once.
fn poll(place: &mut Place) -> Poll<Option<Called<&'static str>>> {
    let mut context = Context::from_waker(Waker::noop());
    std::pin::pin!(place.called()).as_mut().poll(&mut context)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn p11_a_call_that_is_not_taken_up_for_a_second_goes_on() {
    let queues = Arc::new(Queues::default());
    let (turn, mut unpolled, mut next) = (first(&queues), behind(&queues), behind(&queues));
    let (mut watch, began) = (Watch::default(), Instant::now());
    drop(turn);
    assert!(watch.look(&queues, began));
    watch.look(&queues, began + SECOND * 9 / 10);
    assert!(poll(&mut next).is_pending());
    watch.look(&queues, began + SECOND);
    let Poll::Ready(Some(Called::Turn(turn))) = poll(&mut next) else {
        panic!("Q6: the next is called");
    };
    assert!(poll(&mut unpolled).is_pending(), "it waits again");
    drop(turn);
    let Poll::Ready(Some(Called::Turn(turn))) = poll(&mut unpolled) else {
        panic!("it is called again");
    };
    drop(turn);
    assert_eq!(queues.len(), 0, "Q1");
    assert!(!watch.look(&queues, began + SECOND), "nobody is watched");
}

#[test]
fn p9_a_lease_that_is_not_taken_up_is_taken_back_though_nobody_waits() {
    let lease = Arc::new(());
    let queues = Arc::new(super::Queues::default());
    let Arrival::First(mut turn) = queues.enter(&key(), &terms()) else {
        panic!("somebody is there");
    };
    let Arrival::Behind(place) = queues.enter(&key(), &terms()) else {
        panic!("nobody is there");
    };
    let waiter = queues.call_next(&key(), turn.keep(), &terms()).unwrap();
    waiter.hand(Arc::clone(&lease)).unwrap();
    let (mut watch, began) = (Watch::default(), Instant::now());
    watch.look(&queues, began);
    assert_eq!(Arc::strong_count(&lease), 2);
    watch.look(&queues, began + SECOND);
    assert_eq!(Arc::strong_count(&lease), 1, "Q6: it was dropped");
    drop(place);
}

#[test]
fn a_contender_that_is_not_polled_has_its_turn_ended() {
    let queues = Arc::new(Queues::default());
    let (turn, mut next) = (first(&queues), behind(&queues));
    let owner = turn.owner().unwrap();
    let (mut watch, mut now) = (Watch::default(), Instant::now());
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10 {
        watch.look(&queues, now);
        now += SECOND;
        owner.note_poll(&mut context);
    }
    assert!(poll(&mut next).is_pending(), "it was polled");
    watch.look(&queues, now);
    watch.look(&queues, now + SECOND);
    let Poll::Ready(Some(Called::Turn(next))) = poll(&mut next) else {
        panic!("Q6: the next contends beside it");
    };
    drop(turn);
    assert_eq!(queues.len(), 1, "Q2: the turn is the next one's");
    drop(next);
    assert_eq!(queues.len(), 0, "Q1");
}

#[test]
fn a_holder_and_those_who_wait_for_it_need_not_be_polled() {
    let queues = Arc::new(Queues::default());
    let number = first(&queues).keep();
    let mut waiter = behind(&queues);
    assert!(poll(&mut waiter).is_pending());
    let (mut watch, began) = (Watch::default(), Instant::now());
    for seconds in 0..10 {
        assert!(watch.look(&queues, began + SECOND * seconds));
    }
    assert!(poll(&mut waiter).is_pending());
    queues.vacate(&key(), number);
    assert!(matches!(
        poll(&mut waiter),
        Poll::Ready(Some(Called::Turn(_)))
    ));
}

#[test]
fn a_key_is_watched_only_while_somebody_waits() {
    let queues = Arc::new(Queues::default());
    let _turn = first(&queues);
    let (mut watch, now) = (Watch::default(), Instant::now());
    for _ in 0..2 {
        assert!(!watch.look(&queues, now));
        let place = behind(&queues);
        assert!(watch.look(&queues, now));
        drop(place);
    }
}
