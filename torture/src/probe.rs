//! A holder of its own key, whose key is deleted under it: what nobody else wants must stay away
//! (P7). In the contended keys a value may come back for a moment, by a heartbeat that ran late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use redlease::Locker;

use crate::history::now;
use crate::server::connect;

const KEY: &str = "torture:probe";
const TTL: Duration = Duration::from_millis(300);
/// How old the lease is when its key is deleted: so young that a look finds that, and so old that a
/// renewal has been due, after which Redis tells.
const AGES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(150)];
const PAUSE: Duration = Duration::from_millis(500);

/// Probes until `until`; what it found.
pub async fn run(port: Arc<AtomicU16>, until: u64) -> Vec<String> {
    let mut violations = Vec::new();
    let mut ages = AGES.into_iter().cycle();
    while now() < until {
        tokio::time::sleep(PAUSE).await;
        let age = ages.next().unwrap_or_default();
        if let Ok(Some(violation)) = once(port.load(Ordering::SeqCst), age).await {
            violations.push(violation);
        }
    }
    violations
}

/// An error is a fault that got in the way: nothing was probed.
async fn once(port: u16, age: Duration) -> Result<Option<String>, Box<dyn std::error::Error>> {
    let locker = Locker::connect(format!("redis://127.0.0.1:{port}/")).await?;
    let lock = locker.mutex(KEY).ttl(TTL);
    // Longer, and a try that timed out may yet be carried out after the one that was answered.
    let Some(guard) = tokio::time::timeout(TTL, lock.try_lock()).await?? else {
        return Ok(None);
    };
    tokio::time::sleep(age).await;
    redis::cmd("DEL").arg(KEY).exec(&mut connect(port)?)?;
    // By then a renewal has been due.
    tokio::time::sleep(TTL * 2 / 3).await;
    let value: Option<String> = redis::cmd("GET").arg(KEY).query(&mut connect(port)?)?;
    let is_back = value.is_some_and(|value| value == guard.value());
    Ok(is_back.then(|| "P7: a deleted key was created again by its holder".to_owned()))
}
