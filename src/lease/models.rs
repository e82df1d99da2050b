//! All orders in which the watchdog, a renewal, a reader and a loss can meet at one lease.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::clock::Clock;
use crate::error::LostReason;
use crate::key::Key;
use crate::lease::Lease;

const TTL: Duration = Duration::from_millis(100);

fn lease() -> (Clock, Arc<Lease>) {
    let clock = Clock::manual();
    let key = Arc::new(Key::new("", "k".to_owned()));
    let lease = Lease::new(clock.clone(), key, 7, clock.now() + TTL, None);
    (clock, Arc::new(lease))
}

/// A lease whose deadline has passed and nobody has looked.
fn overdue() -> (Clock, Arc<Lease>) {
    let (clock, lease) = lease();
    clock.advance(TTL);
    (clock, lease)
}

fn in_thread<T: 'static>(
    lease: &Arc<Lease>,
    f: impl FnOnce(&Lease) -> T + 'static,
) -> thread::JoinHandle<T> {
    let lease = Arc::clone(lease);
    thread::spawn(move || f(&lease))
}

fn name(reason: Option<LostReason>) -> &'static str {
    match reason {
        None => "held",
        Some(LostReason::Expired) => "expired",
        Some(LostReason::Removed) => "removed",
        Some(LostReason::Stolen) => "stolen",
        Some(_) => "another",
    }
}

/// L2: who was told "lost" is never proved wrong by an extension, and an extension that succeeded
/// is never ended by the deadline before it.
#[test]
fn p5_a_renewal_that_meets_the_deadline_is_before_it_or_fails() {
    loom::model(|| {
        let (clock, lease) = lease();
        let later = clock.now() + 3 * TTL;
        let renewal = in_thread(&lease, move |lease| lease.extend(later));
        let time = thread::spawn(move || clock.advance(TTL));
        let first = lease.is_lost();
        let second = lease.is_lost();
        time.join().unwrap();
        let extended = renewal.join().unwrap();
        assert!(second || !first, "P5: lost, and held again");
        assert_eq!(lease.is_lost(), !extended, "L2");
        assert!(!first || !extended, "L2: extended after a reader was told");
    });
}

#[test]
fn p5_of_two_renewals_at_the_deadline_none_revives_the_lease() {
    loom::model(|| {
        let (clock, lease) = overdue();
        let late = [2, 3].map(|times| {
            let until = clock.now() + times * TTL;
            in_thread(&lease, move |lease| lease.extend(until))
        });
        let lost = lease.is_lost();
        for renewal in late {
            assert!(!renewal.join().unwrap());
        }
        assert!(lost && lease.is_lost());
    });
}

#[test]
fn p7_two_renewals_leave_the_later_deadline() {
    loom::model(|| {
        let (clock, lease) = lease();
        let [first, second] = [2, 3].map(|times| clock.now() + times * TTL);
        let renewal = in_thread(&lease, move |lease| lease.extend(first));
        assert!(lease.extend(second));
        assert!(renewal.join().unwrap());
        assert_eq!(lease.deadline(), second);
    });
}

/// P4, P5: a loss that Redis told is final, whatever a renewal under way finds.
#[test]
fn p5_a_loss_beats_every_renewal() {
    loom::model(|| {
        let (clock, lease) = lease();
        let token = lease.token();
        let later = clock.now() + 3 * TTL;
        let renewal = in_thread(&lease, move |lease| lease.extend(later));
        let loss = in_thread(&lease, |lease| lease.lose(LostReason::Removed));
        let first = lease.is_lost();
        assert!(lease.is_lost() || !first, "P5");
        renewal.join().unwrap();
        loss.join().unwrap();
        assert!(lease.is_lost());
        assert!(token.is_cancelled(), "P4");
        assert_eq!(name(lease.lost_reason()), "removed");
    });
}

/// L3: all who ask for the reason get the same.
#[test]
fn p5_the_reason_that_anybody_was_told_stays() {
    loom::model(|| {
        let (_clock, lease) = lease();
        let losses = [
            in_thread(&lease, |lease| lease.lose(LostReason::Stolen)),
            in_thread(&lease, |lease| lease.lose(LostReason::Removed)),
        ];
        let told = name(lease.lost_reason());
        for loss in losses {
            loss.join().unwrap();
        }
        let finally = name(lease.lost_reason());
        assert!(["stolen", "removed"].contains(&finally));
        assert!(told == "held" || told == finally, "{told}, then {finally}");
    });
}

#[test]
fn p5_a_theft_heard_of_at_the_deadline_has_one_reason() {
    loom::model(|| {
        let (_clock, lease) = overdue();
        let loss = in_thread(&lease, |lease| lease.lose(LostReason::Stolen));
        let watchdog = in_thread(&lease, Lease::expire);
        let told = name(lease.lost_reason());
        loss.join().unwrap();
        watchdog.join().unwrap();
        assert_eq!(told, name(lease.lost_reason()));
    });
}

/// L4: whoever asks for the token, before or after, hears of the loss.
#[test]
fn p4_a_token_asked_for_while_the_lease_is_lost_fires() {
    loom::model(|| {
        let (_clock, lease) = lease();
        let asked = in_thread(&lease, Lease::token);
        let loss = in_thread(&lease, |lease| lease.lose(LostReason::Removed));
        let token = lease.token();
        loss.join().unwrap();
        assert!(token.is_cancelled());
        assert!(asked.join().unwrap().is_cancelled());
        assert!(lease.token().is_cancelled());
    });
}

#[test]
fn p4_the_token_fires_although_a_reader_was_first_to_see_the_deadline_pass() {
    loom::model(|| {
        let (_clock, lease) = overdue();
        let asked = in_thread(&lease, Lease::token);
        let watchdog = in_thread(&lease, Lease::expire);
        assert!(lease.is_lost());
        watchdog.join().unwrap();
        assert!(asked.join().unwrap().is_cancelled());
        assert_eq!(name(lease.lost_reason()), "expired");
    });
}

/// P4: a token that has fired is never found on a lease that says that it is held.
#[test]
fn p5_who_sees_the_token_fall_finds_the_lease_lost() {
    loom::model(|| {
        let (clock, lease) = lease();
        let token = lease.token();
        let later = clock.now() + 3 * TTL;
        let renewal = in_thread(&lease, move |lease| lease.extend(later));
        let loss = in_thread(&lease, |lease| lease.lose(LostReason::Stolen));
        if token.is_cancelled() {
            assert!(lease.is_lost());
            assert_eq!(name(lease.lost_reason()), "stolen");
        }
        renewal.join().unwrap();
        loss.join().unwrap();
    });
}
