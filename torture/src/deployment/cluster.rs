//! What the faults of a cluster do.

use std::time::Duration;

use testkit::{Cluster, Server, slot_of};
use tokio::time::sleep;

use crate::deployment::{Error, SILENCE, freeze, leave_behind, one_of, restart, thaw};
use crate::faults::Fault;
use crate::history::{TTLS, key};

/// How many slots redis-cli moves at most, one after another.
const MOST_SLOTS: usize = 100;

pub(super) async fn act(
    cluster: &mut Cluster,
    fault: Fault,
    length: Duration,
    random: &mut fastrand::Rng,
) -> Result<(), Error> {
    let masters = masters(cluster);
    let index = random.usize(..TTLS.len());
    let slot = slot_of(&key(index));
    let master = cluster.master_of_slot(slot);
    match fault {
        Fault::Freeze => {
            let mut hung = masters;
            random.shuffle(&mut hung);
            hung.truncate(random.usize(1..=hung.len()));
            freeze(&servers(cluster, &hung), length).await;
        }
        Fault::Restart => restart(&mut cluster.nodes[master], length).await,
        Fault::KillReplica => {
            let replica = one_of(&cluster.replicas_of(master), random);
            restart(&mut cluster.nodes[replica], length).await;
        }
        Fault::SlotMove => {
            let to = one_of(&others(&masters, &[master]), random);
            move_slot(cluster, index, to, length, random).await;
        }
        Fault::FreezeAndMove => {
            let to = one_of(&others(&masters, &[master]), random);
            let hung = others(&masters, &[master, to]);
            let hung = servers(cluster, &hung);
            hung.iter().for_each(|server| server.freeze());
            move_slot(cluster, index, to, length.min(SILENCE) / 2, random).await;
            thaw(&hung);
        }
        Fault::Reshard => reshard(cluster, &masters, random).await,
        Fault::ClusterFailover => {
            let replica = one_of(&cluster.replicas_of(master), random);
            cluster.failover(replica).await;
        }
        Fault::Takeover => {
            let replicas = cluster.replicas_of(master);
            let replicas = servers(cluster, &replicas);
            leave_behind(&cluster.nodes[master], &replicas).await?;
            thaw(&replicas);
            // It catches up as soon as it has connected again, within a second.
            replicas[0].query::<()>(&["CLUSTER", "FAILOVER", "TAKEOVER"])?;
            cluster.switched(slot, master).await;
        }
        Fault::KillMaster | Fault::FreezeMaster => {
            let replicas = cluster.replicas_of(master);
            let is_behind = random.bool();
            if is_behind {
                leave_behind(&cluster.nodes[master], &servers(cluster, &replicas)).await?;
            }
            if fault == Fault::KillMaster {
                cluster.nodes[master].kill();
            } else {
                cluster.nodes[master].freeze();
            }
            if is_behind {
                thaw(&servers(cluster, &replicas));
            }
            cluster.switched(slot, master).await;
            sleep(length).await;
            if fault == Fault::KillMaster {
                cluster.nodes[master].restart();
            } else {
                cluster.nodes[master].thaw();
            }
        }
        _ => return Err(format!("{} is no fault of a cluster", fault.name()).into()),
    }
    Ok(())
}

fn masters(cluster: &Cluster) -> Vec<usize> {
    let nodes = 0..cluster.nodes.len();
    nodes.filter(|&n| !cluster.slots_of(n).is_empty()).collect()
}

fn others(all: &[usize], without: &[usize]) -> Vec<usize> {
    let all = all.iter().copied();
    all.filter(|number| !without.contains(number)).collect()
}

fn servers<'a>(cluster: &'a Cluster, numbers: &[usize]) -> Vec<&'a Server> {
    numbers.iter().map(|&node| &cluster.nodes[node]).collect()
}

/// Moves the slot of a key by hand. In the pauses between the steps the lock key may be at one
/// master and what belongs to it at the other (TRYAGAIN), or all at the new one (ASK).
async fn move_slot(
    cluster: &Cluster,
    index: usize,
    to: usize,
    length: Duration,
    random: &mut fastrand::Rng,
) {
    let key = key(index);
    let step = cluster.move_slot(slot_of(&key), to);
    let pause = length / 4;
    step.import();
    sleep(pause).await;
    step.migrate();
    sleep(pause).await;
    match random.u32(..3) {
        0 => step.move_these(&[&key]),
        1 => step.move_these(&[&format!("{{{key}}}:fence")]),
        _ => {}
    }
    sleep(pause).await;
    step.move_keys();
    sleep(pause).await;
    step.assign();
}

/// Moves slots with redis-cli, with that of a key among them. It takes the lowest ones of a master.
async fn reshard(cluster: &Cluster, masters: &[usize], random: &mut fastrand::Rng) {
    let mut places = Vec::new();
    for slot in (0..TTLS.len()).map(|index| slot_of(&key(index))) {
        for &master in masters {
            let slots = cluster.slots_of(master);
            let lower = slots.iter().filter(|&&other| other < slot).count();
            if lower < MOST_SLOTS {
                places.push((slot, master, lower + 1));
            }
        }
    }
    let (slot, from, count) = places[random.usize(..places.len())];
    if cluster.master_of_slot(slot) != from {
        cluster.move_slot(slot, from).run();
        cluster.settled().await;
    }
    let to = one_of(&others(masters, &[from]), random);
    let count = u16::try_from(count).expect("so few");
    cluster.reshard(from, to, count).await;
}
