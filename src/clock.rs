//! A clock that counts the time that the machine sleeps.
//!
//! A Redis server goes on counting a key's TTL while the holder's machine is suspended. `Instant`
//! on Linux does not, so a lease measured by it would look alive after waking up. This clock is
//! `CLOCK_BOOTTIME` there; elsewhere the system's monotonic clock, which on macOS and Windows
//! counts sleep already.

use std::ops::Add;
use std::time::Duration;

/// A reading of the [`Clock`], in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Later than every reading.
    pub(crate) const NEVER: Self = Self(u64::MAX >> 1);

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    /// How long from `earlier` until `self`; zero if it is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)).min(Self::NEVER.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells the time of a lease.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    #[cfg(test)]
    Manual(std::sync::Arc<crate::sync::AtomicU64>),
    #[cfg(test)]
    Tokio(tokio::time::Instant),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands until it is told to advance.
    #[cfg(test)]
    pub(crate) fn manual() -> Self {
        Self(Source::Manual(std::sync::Arc::new(
            crate::sync::AtomicU64::new(1_000_000_000),
        )))
    }

    /// A clock that follows tokio's, which a test can pause.
    #[cfg(test)]
    pub(crate) fn tokio() -> Self {
        Self(Source::Tokio(tokio::time::Instant::now()))
    }

    #[cfg(test)]
    pub(crate) fn advance(&self, duration: Duration) {
        match &self.0 {
            Source::Manual(nanos) => {
                nanos.fetch_add(self::nanos(duration), std::sync::atomic::Ordering::SeqCst);
            }
            other => panic!("{other:?} does not take orders"),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        match &self.0 {
            Source::System => system_now(),
            #[cfg(test)]
            Source::Manual(nanos) => Moment(nanos.load(std::sync::atomic::Ordering::SeqCst)),
            #[cfg(test)]
            Source::Tokio(start) => Moment(1_000_000_000 + nanos(start.elapsed())),
        }
    }
}

#[cfg(unix)]
fn system_now() -> Moment {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const ID: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const ID: ClockId = ClockId::Monotonic;

    let now = clock_gettime(ID);
    Moment((now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64)
}

#[cfg(not(unix))]
fn system_now() -> Moment {
    use std::sync::LazyLock;
    use std::time::Instant;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // Not from zero, so that a moment "a lease ago" can be told in the first seconds, too.
    Moment(1_000_000_000 + nanos(START.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_moves_forward() {
        let clock = Clock::system();
        let first = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.now().since(first) >= Duration::from_millis(2));
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Moment(1) + Duration::MAX, Moment::NEVER);
        assert_eq!(Moment(1).minus(Duration::MAX), Moment(0));
        assert_eq!(Moment(1).since(Moment(2)), Duration::ZERO);
    }
}
