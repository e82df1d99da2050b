//! Turns and leases that are taken back.

use super::*;

#[test]
fn p11_a_turn_that_is_taken_back_as_it_is_taken_up_is_given_once() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, late) = (f.first(), f.behind());
        let state = Arc::clone(&turn.state);
        drop(turn);
        let reclaimer = spawn(&f, move |f| f.reclaim(&state));
        // Taken back, it comes anew.
        take_turn(late).expect("nobody closed");
        reclaimer.join().unwrap();
        f.assert_nothing_left();
    });
}

#[test]
fn p1_a_lease_that_is_taken_back_as_it_is_taken_up_is_held_once() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, late) = (f.hold(), f.behind());
        let state = Arc::clone(&holder.state);
        drop(holder);
        let reclaimer = spawn(&f, move |f| f.reclaim(&state));
        // Taken back, it comes anew.
        take_turn(late).expect("nobody closed");
        reclaimer.join().unwrap();
        f.assert_nothing_left();
    });
}

#[test]
fn p9_a_lease_that_is_taken_back_as_its_last_waiter_leaves_ends() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, leaver) = (f.hold(), f.behind());
        let state = Arc::clone(&holder.state);
        drop(holder);
        let leaving = thread::spawn(move || drop(leaver));
        f.reclaim(&state);
        leaving.join().unwrap();
        f.assert_nothing_left();
    });
}

/// The contender goes on beside the next, and its own end changes nothing then (K2).
#[test]
fn p11_a_contender_whose_turn_is_taken_as_it_ends_it_is_followed_once() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, next) = (f.first(), f.behind());
        let state = Arc::clone(&turn.state);
        let reclaimer = spawn(&f, move |f| f.reclaim(&state));
        drop(turn);
        take_turn(next).expect("nobody closed");
        reclaimer.join().unwrap();
        f.assert_nothing_left();
    });
}

/// It is held from the grant on, whoever has the turn (K7).
#[test]
fn p11_a_contender_that_wins_as_its_turn_is_taken_lets_go_once() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, next) = (f.first(), f.behind());
        let state = Arc::clone(&turn.state);
        let reclaimer = spawn(&f, move |f| f.reclaim(&state));
        drop(turn.win());
        take_turn(next).expect("nobody closed");
        reclaimer.join().unwrap();
        f.assert_nothing_left();
    });
}
