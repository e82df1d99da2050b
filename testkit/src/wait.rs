//! Waiting for what a test expects, without guessing how long it takes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything takes on a slow machine: reaching it is a failure.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What servers agree on among themselves takes longer: a sentinel that was not given its time takes
/// no part for half a minute, and an election that comes to nothing is not repeated at once.
const AGREEMENT: Duration = Duration::from_secs(120);

/// How often it is looked at, which takes many questions to many servers.
const LOOK_AT_MANY_EVERY: Duration = Duration::from_millis(25);

/// A key that no other test has.
pub fn unique_key() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test:{}:{number}", std::process::id())
}

/// Waits until `done` says so, without a runtime; panics when it does not within [`DEADLINE`].
pub fn eventually_blocking(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits until `done` says so; panics when it does not within [`DEADLINE`].
pub async fn eventually(what: &str, done: impl FnMut() -> bool) {
    look(what, DEADLINE, LOOK_EVERY, done).await;
}

/// Waits until `done` says that servers have come to an agreement; panics when they do not within
/// [`AGREEMENT`].
pub(crate) async fn eventually_all(what: &str, done: impl FnMut() -> bool) {
    look(what, AGREEMENT, LOOK_AT_MANY_EVERY, done).await;
}

/// The same, looked at so often that the moment is known.
pub(crate) async fn eventually_agreed(what: &str, done: impl FnMut() -> bool) {
    look(what, AGREEMENT, LOOK_EVERY, done).await;
}

async fn look(what: &str, limit: Duration, every: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(every).await;
    }
}
