//! The worker processes, as their parent sees them.

use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::history::{History, Life, now};
use crate::worker::Arguments;

/// How long a process has until what it uses is compared: on a busy machine it takes time to start.
const YOUTH: Duration = Duration::from_secs(2);

pub struct Workers {
    engine: Engine,
    lanes: Vec<Mutex<Lane>>,
    history: Arc<History>,
    ending: AtomicBool,
    seed: u64,
    resource: PathBuf,
}

#[derive(Default)]
struct Lane {
    ports: Vec<u16>,
    lives: usize,
    child: Option<(Child, ChildStdin)>,
    began: Option<Instant>,
    reader: Option<JoinHandle<()>>,
    /// What the present process used at its first measurement, and at the last.
    use_of: Option<(Usage, Usage)>,
}

/// What a process has of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub threads: u64,
    pub descriptors: u64,
    pub kilobytes: u64,
}

impl Workers {
    pub fn start(
        engine: Engine,
        ports: Vec<Vec<u16>>,
        seed: u64,
        resource: PathBuf,
        history: &Arc<History>,
    ) -> io::Result<Arc<Self>> {
        let lane = |ports| {
            Mutex::new(Lane {
                ports,
                ..Lane::default()
            })
        };
        let workers = Arc::new(Self {
            engine,
            lanes: ports.into_iter().map(lane).collect(),
            history: Arc::clone(history),
            ending: AtomicBool::new(false),
            seed,
            resource,
        });
        for lane in 0..workers.count() {
            workers.begin(lane)?;
        }
        Ok(workers)
    }

    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    pub fn pid(&self, lane: usize) -> Option<u32> {
        self.in_lane(lane, |lane| {
            lane.child.as_ref().map(|(child, _)| child.id())
        })
    }

    pub fn kill(&self, lane: usize) {
        self.in_lane(lane, |lane| {
            if let Some((child, _)) = &mut lane.child {
                let _ = child.kill();
            }
        });
    }

    pub fn order(&self, lane: usize, order: &str) {
        self.in_lane(lane, |lane| {
            if let Some((_, input)) = &mut lane.child {
                let _ = input.write_all(format!("{order}\n").as_bytes());
            }
        });
    }

    /// Measures what the processes use; those that lived through two measurements can be compared.
    pub fn measure(&self) -> Vec<(Usage, Usage)> {
        let mut all = Vec::new();
        for lane in 0..self.count() {
            let pid = self.pid(lane);
            self.in_lane(lane, |lane| {
                if lane.began.is_none_or(|began| began.elapsed() < YOUTH) {
                    return;
                }
                let Some(usage) = pid.and_then(usage) else {
                    return;
                };
                let (first, last) = lane.use_of.get_or_insert((usage, usage));
                *last = usage;
                all.push((*first, *last));
            });
        }
        all
    }

    /// Ends all workers; names those that do not end by themselves.
    pub fn finish(&self, patience: Duration) -> Vec<String> {
        self.ending.store(true, Ordering::SeqCst);
        for lane in 0..self.count() {
            self.order(lane, "stop");
        }
        let until = Instant::now() + patience;
        let mut hung = Vec::new();
        for lane in 0..self.count() {
            while self.pid(lane).is_some() {
                if Instant::now() > until {
                    hung.push(format!("worker {lane} does not end"));
                    self.kill(lane);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let reader = self.in_lane(lane, |lane| lane.reader.take());
            if let Some(reader) = reader {
                let _ = reader.join();
            }
        }
        hung
    }

    fn begin(self: &Arc<Self>, number: usize) -> io::Result<()> {
        let workers = Arc::clone(self);
        self.in_lane(number, |lane| {
            let arguments = Arguments {
                engine: workers.engine,
                ports: lane.ports.clone(),
                resource: workers.resource.clone(),
                lane: number,
                life: lane.lives,
                seed: workers.seed,
            };
            let mut child = Command::new(std::env::current_exe()?)
                .arg("worker")
                .args(arguments.to_words())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                return Err(io::Error::other("a worker without pipes"));
            };
            lane.child = Some((child, input));
            lane.began = Some(Instant::now());
            lane.use_of = None;
            let life = lane.lives;
            lane.lives += 1;
            lane.reader = Some(std::thread::spawn(move || {
                let index = workers.history.with(|record| {
                    record.lives.push(Life {
                        lane: number,
                        from: now(),
                        until: None,
                    });
                    record.lives.len() - 1
                });
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    workers.history.enter(number, life, &line);
                }
                let child = workers.in_lane(number, |lane| lane.child.take());
                if let Some((mut child, _)) = child {
                    let _ = child.wait();
                }
                workers
                    .history
                    .with(|record| record.lives[index].until = Some(now()));
                if !workers.ending.load(Ordering::SeqCst) {
                    let _ = workers.begin(number);
                }
            }));
            Ok(())
        })
    }

    fn in_lane<T>(&self, lane: usize, f: impl FnOnce(&mut Lane) -> T) -> T {
        match self.lanes[lane].lock() {
            Ok(mut lane) => f(&mut lane),
            Err(poisoned) => f(&mut poisoned.into_inner()),
        }
    }
}

fn usage(pid: u32) -> Option<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Usage {
        threads: field("Threads:")?,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        kilobytes: field("VmRSS:")?,
    })
}
