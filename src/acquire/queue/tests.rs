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
        ttl: std::time::Duration::from_secs(1),
        ..terms()
    };
    let _first = queues.enter(&key(), &other);
    let _second = behind(&queues);
    assert!(queues.call_next(&key(), number, &terms()).is_none(), "Q4");
}
