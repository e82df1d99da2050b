//! All orders in which holders, waiters that leave and newcomers can meet at one key.
//!
//! The users are those of the unit tests: they do without I/O what `acquire` and `driver` do, on the
//! real state.

mod answers;
mod closing;
mod unpolled;

use loom::future::block_on;
use loom::thread;

use super::tests::{Fixture, Holder, SECOND, User};
use super::*;
use crate::backend::{Fences, Grant, Look, Renewal, Signals};

impl Fixture {
    /// One that comes and waits if others are there; `None` if the locker is closed.
    fn arrive(&self) -> Option<User> {
        match self.enter(true) {
            Arrival::Turn(state, waiter) | Arrival::Behind(state, waiter) => {
                Some(self.user(state, waiter))
            }
            Arrival::Taken(_) => panic!("it waits"),
            Arrival::Closed => None,
        }
    }

    /// Closes the locker, as the driver does.
    fn close(&self) {
        let closing = self.keys.close();
        for held in &closing.held {
            held.lease.lose(LostReason::Closed);
        }
        closing.wakes.wake();
    }

    /// Redis tells of a grant.
    fn grant(&self, value: &str) {
        self.keys.granted(Grant {
            key: self.key.name().to_string(),
            value: value.to_owned(),
            fences: Fences { first: 1, count: 1 },
            stamp: self.clock.now(),
            life: SECOND,
        });
    }

    /// Comes, and goes again at once or when it is called.
    fn come_and_go(&self) {
        match self.enter(true) {
            Arrival::Turn(state, waiter) => drop(self.user(state, waiter)),
            Arrival::Behind(state, waiter) => {
                take_turn(self.user(state, waiter)).expect("nobody closed");
            }
            other => panic!("nobody closed: {other:?}"),
        }
    }
}

/// All orders with at most four preemptions: there are too many others.
fn model_bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

/// Waits for the call; what it brings ends at once.
fn take_turn(mut user: User) -> Option<()> {
    // A waiter that is never called would be a deadlock, which the model reports (P11).
    match block_on(user.called())? {
        call @ Call::Hold(..) => drop(user.take(call)),
        _ => drop(user),
    }
    Some(())
}

/// Waits for a lease.
fn take_lease(mut user: User) -> Holder {
    let call = block_on(user.called()).expect("nobody closed");
    user.take(call)
}

fn spawn<T: 'static>(
    f: &Fixture,
    step: impl FnOnce(&Fixture) -> T + 'static,
) -> thread::JoinHandle<T> {
    let f = f.clone();
    thread::spawn(move || step(&f))
}

#[test]
fn p11_a_turn_given_to_a_waiter_that_leaves_goes_to_the_next() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, leaver, stayer) = (f.first(), f.behind(), f.behind());
        let contender = thread::spawn(move || drop(turn));
        let leaving = thread::spawn(move || drop(leaver));
        take_turn(stayer).expect("K3");
        contender.join().unwrap();
        leaving.join().unwrap();
        f.assert_nothing_left();
    });
}

#[test]
fn p11_a_lease_handed_to_a_waiter_that_leaves_goes_to_the_next() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, leaver, stayer) = (f.hold(), f.behind(), f.behind());
        let holding = thread::spawn(move || drop(holder));
        let leaving = thread::spawn(move || drop(leaver));
        take_turn(stayer).expect("K3");
        holding.join().unwrap();
        leaving.join().unwrap();
        f.assert_nothing_left();
    });
}

#[test]
fn p11_the_lease_ends_although_all_waiters_leave() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, leavers) = (f.hold(), [f.behind(), f.behind()]);
        let threads = leavers.map(|leaver| thread::spawn(move || drop(leaver)));
        drop(holder);
        for leaving in threads {
            leaving.join().unwrap();
        }
        f.assert_nothing_left();
    });
}

/// Redis is asked who else waits, as the waiters leave.
#[test]
fn p11_a_claim_that_is_kept_ends_although_all_waiters_leave() {
    loom::model(|| {
        let f = Fixture::new();
        let holder = f.first().win_with("v", 1);
        let leavers = [f.behind(), f.behind()];
        let threads = leavers.map(|leaver| thread::spawn(move || drop(leaver)));
        drop(holder);
        for leaving in threads {
            leaving.join().unwrap();
        }
        f.assert_nothing_left();
    });
}

/// K1: who comes as the last one goes has the turn, or is called.
#[test]
fn p11_a_newcomer_is_not_forgotten_when_the_last_user_leaves() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, leaver) = (f.first(), f.behind());
        let contender = thread::spawn(move || drop(turn));
        let leaving = thread::spawn(move || drop(leaver));
        f.come_and_go();
        contender.join().unwrap();
        leaving.join().unwrap();
        f.assert_nothing_left();
    });
}

/// K1: two that come as a state is given up meet in one.
#[test]
fn p1_two_that_come_as_the_last_user_leaves_meet_each_other() {
    model_bounded(|| {
        let f = Fixture::new();
        let turn = f.first();
        let contender = thread::spawn(move || drop(turn));
        let other = spawn(&f, hold_in_turn);
        hold_in_turn(&f);
        contender.join().unwrap();
        other.join().unwrap();
        f.assert_nothing_left();
    });
}

/// Comes, and holds as soon as it may.
fn hold_in_turn(f: &Fixture) {
    match f.enter(true) {
        Arrival::Turn(state, waiter) => drop(f.user(state, waiter).win()),
        Arrival::Behind(state, waiter) => {
            let mut user = f.user(state, waiter);
            match block_on(user.called()).expect("nobody closed") {
                call @ Call::Hold(..) => drop(user.take(call)),
                _ => drop(user.win()),
            }
        }
        other => panic!("nobody closed: {other:?}"),
    }
}

/// K2: a late end is nobody else's.
#[test]
fn p1_a_turn_that_is_ended_twice_is_given_once() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, next, other) = (f.first(), f.behind(), f.behind());
        let enders = [(); 2].map(|()| {
            let (state, waiter) = (Arc::clone(&turn.state), Arc::clone(&turn.waiter));
            spawn(&f, move |f| f.keys.end_turn(&state, &waiter).wake())
        });
        // One after the other; and what the second of the enders does changes nothing.
        for mut waiter in [next, other] {
            let call = block_on(waiter.called()).expect("nobody closed");
            assert!(matches!(call, Call::Contend { .. }));
            assert!(!f.is_free(), "K2");
            drop(waiter);
        }
        for ender in enders {
            ender.join().unwrap();
        }
        drop(turn);
        f.assert_nothing_left();
    });
}

/// K7: the driver hears of a loss while the guard is dropped.
#[test]
fn p11_a_turn_goes_on_once_when_a_lease_is_lost_and_let_go() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, next) = (f.first().win_with("v", 1), f.behind());
        let (state, claim) = (Arc::clone(&holder.state), Arc::clone(&holder.claim));
        let driver = spawn(&f, move |f| {
            if let Some((held, reason)) = f.keys.renewed(&state, &claim, Renewal::Removed, true) {
                held.lease.lose(reason);
                f.keys.end_turn(&state, &held.holder).wake();
            }
        });
        let holding = thread::spawn(move || drop(holder));
        take_turn(next).expect("nobody closed");
        driver.join().unwrap();
        holding.join().unwrap();
        f.assert_nothing_left();
    });
}

/// `try_lock` takes the turn only where nobody has it or waits for it.
#[test]
fn an_attempt_never_overtakes_a_waiter() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, waiter) = (f.first(), f.behind());
        let contender = thread::spawn(move || drop(turn));
        assert!(!f.is_free(), "somebody waits");
        take_turn(waiter).expect("nobody closed");
        contender.join().unwrap();
        f.assert_nothing_left();
    });
}

/// It does not get a place behind somebody who came in between, either.
#[test]
fn an_attempt_is_first_or_nowhere() {
    model_bounded(|| {
        let f = Fixture::new();
        let turn = f.first();
        let contender = thread::spawn(move || drop(turn));
        let newcomer = spawn(&f, Fixture::come_and_go);
        f.is_free();
        newcomer.join().unwrap();
        contender.join().unwrap();
        f.assert_nothing_left();
    });
}

/// A waiter that is called with a lease has the only one.
#[test]
fn p1_of_three_in_a_row_one_holds_at_a_time() {
    model_bounded(|| {
        let f = Fixture::new();
        let (holder, second) = (f.hold(), f.behind());
        let newcomer = spawn(&f, hold_in_turn);
        let holding = thread::spawn(move || drop(holder));
        drop(take_lease(second));
        newcomer.join().unwrap();
        holding.join().unwrap();
        f.assert_nothing_left();
    });
}
