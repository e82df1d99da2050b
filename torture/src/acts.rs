//! What each fault does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use testkit::{Mode, Proxy};
use tokio::sync::MutexGuard;
use tokio::time::sleep;

use crate::faults::Fault;
use crate::history::{TTLS, key, now};
use crate::server::{Server, signal_to};
use crate::target::{Outcome, Scope, Target};

/// By how much a server that forgot its keys comes back after the last of them has expired.
const LATE: u64 = 100;
/// How far a clock may be off in one part of a million: P1 allows 1 %.
const DRIFT: i32 = 9_000;
/// How long locks are taken without the servers that are to be asked later.
const ABSENCE: Duration = Duration::from_millis(400);
const AHEAD: Duration = Duration::from_secs(3600);

impl Target {
    pub async fn act(&self, fault: Fault, scope: &Scope, random: &mut fastrand::Rng) -> Outcome {
        let &Scope { length, .. } = scope;
        let Scope { lanes, links, .. } = scope;
        match fault {
            Fault::Freeze => {
                let servers = self.take(&scope.nodes).await;
                servers.iter().for_each(|server| server.freeze());
                sleep(length).await;
                servers.iter().for_each(|server| server.thaw());
            }
            Fault::PauseWorkers => {
                let pids: Vec<u32> = lanes.iter().filter_map(|&l| self.workers.pid(l)).collect();
                for &pid in &pids {
                    signal_to(pid, Signal::STOP);
                }
                sleep(length).await;
                for &pid in &pids {
                    signal_to(pid, Signal::CONT);
                }
            }
            Fault::KillWorkers => lanes.iter().for_each(|&lane| self.workers.kill(lane)),
            Fault::Block => {
                let order = format!("block {}", length.as_millis());
                lanes.iter().for_each(|&l| self.workers.order(l, &order));
                sleep(length).await;
            }
            Fault::Restart => self.restart(&scope.nodes, length, false).await?,
            Fault::RestartEmptyLate => {
                let longest = TTLS.into_iter().max().unwrap_or(0);
                let delay = Duration::from_millis(longest + LATE) + length / 4;
                self.restart(&scope.nodes, delay, true).await?;
            }
            Fault::Cut => self.cut(links, length, Mode::Hold, Mode::Hold).await,
            Fault::CutRequests => self.cut(links, length, Mode::Hold, Mode::Pass).await,
            Fault::CutReplies => self.cut(links, length, Mode::Pass, Mode::Hold).await,
            Fault::CutLinks => self.cut_here_and_there(scope, random).await,
            Fault::Delay => {
                let delay = Mode::Delay(Duration::from_millis(match random.bool() {
                    true => random.u64(1..40),
                    false => random.u64(40..700),
                }));
                let (requests, replies) = match random.u32(..3) {
                    0 => (delay, delay),
                    1 => (delay, Mode::Pass),
                    _ => (Mode::Pass, delay),
                };
                self.cut(links, 2 * length, requests, replies).await;
            }
            Fault::Drip => self.cut(links, length, Mode::Drip, Mode::Drip).await,
            Fault::Reset => {
                let moment = Duration::from_millis(20);
                self.cut(links, moment, Mode::Pass, Mode::Reset).await;
            }
            Fault::Refuse => {
                self.change(links, Proxy::refuse);
                sleep(length).await;
                self.calm(links);
            }
            Fault::ClientKill => {
                let servers = self.take(&scope.nodes).await;
                for kind in ["normal", "pubsub"] {
                    tell(&servers, &["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])?;
                }
            }
            Fault::ClientPause => {
                let kind = if random.bool() { "ALL" } else { "WRITE" };
                let millis = length.as_millis().to_string();
                // Kept: a server that pauses answers nobody else's orders, either.
                let servers = self.take(&scope.nodes).await;
                tell(&servers, &["CLIENT", "PAUSE", &millis, kind])?;
                sleep(length).await;
            }
            Fault::ScriptFlush => tell(&self.take(&scope.nodes).await, &["SCRIPT", "FLUSH"])?,
            Fault::OutOfMemory => {
                let servers = self.take(&scope.nodes).await;
                tell(&servers, &["CONFIG", "SET", "maxmemory", "1"])?;
                sleep(length).await;
                tell(&servers, &["CONFIG", "SET", "maxmemory", "0"])?;
            }
            Fault::ClockRate => {
                let mut servers = self.take(&scope.nodes).await;
                for server in &mut servers {
                    let drift = f64::from(random.i32(-DRIFT..=DRIFT)) / 1e6;
                    server.clock()?.run_at(1.0 + drift)?;
                }
                sleep(length).await;
                for server in &mut servers {
                    server.clock()?.run_at(1.0)?;
                }
            }
            Fault::FlushAll | Fault::RestartEmpty | Fault::Evict | Fault::ClockStep => {
                self.forget(fault, scope, random).await?;
            }
            Fault::Promote => self.promote(scope).await?,
            Fault::Lag => self.lag(scope, random).await?,
            _ => return Err(format!("{} is done to a deployment", fault.name()).into()),
        }
        Ok(())
    }

    /// The servers, for nobody else meanwhile.
    async fn take(&self, nodes: &[usize]) -> Vec<MutexGuard<'_, Server>> {
        let mut servers = Vec::new();
        // Ascending, so that two that take several do not wait for each other.
        for &node in nodes {
            servers.push(self.nodes[node].server.lock().await);
        }
        servers
    }

    async fn cut(&self, links: &[(usize, usize)], length: Duration, requests: Mode, replies: Mode) {
        self.set(links, requests, replies);
        sleep(length).await;
        self.calm(links);
    }

    /// Short cuts, each time of other ways, and each in one direction or both: they fall between
    /// the requests of one acquisition.
    async fn cut_here_and_there(&self, scope: &Scope, random: &mut fastrand::Rng) {
        let cuts = random.u32(1..20);
        for _ in 0..cuts {
            let lost = random.usize(1..self.nodes.len());
            let links = self.links(&scope.lanes, lost, random);
            for link in &links {
                let (requests, replies) = match random.u32(..3) {
                    0 => (Mode::Hold, Mode::Hold),
                    1 => (Mode::Hold, Mode::Pass),
                    _ => (Mode::Pass, Mode::Hold),
                };
                self.set(&[*link], requests, replies);
            }
            sleep(scope.length / cuts).await;
            self.calm(&links);
        }
    }

    async fn restart(&self, nodes: &[usize], delay: Duration, empty: bool) -> Outcome {
        let mut servers = self.take(nodes).await;
        for server in &mut servers {
            server.kill();
            if empty {
                server.forget_data();
            }
        }
        sleep(delay).await;
        for server in &mut servers {
            server.restart()?;
        }
        Ok(())
    }

    /// The servers forget while some holders are cut off and cannot hear of it. Where they are a
    /// minority, locks are held by just so many servers more as make a majority: the others were
    /// not there when they were taken, and know nothing of them.
    async fn forget(&self, fault: Fault, scope: &Scope, random: &mut fastrand::Rng) -> Outcome {
        let mut servers = self.take(&scope.nodes).await;
        let absent = self.absent(&scope.nodes);
        let away = ways(0..self.workers.count(), &absent);
        if !away.is_empty() {
            self.set(&away, Mode::Hold, Mode::Hold);
            sleep(ABSENCE).await;
        }
        let links = self.hold(&scope.lanes).await;
        match fault {
            Fault::FlushAll => tell(&servers, &["FLUSHALL"])?,
            Fault::RestartEmpty => {
                for server in &mut servers {
                    server.kill();
                    server.forget_data();
                    server.restart()?;
                }
            }
            Fault::ClockStep => {
                // Forward all keys expire at once, backward they stay for longer.
                let seconds = 0.3 + 2.0 * random.f64();
                let is_backward = random.u32(..4) == 0;
                let by = if is_backward { -seconds } else { seconds };
                for server in &mut servers {
                    server.clock()?.step(by)?;
                }
            }
            _ => servers.iter().try_for_each(|server| evict(server))?,
        }
        // What the holders sent to the absent ones stays where it is.
        let back = away.iter().filter(|way| !links.contains(way));
        self.calm(&back.copied().collect::<Vec<_>>());
        sleep(scope.length).await;
        self.calm(&links);
        Ok(())
    }

    /// As many servers as can be missing, beside a minority that forgets.
    fn absent(&self, nodes: &[usize]) -> Vec<usize> {
        if nodes.len() > self.minority() {
            return Vec::new();
        }
        let others = (0..self.nodes.len()).filter(|node| !nodes.contains(node));
        others.take(self.minority()).collect()
    }

    /// Cuts lanes off, and has those of their tasks that hold a lock go on with it.
    async fn hold(&self, lanes: &[usize]) -> Vec<(usize, usize)> {
        let everywhere: Vec<usize> = (0..self.nodes.len()).collect();
        let links = ways(lanes.iter().copied(), &everywhere);
        for &lane in lanes {
            self.workers.order(lane, "linger 500");
        }
        self.set(&links, Mode::Hold, Mode::Hold);
        sleep(Duration::from_millis(10)).await;
        links
    }

    /// One server answers late, keeps losing lock keys, and its counters lag behind those of the
    /// others, which clients raised whose clock is an hour ahead. So the numbers of a majority differ
    /// all the time, and locks change hands in the middle of an acquisition.
    async fn lag(&self, scope: &Scope, random: &mut fastrand::Rng) -> Outcome {
        let everywhere: Vec<usize> = (0..self.nodes.len()).collect();
        let servers = self.take(&everywhere).await;
        let mut connections = Vec::new();
        for server in &servers {
            connections.push(server.connect()?);
        }
        let hit = scope.nodes[0];
        let mut late = connections.swap_remove(hit);
        let links: Vec<_> = (0..self.workers.count()).map(|lane| (lane, hit)).collect();
        for link in &links {
            let delay = Duration::from_millis(random.u64(1..6));
            self.set(&[*link], Mode::Delay(delay), Mode::Pass);
        }
        let until = now() + u64::try_from(scope.length.as_nanos())?;
        while now() < until {
            let number = (SystemTime::now().duration_since(UNIX_EPOCH)? + AHEAD).as_micros();
            for connection in &mut connections {
                raise_counters(connection, number)?;
            }
            for _ in 0..10 {
                delete_locks(&mut late)?;
                sleep(Duration::from_millis(1)).await;
            }
        }
        self.calm(&links);
        Ok(())
    }

    /// Replicas take over that lack what was written last.
    async fn promote(&self, scope: &Scope) -> Outcome {
        let mut masters = self.take(&scope.nodes).await;
        let mut replicas = Vec::new();
        for master in &masters {
            replicas.push(replica(master).await?);
        }
        for replica in &replicas {
            replica.query::<()>(&["REPLICAOF", "NO", "ONE"])?;
        }
        // Long enough for locks to change hands at the old masters.
        sleep(Duration::from_millis(300)).await;
        let links = self.hold(&scope.lanes).await;
        for (&node, replica) in scope.nodes.iter().zip(&replicas) {
            let to_node = &self.nodes[node].links;
            to_node.lead_to(replica.port);
            for lane in (0..self.workers.count()).filter(|lane| !scope.lanes.contains(lane)) {
                to_node.lane(lane).cut();
            }
        }
        sleep(scope.length).await;
        for ((&node, master), replica) in scope.nodes.iter().zip(&mut masters).zip(replicas) {
            self.nodes[node].links.cut();
            **master = replica;
        }
        self.calm(&links);
        Ok(())
    }
}

fn ways(lanes: impl Iterator<Item = usize>, nodes: &[usize]) -> Vec<(usize, usize)> {
    let to_all = |lane| nodes.iter().map(move |&node| (lane, node));
    lanes.flat_map(to_all).collect()
}

/// Deletes all lock keys.
fn delete_locks(connection: &mut redis::Connection) -> redis::RedisResult<()> {
    let keys: Vec<_> = (0..TTLS.len()).map(key).collect();
    redis::cmd("DEL").arg(keys).exec(connection)
}

/// Never lowers a counter, like an acquire.
const RAISE: &str = "
    local last = redis.call('GET', KEYS[1])
    if not last or tonumber(last) < tonumber(ARGV[1]) then
        redis.call('MSET', KEYS[1], ARGV[1], KEYS[2], 'ahead of its time')
    end";

/// Does to the counters what a client does that got all locks with its clock an hour ahead.
fn raise_counters(connection: &mut redis::Connection, number: u128) -> redis::RedisResult<()> {
    let mut pipe = redis::pipe();
    for index in 0..TTLS.len() {
        let fence = format!("{{{}}}:fence", key(index));
        let owner = format!("{fence}-owner");
        let call = pipe.cmd("EVAL").arg(RAISE).arg(2).arg(fence).arg(owner);
        call.arg(number.to_string());
    }
    pipe.exec(connection)
}

fn tell(servers: &[MutexGuard<'_, Server>], words: &[&str]) -> redis::RedisResult<()> {
    servers
        .iter()
        .try_for_each(|server| server.query::<redis::Value>(words).map(drop))
}

async fn replica(master: &Server) -> Result<Server, Box<dyn std::error::Error + Send + Sync>> {
    let replica = Server::start()?;
    let port = master.port.to_string();
    replica.query::<()>(&["REPLICAOF", "127.0.0.1", &port])?;
    for _ in 0..1000 {
        let state: String = replica.query(&["INFO", "replication"])?;
        if state.contains("master_link_status:up") {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(replica)
}

fn evict(server: &Server) -> redis::RedisResult<()> {
    let set = |what, value| server.query::<()>(&["CONFIG", "SET", what, value]);
    set("maxmemory-policy", "allkeys-random")?;
    set("maxmemory", "1")?;
    // A command that takes memory makes the server evict.
    for _ in 0..50 {
        let _ = server.query::<()>(&["SET", "torture:filler", "x", "PX", "1"]);
    }
    set("maxmemory", "0")?;
    set("maxmemory-policy", "noeviction")
}
