//! The end of a locker.

use super::*;

/// The holder need not let go for that.
#[test]
fn closing_turns_away_who_waits_behind_a_holder() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, waiter) = (f.first(), f.behind());
        let closer = spawn(&f, Fixture::close);
        assert!(take_turn(waiter).is_none());
        closer.join().unwrap();
        assert!(!turn.note_poll(), "K11");
        drop(turn);
        f.assert_nothing_left();
    });
}

#[test]
fn closing_turns_away_whoever_waits_or_comes() {
    model_bounded(|| {
        let f = Fixture::new();
        let (turn, waiter) = (f.first(), f.behind());
        let closer = spawn(&f, Fixture::close);
        let contender = thread::spawn(move || drop(turn));
        // Called or turned away, but never left alone.
        take_turn(waiter);
        closer.join().unwrap();
        contender.join().unwrap();
        assert!(f.arrive().is_none(), "K11");
        f.assert_nothing_left();
    });
}

/// K11: who comes or goes on as the locker is closed hears of it.
#[test]
fn closing_turns_away_one_that_comes_or_contends_meanwhile() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, mut waiter) = (f.first(), f.behind());
        let closer = spawn(&f, Fixture::close);
        let newcomer = spawn(&f, |f| f.arrive().map(|user| user.note_poll()));
        drop(turn);
        let called = block_on(waiter.called()).is_some();
        closer.join().unwrap();
        newcomer.join().unwrap();
        assert!(!called || !waiter.note_poll(), "K11: it goes on in vain");
        drop(waiter);
        f.assert_nothing_left();
    });
}

/// K11: a lease is taken off by the close, or lost at its grant.
#[test]
fn p5_a_grant_that_comes_as_the_locker_is_closed_is_lost() {
    loom::model(|| {
        let f = Fixture::new();
        let (contender, waiter) = (f.first(), f.behind());
        let closer = spawn(&f, Fixture::close);
        let holder = contender.win();
        closer.join().unwrap();
        let reason = holder.lease.lost_reason();
        assert!(matches!(reason, Some(LostReason::Closed)), "{reason:?}");
        assert!(take_turn(waiter).is_none());
        drop(holder);
        f.assert_nothing_left();
    });
}

/// K11: also one that is being handed on.
#[test]
fn p5_a_lease_that_is_handed_on_as_the_locker_is_closed_is_lost() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, mut waiter) = (f.hold(), f.behind());
        let closer = spawn(&f, Fixture::close);
        drop(holder);
        let call = block_on(waiter.called());
        closer.join().unwrap();
        if let Some(call @ Call::Hold(..)) = call {
            assert!(waiter.take(call).lease.is_lost());
        }
        drop(waiter);
        f.assert_nothing_left();
    });
}

#[test]
fn closing_turns_away_one_whose_turn_is_taken_back() {
    loom::model(|| {
        let f = Fixture::new();
        let (turn, late) = (f.first(), f.behind());
        let state = Arc::clone(&turn.state);
        drop(turn);
        let closer = spawn(&f, Fixture::close);
        let reclaimer = spawn(&f, move |f| f.reclaim(&state));
        // Called or turned away, but never left alone.
        take_turn(late);
        closer.join().unwrap();
        reclaimer.join().unwrap();
        f.assert_nothing_left();
    });
}
