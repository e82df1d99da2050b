//! When the driver wakes up.

use super::held::{EVERY, fixture};
use super::*;
use crate::backend::Signals;

#[test]
fn a_late_lease_does_not_wake_the_driver() {
    let f = fixture(true);
    let _first = f.hold();
    assert!(f.keys.schedule.was_woken(), "it slept without end");
    f.keys.fall_asleep();
    f.clock.advance(EVERY / 2);
    let _second = f.beside("other").hold();
    assert!(!f.keys.schedule.was_woken());
}

#[test]
fn an_early_moment_wakes_the_driver() {
    let f = fixture(true);
    let _first = f.hold();
    f.keys.fall_asleep();
    assert!(f.keys.schedule.was_woken());
    let other = Fixture {
        options: Options {
            max_hold: Some(EVERY / 2),
            ..f.options
        },
        ..f.beside("other")
    };
    let _second = other.hold();
    assert!(f.keys.schedule.was_woken());
    assert_eq!(f.keys.fall_asleep(), Some(f.clock.now() + EVERY / 2));
}

/// The driver wakes up for the first of them, and for none of the others until then.
#[test]
fn short_cycles_do_not_wake_the_driver_each_time() {
    let f = Fixture::new();
    let (mut woken, mut sleep) = (0, None);
    for _ in 0..1000 {
        drop(f.hold());
        f.clock.advance(Duration::from_millis(1));
        let was_woken = f.keys.schedule.was_woken();
        woken += u32::from(was_woken);
        if was_woken || sleep.is_some_and(|until| until <= f.clock.now()) {
            assert!(f.due().is_empty());
            sleep = f.keys.fall_asleep();
        }
    }
    assert!((1..=20).contains(&woken), "{woken}");
    f.assert_nothing_left();
    f.clock.advance(SECOND);
    assert_eq!(f.keys.fall_asleep(), None, "it sleeps when nobody comes");
}

#[test]
fn a_contender_and_its_waiters_do_not_wake_the_driver() {
    let f = Fixture::new();
    let (turn, waiters) = (f.first(), [f.behind(), f.behind()]);
    assert_eq!(f.keys.fall_asleep(), None);
    drop((turn, waiters));
    assert!(!f.keys.schedule.was_woken());
}

#[test]
fn p4_an_heir_with_a_max_hold_wakes_the_driver() {
    let f = Fixture::new();
    let holder = f.hold();
    let hasty = Fixture {
        options: Options {
            max_hold: Some(Duration::from_millis(10)),
            ..f.options
        },
        ..f.clone()
    };
    let mut heir = hasty.behind();
    f.keys.fall_asleep();
    assert!(f.keys.schedule.was_woken());
    drop(holder);
    assert!(f.keys.schedule.was_woken());
    let end = f.clock.now() + Duration::from_millis(10);
    assert_eq!(f.keys.fall_asleep(), Some(end));
    assert!(heir.poll().is_ready());
    f.clock.advance(Duration::from_millis(10));
    assert!(matches!(f.due()[..], [Due::Expire(_)]), "P4");
}

/// Some users of a few keys, who take steps at random.
struct Walk {
    f: Fixture,
    random: fastrand::Rng,
    users: Vec<(User, bool)>,
    holders: Vec<Holder>,
    asked: Vec<(Arc<KeyState>, Question)>,
}

impl Walk {
    fn new(seed: u64) -> Self {
        Self {
            f: Fixture::new(),
            random: fastrand::Rng::with_seed(seed),
            users: Vec::new(),
            holders: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.random.u8(0..12) {
            0..3 => {
                let key = ["a", "b", "c"][self.random.usize(0..3)];
                let options = Options {
                    handover_for: Duration::from_millis(self.random.u64(0..2) * 10),
                    max_hold: self.random.bool().then_some(SECOND),
                    ..Options::default()
                };
                let f = Fixture {
                    options,
                    ..self.f.beside(key)
                };
                match f.enter(true) {
                    Arrival::Turn(state, waiter) => self.users.push((f.user(state, waiter), true)),
                    Arrival::Behind(state, waiter) => {
                        self.users.push((f.user(state, waiter), false));
                    }
                    other => panic!("{other:?}"),
                }
            }
            3 => drop(self.any_user()),
            4..6 => self.go_on(),
            6 => drop(self.any_holder()),
            7 => {
                let step = self.random.u64(1..200);
                self.f.clock.advance(Duration::from_millis(step));
                for (state, due) in self.f.keys.due(self.f.clock.now(), SECOND) {
                    match due {
                        Due::Ask(question) => self.asked.push((state, question)),
                        Due::Expire(held) => {
                            held.lease.expire();
                            self.f.keys.end_turn(&state, &held.holder).wake();
                        }
                    }
                }
            }
            8 => self.answer(),
            9 => self.f.keys.changed("a"),
            10 => {
                if let Some((user, _)) = self.users.iter().find(|(_, contends)| *contends) {
                    let is_contended = self.random.bool();
                    self.f.keys.note_contention(&user.state, is_contended);
                    user.queue(&self.random.u64(..).to_string());
                }
            }
            _ => {
                if let Some((user, _)) = self.users.first() {
                    self.f.reclaim(&user.state);
                }
            }
        }
    }

    fn any_user(&mut self) -> Option<(User, bool)> {
        let count = self.users.len();
        (count > 0).then(|| self.users.swap_remove(self.random.usize(..count)))
    }

    fn any_holder(&mut self) -> Option<Holder> {
        let count = self.holders.len();
        (count > 0).then(|| self.holders.swap_remove(self.random.usize(..count)))
    }

    /// Polls one that waits, or lets one that contends win.
    fn go_on(&mut self) {
        let Some((mut user, contends)) = self.any_user() else {
            return;
        };
        if contends {
            // Redis grants to nobody while somebody holds.
            let key = Arc::clone(&user.state);
            let is_free = !self.holders.iter().any(|h| Arc::ptr_eq(&h.state, &key));
            return match is_free && key.lock().held.is_empty() {
                true => self.holders.push(user.win()),
                false => self.users.push((user, true)),
            };
        }
        match user.poll() {
            Poll::Pending => self.users.push((user, false)),
            Poll::Ready(Some(Call::Contend { .. })) => self.users.push((user, true)),
            Poll::Ready(Some(call @ Call::Hold(..))) => self.holders.push(user.take(call)),
            Poll::Ready(_) => panic!("nobody closed, and the store answered"),
        }
    }

    fn answer(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let place = self.random.usize(..self.asked.len());
        let (state, question) = self.asked.swap_remove(place);
        let keys = &self.f.keys;
        let lost = match self.random.u8(0..4) {
            0 => keys.answer_look(&state, &question, Look::Ours { until: None }),
            1 => keys.answer_renewal(&state, &question, Renewal::Removed),
            _ => {
                let deadline = question.claim.deadline(self.f.clock.now());
                keys.answer_renewal(&state, &question, Renewal::Renewed { deadline })
            }
        };
        if let Some((held, reason)) = lost {
            held.lease.lose(reason);
            keys.end_turn(&state, &held.holder).wake();
        }
    }
}

#[test]
fn the_schedule_has_one_moment_for_each_key_whatever_happens() {
    for seed in 0..200 {
        let mut walk = Walk::new(seed);
        for _ in 0..200 {
            walk.step();
            walk.f.assert_consistent();
        }
        walk.users.clear();
        walk.holders.clear();
        walk.f.clock.advance(REMEMBERED);
        let _ = walk.f.due();
        walk.f.assert_nothing_left();
    }
}
