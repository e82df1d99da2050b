//! A run: which faults, over how many servers, for how long.

use std::path::PathBuf;

use crate::faults::{Class, Fault};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seconds: u64,
    pub servers: usize,
    pub seed: u64,
    pub faults: Vec<Fault>,
    /// How many faults may be under way at once.
    pub at_once: u64,
    pub title: String,
    pub page: Option<PathBuf>,
}

impl Plan {
    /// A run under the faults that a title names.
    pub fn new(title: &str, servers: usize) -> Result<Self, String> {
        Ok(Self {
            seconds: 10,
            servers,
            seed: 7,
            faults: named(title, servers)?,
            at_once: if title == "mix" { 2 } else { 1 },
            title: title.to_owned(),
            page: None,
        })
    }

    pub fn needs_clocks(&self) -> bool {
        self.faults.iter().any(|fault| fault.needs_clocks())
    }

    pub fn class(&self) -> Class {
        let is_unsafe = |fault: &Fault| fault.class() == Class::Unsafe;
        match self.faults.iter().any(is_unsafe) {
            true => Class::Unsafe,
            false => Class::Safe,
        }
    }

    /// Whether a run without an overlap shows that the checker is blind.
    pub fn must_overlap(&self) -> bool {
        self.class() == Class::Unsafe && self.faults != [Fault::Lag]
    }
}

/// The faults that a title names.
fn named(title: &str, servers: usize) -> Result<Vec<Fault>, String> {
    let is_possible = |fault: &Fault| servers > 1 || !fault.needs_several();
    let of_class = |class| {
        let all = Fault::ALL.iter().copied();
        let is_apart = |f: &Fault| f.needs_counters() || f.needs_clocks();
        let fits = |f: &Fault| f.class() == class && is_possible(f) && !is_apart(f);
        all.filter(fits).collect()
    };
    let one = |name: &str| {
        let fault = Fault::ALL.iter().copied().find(|f| f.name() == name);
        let fault = fault.ok_or(format!("there is no fault {name:?}; see --list"))?;
        match is_possible(&fault) {
            true => Ok(fault),
            false => Err(format!("{name} is a fault of several servers")),
        }
    };
    match title {
        "none" => Ok(Vec::new()),
        "mix" => Ok(of_class(Class::Safe)),
        "unsafe" => Ok(of_class(Class::Unsafe)),
        names => names.split(',').map(one).collect(),
    }
}
