//! All orders in which holders, waiters that leave and newcomers can meet at one key.
//!
//! A lease is a [`Baton`] here: dropping it does what a hold does, hands it to the next of the
//! process or ends the turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::future::block_on;
use loom::thread;

use crate::acquire::queue::{Arrival, Called, Place, Queues, Turn};
use crate::options::{Options, Terms};

/// The lease of a claim, with the turn that belongs to it.
struct Baton {
    queues: Arc<Queues<Baton>>,
    key: Arc<str>,
    turn: u64,
    /// How many there are: never two (P1).
    alive: Arc<AtomicUsize>,
}

impl Baton {
    fn new(queues: &Arc<Queues<Self>>, mut turn: Turn<Self>) -> Self {
        Self::with(queues, &key(), turn.keep(), Arc::default())
    }

    fn with(
        queues: &Arc<Queues<Self>>,
        key: &Arc<str>,
        turn: u64,
        alive: Arc<AtomicUsize>,
    ) -> Self {
        assert_eq!(alive.fetch_add(1, Ordering::SeqCst), 0, "P1: two leases");
        Self {
            queues: Arc::clone(queues),
            key: Arc::clone(key),
            turn,
            alive,
        }
    }
}

impl Drop for Baton {
    fn drop(&mut self) {
        let Self {
            queues, key, turn, ..
        } = self;
        self.alive.fetch_sub(1, Ordering::SeqCst);
        match queues.call_next(key, *turn, &terms()) {
            Some(waiter) => {
                let next = Self::with(queues, key, waiter.number, Arc::clone(&self.alive));
                // One that comes back is dropped, and so goes to the next.
                drop(waiter.hand(next));
            }
            None => queues.vacate(key, *turn),
        }
    }
}

fn key() -> Arc<str> {
    "k".into()
}

fn terms() -> Terms {
    Options::default().check(&key()).unwrap()
}

fn queues() -> (Arc<Queues<Baton>>, Turn<Baton>) {
    let queues = Arc::new(Queues::default());
    match queues.enter(&key(), &terms()) {
        Arrival::First(turn) => (queues, turn),
        _ => panic!("somebody is there"),
    }
}

fn behind(queues: &Arc<Queues<Baton>>) -> Place<Baton> {
    match queues.enter(&key(), &terms()) {
        Arrival::Behind(place) => place,
        _ => panic!("nobody is there"),
    }
}

/// Comes, and goes again at once or when it is called.
fn come_and_go(queues: &Arc<Queues<Baton>>) {
    match queues.enter(&key(), &terms()) {
        Arrival::First(turn) => drop(turn),
        Arrival::Behind(place) => take_turn(place).expect("nobody closed"),
        Arrival::Closed => panic!("nobody closed"),
    }
}

/// Waits for the call; what it brings ends at once.
fn take_turn(mut place: Place<Baton>) -> Option<()> {
    // A waiter that is never called would be a deadlock, which the model reports (P11).
    block_on(place.called()).map(drop)
}

#[test]
fn p11_a_turn_given_to_a_waiter_that_leaves_goes_to_the_next() {
    loom::model(|| {
        let (queues, turn) = queues();
        let leaver = behind(&queues);
        let stayer = behind(&queues);
        let holder = thread::spawn(move || drop(turn));
        let leaving = thread::spawn(move || drop(leaver));
        take_turn(stayer).expect("Q3");
        holder.join().unwrap();
        leaving.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

#[test]
fn p11_a_lease_handed_to_a_waiter_that_leaves_goes_to_the_next() {
    loom::model(|| {
        let (queues, turn) = queues();
        let leaver = behind(&queues);
        let stayer = behind(&queues);
        let baton = Baton::new(&queues, turn);
        let holder = thread::spawn(move || drop(baton));
        let leaving = thread::spawn(move || drop(leaver));
        take_turn(stayer).expect("Q3");
        holder.join().unwrap();
        leaving.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

#[test]
fn p11_the_lease_ends_although_all_waiters_leave() {
    loom::model(|| {
        let (queues, turn) = queues();
        let leavers = [behind(&queues), behind(&queues)];
        let baton = Baton::new(&queues, turn);
        let threads = leavers.map(|leaver| thread::spawn(move || drop(leaver)));
        drop(baton);
        for leaving in threads {
            leaving.join().unwrap();
        }
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// Q1: who comes as the last one goes has the turn, or is called.
#[test]
fn p11_a_newcomer_is_not_forgotten_when_the_last_user_leaves() {
    loom::model(|| {
        let (queues, turn) = queues();
        let leaver = behind(&queues);
        let holder = thread::spawn(move || drop(turn));
        let leaving = thread::spawn(move || drop(leaver));
        come_and_go(&queues);
        holder.join().unwrap();
        leaving.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// Q2: the watchdog ends the turn at a loss while the guard is dropped.
#[test]
fn p1_a_turn_that_is_ended_twice_is_given_once() {
    loom::model(|| {
        let (queues, mut turn) = queues();
        let number = turn.keep();
        let next = behind(&queues);
        let other = behind(&queues);
        let enders = [(); 2].map(|()| {
            let queues = Arc::clone(&queues);
            thread::spawn(move || queues.vacate(&key(), number))
        });
        // One after the other; and what the second of the enders does changes nothing.
        for mut place in [next, other] {
            let called = block_on(place.called()).expect("nobody closed");
            assert!(queues.len() == 1, "Q2");
            drop(called);
        }
        for ender in enders {
            ender.join().unwrap();
        }
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// `try_lock` takes the turn only where nobody has it or waits for it.
#[test]
fn an_attempt_never_overtakes_a_waiter() {
    loom::model(|| {
        let (queues, turn) = queues();
        let waiter = behind(&queues);
        let holder = thread::spawn(move || drop(turn));
        let attempt = queues.try_enter(&key(), &terms());
        assert!(attempt.is_none(), "somebody waits");
        take_turn(waiter).expect("nobody closed");
        holder.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// It does not get a place behind somebody who came in between, either.
#[test]
fn an_attempt_is_first_or_nowhere() {
    loom::model(|| {
        let (queues, turn) = queues();
        let holder = thread::spawn(move || drop(turn));
        let newcomer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || come_and_go(&queues))
        };
        let attempt = queues.try_enter(&key(), &terms());
        assert!(matches!(attempt, None | Some(Arrival::First(_))));
        drop(attempt);
        newcomer.join().unwrap();
        holder.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// The holder need not let go for that.
#[test]
fn closing_turns_away_who_waits_behind_a_holder() {
    loom::model(|| {
        let (queues, turn) = queues();
        let waiter = behind(&queues);
        let closer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || queues.close())
        };
        assert!(take_turn(waiter).is_none());
        closer.join().unwrap();
        drop(turn);
        assert_eq!(queues.len(), 0, "Q1");
    });
}

#[test]
fn closing_turns_away_whoever_waits_or_comes() {
    loom::model(|| {
        let (queues, turn) = queues();
        let waiter = behind(&queues);
        let closer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || queues.close())
        };
        let holder = thread::spawn(move || drop(turn));
        // Called or turned away, but never left alone.
        let called = take_turn(waiter);
        closer.join().unwrap();
        holder.join().unwrap();
        assert!(called.is_none_or(|()| queues.len() == 0));
        assert!(matches!(queues.enter(&key(), &terms()), Arrival::Closed));
    });
}

/// A waiter that is called with a lease has the only one.
#[test]
fn p1_of_three_in_a_row_one_holds_at_a_time() {
    loom::model(|| {
        let (queues, turn) = queues();
        let second = behind(&queues);
        let baton = Baton::new(&queues, turn);
        let newcomer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || match queues.enter(&key(), &terms()) {
                Arrival::First(turn) => drop(Baton::new(&queues, turn)),
                Arrival::Behind(place) => take_turn(place).expect("nobody closed"),
                Arrival::Closed => panic!("nobody closed"),
            })
        };
        let holder = thread::spawn(move || drop(baton));
        let mut second = second;
        match block_on(second.called()) {
            Some(Called::Lease(baton)) => drop(baton),
            _ => panic!("Q4: the lease was not handed on"),
        }
        newcomer.join().unwrap();
        holder.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// Takes the turn from whoever has it and is not polled meanwhile, as after a second (Q6).
fn reclaim(queues: &Arc<Queues<Baton>>) {
    if let Some(waiter) = queues.watched(&key()) {
        waiter.ask();
        queues.reclaim(&key(), &waiter);
    }
}

#[test]
fn p11_a_turn_that_is_taken_back_as_it_is_taken_up_is_given_once() {
    loom::model(|| {
        let (queues, turn) = queues();
        let late = behind(&queues);
        drop(turn);
        let reclaimer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || reclaim(&queues))
        };
        // Taken back, it comes anew.
        take_turn(late).expect("nobody closed");
        reclaimer.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

#[test]
fn p1_a_lease_that_is_taken_back_as_it_is_taken_up_is_held_once() {
    loom::model(|| {
        let (queues, turn) = queues();
        let late = behind(&queues);
        drop(Baton::new(&queues, turn));
        let reclaimer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || reclaim(&queues))
        };
        // Taken back, it comes anew.
        take_turn(late).expect("nobody closed");
        reclaimer.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

#[test]
fn p9_a_lease_that_is_taken_back_as_its_last_waiter_leaves_ends() {
    loom::model(|| {
        let (queues, turn) = queues();
        let leaver = behind(&queues);
        drop(Baton::new(&queues, turn));
        let leaving = thread::spawn(move || drop(leaver));
        reclaim(&queues);
        leaving.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

/// The contender goes on beside the next, and its own end changes nothing then (Q2).
#[test]
fn p11_a_contender_whose_turn_is_taken_as_it_ends_it_is_followed_once() {
    loom::model(|| {
        let (queues, mut turn) = queues();
        let next = behind(&queues);
        let reclaimer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || reclaim(&queues))
        };
        queues.vacate(&key(), turn.keep());
        take_turn(next).expect("nobody closed");
        reclaimer.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}

#[test]
fn closing_turns_away_one_whose_turn_is_taken_back() {
    loom::model(|| {
        let (queues, turn) = queues();
        let late = behind(&queues);
        drop(turn);
        let closer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || queues.close())
        };
        let reclaimer = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || reclaim(&queues))
        };
        // Called or turned away, but never left alone.
        take_turn(late);
        closer.join().unwrap();
        reclaimer.join().unwrap();
        assert_eq!(queues.len(), 0, "Q1");
    });
}
