//! The table at the end of a run, and whether the run is good.

use std::collections::HashMap;

use crate::checker::Findings;
use crate::history::MS;
use crate::minority::Minority;
use crate::plan::Plan;
use crate::resource::Tally;
use crate::workers::Usage;

/// How much a worker may grow in a run.
const MORE_THREADS: u64 = 8;
const MORE_DESCRIPTORS: u64 = 40;
const MORE_KILOBYTES: u64 = 64 * 1024;

/// So ends what is said of a run that shows neither a fault nor that there is none.
pub const NOTHING_PROVEN: &str = "nothing is proven";

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
            if has_grown(first, last) {
                problems.push(format!("a worker grew from {first:?} to {last:?}"));
            }
        }
        if self.findings.holds < 100 {
            problems.push(format!(
                "only {} holds: {NOTHING_PROVEN}",
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
        let servers = match plan.engine.is_deployment() {
            true => plan.engine.name().to_owned(),
            false => plan.servers.to_string(),
        };
        let rows = [
            (
                "fault",
                format!("{} ({class:?}), seed {}", plan.title, plan.seed),
            ),
            ("servers", servers),
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
            ("holds longer than the TTL", findings.long_holds.to_string()),
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
            ("tokens against expiries", findings.tokens.to_string()),
            ("latest token after expiry", millis(findings.latest_token)),
            (
                "the same, less what all were late",
                millis(findings.latest_token_net),
            ),
            (
                "longest idle with a waiter",
                millis(Some(findings.longest_idle as i64)),
            ),
            (
                "longest pause of a process",
                millis(Some(findings.longest_pause as i64)),
            ),
        ];
        for (name, value) in rows {
            println!("{name:34} {value}");
        }
        if plan.servers > 1 {
            let seen = &self.minority;
            let text = format!(
                "{} times, {} holds, {} losses, {} overlaps",
                seen.troubles, seen.holds, seen.losses, seen.overlaps
            );
            println!("{:34} {text}", "only a minority in trouble");
        }
        let waits = findings.waits.iter();
        let waits = waits.map(|(way, (count, guards))| format!("{way} {guards}/{count}"));
        let ends = findings.ends.iter();
        let ends = ends.map(|(way, count)| format!("{way} {count}"));
        println!("guards of waits: {}", waits.collect::<Vec<_>>().join(", "));
        println!("given up: {}", ends.collect::<Vec<_>>().join(", "));
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

fn has_grown(first: &Usage, last: &Usage) -> bool {
    last.threads > first.threads + MORE_THREADS
        || last.descriptors > first.descriptors + MORE_DESCRIPTORS
        || last.kilobytes > first.kilobytes + MORE_KILOBYTES
}

/// Whether a key beside the lock keys should not be there when nobody holds or waits, with so many
/// milliseconds to live (-1: for ever).
pub fn is_left_over(key: &str, millis: i64) -> bool {
    // Killed waiters leave a queue that expires by itself.
    let is_counter = key.ends_with(":fence") || key.ends_with(":fence-owner");
    !is_counter && !(0..=10_000).contains(&millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Overlap;
    use crate::engine::Engine;

    fn good() -> Outcome {
        Outcome {
            findings: Findings {
                holds: 100,
                ..Findings::default()
            },
            minority: Minority::default(),
            tally: Tally::default(),
            hung: Vec::new(),
            left: Vec::new(),
            usage: vec![(Usage::default(), Usage::default())],
            lives: 8,
            errors: HashMap::new(),
            disturbances: 0,
            length: 0,
        }
    }

    fn plan(fault: &str) -> Plan {
        Plan::new(fault, Engine::Server, 1).unwrap()
    }

    fn problem(change: impl FnOnce(&mut Outcome)) -> String {
        let mut outcome = good();
        change(&mut outcome);
        outcome.problems(&plan("mix")).join(", ")
    }

    #[test]
    fn a_good_run_has_no_problem() {
        assert_eq!(problem(|_| {}), "");
    }

    #[test]
    fn growth_of_each_kind_is_found_beyond_its_bound() {
        let grown = |threads, descriptors, kilobytes| {
            problem(|outcome| {
                outcome.usage.push((
                    Usage::default(),
                    Usage {
                        threads,
                        descriptors,
                        kilobytes,
                    },
                ));
            })
        };
        let (threads, descriptors) = (MORE_THREADS, MORE_DESCRIPTORS);
        assert_eq!(grown(threads, descriptors, MORE_KILOBYTES), "");
        assert!(grown(threads + 1, 0, 0).starts_with("a worker grew"));
        assert!(grown(0, descriptors + 1, 0).starts_with("a worker grew"));
        assert!(grown(0, 0, MORE_KILOBYTES + 1).starts_with("a worker grew"));
    }

    #[test]
    fn a_queue_that_does_not_expire_in_time_is_left_over() {
        assert!(is_left_over("{torture:1}:queue", -1));
        assert!(is_left_over("{torture:1}:queue", 10_001));
        assert!(!is_left_over("{torture:1}:queue", 10_000));
        assert!(!is_left_over("{torture:1}:fence", 604_800_000));
    }

    #[test]
    fn whatever_else_went_wrong_is_a_problem() {
        let left = problem(|o| o.left.push("torture:1".to_owned()));
        assert_eq!(left, "P10: torture:1 is left on the server");
        let hung = problem(|o| o.hung.push("worker 1 does not end".to_owned()));
        assert_eq!(hung, "worker 1 does not end");
        let lost = problem(|o| o.tally.lost_fenced = 1);
        assert_eq!(lost, "fencing: 1 lost updates");
        let few = problem(|o| o.findings.holds = 99);
        assert_eq!(few, "only 99 holds: nothing is proven");
    }

    #[test]
    fn p13_a_refusal_is_a_problem_and_an_outage_is_not() {
        let error = |text: &str| problem(|o| o.errors = HashMap::from([(text.to_owned(), 1)]));
        assert_eq!(error("refused: NOSCRIPT"), "P13: 1 times refused: NOSCRIPT");
        assert_eq!(error("unavailable"), "");
    }

    #[test]
    fn an_unsafe_run_without_an_overlap_means_that_the_checker_is_blind() {
        let mut outcome = good();
        assert!(outcome.problems(&plan("unsafe"))[0].ends_with("the checker is blind"));
        outcome.findings.overlaps.push(Overlap {
            key: 0,
            from: 0,
            until: 1,
            lanes: (0, 1),
        });
        assert!(outcome.problems(&plan("unsafe")).is_empty());
    }
}
