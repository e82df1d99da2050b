//! A run: which faults, over which engine, for how long.

use std::path::PathBuf;

use crate::engine::Engine;
use crate::faults::{Class, Fault};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seconds: u64,
    pub engine: Engine,
    /// How many there are of servers that do not know each other.
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
    pub fn new(title: &str, engine: Engine, servers: usize) -> Result<Self, String> {
        Ok(Self {
            seconds: 10,
            engine,
            servers,
            seed: 7,
            faults: named(title, engine)?,
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
        match self.engine.is_deployment() {
            // When others find out by themselves that a master is away, the TTLs are mostly over.
            true => self.faults == [Fault::Takeover],
            false => self.class() == Class::Unsafe && self.faults != [Fault::Lag],
        }
    }
}

/// The faults that a title names.
fn named(title: &str, engine: Engine) -> Result<Vec<Fault>, String> {
    let of_class = |class| {
        let all = Fault::ALL.iter().copied();
        let is_apart = |f: &Fault| f.needs_counters() || f.needs_clocks();
        let fits = |f: &Fault| f.class() == class && f.suits(engine) && !is_apart(f);
        all.filter(fits).collect()
    };
    let one = |name: &str| {
        let fault = Fault::ALL.iter().copied().find(|f| f.name() == name);
        let fault = fault.ok_or(format!("there is no fault {name:?}; see --list"))?;
        match fault.suits(engine) {
            true => Ok(fault),
            false => Err(format!(
                "{name} is no fault of the engine {}",
                engine.name()
            )),
        }
    };
    match title {
        "none" => Ok(Vec::new()),
        "mix" => Ok(of_class(Class::Safe)),
        "unsafe" => Ok(of_class(Class::Unsafe)),
        names => names.split(',').map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINES: [Engine; 4] = [
        Engine::Server,
        Engine::Quorum,
        Engine::Sentinel,
        Engine::Cluster,
    ];

    fn faults(title: &str, engine: Engine) -> Vec<Fault> {
        Plan::new(title, engine, 1).expect("a plan").faults
    }

    #[test]
    fn each_fault_is_in_the_mix_of_its_class_of_each_engine_that_it_suits() {
        for engine in ENGINES {
            let (safe, others) = (faults("mix", engine), faults("unsafe", engine));
            for &fault in Fault::ALL {
                let is_apart = fault.needs_counters() || fault.needs_clocks();
                let is_in = fault.suits(engine) && !is_apart;
                let is_safe = fault.class() == Class::Safe;
                assert_eq!(safe.contains(&fault), is_in && is_safe, "{fault:?}");
                assert_eq!(others.contains(&fault), is_in && !is_safe, "{fault:?}");
            }
        }
    }

    #[test]
    fn a_fault_of_another_engine_is_refused() {
        for (name, engine) in [
            ("cut", Engine::Cluster),
            ("cut-links", Engine::Server),
            ("slot-move", Engine::Sentinel),
            ("cut-off", Engine::Cluster),
            ("kill-master", Engine::Quorum),
        ] {
            assert!(Plan::new(name, engine, 1).is_err(), "{name}");
        }
    }

    #[test]
    fn an_unsafe_run_has_to_show_an_overlap_where_one_is_certain() {
        let must = |title, engine| Plan::new(title, engine, 3).expect("a plan").must_overlap();
        assert!(must("unsafe", Engine::Server));
        assert!(must("takeover", Engine::Cluster));
        assert!(!must("unsafe", Engine::Cluster));
        assert!(!must("lag", Engine::Quorum));
        assert!(!must("kill-master", Engine::Cluster));
        assert!(!must("mix", Engine::Server));
    }
}
