//! How soon a change of the key is known here: to one who waits, and to one who holds.

#![allow(unreachable_pub, reason = "a module of a program")]

use std::error::Error;
use std::time::{Duration, Instant};

use redis::Commands;
use redlease::Locker;

const TRIES: usize = 50;
const TTL: Duration = Duration::from_secs(10);
/// A crashed holder's key lives this long: past the first heartbeats.
const LIFE: Duration = Duration::from_millis(100);
/// Whoever is to hear of a change has asked by then.
const A_MOMENT: Duration = Duration::from_millis(20);

/// Measures, and prints the medians.
pub fn print(url: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let locker = Locker::connect(url).await?;
        let mut foreign = redis::Client::open(url)?.get_connection()?;
        let key = format!("{prefix}latency");
        let (mut freed, mut expired, mut stolen) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TRIES {
            freed.push(foreign_del(&locker, &mut foreign, &key).await?);
            expired.push(expiry(&locker, &mut foreign, &key).await?);
            stolen.push(theft(&locker, &mut foreign, &key).await?);
        }
        println!("median and worst of {TRIES} tries, ms:");
        row("a foreign DEL until a waiter has the lock", freed);
        row("a crashed holder's expiry until a waiter has it", expired);
        row("a theft until the holder's token fires", stolen);
        Ok(())
    })
}

fn row(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let millis = |index: usize| times[index].as_secs_f64() * 1e3;
    println!(
        "  {name:50} {:8.3} {:8.3}",
        millis(TRIES / 2),
        millis(TRIES - 1)
    );
}

/// From the end of `event` until a waiter has the lock.
async fn until_locked(
    locker: &Locker,
    key: &str,
    event: impl AsyncFnOnce() -> Result<Instant, redis::RedisError>,
) -> Result<Duration, Box<dyn Error>> {
    let lock = locker.mutex(key).ttl(TTL);
    let waiter = tokio::spawn(async move {
        let guard = lock.lock().await?;
        let at = Instant::now();
        guard.release().await?;
        Ok::<_, redlease::Error>(at)
    });
    let since = event().await?;
    Ok(waiter.await??.saturating_duration_since(since))
}

async fn foreign_del(
    locker: &Locker,
    foreign: &mut redis::Connection,
    key: &str,
) -> Result<Duration, Box<dyn Error>> {
    let () = foreign.set(key, "foreign")?;
    let event = async || {
        tokio::time::sleep(A_MOMENT).await;
        let at = Instant::now();
        let () = foreign.del(key)?;
        Ok(at)
    };
    until_locked(locker, key, event).await
}

async fn expiry(
    locker: &Locker,
    foreign: &mut redis::Connection,
    key: &str,
) -> Result<Duration, Box<dyn Error>> {
    let () = foreign.pset_ex(key, "foreign", LIFE.as_millis() as u64)?;
    // The server counts from no later than this.
    let expires = Instant::now() + LIFE;
    until_locked(locker, key, async || Ok(expires)).await
}

async fn theft(
    locker: &Locker,
    foreign: &mut redis::Connection,
    key: &str,
) -> Result<Duration, Box<dyn Error>> {
    let guard = locker.mutex(key).ttl(TTL).lock().await?;
    let lost = guard.lost();
    let witness = tokio::spawn(async move {
        lost.cancelled().await;
        Instant::now()
    });
    tokio::time::sleep(A_MOMENT).await;
    let at = Instant::now();
    let () = foreign.set(key, "thief")?;
    let fired = witness.await?;
    drop(guard);
    let () = foreign.del(key)?;
    Ok(fired.saturating_duration_since(at))
}
