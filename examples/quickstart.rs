//! What a lock does, in four scenes: waiting, renewal, loss, and fencing.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! Runs on the Redis that `REDIS_URL` names; else on a redis-server of its own, if one is on the
//! PATH; else in memory. On a Redis that is not its own, its keys begin with `redlease-example:`,
//! and a few counters stay there for seven days.

mod support;

use std::time::{Duration, Instant};

use redlease::{Error, Lock, Locker};
use support::{Redis, Store};
use tokio::time::sleep;

const TTL: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redis = Redis::find();
    // Two lockers are to each other what two processes are.
    let (alice, bob) = match redis.url() {
        Some(url) => (
            connect(&url, "alice", &redis).await?,
            connect(&url, "bob", &redis).await?,
        ),
        None => {
            let locker = Locker::in_memory();
            (locker.clone(), locker)
        }
    };

    println!("\n1. Two want the same lock: one waits");
    wait_for_each_other(&alice.mutex("stock:7"), &bob.mutex("stock:7")).await?;

    println!("\n2. A job that outlives its TTL: the lease is renewed");
    outlive_the_ttl(&alice.mutex("nightly").ttl(TTL)).await?;

    println!("\n3. The key is taken away: the guard says so");
    let invoice = alice.mutex("invoice:42").ttl(TTL);
    let stale = be_robbed(&invoice, &redis).await?;

    println!("\n4. A holder that does not notice: the fencing token stops it");
    let store = Store::default();
    let guard = bob.mutex("invoice:42").lock().await?;
    store.write("bob, who has the lock now,", guard.fencing_token());
    store.write("alice, who lost it,", stale);
    guard.release().await?;

    println!("\nDone. The same without async: cargo run --example blocking");
    Ok(())
}

async fn connect(url: &str, owner: &str, redis: &Redis) -> Result<Locker, Error> {
    let builder = Locker::builder().owner(owner).prefix(redis.prefix());
    builder.connect(url).await
}

async fn wait_for_each_other(alice: &Lock, bob: &Lock) -> Result<(), Error> {
    let first = alice.lock().await?;
    println!("  alice has it, fencing token {}", first.fencing_token());
    if bob.try_lock().await?.is_none() {
        println!("  bob tries once: taken, by {}", holder(bob).await?);
    }
    println!("  bob waits; alice goes on for half a second");
    let asked = Instant::now();
    let alice_works = async {
        sleep(Duration::from_millis(500)).await;
        first.release().await
    };
    let (released, second) = tokio::join!(alice_works, bob.lock());
    released?;
    let second = second?;
    println!("  bob has it after {} ms", asked.elapsed().as_millis());
    println!(
        "  bob's fencing token is larger: {}",
        second.fencing_token()
    );
    // A dropped guard releases its lock in the background.
    drop(second);
    Ok(())
}

async fn outlive_the_ttl(lock: &Lock) -> Result<(), Error> {
    println!("  the TTL is {} ms, the job takes 2500 ms", TTL.as_millis());
    let guard = lock.lock().await?;
    let mut before = TTL;
    for step in 1..=10 {
        sleep(Duration::from_millis(250)).await;
        let holder = lock.holder().await?;
        let left = holder.and_then(|holder| holder.ttl).unwrap_or_default();
        support::print_lifetime(step, left, before, TTL);
        before = left;
    }
    guard.ensure_held()?;
    println!("  the job is done, and the lock was held all along");
    guard.release().await?;
    Ok(())
}

/// Returns the fencing token of the guard that was lost.
async fn be_robbed(lock: &Lock, redis: &Redis) -> Result<u64, Box<dyn std::error::Error>> {
    let guard = lock.lock().await?;
    println!("  alice has it, fencing token {}", guard.fencing_token());
    match redis.url() {
        Some(url) => {
            support::overwrite(&url, lock.key())?;
            println!("  another program overwrites the key with a plain SET");
        }
        None => {
            lock.force_release().await?;
            println!("  an operator takes the lock away: force_release");
        }
    }
    let robbed = Instant::now();
    // Where a job has a loop, it would watch this token in a select!, or ask is_lost().
    guard.lost().cancelled().await;
    println!(
        "  the lost token fires {} ms later",
        robbed.elapsed().as_millis()
    );
    if let Err(lost) = guard.ensure_held() {
        println!("  ensure_held(): {lost}");
    }
    let token = guard.fencing_token();
    println!("  release(): {:?}", guard.release().await?);
    Ok(token)
}

async fn holder(lock: &Lock) -> Result<String, Error> {
    let holder = lock.holder().await?;
    let label = holder.and_then(|holder| holder.owner);
    Ok(label.unwrap_or_else(|| "somebody".to_owned()))
}
