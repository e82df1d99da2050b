//! How long an acquisition goes on while the server cannot be reached or does not answer.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::Fault;

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// A request gets this long even when the wait is all but over.
const LAST_REQUEST: Duration = Duration::from_millis(100);

/// The time since the last answer, or since the beginning.
#[derive(Debug)]
pub(crate) struct Outage {
    outage_limit: Duration,
    /// The end of the caller's wait, if it has one.
    limit: Option<Instant>,
    since: Instant,
    retry: Backoff,
}

impl Outage {
    /// One that may have begun before, when somebody else asked.
    pub(crate) fn new(outage_limit: Duration, limit: Option<Instant>, since: Instant) -> Self {
        Self {
            outage_limit,
            limit,
            since,
            retry: retry(),
        }
    }

    /// The server answered.
    pub(crate) fn is_over(&mut self) {
        self.since = Instant::now();
        self.retry = retry();
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// How long a request may take that is sent now.
    pub(crate) fn bound(&self, command_timeout: Duration) -> Duration {
        let left = self.end() - Instant::now();
        command_timeout.min(left.max(LAST_REQUEST))
    }

    /// When to try again after a fault; gives it back if it is time to give up.
    pub(crate) fn next_try(&mut self, fault: Fault) -> Result<Instant, Fault> {
        let now = Instant::now();
        let end = self.end();
        if fault.permanent || now >= end {
            return Err(fault);
        }
        Ok((now + self.retry.next()).min(end))
    }

    fn end(&self) -> Instant {
        let end = self.since + self.outage_limit;
        self.limit.map_or(end, |limit| limit.min(end))
    }
}

fn retry() -> Backoff {
    Backoff::new(FIRST_RETRY, LONGEST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::redis::connection::no_answer;

    fn fault() -> Fault {
        no_answer(&"server".into(), "nothing")
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_time_without_an_answer_is_over() {
        let second = Duration::from_secs(1);
        let mut outage = Outage::new(second, None, Instant::now());
        assert!(outage.next_try(fault()).is_ok());
        tokio::time::advance(second / 2).await;
        outage.is_over();
        tokio::time::advance(second * 3 / 4).await;
        assert!(outage.next_try(fault()).is_ok(), "counted from the answer");
        tokio::time::advance(second / 4).await;
        assert!(outage.next_try(fault()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_caller_stops_waiting() {
        let second = Duration::from_secs(1);
        let mut outage = Outage::new(10 * second, Some(Instant::now() + second), Instant::now());
        assert_eq!(outage.bound(10 * second), second);
        tokio::time::advance(second).await;
        assert_eq!(outage.bound(10 * second), LAST_REQUEST);
        assert!(outage.next_try(fault()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_for_good_ends_it_at_once() {
        let mut outage = Outage::new(Duration::from_secs(1), None, Instant::now());
        let refusal = Fault {
            permanent: true,
            ..fault()
        };
        assert!(outage.next_try(refusal).is_err());
    }
}
