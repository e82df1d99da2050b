//! The faults: what each does, to whom and for how long; seeded and logged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::history::{Disturbance, History, now};
use crate::proxy::{Mode, Proxies};
use crate::server::{Server, signal_to};
use crate::workers::Workers;

/// Whether two guards may be held at once under a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Never.
    Safe,
    /// By design: Redis forgets the key. Fencing must hold all the same.
    Unsafe,
}

macro_rules! faults {
    ($($name:literal $variant:ident $class:ident)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($variant),* }

        impl Fault {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }
        }
    };
}

faults! {
    "freeze" Freeze Safe
    "pause-workers" PauseWorkers Safe
    "kill-workers" KillWorkers Safe
    "restart" Restart Safe
    "cut" Cut Safe
    "cut-requests" CutRequests Safe
    "cut-replies" CutReplies Safe
    "delay" Delay Safe
    "drip" Drip Safe
    "reset" Reset Safe
    "refuse" Refuse Safe
    "client-kill" ClientKill Safe
    "client-pause" ClientPause Safe
    "script-flush" ScriptFlush Safe
    "out-of-memory" OutOfMemory Safe
    "block" Block Safe
    "flushall" FlushAll Unsafe
    "restart-empty" RestartEmpty Unsafe
    "evict" Evict Unsafe
    "promote" Promote Unsafe
}

/// What the faults are done to.
pub struct Target {
    pub server: tokio::sync::Mutex<Server>,
    pub proxies: Proxies,
    pub workers: Arc<Workers>,
    pub history: Arc<History>,
    pub folder: PathBuf,
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Target {
    /// Does one of `faults` after another until `until`.
    pub async fn disturb(&self, faults: &[Fault], seed: u64, until: u64) -> Outcome {
        let mut random = fastrand::Rng::with_seed(seed);
        let pause = |random: &mut fastrand::Rng| Duration::from_millis(random.u64(150..700));
        tokio::time::sleep(pause(&mut random)).await;
        while !faults.is_empty() && now() < until {
            let fault = faults[random.usize(..faults.len())];
            self.carry_out(fault, &mut random).await?;
            tokio::time::sleep(pause(&mut random)).await;
        }
        Ok(())
    }

    async fn carry_out(&self, fault: Fault, random: &mut fastrand::Rng) -> Outcome {
        // Parts and multiples of the TTLs.
        let length = Duration::from_millis(match random.u32(..3) {
            0 => random.u64(50..300),
            1 => random.u64(300..900),
            _ => random.u64(900..2000),
        });
        let lanes = self.lanes(random);
        let on_server = !matches!(
            fault,
            Fault::PauseWorkers
                | Fault::KillWorkers
                | Fault::Block
                | Fault::Cut
                | Fault::CutRequests
                | Fault::CutReplies
                | Fault::Delay
                | Fault::Drip
                | Fault::Reset
                | Fault::Refuse
        );
        let from = now();
        let detail = match fault {
            Fault::KillWorkers | Fault::Reset | Fault::ClientKill | Fault::ScriptFlush => {
                String::new()
            }
            _ => format!("{} ms", length.as_millis()),
        };
        self.act(fault, &lanes, length, random).await?;
        let until = now();
        self.history.with(|record| {
            let whom: Vec<Option<usize>> = match on_server {
                true => vec![None],
                false => lanes.iter().map(|&lane| Some(lane)).collect(),
            };
            for lane in whom {
                record.disturbances.push(Disturbance {
                    name: fault.name(),
                    detail: detail.clone(),
                    from,
                    until,
                    lane,
                });
            }
        });
        Ok(())
    }

    async fn act(
        &self,
        fault: Fault,
        lanes: &[usize],
        length: Duration,
        random: &mut fastrand::Rng,
    ) -> Outcome {
        let sleep = tokio::time::sleep;
        match fault {
            Fault::Freeze => {
                let server = self.server.lock().await;
                server.signal(Signal::STOP);
                sleep(length).await;
                server.signal(Signal::CONT);
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
            Fault::KillWorkers => {
                for &lane in lanes {
                    self.workers.kill(lane);
                }
            }
            Fault::Block => {
                for &lane in lanes {
                    self.workers
                        .order(lane, &format!("block {}", length.as_millis()));
                }
                sleep(length).await;
            }
            Fault::Restart => self.restart(length, false).await?,
            Fault::Cut => self.cut(lanes, length, Mode::Hold, Mode::Hold).await,
            Fault::CutRequests => self.cut(lanes, length, Mode::Hold, Mode::Pass).await,
            Fault::CutReplies => self.cut(lanes, length, Mode::Pass, Mode::Hold).await,
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
                self.cut(lanes, 2 * length, requests, replies).await;
            }
            Fault::Drip => self.cut(lanes, length, Mode::Drip, Mode::Drip).await,
            Fault::Reset => {
                self.cut(lanes, Duration::from_millis(20), Mode::Pass, Mode::Reset)
                    .await;
            }
            Fault::Refuse => {
                for &lane in lanes {
                    self.proxies.change(lane, |weather| {
                        weather.refuse = true;
                        weather.epoch += 1;
                    });
                }
                sleep(length).await;
                self.calm(lanes);
            }
            Fault::ClientKill => {
                for kind in ["normal", "pubsub"] {
                    self.tell::<u64>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])
                        .await?;
                }
            }
            Fault::ClientPause => {
                let kind = if random.bool() { "ALL" } else { "WRITE" };
                let millis = length.as_millis().to_string();
                self.tell::<()>(&["CLIENT", "PAUSE", &millis, kind]).await?;
                sleep(length).await;
            }
            Fault::ScriptFlush => self.tell::<()>(&["SCRIPT", "FLUSH"]).await?,
            Fault::OutOfMemory => {
                self.tell::<()>(&["CONFIG", "SET", "maxmemory", "1"])
                    .await?;
                sleep(length).await;
                self.tell::<()>(&["CONFIG", "SET", "maxmemory", "0"])
                    .await?;
            }
            // The unsafe ones come while some holders are cut off and cannot hear of it.
            Fault::FlushAll => {
                self.hold(lanes).await;
                self.tell::<()>(&["FLUSHALL"]).await?;
                sleep(length).await;
                self.calm(lanes);
            }
            Fault::RestartEmpty => {
                self.hold(lanes).await;
                self.restart(Duration::ZERO, true).await?;
                sleep(length).await;
                self.calm(lanes);
            }
            Fault::Evict => {
                self.hold(lanes).await;
                self.tell::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"])
                    .await?;
                self.tell::<()>(&["CONFIG", "SET", "maxmemory", "1"])
                    .await?;
                // A command that takes memory makes the server evict.
                for _ in 0..50 {
                    let _ = self
                        .tell::<()>(&["SET", "torture:filler", "x", "PX", "1"])
                        .await;
                }
                self.tell::<()>(&["CONFIG", "SET", "maxmemory", "0"])
                    .await?;
                self.tell::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
                    .await?;
                sleep(length).await;
                self.calm(lanes);
            }
            Fault::Promote => self.promote(lanes, length).await?,
        }
        Ok(())
    }

    /// One to three quarters of the workers.
    fn lanes(&self, random: &mut fastrand::Rng) -> Vec<usize> {
        let mut lanes: Vec<usize> = (0..self.workers.count()).collect();
        random.shuffle(&mut lanes);
        lanes.truncate(random.usize(1..=self.workers.count() * 3 / 4));
        lanes
    }

    async fn cut(&self, lanes: &[usize], length: Duration, requests: Mode, replies: Mode) {
        for &lane in lanes {
            self.proxies.change(lane, |weather| {
                weather.requests = requests;
                weather.replies = replies;
            });
        }
        tokio::time::sleep(length).await;
        self.calm(lanes);
    }

    /// Cuts lanes off, and has those of their tasks that hold a lock go on with it.
    async fn hold(&self, lanes: &[usize]) {
        for &lane in lanes {
            self.workers.order(lane, "linger 500");
        }
        for &lane in lanes {
            self.proxies.change(lane, |weather| {
                weather.requests = Mode::Hold;
                weather.replies = Mode::Hold;
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    fn calm(&self, lanes: &[usize]) {
        for &lane in lanes {
            self.proxies.calm(lane);
        }
    }

    async fn tell<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        self.server.lock().await.command(words)
    }

    async fn restart(&self, delay: Duration, empty: bool) -> Outcome {
        let mut server = self.server.lock().await;
        server.kill();
        if empty {
            server.forget_data();
        }
        tokio::time::sleep(delay).await;
        Ok(server.restart()?)
    }

    /// A replica takes over that lacks what was written last.
    async fn promote(&self, lanes: &[usize], length: Duration) -> Outcome {
        let mut master = self.server.lock().await;
        let folder = self.folder.join(format!("replica-{}", now()));
        let replica = Server::start(folder)?;
        let port = master.port.to_string();
        replica.command::<()>(&["REPLICAOF", "127.0.0.1", &port])?;
        for _ in 0..1000 {
            let state: String = replica.command(&["INFO", "replication"])?;
            if state.contains("master_link_status:up") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        replica.command::<()>(&["REPLICAOF", "NO", "ONE"])?;
        // Long enough for locks to change hands at the old master.
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.hold(lanes).await;
        for lane in (0..self.workers.count()).filter(|lane| !lanes.contains(lane)) {
            self.proxies.change(lane, |weather| weather.epoch += 1);
        }
        self.proxies
            .target
            .store(replica.port, std::sync::atomic::Ordering::SeqCst);
        tokio::time::sleep(length).await;
        self.proxies.point_to(replica.port);
        self.calm(lanes);
        *master = replica;
        Ok(())
    }
}
