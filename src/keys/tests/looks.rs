//! Questions whether a key is ours still.

use super::held::{EVERY, TTL, extends, fixture};
use super::*;
use crate::backend::Signals;
use crate::keys::held::YOUTH;

/// The store tells of a change to all keys.
fn changed(f: &Fixture) {
    f.keys.pushes_missed(None);
}

/// A lease that lives long beyond the first look.
fn slow_fixture() -> Fixture {
    Fixture {
        options: Options {
            ttl: SECOND,
            renew_every: Some(SECOND / 3),
            ..Options::default()
        },
        ..Fixture::new()
    }
}

#[test]
fn p4_a_lease_is_looked_at_when_it_is_50_ms_old() {
    let f = slow_fixture();
    let holder = f.hold();
    assert_eq!(
        f.keys.fall_asleep(),
        Some(f.clock.now() + Duration::from_millis(50))
    );
    f.clock.advance(Duration::from_millis(39));
    assert!(f.due().is_empty());
    f.clock.advance(Duration::from_millis(11));
    assert_eq!(extends(&f.due()), [false]);
    holder.looked(Some(holder.lease.deadline()));
    f.clock.advance(Duration::from_millis(200));
    assert!(f.due().is_empty(), "one look");
}

#[test]
fn first_looks_that_fall_due_together_go_out_together() {
    let f = slow_fixture();
    let mut holders = Vec::new();
    for number in 0..10 {
        holders.push(f.beside(&format!("k{number}")).hold());
        f.clock.advance(Duration::from_micros(900));
    }
    f.clock.advance(Duration::from_millis(41));
    assert_eq!(extends(&f.due()), [false; 10]);
}

/// An heir's lease is as young as its claim.
#[test]
fn p4_an_heirs_lease_is_looked_at_when_the_claim_is_50_ms_old() {
    let f = slow_fixture();
    let (holder, mut heir) = (f.hold(), f.behind());
    f.clock.advance(Duration::from_millis(5));
    drop(holder);
    let _heir = heir.taken();
    f.clock.advance(Duration::from_millis(45));
    assert_eq!(extends(&f.due()), [false]);
}

#[test]
fn p4_a_change_told_while_two_questions_are_under_way_is_asked_about() {
    let f = slow_fixture();
    let holder = f.hold();
    f.clock.advance(SECOND / 3);
    assert_eq!(extends(&f.due()), [true]);
    changed(&f);
    for asked_by_driver in [false, true] {
        holder.renewed(holder.lease.deadline(), asked_by_driver);
    }
    f.clock.advance(YOUTH);
    assert_eq!(extends(&f.due()), [false], "neither answer may be newer");
}

#[test]
fn a_change_is_looked_at_and_puts_no_renewal_off() {
    let f = fixture(true);
    let holder = f.grown_up();
    assert!(f.keys.schedule.was_woken(), "it slept without end");
    let renewal_at = f.keys.fall_asleep();
    for _ in 0..10 {
        f.clock.advance(EVERY / 20);
        assert!(!f.keys.schedule.was_woken());
        changed(&f);
        assert!(f.keys.schedule.was_woken(), "the driver is woken");
        assert_eq!(extends(&f.due()), [false]);
        assert!(f.due().is_empty(), "K9: one at a time");
        holder.looked(Some(holder.lease.deadline()));
        assert_eq!(f.keys.fall_asleep(), renewal_at);
    }
    changed(&f);
    assert_eq!(extends(&f.due()), [false]);
    // The renewal comes due while the look is under way.
    f.clock.advance(EVERY);
    holder.looked(Some(holder.lease.deadline()));
    assert_eq!(extends(&f.due()), [true]);
}

#[test]
fn a_change_at_the_time_of_a_renewal_costs_no_look() {
    let f = fixture(true);
    let _holder = f.hold();
    f.clock.advance(EVERY);
    changed(&f);
    assert_eq!(extends(&f.due()), [true]);
}

#[test]
fn a_key_whose_life_was_shortened_is_renewed_at_once() {
    for until in [None, Some(EVERY)] {
        let f = fixture(true);
        let holder = f.grown_up();
        changed(&f);
        assert_eq!(extends(&f.due()), [false]);
        holder.looked(until.map(|until| f.clock.now() + until));
        assert_eq!(extends(&f.due()), [true]);
    }
}

/// The answer may be older than the look.
#[test]
fn a_caller_that_renews_does_not_put_a_repair_off() {
    let f = fixture(true);
    let holder = f.grown_up();
    changed(&f);
    assert_eq!(extends(&f.due()), [false]);
    holder.looked(Some(f.clock.now() + EVERY));
    holder.renewed(holder.lease.deadline(), false);
    assert_eq!(extends(&f.due()), [true]);
}

#[test]
fn a_key_that_the_holder_renews_is_only_looked_at() {
    let f = fixture(false);
    let holder = f.grown_up();
    changed(&f);
    assert_eq!(extends(&f.due()), [false]);
    holder.looked(None);
    assert!(f.due().is_empty());
}

#[test]
fn a_look_that_fails_is_tried_again_as_a_look() {
    let f = fixture(true);
    let holder = f.grown_up();
    changed(&f);
    assert_eq!(extends(&f.due()), [false]);
    assert!(holder.unanswered());
    f.clock.advance(EVERY / 4);
    assert_eq!(extends(&f.due()), [false]);
}

#[test]
fn p4_a_look_that_finds_the_key_gone_loses_the_lease_once() {
    for (look, reason) in [
        (Look::Removed, LostReason::Removed),
        (Look::Stolen, LostReason::Stolen),
    ] {
        let f = fixture(true);
        let holder = f.hold();
        let lost = f.keys.looked(&holder.state, &holder.claim, look);
        let (held, found) = lost.expect("a lease that is lost");
        assert_eq!(found.to_string(), reason.to_string());
        assert!(Arc::ptr_eq(&held.lease, &holder.lease));
        let again = Look::Removed;
        let again = f.keys.looked(&holder.state, &holder.claim, again);
        assert!(again.is_none(), "K7");
        f.clock.advance(2 * TTL);
        assert!(f.due().is_empty(), "P5");
        f.keys.end_turn(&holder.state, &held.holder).wake();
    }
}

/// A lost connection puts only those leases in question whose keys were watched over it.
#[test]
fn p4_what_is_watched_over_a_connection_that_is_lost_is_looked_at() {
    let f = slow_fixture();
    let holders = [f.hold(), f.beside("another").hold()];
    f.clock.advance(YOUTH);
    assert_eq!(extends(&f.due()), [false, false]);
    for (holder, connection) in holders.iter().zip([1, 2]) {
        holder.claim.note_tracked_on(connection);
        holder.looked(Some(holder.lease.deadline()));
    }
    f.keys.pushes_missed(Some(3));
    f.keys.changed("a third");
    assert!(f.due().is_empty());
    f.keys.pushes_missed(Some(2));
    assert_eq!(extends(&f.due()), [false]);
    holders[1].looked(Some(holders[1].lease.deadline()));
    f.keys.pushes_missed(None);
    assert_eq!(extends(&f.due()), [false, false]);
}

/// Its server failed, perhaps, and another takes its place.
#[test]
fn p4_what_is_told_while_a_question_goes_unanswered_is_looked_at_at_once() {
    let f = slow_fixture();
    let holder = f.hold();
    f.clock.advance(YOUTH);
    assert_eq!(extends(&f.due()), [false]);
    changed(&f);
    holder.unanswered();
    assert_eq!(extends(&f.due()), [false]);
    holder.unanswered();
    assert!(f.due().is_empty(), "one look");
}
