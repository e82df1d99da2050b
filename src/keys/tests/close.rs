//! The end of a locker (K11).

use super::*;

#[test]
fn closing_turns_waiters_away() {
    let f = Fixture::new();
    let (turn, mut waiter) = (f.first(), f.behind());
    f.keys.close().wakes.wake();
    assert!(matches!(waiter.poll(), Poll::Ready(None)));
    assert!(!turn.note_poll(), "it contends in vain");
    assert!(matches!(f.enter(true), Arrival::Closed));
    assert!(matches!(f.enter(false), Arrival::Closed));
    drop((turn, waiter));
    f.assert_nothing_left();
}

#[test]
fn closing_wakes_waiters_and_contenders() {
    let f = Fixture::new();
    let users = [f.first(), f.behind(), f.beside("another").first()];
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let [contender, waiter, other] = &users;
    assert!(contender.waiter.note_poll(&mut context));
    assert!(other.waiter.note_poll(&mut context));
    assert!(waiter.waiter.poll_called(&mut context).is_pending());
    f.keys.close().wakes.wake();
    assert_eq!(woken.times(), 3);
}

#[test]
fn closing_turns_away_one_whose_turn_was_taken() {
    let f = Fixture::new();
    let (unpolled, mut next) = (f.first(), f.behind());
    unpolled.queue("u");
    f.reclaim(&unpolled.state);
    assert!(next.is_called_to_contend());
    next.queue("v");
    let closing = f.keys.close();
    assert!(!unpolled.note_poll() && !next.note_poll());
    let queued: Vec<&str> = closing.queued.iter().map(|claim| &*claim.value).collect();
    assert_eq!(
        queued,
        ["v", "u"],
        "they may not be polled in time to leave"
    );
}

#[test]
fn closing_takes_off_what_is_held() {
    let f = Fixture::new();
    let (holder, other) = (f.hold(), f.beside("another").hold());
    let closing = f.keys.close();
    assert_eq!(closing.held.len(), 2);
    for held in &closing.held {
        held.lease.lose(LostReason::Closed);
    }
    f.assert_nothing_left();
    assert!(f.due().is_empty());
    let LetGo::Nothing(taken_off) = holder.let_go() else {
        panic!("it is released with the locker");
    };
    assert!(taken_off.holder.is_none());
    drop(other);
    f.assert_nothing_left();
}

/// Its holder may be asking Redis whether to keep it.
#[test]
fn closing_takes_off_what_is_let_go() {
    let f = Fixture::new();
    let (holder, mut waiter) = (f.first().win_with("v", 1), f.behind());
    let (state, lease) = (Arc::clone(&holder.state), Arc::clone(&holder.lease));
    let claim = Arc::clone(&holder.claim);
    assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
    let closing = f.keys.close();
    assert_eq!(closing.held.len(), 1);
    let deadline = claim.deadline(f.clock.now());
    let kept = f.keys.kept(&state, &lease, Fences::floor(2), deadline);
    assert!(matches!(kept, LetGo::Release(_)), "nobody gets it");
    assert!(matches!(waiter.poll(), Poll::Ready(None)));
    f.assert_nothing_left();
}

#[test]
fn closing_takes_off_what_was_not_taken_up() {
    let f = Fixture::new();
    let (holder, mut heir) = (f.hold(), f.behind());
    drop(holder);
    for held in f.keys.close().held {
        held.lease.lose(LostReason::Closed);
    }
    let heir = heir.taken();
    assert!(matches!(heir.lease.lost_reason(), Some(LostReason::Closed)));
    drop(heir);
    f.assert_nothing_left();
}

#[test]
fn a_key_that_was_waited_for_in_redis_is_forgotten_after_the_close() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    f.keys.note_contention(&contender.state, true);
    f.keys.close().wakes.wake();
    drop(contender);
    f.assert_consistent();
    f.clock.advance(REMEMBERED);
    assert!(f.due().is_empty());
    f.assert_nothing_left();
}

/// A state that was made before the close, and is entered after it.
#[test]
fn one_that_enters_as_the_locker_is_closed_is_turned_away() {
    let f = Fixture::new();
    let state = f.keys.state_of(&f.key).unwrap();
    f.keys.close().wakes.wake();
    assert!(state.lock().is_closed);
    assert!(matches!(f.enter(true), Arrival::Closed));
    f.assert_nothing_left();
}

/// One that was called and not polled since is neither waiting nor contending.
#[test]
fn closing_turns_away_one_that_was_called_to_contend() {
    let f = Fixture::new();
    let (turn, mut called) = (f.first(), f.behind());
    drop(turn);
    f.keys.close().wakes.wake();
    let call = called.poll();
    assert!(matches!(call, Poll::Ready(None)) || !called.note_poll());
    drop(called);
    f.assert_nothing_left();
}

#[test]
fn p10_a_grant_that_comes_after_the_close_is_lost_at_once() {
    let f = Fixture::new();
    let (contender, mut waiter) = (f.first(), f.behind());
    f.keys.close().wakes.wake();
    let holder = contender.win();
    assert!(matches!(
        holder.lease.lost_reason(),
        Some(LostReason::Closed)
    ));
    assert!(matches!(waiter.poll(), Poll::Ready(None)));
    assert!(f.due().is_empty(), "P5");
    drop(holder);
    f.assert_nothing_left();
}
