use super::*;

#[test]
fn turns_go_in_the_order_of_arrival() {
    let f = Fixture::new();
    let turn = f.first();
    let mut waiters: Vec<User> = (0..3).map(|_| f.behind()).collect();
    drop(turn);
    while !waiters.is_empty() {
        let mut next = waiters.remove(0);
        assert!(next.is_called_to_contend());
        assert!(waiters.iter_mut().all(|later| later.poll().is_pending()));
        f.assert_consistent();
    }
    f.assert_nothing_left();
}

#[test]
fn a_waiter_that_leaves_is_passed_over() {
    let f = Fixture::new();
    let turn = f.first();
    let leaver = f.behind();
    let mut stayer = f.behind();
    drop(leaver);
    drop(turn);
    assert!(stayer.is_called_to_contend());
    drop(stayer);
    f.assert_nothing_left();
}

#[test]
fn p11_a_turn_sent_to_a_waiter_that_leaves_goes_on() {
    let f = Fixture::new();
    let turn = f.first();
    let called_but_leaves = f.behind();
    let mut next = f.behind();
    drop(turn);
    assert!(next.poll().is_pending());
    drop(called_but_leaves);
    assert!(next.is_called_to_contend());
}

#[test]
fn a_turn_ends_once() {
    let f = Fixture::new();
    let first = f.hold();
    let (state, holder) = (Arc::clone(&first.state), f.keys.turn_of(&first.state));
    // So that the second meets the same state.
    f.keys.note_contention(&state, true);
    drop(first);
    let second = f.first();
    assert!(Arc::ptr_eq(&state, &second.state));
    f.keys.end_turn(&state, &holder).wake();
    assert!(!f.is_free(), "K2: the second has it");
    drop(second);
    assert!(f.is_free());
}

#[test]
fn p11_an_end_that_comes_late_calls_nobody() {
    let f = Fixture::new();
    let first = f.hold();
    let (state, holder) = (Arc::clone(&first.state), f.keys.turn_of(&first.state));
    let mut waiters = [f.behind(), f.behind()];
    f.keys.end_turn(&state, &holder).wake();
    f.keys.end_turn(&state, &holder).wake();
    let [next, last] = &mut waiters;
    assert!(next.is_called_to_contend());
    assert!(last.poll().is_pending(), "K2");
}

#[test]
fn one_that_does_not_wait_gets_no_place() {
    let f = Fixture::new();
    let turn = f.first();
    assert!(matches!(f.enter(false), Arrival::Taken(None)));
    let mut waiter = f.behind();
    assert!(matches!(f.enter(false), Arrival::Taken(None)));
    drop(turn);
    assert!(waiter.is_called_to_contend());
    drop(waiter);
    f.assert_nothing_left();
}

/// What the clock of this thread shows: how long it has run, however busy the machine is.
fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.try_into().expect("a time since the thread began")
}

/// How long it takes until `count` waiters of one key have left in any order: the best of three.
fn time_of_leaving(count: usize) -> Duration {
    let times = (0..3).map(|_| {
        let f = Fixture::new();
        let _turn = f.first();
        let mut waiters: Vec<User> = (0..count).map(|_| f.behind()).collect();
        fastrand::shuffle(&mut waiters);
        let began = thread_time();
        drop(waiters);
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

#[test]
fn p11_a_call_that_is_taken_back_goes_on_and_its_waiter_comes_anew() {
    let f = Fixture::new();
    let (turn, mut unpolled, mut next) = (f.first(), f.behind(), f.behind());
    drop(turn);
    f.reclaim(&next.state);
    assert!(next.is_called_to_contend(), "K6: the next is called");
    assert!(unpolled.poll().is_pending(), "it waits again");
    drop(next);
    assert!(unpolled.is_called_to_contend(), "it is called again");
    drop(unpolled);
    f.assert_nothing_left();
}

#[test]
fn one_that_was_polled_since_it_was_asked_keeps_its_turn() {
    let f = Fixture::new();
    let (turn, mut next) = (f.first(), f.behind());
    assert!(!turn.waiter.ask());
    assert!(turn.note_poll());
    let left = f.keys.reclaim(&turn.state, &turn.waiter);
    f.give_back(&turn.state, left);
    assert!(next.poll().is_pending(), "K6");
}

#[test]
fn a_contender_whose_turn_was_taken_may_yet_win() {
    let f = Fixture::new();
    let (unpolled, mut next) = (f.first(), f.behind());
    f.reclaim(&next.state);
    assert!(
        next.is_called_to_contend(),
        "K6: the next contends beside it"
    );
    let holder = unpolled.win_with("unpolled", 1_000);
    assert!(!f.is_free(), "K2: the turn is the next one's");
    f.clock.advance(f.options().ttl / 2);
    assert_eq!(f.due().len(), 1, "K7: it is renewed");
    let LetGo::Release(taken_off) = holder.let_go() else {
        panic!("K4: nobody waits for its turn");
    };
    let overdue = taken_off.holder.unwrap();
    f.keys.end_turn(&next.state, &overdue).wake();
    assert!(!f.is_free(), "K2");
    f.assert_consistent();
    drop(next);
    f.assert_nothing_left();
}

#[test]
fn a_contender_whose_turn_was_taken_leaves_without_a_trace() {
    let f = Fixture::new();
    let (unpolled, mut next) = (f.first(), f.behind());
    f.reclaim(&next.state);
    assert!(next.is_called_to_contend());
    drop(next);
    assert_eq!(f.keys.len(), 1, "K1: it still contends");
    f.assert_consistent();
    drop(unpolled);
    f.assert_nothing_left();
}

#[test]
fn a_key_is_watched_only_while_somebody_depends_on_it() {
    let f = Fixture::new();
    let turn = f.first();
    for _ in 0..2 {
        assert!(f.keys.to_be_polled(&turn.state).is_none());
        assert!(f.keys.take_to_watch().is_empty());
        let waiters = [f.behind(), f.behind()];
        assert_eq!(f.keys.take_to_watch().len(), 1, "once");
        assert!(f.keys.to_be_polled(&turn.state).is_some());
        drop(waiters);
    }
}
