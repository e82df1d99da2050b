//! What a server counts.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use testkit::Server;

/// For each command, how often it was called and for how many microseconds, scripts' own calls
/// included.
pub struct Counts(BTreeMap<String, (u64, u64)>);

impl Counts {
    pub fn of(server: &Server) -> Result<Self> {
        let stats: String = server.query(&["INFO", "commandstats"])?;
        let mut calls = BTreeMap::new();
        for line in stats.lines() {
            let Some((name, rest)) = line
                .strip_prefix("cmdstat_")
                .and_then(|line| line.split_once(":calls="))
            else {
                continue;
            };
            let mut numbers = rest.split([',', '=']).step_by(2);
            let mut number = || numbers.next()?.parse().ok();
            let (Some(count), Some(micros)) = (number(), number()) else {
                bail!("INFO is not understood: {line}");
            };
            calls.insert(name.to_owned(), (count, micros));
        }
        Ok(Self(calls))
    }

    /// Requests since an earlier count, and the microseconds that the server took for them.
    ///
    /// A request is what a client sends. `INFO commandstats` counts what a script calls as well,
    /// so these are told apart by name: scripts, connection and channel commands are requests,
    /// and `SET` is one if this client sends it (`sends_set`; its scripts call none). A script's
    /// time includes that of what it calls.
    pub fn requests_since(&self, earlier: &Self, sends_set: bool) -> (u64, u64) {
        let request = |name: &str| {
            let parent = name.split('|').next().unwrap_or(name);
            matches!(
                parent,
                "evalsha" | "eval" | "script" | "client" | "hello" | "subscribe" | "ping"
            ) || (name == "set" && sends_set)
        };
        let mut sum = (0, 0);
        for (name, (calls, micros)) in self.0.iter().filter(|(name, _)| request(name)) {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            sum.0 += calls - before.0;
            sum.1 += micros - before.1;
        }
        sum
    }
}
