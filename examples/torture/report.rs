//! The table at the end of a run, and whether the run is good.

use std::collections::HashMap;

use crate::Plan;
use crate::checker::Findings;
use crate::history::MS;
use crate::minority::Minority;
use crate::resource::Tally;
use crate::workers::Usage;

/// How much a worker may grow in a run.
const MORE_THREADS: u64 = 8;
const MORE_DESCRIPTORS: u64 = 40;
const MORE_KILOBYTES: u64 = 64 * 1024;

pub struct Outcome {
    pub findings: Findings,
    /// What was seen of a quorum with a minority in trouble.
    pub minority: Minority,
    pub tally: Tally,
    pub hung: Vec<String>,
    /// What is left on the server at the end, and should not be.
    pub left: Vec<String>,
    pub usage: Vec<(Usage, Usage)>,
    pub lives: usize,
    pub errors: HashMap<String, u64>,
    pub disturbances: usize,
    pub length: u64,
}

impl Outcome {
    pub fn problems(&self, plan: &Plan) -> Vec<String> {
        let mut problems = self.findings.violations.clone();
        problems.extend(self.minority.violations.iter().cloned());
        problems.extend(self.hung.iter().cloned());
        if self.tally.lost_fenced > 0 {
            problems.push(format!("fencing: {} lost updates", self.tally.lost_fenced));
        }
        for (error, count) in &self.errors {
            // No fault here is one that somebody has to mend first.
            if error.starts_with("refused") {
                problems.push(format!("P13: {count} times {error}"));
            }
        }
        for key in &self.left {
            problems.push(format!("P10: {key} is left on the server"));
        }
        for (first, last) in &self.usage {
            if last.threads > first.threads + MORE_THREADS
                || last.descriptors > first.descriptors + MORE_DESCRIPTORS
                || last.kilobytes > first.kilobytes + MORE_KILOBYTES
            {
                problems.push(format!("a worker grew from {first:?} to {last:?}"));
            }
        }
        if self.findings.holds < 100 {
            problems.push(format!(
                "only {} holds: nothing is proven",
                self.findings.holds
            ));
        }
        if plan.must_overlap() && self.findings.overlaps.is_empty() {
            problems.push("no overlap under an unsafe fault: the checker is blind".to_owned());
        }
        problems
    }

    pub fn print(&self, plan: &Plan) {
        let findings = &self.findings;
        let seconds = self.length as f64 / 1e9;
        let millis = |nanos: Option<i64>| match nanos {
            Some(nanos) => format!("{:.1} ms", nanos as f64 / MS as f64),
            None => "-".to_owned(),
        };
        let class = plan.class();
        let rows = [
            (
                "fault",
                format!("{} ({class:?}), seed {}", plan.title, plan.seed),
            ),
            ("servers", plan.servers.to_string()),
            (
                "length",
                format!("{seconds:.1} s, {} disturbances", self.disturbances),
            ),
            ("worker processes started", self.lives.to_string()),
            ("holds", findings.holds.to_string()),
            (
                "hand-overs between processes",
                findings.handovers.to_string(),
            ),
            ("overlaps", findings.overlaps.len().to_string()),
            ("losses", findings.losses.to_string()),
            (
                "of these false, per 1000 holds",
                format!(
                    "{:.2}",
                    findings.false_losses as f64 * 1000.0 / findings.holds.max(1) as f64
                ),
            ),
            ("writes accepted", self.tally.accepted.to_string()),
            ("stale writes refused", self.tally.refused.to_string()),
            ("lost updates, fenced", self.tally.lost_fenced.to_string()),
            (
                "lost updates, not fenced",
                self.tally.lost_unfenced.to_string(),
            ),
            (
                "least from last claim to expiry",
                millis(findings.least_margin),
            ),
            ("latest token after expiry", millis(findings.latest_token)),
            (
                "longest idle with a waiter",
                millis(Some(findings.longest_idle as i64)),
            ),
        ];
        for (name, value) in rows {
            println!("{name:32} {value}");
        }
        if plan.servers > 1 {
            let seen = &self.minority;
            let text = format!(
                "{} times, {} holds, {} losses, {} overlaps",
                seen.troubles, seen.holds, seen.losses, seen.overlaps
            );
            println!("{:32} {text}", "only a minority in trouble");
        }
        let mut errors: Vec<_> = self.errors.iter().collect();
        errors.sort();
        for (error, count) in errors {
            println!("{count:6} times: {error}");
        }
        let problems = self.problems(plan);
        for problem in problems.iter().take(20) {
            println!("VIOLATION {problem}");
        }
        match problems.len() {
            0 => println!("no violation"),
            count => println!("{count} violations"),
        }
    }
}
