//! What a lock costs when nobody else wants it.
//!
//! ```sh
//! cargo bench --bench cycle
//! ```
//!
//! Counts lock-and-release cycles a second against the least that any lock on Redis does, a
//! `SET NX PX` and a `DEL` one after the other over the same kind of connection. Rounds of both
//! alternate, so that a noisy machine disturbs both; the medians count. Starts its own
//! redis-server. Without `--bench` it only shows that it works, in a fraction of a second.

#[path = "../examples/support/mod.rs"]
mod support;

use std::error::Error;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redlease::{Lock, Locker};
use support::PrivateServer;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// How much to measure.
struct Scale {
    rounds: usize,
    round: Duration,
    keys: usize,
}

const FULL: Scale = Scale {
    rounds: 9,
    round: Duration::from_secs(1),
    keys: 2_000,
};
const SHORT: Scale = Scale {
    rounds: 1,
    round: Duration::from_millis(10),
    keys: 10,
};

/// As long as the value of a lock.
const VALUE: &str = "00000000-0000-4000-8000-000000000000:host/1234";

fn main() -> Outcome<()> {
    let full = std::env::args().any(|argument| argument == "--bench");
    let scale = if full { FULL } else { SHORT };
    if !full {
        println!("a short run without --bench: the figures say nothing");
    }
    let server = PrivateServer::start().map_err(|error| {
        format!("redis-server does not start (apt-get install -y redis-server): {error}")
    })?;
    let mut current_thread = tokio::runtime::Builder::new_current_thread();
    let mut multi_thread = tokio::runtime::Builder::new_multi_thread();

    println!(
        "one task, one key, loopback; median of {} rounds",
        scale.rounds
    );
    println!(
        "{:16} {:>14} {:>14} {:>7}",
        "tokio runtime", "SET+DEL /s", "lock+release /s", "ratio"
    );
    for (name, builder) in [
        ("current_thread", &mut current_thread),
        ("multi_thread", &mut multi_thread),
    ] {
        let runtime = builder.enable_all().build()?;
        let (bare, ours) = runtime.block_on(cycles(&server, &scale))?;
        println!("{name:16} {bare:>14.0} {ours:>14.0} {:>7.2}", ours / bare);
    }

    println!(
        "\nserver time by INFO commandstats, {} keys; median of {} rounds",
        scale.keys, scale.rounds
    );
    let runtime = current_thread.enable_all().build()?;
    for (what, micros) in runtime.block_on(server_time(&server, &scale))? {
        println!("{what:24} {micros:6.2} us");
    }
    Ok(())
}

/// Cycles a second, bare and ours.
async fn cycles(server: &PrivateServer, scale: &Scale) -> Outcome<(f64, f64)> {
    let mut connection = connect(server).await?;
    let locker = Locker::connect(server.url()).await?;
    let lock = locker.lock("bench:ours");
    let mut bare = Vec::new();
    let mut ours = Vec::new();
    // The first round of each is a warm-up.
    for _ in 0..=scale.rounds {
        bare.push(bare_round(&mut connection, scale.round).await?);
        ours.push(our_round(&lock, scale.round).await?);
    }
    Ok((median(&mut bare[1..]), median(&mut ours[1..])))
}

async fn bare_round(connection: &mut MultiplexedConnection, round: Duration) -> Outcome<f64> {
    let start = Instant::now();
    let mut cycles = 0_u32;
    while start.elapsed() < round {
        set(connection, "bench:bare").await?;
        delete(connection, "bench:bare").await?;
        cycles += 1;
    }
    Ok(f64::from(cycles) / start.elapsed().as_secs_f64())
}

async fn our_round(lock: &Lock, round: Duration) -> Outcome<f64> {
    let start = Instant::now();
    let mut cycles = 0_u32;
    while start.elapsed() < round {
        lock.lock().await?.release().await?;
        cycles += 1;
    }
    Ok(f64::from(cycles) / start.elapsed().as_secs_f64())
}

/// Server time for each kind of request, in microseconds: the medians of the rounds' averages.
async fn server_time(server: &PrivateServer, scale: &Scale) -> Outcome<Vec<(&'static str, f64)>> {
    let mut connection = connect(server).await?;
    let locker = Locker::connect(server.url()).await?;
    let keys: Vec<String> = (0..scale.keys).map(|n| format!("bench:{n}")).collect();
    let whats = [
        "SET NX PX",
        "DEL",
        "SET NX PX in a script",
        "acquire",
        "release",
    ];
    let mut found = whats.map(|what| (what, Vec::new()));
    // The first round makes the scripts known, and the fencing counters.
    for _ in 0..=scale.rounds {
        reset(&mut connection).await?;
        for key in &keys {
            set(&mut connection, key).await?;
        }
        found[0].1.push(average(&mut connection, "set").await?);
        for key in &keys {
            delete(&mut connection, key).await?;
        }
        found[1].1.push(average(&mut connection, "del").await?);

        reset(&mut connection).await?;
        for key in &keys {
            set_in_script(&mut connection, key).await?;
        }
        found[2].1.push(average(&mut connection, "evalsha").await?);
        for key in &keys {
            delete(&mut connection, key).await?;
        }

        let mut guards = Vec::new();
        reset(&mut connection).await?;
        for key in &keys {
            let lock = locker.lock(key).ttl(Duration::from_secs(600));
            guards.push(lock.lock().await?);
        }
        found[3].1.push(average(&mut connection, "evalsha").await?);
        reset(&mut connection).await?;
        for guard in guards {
            guard.release().await?;
        }
        found[4].1.push(average(&mut connection, "evalsha").await?);
    }
    let medians = found.map(|(what, mut figures)| (what, median(&mut figures[1..])));
    Ok(medians.into())
}

async fn connect(server: &PrivateServer) -> Outcome<MultiplexedConnection> {
    let client = redis::Client::open(server.url())?;
    Ok(client.get_multiplexed_async_connection().await?)
}

async fn set(connection: &mut MultiplexedConnection, key: &str) -> Outcome<()> {
    let mut set = redis::cmd("SET");
    set.arg(key).arg(VALUE).arg("NX");
    set.arg("PX").arg(10_000).exec_async(connection).await?;
    Ok(())
}

/// The least that a script with a lock in it costs the server.
async fn set_in_script(connection: &mut MultiplexedConnection, key: &str) -> Outcome<()> {
    let script =
        redis::Script::new("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])");
    let mut call = script.key(key);
    call.arg(VALUE).arg(10_000);
    call.invoke_async::<()>(connection).await?;
    Ok(())
}

async fn delete(connection: &mut MultiplexedConnection, key: &str) -> Outcome<()> {
    redis::cmd("DEL").arg(key).exec_async(connection).await?;
    Ok(())
}

async fn reset(connection: &mut MultiplexedConnection) -> Outcome<()> {
    let mut reset = redis::cmd("CONFIG");
    reset.arg("RESETSTAT").exec_async(connection).await?;
    Ok(())
}

/// How long the server took for a call of a command, since the last reset.
async fn average(connection: &mut MultiplexedConnection, command: &str) -> Outcome<f64> {
    let mut info = redis::cmd("INFO");
    let stats: String = info.arg("commandstats").query_async(connection).await?;
    let prefix = format!("cmdstat_{command}:");
    let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    let per_call = line.and_then(|line| line.split("usec_per_call=").nth(1));
    let number = per_call.and_then(|rest| rest.split(',').next());
    Ok(number.ok_or("no such command in commandstats")?.parse()?)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
