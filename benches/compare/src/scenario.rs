//! The scenarios: which loads, for whom, and which figures count.

use std::time::Duration;

use clap::ValueEnum;

use crate::contender::Contender;
use crate::hold::Hold;
use crate::load::Cycles;
use crate::measure::{Case, Sample};
use crate::worker::Load;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Each task has its own key: 1, 16 and 256 tasks
    Uncontended,
    /// A majority of 3 and of 5 servers, each task its own key: 1 and 64 tasks
    Quorum,
    /// A majority of 3 servers, one of which is stopped in its tracks
    QuorumFrozen,
    /// A cluster of 3 servers, each task its own key: 1, 16 and 128 tasks
    Cluster,
    /// One key, 64 tasks of one process, nothing done while it is held
    OneProcess,
    /// One key, 4 processes of 4 tasks, nothing done while it is held
    FourProcesses,
    /// One key, 4 processes of 4 tasks, held for 5 ms, then 10 ms of rest
    HandOff,
    /// One key, held for 5 ms: requests with 2, 8 and 24 processes
    Requests,
    /// One key on 5 servers, 10 processes, nothing done while it is held
    QuorumContended,
    /// The same over links with a round trip of 20 ms
    QuorumLinks,
    /// 10,000 locks held and renewed
    Held,
}

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Scale {
    pub slice: Duration,
    pub rounds: usize,
    pub threads: usize,
    /// A smoke run, whose figures say nothing.
    pub quick: bool,
}

/// A figure of a sample.
#[derive(Clone, Copy)]
pub struct Figure {
    pub name: &'static str,
    pub of: fn(&Sample) -> f64,
    /// Whom redlease is compared with.
    pub against: Option<Contender>,
    /// Whether the chart shows it.
    pub in_chart: bool,
}

/// A row or more of the table.
pub struct Entry {
    pub label: String,
    pub case: Case,
    pub figures: Vec<Figure>,
}

use Contender::{AsyncRedisLock, Floor, Redlease, Rslock, RslockEager};

pub const CYCLES_PER_SECOND: &str = "cycles/s";

const CYCLES: Figure = Figure {
    name: CYCLES_PER_SECOND,
    of: Sample::cycles_per_second,
    against: Some(Rslock),
    in_chart: true,
};
const CYCLES_IN_TABLE: Figure = Figure {
    in_chart: false,
    ..CYCLES
};
const SERVER: Figure = figure(
    "server µs a cycle",
    Sample::server_micros_per_cycle,
    Some(Floor),
);
const CLIENT: Figure = figure(
    "client µs a cycle",
    Sample::client_micros_per_cycle,
    Some(Floor),
);
const CLIENT_AGAINST_PEER: Figure = Figure {
    against: Some(Rslock),
    ..CLIENT
};
const FAIRNESS: Figure = figure("Jain's index", Sample::fairness, None);
const REQUESTS: Figure = figure(
    "requests an acquisition",
    Sample::requests_per_acquisition,
    Some(Rslock),
);

const fn figure(name: &'static str, of: fn(&Sample) -> f64, against: Option<Contender>) -> Figure {
    Figure {
        name,
        of,
        against,
        in_chart: false,
    }
}

/// Who is compared where nobody waits, and on a quorum.
const SINGLE: [Contender; 4] = [Floor, Redlease, Rslock, AsyncRedisLock];
const CLUSTER: [Contender; 2] = [Floor, Redlease];
const QUORUM: [Contender; 2] = [Redlease, Rslock];
/// And where they wait for each other.
const WAITING: [Contender; 4] = [Redlease, Rslock, RslockEager, AsyncRedisLock];
const WAITING_QUORUM: [Contender; 3] = [Redlease, Rslock, RslockEager];

const NO_TIME: Duration = Duration::ZERO;
const SECTION: Duration = Duration::from_millis(5);
const REST: Duration = Duration::from_millis(10);
/// Half of a round trip over a slow link.
const ONE_WAY: Duration = Duration::from_millis(10);

impl Scenario {
    pub fn title(self) -> &'static str {
        match self {
            Self::Uncontended => "uncontended, a key for each task",
            Self::Quorum => "quorum, a key for each task",
            Self::Cluster => "cluster of 3, a key for each task",
            Self::QuorumFrozen => "quorum of 3, one server frozen",
            Self::OneProcess | Self::FourProcesses => "one key, empty section",
            Self::HandOff => "one key, 5 ms section, 10 ms rest",
            Self::Requests => "one key, 5 ms section",
            Self::QuorumContended => "one key, quorum of 5, empty section",
            Self::QuorumLinks => "one key, quorum of 5, links of 20 ms",
            Self::Held => "10,000 held, TTL 3 s",
        }
    }

    pub fn entries(self, scale: Scale) -> Vec<Entry> {
        match self {
            Self::Uncontended => [1, 16, 256]
                .map(|tasks| Entry {
                    label: count(tasks, "task"),
                    case: scale.one_server(1, cycles(tasks, None), &SINGLE),
                    figures: vec![CYCLES, SERVER, CLIENT, REQUESTS],
                })
                .into(),
            Self::Quorum => [(3, 1), (3, 64), (5, 1), (5, 64)]
                .map(|(servers, tasks)| Entry {
                    label: format!("of {servers}, {}", count(tasks, "task")),
                    case: scale.quorum(servers, 1, cycles(tasks, None), &QUORUM),
                    figures: vec![CYCLES, CLIENT_AGAINST_PEER, REQUESTS],
                })
                .into(),
            Self::QuorumFrozen => {
                let mut case = scale
                    .longer(3)
                    .quorum(3, 1, timed(cycles(1, None)), &QUORUM);
                case.frozen = true;
                let wait = figure(
                    "median ms to acquire",
                    Sample::median_wait_millis,
                    Some(Rslock),
                );
                vec![entry("1 task", case, [CYCLES_IN_TABLE, wait])]
            }
            Self::Cluster => [1, 16, 128].map(|tasks| scale.cluster(tasks)).into(),
            Self::OneProcess => {
                let load = cycles(64, Some("one"));
                let case = scale.one_server(1, load, &WAITING);
                vec![entry("1 process × 64", case, [CYCLES, FAIRNESS])]
            }
            Self::FourProcesses => {
                let load = cycles(4, Some("four"));
                let case = scale.one_server(4, load, &WAITING);
                vec![entry("4 processes × 4", case, [CYCLES, FAIRNESS])]
            }
            Self::HandOff => {
                let mut load = timed(cycles(4, Some("hand-off")));
                (load.section, load.pause) = (SECTION, REST);
                let case = scale.longer(2).one_server(4, load, &WAITING);
                let mut gap = figure("mean hand-off, ms", Sample::hand_off_millis, Some(Rslock));
                gap.in_chart = true;
                vec![entry("4 processes × 4", case, [gap, FAIRNESS])]
            }
            Self::Requests => [2, 8, 24]
                .map(|processes| {
                    let mut load = timed(cycles(1, Some("requests")));
                    load.section = SECTION;
                    let case = scale.longer(2).fewer();
                    let mut requests = REQUESTS;
                    requests.in_chart = true;
                    Entry {
                        label: count(processes, "process"),
                        case: case.one_server(processes, load, &WAITING),
                        figures: vec![requests, FAIRNESS],
                    }
                })
                .into(),
            Self::QuorumContended => {
                let load = timed(cycles(1, Some("contended")));
                let case = scale.longer(2).quorum(5, 10, load, &WAITING_QUORUM);
                let p99 = figure("p99 wait ÷ median", Sample::p99_to_median, None);
                vec![entry(
                    "10 processes",
                    case,
                    [CYCLES_IN_TABLE, REQUESTS, p99, FAIRNESS],
                )]
            }
            Self::QuorumLinks => {
                let load = timed(cycles(1, Some("links")));
                let mut case = scale
                    .longer(10)
                    .fewer()
                    .quorum(5, 10, load, &WAITING_QUORUM);
                case.delay = Some(ONE_WAY);
                let longest = figure("longest wait ÷ median", Sample::longest_to_median, None);
                let wait = figure("median wait, ms", Sample::median_wait_millis, Some(Rslock));
                vec![entry(
                    "10 processes",
                    case,
                    [CYCLES_IN_TABLE, REQUESTS, wait, longest, FAIRNESS],
                )]
            }
            Self::Held => vec![scale.held()],
        }
    }
}

impl Scale {
    fn longer(mut self, times: u32) -> Self {
        self.slice *= times;
        self
    }

    /// Few rounds, for what takes long and varies little.
    fn fewer(mut self) -> Self {
        self.rounds = self.rounds.min(3);
        self
    }

    fn case(self, processes: usize, contenders: &[Contender]) -> Case {
        Case {
            contenders: contenders.to_vec(),
            servers: 1,
            is_cluster: false,
            delay: None,
            frozen: false,
            processes,
            load: Load::Cycles(cycles(1, None)),
            slice: self.slice,
            rounds: self.rounds,
            threads: self.threads,
        }
    }

    fn one_server(self, processes: usize, load: Cycles, contenders: &[Contender]) -> Case {
        Case {
            load: Load::Cycles(load),
            ..self.case(processes, contenders)
        }
    }

    fn quorum(
        self,
        servers: usize,
        processes: usize,
        load: Cycles,
        contenders: &[Contender],
    ) -> Case {
        Case {
            servers,
            ..self.one_server(processes, load, contenders)
        }
    }

    /// Many guards at once.
    fn held(self) -> Entry {
        let (guards, ttl, watch) = match self.quick {
            true => (200, Duration::from_millis(300), Duration::from_millis(300)),
            false => (10_000, Duration::from_secs(3), Duration::from_secs(6)),
        };
        let mut case = self.fewer().case(1, &[Floor, Redlease, AsyncRedisLock]);
        case.load = Load::Hold(Hold { guards, ttl, watch });
        case.slice = watch;
        let figures = [
            figure("client CPU, % of a core", Sample::client_load, Some(Floor)),
            figure("resident KiB a guard", Sample::resident_kib, None),
            figure("lost", Sample::lost, None),
        ];
        entry("1 process", case, figures)
    }

    /// Beside redis-rs' cluster client.
    fn cluster(self, tasks: usize) -> Entry {
        let mut case = self.quorum(3, 1, cycles(tasks, None), &CLUSTER);
        case.is_cluster = true;
        let rate = Figure {
            against: Some(Floor),
            ..CYCLES
        };
        Entry {
            label: count(tasks, "task"),
            case,
            figures: vec![rate, SERVER, CLIENT, REQUESTS],
        }
    }
}

fn entry(label: &str, case: Case, figures: impl Into<Vec<Figure>>) -> Entry {
    Entry {
        label: label.to_owned(),
        case,
        figures: figures.into(),
    }
}

fn cycles(tasks: usize, key: Option<&str>) -> Cycles {
    Cycles {
        tasks,
        key: key.map(str::to_owned),
        section: NO_TIME,
        pause: NO_TIME,
        timed: false,
    }
}

fn timed(mut load: Cycles) -> Cycles {
    load.timed = true;
    load
}

fn count(number: usize, what: &str) -> String {
    match (number, what) {
        (1, _) => format!("1 {what}"),
        (_, "process") => format!("{number} processes"),
        _ => format!("{number} {what}s"),
    }
}
