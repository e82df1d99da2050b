//! The figures as a Markdown table.

use std::fmt::Write;

use crate::contender::Contender;
use crate::figure::{Spread, text};
use crate::measure::Samples;
use crate::peers;
use crate::scenario::{Entry, Figure, Scenario};

/// What the figures were taken with, in words.
pub struct Setting {
    pub versions: String,
    pub run: String,
}

/// One figure of all contenders.
pub struct Row {
    pub scenario: Scenario,
    pub label: String,
    pub figure: &'static str,
    pub in_chart: bool,
    /// The medians of all rounds.
    pub medians: Vec<(Contender, f64)>,
    /// redlease's figure over another one's, within each round.
    pub ratio: Option<(Contender, Spread)>,
}

impl Row {
    pub fn new(scenario: Scenario, entry: &Entry, figure: &Figure, samples: &Samples) -> Self {
        let rounds = |contender| {
            let samples = samples.get(&contender)?;
            Some(samples.iter().map(figure.of).collect::<Vec<_>>())
        };
        let medians = Contender::ALL
            .into_iter()
            .filter_map(|contender| Some((contender, Spread::of(rounds(contender)?).median)))
            .collect();
        let ratio = figure.against.and_then(|other| {
            let (ours, theirs) = (rounds(Contender::Redlease)?, rounds(other)?);
            let ratios = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
            Some((other, Spread::of(ratios)))
        });
        Self {
            scenario,
            label: entry.label.clone(),
            figure: figure.name,
            in_chart: figure.in_chart,
            medians,
            ratio,
        }
    }

    pub fn median(&self, contender: Contender) -> Option<f64> {
        let found = self.medians.iter().find(|(name, _)| *name == contender);
        found.map(|&(_, median)| median)
    }

    /// As a line of the table.
    pub fn line(&self) -> String {
        let mut line = format!(
            "| {}: {} | {} |",
            self.scenario.title(),
            self.label,
            self.figure
        );
        for contender in Contender::ALL {
            let median = self.median(contender).map(text).unwrap_or_default();
            let _ = write!(line, " {median} |");
        }
        let ratio = self.ratio.map(|(other, ratio)| {
            let (median, least, most) = (text(ratio.median), text(ratio.least), text(ratio.most));
            format!("**{median}** × {} ({least} … {most})", other.name())
        });
        let _ = write!(line, " {} |", ratio.unwrap_or_default());
        line
    }
}

/// The head of the table.
pub fn head() -> String {
    let mut names = String::new();
    for contender in Contender::ALL {
        let _ = write!(names, " {} |", contender.name());
    }
    format!(
        "| load | figure |{names} redlease ÷ other |\n|---|---|{}---|",
        "---:|".repeat(Contender::ALL.len())
    )
}

/// The page that the program writes.
pub fn page(setting: &Setting, command: &str, rows: &[Row]) -> String {
    let lines: Vec<String> = rows.iter().map(Row::line).collect();
    format!(
        "# Benchmarks\n\n\
         {}; {}.\n\n\
         ![Bar charts of the figures below](benchmarks.svg)\n\n\
         {}\n{}\n\n\
         {}\n\n\
         Written by `{command}`.\n",
        setting.versions,
        setting.run,
        head(),
        lines.join("\n"),
        notes(),
    )
}

fn notes() -> String {
    format!(
        "How it is measured:\n\n\
         - A cycle is an acquire and a release whose answer is awaited, on a handle that is made \
         once. The contenders take turns in short slices, in new processes each time, on the same \
         servers. A figure is the median of the rounds; the ratio is the median of the ratios \
         within a round, with the smallest and the largest.\n\
         - **bare redis-rs** is the floor: `SET NX PX` and a compare-and-delete script over one \
         multiplexed connection, without waiting, renewal or fencing. For the locks held, it is \
         as many compare-and-`PEXPIRE` scripts in pipelines of 100.\n\
         - **redlease** has its defaults; every acquisition has a fencing token and is renewed.\n\
         - **rslock** has its defaults, `acquire` and `release().await`. Its waiters try again \
         after a random time below 200 ms. **rslock, {} ms** is the same with a shorter time, \
         which hands over soonest. No fencing; renewal only inside its `using`.\n\
         - **async-redis-lock** waits without bound, trying again every {} ms, and is renewed \
         every third of the TTL. No fencing, no quorum.\n\
         - The TTL is 10 s, unless the table says otherwise.\n\
         - Requests are what a client sends, counted by the servers (`INFO commandstats`: scripts, \
         connection and channel commands, and `SET` of those that send it; not what scripts call), \
         over all servers. Server time is that of these requests, from the same source. Client \
         time is CPU time of the processes, user and system.\n\
         - A wait is from the call to the guard. A hand-off is from the end of one section to the \
         start of the next. Jain's index is over all tasks: 1 is fair.\n\
         - A frozen server has been stopped by a signal, its connections open. A link of 20 ms is \
         a proxy on the same machine that passes everything on after 10 ms in each direction.",
        peers::RSLOCK_EAGER_RETRY.as_millis(),
        peers::ASYNC_REDIS_LOCK_RETRY.as_millis(),
    )
}
