//! What a node knows of its cluster: its answer to CLUSTER NODES, which all versions have.

use std::ops::RangeInclusive;

use crate::server::Server;

/// One node, as one of them knows it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: String,
    pub(super) flags: String,
    /// The name of its master, or `-`.
    pub(super) master: String,
    pub(super) epoch: u64,
    link: String,
    pub(super) slots: Vec<RangeInclusive<u16>>,
}

/// What nodes have to agree on: the name of a node, that of its master, and its slots.
pub(super) type Agreed = (String, String, Vec<RangeInclusive<u16>>);

/// What a node knows of all nodes; nothing if it does not run.
pub(super) fn view(node: &Server) -> Vec<Line> {
    if !node.runs() {
        return Vec::new();
    }
    let answer: String = node.query(&["CLUSTER", "NODES"]).unwrap_or_default();
    answer.lines().map(Line::parse).collect()
}

/// What there is to agree on, in an order that is the same for all.
pub(super) fn agreement(view: Vec<Line>) -> Vec<Agreed> {
    let up = view.into_iter().filter(|line| !line.has_flag("fail"));
    let mut agreed: Vec<_> = up.map(|line| (line.id, line.master, line.slots)).collect();
    agreed.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    agreed
}

impl Line {
    /// Reads `id address flags master ping pong epoch link slot slot …`.
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        // `[slot->-id]` and `[slot-<-id]` are slots that are about to move.
        let slots = words[8..].iter().filter(|word| !word.starts_with('['));
        Self {
            id: words[0].to_owned(),
            flags: words[2].to_owned(),
            master: words[3].to_owned(),
            epoch: words[6].parse().expect("an epoch"),
            link: words[7].to_owned(),
            slots: slots.map(|word| range(word)).collect(),
        }
    }

    pub(super) fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(',').any(|has| has == flag)
    }

    pub(super) fn is_master(&self) -> bool {
        self.has_flag("master")
    }

    /// Whether it is more than an address that was heard of.
    pub(super) fn is_met(&self) -> bool {
        !self.has_flag("handshake") && self.link == "connected"
    }

    pub(super) fn has(&self, slot: u16) -> bool {
        self.slots.iter().any(|slots| slots.contains(&slot))
    }
}

/// The slots in `5` or `0-5460`.
fn range(word: &str) -> RangeInclusive<u16> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let slot = |slot: &str| slot.parse().expect("a slot");
    slot(first)..=slot(last)
}
