//! The quickstart without async: plain threads, no runtime.
//!
//! ```sh
//! cargo run --example blocking
//! ```
//!
//! Where it gets its Redis from: see `quickstart.rs`.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use redlease::Error;
use redlease::blocking::{Lock, Locker};
use support::{Redis, Store};

const TTL: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redis = Redis::find();
    let locker = match redis.url() {
        Some(url) => Locker::builder().prefix(redis.prefix()).connect(url)?,
        None => Locker::in_memory(),
    };

    println!("\n1. Four threads want the same lock: they take turns");
    take_turns(&locker.mutex("stock:7"))?;

    println!("\n2. A job that outlives its TTL: the lease is renewed");
    outlive_the_ttl(&locker.mutex("nightly").ttl(TTL))?;

    println!("\n3. The key is taken away: the guard says so");
    let invoice = locker.mutex("invoice:42").ttl(TTL);
    let stale = be_robbed(&invoice, &redis)?;

    println!("\n4. A holder that does not notice: the fencing token stops it");
    let store = Store::default();
    let guard = invoice.lock()?;
    store.write("the present holder", guard.fencing_token());
    store.write("the former holder", stale);

    println!("\nDone.");
    Ok(())
}

fn take_turns(lock: &Lock) -> Result<(), Error> {
    let start = Instant::now();
    thread::scope(|scope| {
        let work = |number| {
            let _g = lock.lock()?; // released at the end of the scope
            println!(
                "  thread {number} has it after {:3} ms, fencing token {}",
                start.elapsed().as_millis(),
                _g.fencing_token()
            );
            thread::sleep(Duration::from_millis(200));
            Ok(())
        };
        let threads: Vec<_> = (1..=4).map(|n| scope.spawn(move || work(n))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(worked) => worked,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })
}

fn outlive_the_ttl(lock: &Lock) -> Result<(), Error> {
    println!("  the TTL is {} ms, the job takes 2500 ms", TTL.as_millis());
    let guard = lock.lock()?;
    let mut before = TTL;
    for step in 1..=10 {
        thread::sleep(Duration::from_millis(250));
        let left = lock
            .holder()?
            .and_then(|holder| holder.ttl)
            .unwrap_or_default();
        support::print_lifetime(step, left, before, TTL);
        before = left;
    }
    guard.ensure_held()?;
    println!("  the job is done, and the lock was held all along");
    Ok(())
}

/// Returns the fencing token of the guard that was lost.
fn be_robbed(lock: &Lock, redis: &Redis) -> Result<u64, Box<dyn std::error::Error>> {
    let guard = lock.lock()?;
    println!("  we have it, fencing token {}", guard.fencing_token());
    match redis.url() {
        Some(url) => {
            support::overwrite(&url, lock.key())?;
            println!("  another program overwrites the key with a plain SET");
        }
        None => {
            lock.force_release()?;
            println!("  an operator takes the lock away: force_release");
        }
    }
    let robbed = Instant::now();
    // A job asks this between its steps; it costs a look at the clock.
    while !guard.is_lost() {
        thread::sleep(Duration::from_millis(1));
    }
    println!(
        "  is_lost() is true {} ms later",
        robbed.elapsed().as_millis()
    );
    if let Err(lost) = guard.ensure_held() {
        println!("  ensure_held(): {lost}");
    }
    let token = guard.fencing_token();
    println!("  release(): {:?}", guard.release()?);
    Ok(token)
}
