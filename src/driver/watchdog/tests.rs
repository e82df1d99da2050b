use super::*;
use crate::clock::Clock;
use crate::key::Key;

const TTL: Duration = Duration::from_millis(300);
const EVERY: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(1);

struct Fixture {
    clock: Clock,
    roster: Roster,
}

impl Fixture {
    fn new() -> Self {
        Self {
            clock: Clock::manual(),
            roster: Roster::default(),
        }
    }

    fn watch(&mut self, renew_every: Option<Duration>) -> (u64, Arc<Lease>) {
        let key = Arc::new(Key::new("", "k".to_owned()));
        let claim = Arc::new(Claim::new(Arc::clone(&key), "v".into(), TTL));
        let deadline = claim.deadline(self.clock.now());
        let lease = Arc::new(Lease::new(self.clock.clone(), key, 1, deadline, None));
        let watch = Watch::new(
            Arc::clone(&lease),
            claim,
            0,
            deadline,
            renew_every,
            Ear::Caller,
            self.clock.now(),
        );
        let (id, _) = self.roster.insert(watch).unwrap();
        (id, lease)
    }

    fn due(&mut self) -> Vec<Due> {
        self.roster.due(self.clock.now(), TIMEOUT)
    }
}

#[test]
fn nothing_is_due_before_the_first_renewal() {
    let mut f = Fixture::new();
    f.watch(Some(EVERY));
    f.clock.advance(EVERY * 9 / 10);
    assert!(f.due().is_empty());
    f.clock.advance(EVERY / 10);
    assert!(matches!(f.due()[..], [Due::Question { .. }]));
    assert!(f.due().is_empty(), "W2: one at a time");
}

#[test]
fn a_renewal_under_way_does_not_hide_the_deadline() {
    let mut f = Fixture::new();
    let (_, lease) = f.watch(Some(EVERY));
    f.clock.advance(EVERY);
    assert!(matches!(f.due()[..], [Due::Question { .. }]));
    f.clock.advance(lease.remaining());
    assert!(matches!(f.due()[..], [Due::Lost(_)]));
    assert!(f.due().is_empty(), "W1: told once");
}

#[test]
fn a_failed_renewal_is_tried_again_sooner() {
    let mut f = Fixture::new();
    let (id, _) = f.watch(Some(EVERY));
    f.clock.advance(EVERY);
    f.due();
    let now = f.clock.now();
    f.roster.unanswered(id, now);
    let retry = f.roster.fall_asleep().unwrap().since(now);
    assert!(retry > Duration::ZERO && retry < EVERY / 4, "{retry:?}");
}

#[test]
fn a_renewal_never_waits_longer_than_a_third_of_what_is_left() {
    let mut f = Fixture::new();
    f.watch(Some(EVERY));
    f.clock.advance(EVERY * 2);
    match f.due()[..] {
        [Due::Question { within, .. }] => assert!(within <= EVERY / 3, "{within:?}"),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn without_renewal_the_only_wake_is_the_deadline() {
    let mut f = Fixture::new();
    let (_, lease) = f.watch(None);
    assert_eq!(f.roster.fall_asleep(), Some(lease.deadline()));
}

#[test]
fn a_late_lease_does_not_wake_the_driver() {
    let mut f = Fixture::new();
    f.watch(Some(EVERY));
    f.roster.fall_asleep();
    f.clock.advance(EVERY / 2);
    let key = Arc::new(Key::new("", "other".to_owned()));
    let claim = Arc::new(Claim::new(Arc::clone(&key), "w".into(), TTL));
    let deadline = claim.deadline(f.clock.now());
    let lease = Arc::new(Lease::new(f.clock.clone(), key, 1, deadline, None));
    let watch = Watch::new(
        lease,
        claim,
        0,
        deadline,
        Some(EVERY),
        Ear::Caller,
        f.clock.now(),
    );
    let (_, wake) = f.roster.insert(watch).unwrap();
    assert!(!wake);
}

#[test]
fn renewals_that_fall_due_together_go_out_together() {
    let mut f = Fixture::new();
    for _ in 0..100 {
        f.watch(Some(EVERY));
        f.clock.advance(Duration::from_micros(10));
    }
    f.clock.advance(EVERY - Duration::from_millis(1));
    assert_eq!(f.due().len(), 100);
}

#[test]
fn p4_a_change_told_while_two_questions_are_under_way_is_asked_about() {
    let mut f = Fixture::new();
    let (id, lease) = f.watch(Some(EVERY));
    f.clock.advance(EVERY);
    assert_eq!(f.due().len(), 1);
    let now = f.clock.now();
    f.roster.changed(None, None, now);
    for asked_by_driver in [false, true] {
        let deadline = lease.deadline();
        let ear = Ear::Caller;
        f.roster.renewed(id, deadline, ear, asked_by_driver, now);
    }
    assert_eq!(f.due().len(), 1, "neither answer may be newer");
}

/// Whether each of the questions that are due extends.
fn extends(due: &[Due]) -> Vec<bool> {
    let extend = due.iter().map(|due| match due {
        Due::Question { extend, .. } => *extend,
        lost @ Due::Lost(_) => panic!("{lost:?}"),
    });
    extend.collect()
}

#[test]
fn a_change_is_looked_at_and_puts_no_renewal_off() {
    let mut f = Fixture::new();
    let (id, lease) = f.watch(Some(EVERY));
    let renewal_at = f.roster.fall_asleep();
    for _ in 0..10 {
        f.clock.advance(EVERY / 20);
        let now = f.clock.now();
        assert!(f.roster.changed(None, None, now), "the driver is woken");
        assert_eq!(extends(&f.due()), [false]);
        assert!(f.due().is_empty(), "W2: one at a time");
        f.roster.looked(id, Some(lease.deadline()), now);
        assert_eq!(f.roster.fall_asleep(), renewal_at);
    }
    f.roster.changed(None, None, f.clock.now());
    assert_eq!(extends(&f.due()), [false]);
    // The renewal comes due while the look is under way.
    f.clock.advance(EVERY);
    f.roster.looked(id, Some(lease.deadline()), f.clock.now());
    assert_eq!(extends(&f.due()), [true]);
}

#[test]
fn a_change_at_the_time_of_a_renewal_costs_no_look() {
    let mut f = Fixture::new();
    f.watch(Some(EVERY));
    f.clock.advance(EVERY);
    f.roster.changed(None, None, f.clock.now());
    assert_eq!(extends(&f.due()), [true]);
}

#[test]
fn a_key_whose_life_was_shortened_is_renewed_at_once() {
    for until in [None, Some(EVERY)] {
        let mut f = Fixture::new();
        let (id, _) = f.watch(Some(EVERY));
        let now = f.clock.now();
        f.roster.changed(None, None, now);
        assert_eq!(extends(&f.due()), [false]);
        f.roster.looked(id, until.map(|until| now + until), now);
        assert_eq!(extends(&f.due()), [true]);
    }
}

/// The answer may be older than the look.
#[test]
fn a_caller_that_renews_does_not_put_a_repair_off() {
    let mut f = Fixture::new();
    let (id, lease) = f.watch(Some(EVERY));
    let now = f.clock.now();
    f.roster.changed(None, None, now);
    assert_eq!(extends(&f.due()), [false]);
    f.roster.looked(id, Some(now + EVERY), now);
    f.roster
        .renewed(id, lease.deadline(), Ear::Caller, false, now);
    assert_eq!(extends(&f.due()), [true]);
}

#[test]
fn a_key_that_the_holder_renews_is_only_looked_at() {
    let mut f = Fixture::new();
    let (id, _) = f.watch(None);
    let now = f.clock.now();
    f.roster.changed(None, None, now);
    assert_eq!(extends(&f.due()), [false]);
    f.roster.looked(id, None, now);
    assert!(f.due().is_empty());
}

#[test]
fn a_look_that_fails_is_tried_again_as_a_look() {
    let mut f = Fixture::new();
    let (id, _) = f.watch(Some(EVERY));
    f.roster.changed(None, None, f.clock.now());
    assert_eq!(extends(&f.due()), [false]);
    f.roster.unanswered(id, f.clock.now());
    f.clock.advance(EVERY / 4);
    assert_eq!(extends(&f.due()), [false]);
}

/// Whichever of them ran last, whoever hears of a change is listened to.
#[test]
fn p4_of_renewals_that_cross_neither_decides_who_hears_of_changes() {
    let ears = [Ear::Caller, Ear::Driver];
    for first in ears {
        for heard in ears {
            let mut f = Fixture::new();
            let (id, lease) = f.watch(Some(EVERY));
            f.clock.advance(EVERY);
            assert_eq!(extends(&f.due()), [true]);
            let deadline = lease.deadline() + EVERY;
            let second = ears.into_iter().find(|ear| *ear != first).unwrap();
            for ear in [first, second] {
                f.clock.advance(EVERY / 20);
                let by_driver = ear == Ear::Driver;
                f.roster
                    .renewed(id, deadline, ear, by_driver, f.clock.now());
            }
            f.roster.changed(None, Some(heard), f.clock.now());
            assert_eq!(extends(&f.due()), [false], "{first:?}, {heard:?}");
        }
    }
}

#[test]
fn p4_the_connection_of_the_last_renewal_hears_of_changes() {
    let ears = [Ear::Caller, Ear::Driver];
    for ear in ears {
        let mut f = Fixture::new();
        let (id, lease) = f.watch(Some(EVERY));
        f.clock.advance(EVERY);
        assert_eq!(extends(&f.due()), [true]);
        f.roster.renewed(
            id,
            lease.deadline() + EVERY,
            Ear::Driver,
            true,
            f.clock.now(),
        );
        f.clock.advance(EVERY / 2);
        let deadline = lease.deadline() + EVERY / 2;
        f.roster.renewed(id, deadline, ear, false, f.clock.now());
        for heard in ears {
            f.roster.changed(None, Some(heard), f.clock.now());
            assert_eq!(f.due().len(), usize::from(heard == ear), "{heard:?}");
        }
    }
}

#[test]
fn a_closed_roster_takes_no_lease() {
    let mut f = Fixture::new();
    let (_, lease) = f.watch(Some(EVERY));
    assert_eq!(f.roster.close().len(), 1);
    let claim = Arc::new(Claim::new(Arc::clone(lease.key()), "v".into(), TTL));
    let watch = Watch::new(
        Arc::clone(&lease),
        claim,
        0,
        lease.deadline(),
        None,
        Ear::Caller,
        f.clock.now(),
    );
    assert!(f.roster.insert(watch).is_err());
}

#[test]
fn p9_a_lease_that_its_holder_lets_go_is_not_renewed_any_more() {
    let mut f = Fixture::new();
    let (id, lease) = f.watch(Some(EVERY));
    f.roster.cede(id);
    f.clock.advance(EVERY * 2);
    assert!(f.due().is_empty(), "whoever cedes it asks for itself");
    let next = f.roster.fall_asleep();
    assert_eq!(next, Some(lease.deadline()), "the driver does not spin");
}
