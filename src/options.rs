//! What a lock can be told, and what it refuses to be told.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;

pub(crate) const SHORTEST_TTL: Duration = Duration::from_millis(10);
const SHORTEST_RENEWAL: Duration = Duration::from_millis(1);
/// The longest time that any option takes, 100 years: below what Redis takes as a TTL, and far from
/// where clock arithmetic could overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// No stretch reserves more fencing numbers than a second has microseconds.
const LARGEST_BLOCK: u64 = 1_000_000;

/// What is taken off a lease at this end (P3): clock rates may differ by 1 %, and the server's
/// clock has a resolution of a millisecond.
pub(crate) fn margin(ttl: Duration) -> Duration {
    ttl / 100 + Duration::from_millis(2)
}

/// The options of a lock, as given. The defaults of a locker are these, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) ttl: Duration,
    pub(crate) renew_every: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) auto_renew: bool,
    pub(crate) handover_for: Duration,
    pub(crate) outage_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            renew_every: None,
            max_hold: None,
            auto_renew: true,
            handover_for: Duration::from_millis(10),
            outage_limit: Duration::from_secs(10),
        }
    }
}

/// Options that have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedOptions {
    /// In whole milliseconds.
    pub(crate) ttl: Duration,
    /// `None`: the watchdog does not renew.
    pub(crate) renew_every: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) handover_for: Duration,
    pub(crate) outage_limit: Duration,
}

impl Options {
    /// Checks the options of the lock on `key`, or the defaults of a locker.
    pub(crate) fn check(&self, key: Option<&Arc<str>>) -> Result<CheckedOptions, Error> {
        let refuse = |problem: String| Err(Error::invalid(key, problem));
        if self.ttl < SHORTEST_TTL {
            return refuse(format!("ttl must be at least {SHORTEST_TTL:?}"));
        }
        let lengths = [
            ("ttl", Some(self.ttl)),
            ("renew_every", self.renew_every),
            ("max_hold", self.max_hold),
            ("handover_for", Some(self.handover_for)),
            ("outage_limit", Some(self.outage_limit)),
        ];
        for (name, length) in lengths {
            if length.is_some_and(|length| length > LONGEST) {
                return refuse(format!("{name} must be at most 100 years"));
            }
        }
        if self.max_hold == Some(Duration::ZERO) {
            return refuse("max_hold must not be zero".to_owned());
        }
        let ttl = Duration::from_millis(whole_millis(self.ttl));
        let renew_every = self.renew_every.unwrap_or(ttl / 3);
        if renew_every < SHORTEST_RENEWAL {
            return refuse(format!("renew_every must be at least {SHORTEST_RENEWAL:?}"));
        }
        let life = ttl - margin(ttl);
        if renew_every >= life {
            return refuse(format!(
                "renew_every must be less than {life:?}, which is how long a lease with a ttl of \
                 {ttl:?} lasts"
            ));
        }
        Ok(CheckedOptions {
            ttl,
            renew_every: self.auto_renew.then_some(renew_every),
            max_hold: self.max_hold,
            handover_for: self.handover_for,
            outage_limit: self.outage_limit,
        })
    }
}

impl CheckedOptions {
    /// Whether a lease with these options can go over, as it is, to a holder with `other` options.
    pub(crate) fn shares_lease_with(&self, other: &Self) -> bool {
        self.ttl == other.ttl
            && self.renew_every == other.renew_every
            && self.hands_over()
            && other.hands_over()
    }

    /// Whether a lease with these options is ever handed over. One that nobody renews is not: its
    /// taker would have less than the TTL that it asked for.
    pub(crate) fn hands_over(&self) -> bool {
        self.renew_every.is_some() && !self.handover_for.is_zero()
    }

    /// How many fencing numbers a stretch of hand-overs takes: one a microsecond, so that the
    /// counter does not run ahead of the clock (P8).
    pub(crate) fn fences_of_a_stretch(&self) -> u64 {
        let micros = u64::try_from(self.handover_for.as_micros()).unwrap_or(u64::MAX);
        // The holder's own and one for its heir, at least.
        micros.clamp(2, LARGEST_BLOCK)
    }
}

/// The time that a caller is willing to wait, within what a clock can add up: 100 years and for
/// ever are the same.
pub(crate) fn wait_of(limit: Duration) -> Duration {
    limit.min(LONGEST)
}

pub(crate) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut Options)) -> String {
        let mut options = Options::default();
        change(&mut options);
        options.check(Some(&"k".into())).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_usable() {
        let checked = Options::default().check(None).unwrap();
        assert_eq!(checked.renew_every, Some(Duration::from_secs(10) / 3));
    }

    #[test]
    fn the_shortest_ttl_is_usable() {
        let options = Options {
            ttl: SHORTEST_TTL,
            ..Options::default()
        };
        options.check(Some(&"k".into())).unwrap();
    }

    #[test]
    fn the_shortest_stretch_reserves_a_number_for_an_heir() {
        let options = Options {
            handover_for: Duration::from_nanos(1),
            ..Options::default()
        };
        let checked = options.check(Some(&"k".into())).unwrap();
        assert!(checked.hands_over());
        assert_eq!(checked.fences_of_a_stretch(), 2);
    }

    #[test]
    fn each_bad_option_is_named() {
        let second = Duration::from_secs(1);
        for (name, text) in [
            ("ttl", problem(|o| o.ttl = Duration::from_micros(9_999))),
            ("ttl", problem(|o| o.ttl = Duration::MAX)),
            (
                "renew_every",
                problem(|o| o.renew_every = Some(10 * second)),
            ),
            (
                "renew_every",
                problem(|o| o.renew_every = Some(Duration::ZERO)),
            ),
            (
                "renew_every",
                problem(|o| o.renew_every = Some(Duration::MAX)),
            ),
            ("max_hold", problem(|o| o.max_hold = Some(Duration::ZERO))),
            ("max_hold", problem(|o| o.max_hold = Some(Duration::MAX))),
            ("handover_for", problem(|o| o.handover_for = Duration::MAX)),
            ("outage_limit", problem(|o| o.outage_limit = Duration::MAX)),
        ] {
            assert!(text.starts_with("lock \"k\": "), "{text}");
            assert!(text.contains(name), "{text}");
        }
    }
}
