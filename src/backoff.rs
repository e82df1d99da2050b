//! How long to wait before the next try.

use std::time::Duration;

/// Waits that double from a first length to a longest one, each with jitter, so that contenders
/// that failed together do not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            next: first,
            longest,
        }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        jittered(wait)
    }
}

/// Between one half and three halves of `duration`, at random.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.5 + fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_stay_within_the_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(8));
        for expected in [1, 2, 4, 8, 8, 8] {
            let wait = backoff.next();
            let middle = Duration::from_millis(expected);
            assert!(wait >= middle / 2 && wait <= middle * 3 / 2, "{wait:?}");
        }
    }
}
