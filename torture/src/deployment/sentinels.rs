//! What the faults of a deployment with sentinels do, and who the master is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use testkit::{MASTER, Sentinels, Server};
use tokio::time::sleep;

use crate::deployment::{Error, freeze, leave_behind, one_of, restart, thaw};
use crate::faults::Fault;
use crate::server::connect;

/// How often the sentinels are asked for the master.
const EVERY: Duration = Duration::from_millis(10);
/// How long a sentinel may take to answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// The port of the server that most sentinels name as the master, from now on to the end of the
/// program.
pub(super) fn follow_master(sentinels: Vec<u16>) -> Arc<AtomicU16> {
    let master = Arc::new(AtomicU16::new(0));
    let followed = Arc::clone(&master);
    std::thread::spawn(move || {
        let mut connections: HashMap<u16, redis::Connection> = HashMap::new();
        loop {
            let mut votes: HashMap<u16, usize> = HashMap::new();
            for &sentinel in &sentinels {
                match named(&mut connections, sentinel) {
                    Ok(port) => *votes.entry(port).or_default() += 1,
                    Err(_) => drop(connections.remove(&sentinel)),
                }
            }
            let most = votes.into_iter().max_by_key(|&(_, votes)| votes);
            if let Some((port, votes)) = most
                && votes > sentinels.len() / 2
            {
                followed.store(port, Ordering::SeqCst);
            }
            std::thread::sleep(EVERY);
        }
    });
    master
}

fn named(
    connections: &mut HashMap<u16, redis::Connection>,
    sentinel: u16,
) -> redis::RedisResult<u16> {
    let connection = match connections.entry(sentinel) {
        Entry::Occupied(open) => open.into_mut(),
        Entry::Vacant(missing) => {
            let connection = connect(sentinel)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            missing.insert(connection)
        }
    };
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(MASTER);
    let (_, port): (String, u16) = command.query(connection)?;
    Ok(port)
}

pub(super) async fn act(
    deployment: &mut Sentinels,
    fault: Fault,
    length: Duration,
    random: &mut fastrand::Rng,
) -> Result<(), Error> {
    let master = deployment.master();
    let replicas = deployment.replicas();
    let sentinel = random.usize(..deployment.sentinels.len());
    match fault {
        Fault::Freeze => freeze(&[&deployment.servers[master]], length).await,
        Fault::Restart => restart(&mut deployment.servers[master], length).await,
        Fault::KillReplica => {
            restart(&mut deployment.servers[one_of(&replicas, random)], length).await;
        }
        Fault::FreezeSentinel => freeze(&[&deployment.sentinels[sentinel]], length).await,
        Fault::KillSentinel => restart(&mut deployment.sentinels[sentinel], length).await,
        Fault::SentinelFailover => {
            deployment.failover(deployment.master()).await;
        }
        Fault::CutOff => {
            deployment.cut_off(master);
            deployment.switched(master).await;
            sleep(length).await;
            deployment.reconnect(master);
        }
        Fault::KillMaster | Fault::FreezeMaster => {
            let is_behind = random.bool();
            if is_behind {
                let behind = servers(deployment, &replicas);
                leave_behind(&deployment.servers[master], &behind).await?;
            }
            if fault == Fault::KillMaster {
                deployment.servers[master].kill();
            } else {
                deployment.servers[master].freeze();
            }
            if is_behind {
                thaw(&servers(deployment, &replicas));
            }
            deployment.switched(master).await;
            sleep(length).await;
            if fault == Fault::KillMaster {
                deployment.servers[master].restart();
            } else {
                deployment.servers[master].thaw();
            }
        }
        _ => return Err(format!("{} is no fault of sentinels", fault.name()).into()),
    }
    Ok(())
}

fn servers<'a>(deployment: &'a Sentinels, numbers: &[usize]) -> Vec<&'a Server> {
    let numbers = numbers.iter();
    numbers.map(|&number| &deployment.servers[number]).collect()
}
