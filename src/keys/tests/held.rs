//! Renewals and deadlines.

use super::*;

pub(super) const TTL: Duration = Duration::from_millis(90);
/// Earlier than the first look.
pub(super) const EVERY: Duration = Duration::from_millis(30);

/// One key with short leases.
pub(super) fn fixture(auto_renew: bool) -> Fixture {
    Fixture {
        options: Options {
            ttl: TTL,
            renew_every: Some(EVERY),
            auto_renew,
            ..Options::default()
        },
        ..Fixture::new()
    }
}

/// Whether each of the questions that are due extends.
pub(super) fn extends(due: &[Due]) -> Vec<bool> {
    let extend = due.iter().map(|due| match due {
        Due::Ask(question) => question.extend,
        lost @ Due::Expire(_) => panic!("{lost:?}"),
    });
    extend.collect()
}

#[test]
fn nothing_is_due_before_the_first_renewal() {
    let f = fixture(true);
    let _holder = f.hold();
    f.clock.advance(EVERY * 9 / 10);
    assert!(f.due().is_empty());
    f.clock.advance(EVERY / 10);
    assert_eq!(extends(&f.due()), [true]);
    assert!(f.due().is_empty(), "K9: one at a time");
}

#[test]
fn a_renewal_under_way_does_not_hide_the_deadline() {
    let f = fixture(true);
    let holder = f.hold();
    f.clock.advance(EVERY);
    assert_eq!(extends(&f.due()), [true]);
    f.clock.advance(holder.lease.remaining());
    assert!(matches!(f.due()[..], [Due::Expire(_)]));
    assert!(f.due().is_empty(), "K7: told once");
}

#[test]
fn a_failed_renewal_is_tried_again_sooner() {
    let f = fixture(true);
    let holder = f.hold();
    f.clock.advance(EVERY);
    f.due();
    assert!(holder.unanswered());
    let retry = f.keys.fall_asleep().unwrap().since(f.clock.now());
    assert!(retry > Duration::ZERO && retry < EVERY / 4, "{retry:?}");
}

#[test]
fn a_failure_is_not_noted_of_a_lease_that_is_gone() {
    let f = fixture(true);
    let holder = f.hold();
    f.clock.advance(EVERY);
    f.due();
    let _ = f.keys.take_off(&holder.state, &holder.lease);
    assert!(!holder.unanswered());
    f.assert_consistent();
}

#[test]
fn a_renewal_never_waits_longer_than_a_third_of_what_is_left() {
    let f = fixture(true);
    let _holder = f.hold();
    f.clock.advance(EVERY * 2);
    match &f.due()[..] {
        [Due::Ask(question)] => assert!(question.within <= EVERY / 3, "{question:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_renewal_the_last_wake_is_the_deadline() {
    let f = fixture(false);
    let holder = f.hold();
    f.clock.advance(Duration::from_millis(50));
    assert_eq!(extends(&f.due()), [false], "the first look");
    holder.looked(Some(holder.lease.deadline()));
    assert_eq!(f.keys.fall_asleep(), Some(holder.lease.deadline()));
}

#[test]
fn renewals_that_fall_due_together_go_out_together() {
    let f = fixture(true);
    let mut holders = Vec::new();
    for number in 0..100 {
        holders.push(f.beside(&format!("k{number}")).hold());
        f.clock.advance(Duration::from_micros(5));
    }
    f.clock.advance(EVERY - Duration::from_millis(1));
    assert_eq!(extends(&f.due()), [true; 100]);
}

#[test]
fn p5_a_renewal_that_is_answered_after_the_deadline_changes_nothing() {
    let f = fixture(true);
    let holder = f.hold();
    f.clock.advance(EVERY);
    f.due();
    f.clock.advance(TTL);
    holder.renewed(f.clock.now() + TTL, true);
    assert!(holder.lease.is_lost());
    assert!(matches!(f.due()[..], [Due::Expire(_)]));
}

#[test]
fn a_caller_that_renews_leaves_the_drivers_question_under_way() {
    let f = fixture(true);
    let holder = f.hold();
    f.clock.advance(EVERY);
    assert_eq!(extends(&f.due()), [true]);
    holder.renewed(f.clock.now() + EVERY, false);
    f.clock.advance(EVERY - Duration::from_millis(1));
    assert!(f.due().is_empty(), "K9");
    holder.renewed(holder.claim.deadline(f.clock.now()), true);
    f.clock.advance(EVERY);
    assert_eq!(extends(&f.due()), [true]);
}

/// What the driver asked about the lease before may be answered to the next one of the claim.
#[test]
fn p9_a_question_under_way_at_a_hand_over_is_answered_for_the_heir() {
    let mut f = fixture(true);
    f.options.handover_for = SECOND;
    let (holder, mut heir) = (f.hold(), f.behind());
    f.clock.advance(EVERY);
    let due = f.due();
    let [Due::Ask(question)] = &due[..] else {
        panic!("{due:?}");
    };
    let state = Arc::clone(&holder.state);
    drop(holder);
    let heir = heir.taken();
    assert!(f.due().is_empty(), "K9: the claim is being asked about");
    let deadline = heir.claim.deadline(f.clock.now());
    let renewal = Renewal::Renewed { deadline };
    let lost = f.keys.answer_renewal(&state, question, renewal);
    assert!(lost.is_none());
    assert_eq!(heir.lease.deadline(), deadline);
    f.clock.advance(EVERY);
    assert_eq!(extends(&f.due()), [true], "the heir's lease is renewed");
    let (held, _) = f
        .keys
        .answer_renewal(&state, question, Renewal::Removed)
        .expect("a lease that is lost");
    assert!(Arc::ptr_eq(&held.lease, &heir.lease), "P4");
    f.keys.end_turn(&state, &held.holder).wake();
}
