//! What is left of a key that nobody uses (K1).

use super::news::grant;
use super::*;
use crate::backend::Signals;

#[test]
fn a_key_leaves_nothing_behind() {
    let f = Fixture::new();
    for number in 0..100 {
        drop(f.beside(&number.to_string()).hold());
    }
    f.assert_nothing_left();
    drop(f.first());
    f.assert_nothing_left();
    let (holder, waiters) = (f.hold(), [f.behind(), f.behind()]);
    drop((holder, waiters));
    f.assert_nothing_left();
}

#[test]
fn a_key_that_was_contended_is_remembered_for_3_s() {
    let f = Fixture::new();
    let contender = f.first();
    f.keys.note_contention(&contender.state, true);
    drop(contender);
    assert_eq!(f.keys.len(), 1);
    f.assert_consistent();
    assert_eq!(f.keys.fall_asleep(), Some(f.clock.now() + 3 * SECOND));
    f.clock.advance(3 * SECOND - Duration::from_millis(1));
    let next = f.first();
    assert!(f.keys.was_contended(&next.state));
    drop(next);
    assert!(f.due().is_empty());
    assert_eq!(f.keys.len(), 1);
    f.clock.advance(Duration::from_millis(1));
    assert!(f.due().is_empty());
    f.assert_nothing_left();
    let next = f.first();
    assert!(!f.keys.was_contended(&next.state), "forgotten");
}

#[test]
fn the_hint_ends_with_the_contention() {
    let f = Fixture::new();
    let contender = f.first();
    f.keys.note_contention(&contender.state, true);
    assert!(f.keys.was_contended(&contender.state));
    f.keys.note_contention(&contender.state, false);
    assert!(!f.keys.was_contended(&contender.state));
    f.keys.note_contention(&contender.state, true);
    f.clock.advance(3 * SECOND);
    assert!(!f.keys.was_contended(&contender.state), "too long ago");
}

#[test]
fn p10_a_waiter_that_left_is_remembered_for_3_s() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    f.clock.advance(SECOND);
    drop(contender);
    f.clock.advance(3 * SECOND - Duration::from_millis(1));
    assert!(f.due().is_empty());
    f.keys.granted(grant(&f, "v"));
    assert_eq!(f.keys.take_unwanted().len(), 1);
    f.clock.advance(Duration::from_millis(1));
    assert!(f.due().is_empty());
    f.assert_nothing_left();
    f.keys.granted(grant(&f, "v"));
    assert!(f.keys.take_unwanted().is_empty());
}

#[test]
fn a_key_that_is_used_is_not_forgotten() {
    let f = Fixture::new();
    let contender = f.first();
    contender.queue("v");
    let holder = contender.win();
    f.clock.advance(3 * SECOND);
    let _ = f.due();
    assert_eq!(f.keys.len(), 1);
    f.assert_consistent();
    drop(holder);
    f.assert_nothing_left();
}

/// One that comes as the state of its key is given up has a new one.
#[test]
fn a_newcomer_does_not_enter_a_state_that_is_given_up() {
    let f = Fixture::new();
    let first = f.first();
    let state = Arc::clone(&first.state);
    drop(first);
    assert!(state.lock().is_retired);
    // As if the thread that gave it up had not yet taken it out of the table.
    let name = Arc::clone(f.key.name());
    f.keys.table.lock().keys.insert(name, Arc::clone(&state));
    let second = f.first();
    assert!(!Arc::ptr_eq(&second.state, &state));
    f.assert_consistent();
    // That thread goes on.
    f.keys.take_out(&state);
    assert_eq!(f.keys.len(), 1);
    drop(second);
    f.assert_nothing_left();
}
