//! What becomes of a lease whose holder lets go.

use super::*;
use crate::error::Cause;

/// Whoever is called to a lease has it.
#[test]
fn a_lease_goes_to_the_first_who_still_waits() {
    let f = Fixture::new();
    let holder = f.hold();
    let leaver = f.behind();
    let (mut heir, mut last) = (f.behind(), f.behind());
    let state = Arc::clone(&holder.state);
    let former = f.keys.turn_of(&state);
    drop(leaver);
    assert!(matches!(holder.let_go(), LetGo::HandedOver(_)));
    let heir = heir.taken();
    f.keys.end_turn(&state, &former).wake();
    assert!(last.poll().is_pending(), "K2: the turn is the heir's");
    assert!(!heir.lease.is_lost());
    assert_eq!(heir.lease.fence(), 2, "P8");
}

#[test]
fn a_lease_is_not_handed_past_a_waiter_with_other_options() {
    let f = Fixture::new();
    let holder = f.hold();
    let mut other = f.clone();
    other.options.ttl = SECOND;
    let (mut first, mut second) = (other.behind(), f.behind());
    drop(holder);
    assert!(first.is_called_to_contend(), "K4");
    assert!(second.poll().is_pending());
}

#[test]
fn p11_a_lease_sent_to_a_waiter_that_leaves_goes_on() {
    let f = Fixture::new();
    let (holder, leaver, mut next) = (f.hold(), f.behind(), f.behind());
    drop(holder);
    assert!(next.poll().is_pending());
    drop(leaver);
    let next = next.taken();
    assert_eq!(next.lease.fence(), 3, "P8");
    drop(next);
    f.assert_nothing_left();
}

#[test]
fn p9_a_lease_sent_to_the_last_waiter_which_leaves_ends() {
    let f = Fixture::new();
    let (holder, leaver) = (f.hold(), f.behind());
    drop(holder);
    drop(leaver);
    f.assert_nothing_left();
}

#[test]
fn p9_a_lease_that_is_not_taken_up_is_taken_back_though_nobody_waits() {
    let f = Fixture::new();
    let (holder, mut unpolled) = (f.hold(), f.behind());
    let state = Arc::clone(&holder.state);
    drop(holder);
    f.reclaim(&state);
    f.assert_nothing_left();
    assert!(unpolled.is_called_to_contend(), "it comes anew");
}

#[test]
fn p1_a_lease_that_is_taken_back_goes_to_the_next() {
    let f = Fixture::new();
    let (holder, mut unpolled, mut next) = (f.hold(), f.behind(), f.behind());
    let state = Arc::clone(&holder.state);
    drop(holder);
    f.reclaim(&state);
    assert!(unpolled.poll().is_pending(), "it waits anew");
    let next = next.taken();
    drop(next);
    drop(unpolled.taken());
    f.assert_nothing_left();
}

#[test]
fn after_a_stretch_redis_is_asked() {
    let f = Fixture::new();
    let (holder, mut heir) = (f.hold(), f.behind());
    let end = f.options.handover_for;
    f.clock.advance(end);
    let (state, lease) = (Arc::clone(&holder.state), Arc::clone(&holder.lease));
    let claim = Arc::clone(&holder.claim);
    assert!(matches!(holder.let_go(), LetGo::Ask { fences: 10_000 }));
    assert!(heir.poll().is_pending());
    let fences = Fences {
        first: 5_000,
        count: 2,
    };
    let deadline = claim.deadline(f.clock.now());
    let kept = f.keys.kept(&state, &lease, fences, deadline);
    assert!(matches!(kept, LetGo::HandedOver(_)));
    let heir = heir.taken();
    assert_eq!(heir.lease.fence(), 5_001);
    assert_eq!(heir.lease.deadline(), deadline);
}

#[test]
fn p8_when_the_numbers_are_used_up_redis_is_asked() {
    let f = Fixture::new();
    let holder = f.first().win_with("v", 2);
    let (mut heir, _next) = (f.behind(), f.behind());
    drop(holder);
    assert!(matches!(heir.taken().let_go(), LetGo::Ask { .. }));
}

#[test]
fn a_claim_that_is_kept_for_nobody_is_released() {
    let f = Fixture::new();
    let holder = f.first().win_with("v", 1);
    let leaver = f.behind();
    let (state, lease, claim) = (
        Arc::clone(&holder.state),
        Arc::clone(&holder.lease),
        Arc::clone(&holder.claim),
    );
    assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
    drop(leaver);
    let deadline = claim.deadline(f.clock.now());
    let fences = Fences::floor(2);
    let LetGo::Release(taken_off) = f.keys.kept(&state, &lease, fences, deadline) else {
        panic!("nobody waits");
    };
    assert!(!taken_off.was_in_question && !taken_off.is_lost);
    f.keys.end_turn(&state, &taken_off.holder.unwrap()).wake();
    f.assert_nothing_left();
}

#[test]
fn after_a_question_without_an_answer_a_claim_is_only_released() {
    let f = Fixture::new();
    let holder = f.first().win_with("v", 1);
    let mut heir = f.behind();
    let (state, lease) = (Arc::clone(&holder.state), Arc::clone(&holder.lease));
    assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
    let LetGo::Release(taken_off) = f.keys.let_go(&state, &lease) else {
        panic!("K8");
    };
    assert!(taken_off.was_in_question && !taken_off.is_lost);
    f.keys.end_turn(&state, &taken_off.holder.unwrap()).wake();
    assert!(heir.is_called_to_contend());
}

#[test]
fn p13_a_lease_in_trouble_is_not_handed_on() {
    let f = Fixture::new();
    let (holder, mut waiter) = (f.hold(), f.behind());
    let cause = Cause::new(std::io::Error::other("on purpose"));
    holder.lease.note_failure(cause);
    drop(holder);
    assert!(waiter.is_called_to_contend());
}

#[test]
fn a_lease_that_nobody_renews_is_not_handed_on() {
    let mut f = Fixture::new();
    f.options.auto_renew = false;
    let (holder, mut waiter) = (f.hold(), f.behind());
    drop(holder);
    assert!(waiter.is_called_to_contend());
}

#[test]
fn p9_a_lease_that_its_holder_lets_go_is_not_renewed_any_more() {
    let f = Fixture::new();
    let (holder, _waiter) = (f.first().win_with("v", 1), f.behind());
    assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
    for _ in 0..3 {
        f.clock.advance(f.options().ttl / 2);
        assert!(f.due().is_empty(), "whoever lets go asks for itself");
        assert_eq!(f.keys.fall_asleep(), Some(Moment::NEVER), "no driver spins");
    }
}

#[test]
fn p4_an_heir_hears_what_was_told_while_redis_was_asked() {
    let f = Fixture::new();
    let (holder, mut heir) = (f.first().win_with("v", 1), f.behind());
    let (state, lease) = (Arc::clone(&holder.state), Arc::clone(&holder.lease));
    let claim = Arc::clone(&holder.claim);
    assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
    crate::backend::Signals::changed(&*f.keys, "k");
    assert!(f.due().is_empty());
    let deadline = claim.deadline(f.clock.now());
    let kept = f.keys.kept(&state, &lease, Fences::floor(2), deadline);
    assert!(matches!(kept, LetGo::HandedOver(_)));
    let _heir = heir.taken();
    f.clock.advance(super::super::held::YOUTH);
    assert!(matches!(f.due()[..], [Due::Ask(_)]));
}

/// Ways in which a lease is taken off.
type TakeOff = fn(&Fixture, &Arc<KeyState>, &Arc<Lease>);

#[test]
fn p4_a_lease_that_is_over_is_lost_by_whoever_takes_it_off() {
    let ways: [(&str, TakeOff); 4] = [
        ("take off", |f, state, lease| {
            assert!(f.keys.take_off(state, lease).is_lost);
        }),
        ("let go", |f, state, lease| {
            let LetGo::Release(taken_off) = f.keys.let_go(state, lease) else {
                panic!("nobody inherits a lease that is over");
            };
            assert!(taken_off.is_lost);
        }),
        ("due", |f, _, _| match &f.due()[..] {
            [Due::Expire(held)] => held.lease.expire(),
            other => panic!("{other:?}"),
        }),
        ("close", |f, _, _| {
            for held in f.keys.close().held {
                held.lease.lose(LostReason::Closed);
            }
        }),
    ];
    for (way, take_off) in ways {
        for was_read in [false, true] {
            let f = Fixture::new();
            let (holder, _waiter) = (f.hold(), f.behind());
            let token = holder.lease.token();
            f.clock.advance(f.options().ttl);
            assert!(!token.is_cancelled(), "the driver stands still");
            if was_read {
                assert!(holder.lease.is_lost());
            }
            take_off(&f, &holder.state, &holder.lease);
            assert!(token.is_cancelled(), "{way}");
            let again = f.keys.take_off(&holder.state, &holder.lease);
            assert!(again.holder.is_none() && !again.is_lost, "{way}");
        }
    }
}

#[test]
fn p4_a_lease_that_was_let_go_in_time_fires_no_token() {
    for is_kept in [false, true] {
        let f = Fixture::new();
        let (holder, _waiter) = (f.first().win_with("v", 1), f.behind());
        let (state, lease) = (Arc::clone(&holder.state), Arc::clone(&holder.lease));
        let (token, claim) = (lease.token(), Arc::clone(&holder.claim));
        assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
        // While its holder's request is under way.
        f.clock.advance(2 * f.options().ttl);
        assert!(lease.is_lost());
        let taken_off = if is_kept {
            let deadline = claim.deadline(f.clock.now());
            match f.keys.kept(&state, &lease, Fences::floor(2), deadline) {
                LetGo::Release(taken_off) => taken_off,
                other => panic!("nobody inherits a lease that is over: {other:?}"),
            }
        } else {
            f.keys.take_off(&state, &lease)
        };
        assert!(!taken_off.is_lost && !token.is_cancelled());
        f.keys.end_turn(&state, &taken_off.holder.unwrap()).wake();
    }
}

#[test]
fn what_is_lost_for_sure_needs_no_release() {
    for reason in [LostReason::Removed, LostReason::Stolen, LostReason::Closed] {
        let f = Fixture::new();
        let (holder, _waiter) = (f.hold(), f.behind());
        holder.lease.lose(reason);
        assert!(matches!(holder.let_go(), LetGo::Nothing(_)));
    }
}

/// What the driver asked before may be answered when the holder has let go by a request of its own.
#[test]
fn p9_a_turn_ends_although_the_driver_hears_that_a_ceded_lease_is_gone() {
    let f = Fixture::new();
    let (holder, mut waiter) = (f.first().win_with("v", 1), f.behind());
    f.clock.advance(f.options().ttl / 2);
    let due = f.due();
    let [Due::Ask(question)] = &due[..] else {
        panic!("{due:?}");
    };
    let (state, lease) = (Arc::clone(&holder.state), Arc::clone(&holder.lease));
    let token = lease.token();
    assert!(matches!(holder.let_go(), LetGo::Ask { .. }));
    let lost = f.keys.answer_renewal(&state, question, Renewal::Removed);
    assert!(lost.is_none(), "that is no loss (K7)");
    // Redis has passed the lock on.
    let taken_off = f.keys.take_off(&state, &lease);
    assert!(!taken_off.is_lost && !token.is_cancelled(), "L4");
    f.keys.end_turn(&state, &taken_off.holder.unwrap()).wake();
    assert!(waiter.is_called_to_contend());
}
