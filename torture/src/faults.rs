//! The faults by name: of which class each is, and what it can be done to.

use crate::engine::Engine;

/// Whether two guards may be held at once under a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Never.
    Safe,
    /// By design: Redis forgets the key. Fencing must hold all the same.
    Unsafe,
}

/// What a fault is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The ways between workers and servers.
    Links,
    Servers,
    Workers,
    /// Servers that appoint masters among them, with sentinels or as a cluster.
    Deployment,
    /// A deployment with sentinels.
    Sentinels,
    /// A cluster.
    Cluster,
}

macro_rules! faults {
    ($($name:literal $variant:ident $kind:ident $class:ident)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($variant),* }

        impl Fault {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),* }
            }

            pub fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }
        }
    };
}

faults! {
    "freeze" Freeze Servers Safe
    "pause-workers" PauseWorkers Workers Safe
    "kill-workers" KillWorkers Workers Safe
    "restart" Restart Servers Safe
    "restart-empty-late" RestartEmptyLate Servers Safe
    "cut" Cut Links Safe
    "cut-requests" CutRequests Links Safe
    "cut-replies" CutReplies Links Safe
    "cut-links" CutLinks Links Safe
    "delay" Delay Links Safe
    "drip" Drip Links Safe
    "reset" Reset Links Safe
    "refuse" Refuse Links Safe
    "client-kill" ClientKill Servers Safe
    "client-pause" ClientPause Servers Safe
    "script-flush" ScriptFlush Servers Safe
    "out-of-memory" OutOfMemory Servers Safe
    "block" Block Workers Safe
    "clock-rate" ClockRate Servers Safe
    "kill-replica" KillReplica Deployment Safe
    "freeze-sentinel" FreezeSentinel Sentinels Safe
    "kill-sentinel" KillSentinel Sentinels Safe
    "slot-move" SlotMove Cluster Safe
    "freeze-and-move" FreezeAndMove Cluster Safe
    "reshard" Reshard Cluster Safe
    "cluster-failover" ClusterFailover Cluster Safe
    "flushall" FlushAll Servers Unsafe
    "restart-empty" RestartEmpty Servers Unsafe
    "evict" Evict Servers Unsafe
    "promote" Promote Servers Unsafe
    "clock-step" ClockStep Servers Unsafe
    "lag" Lag Servers Unsafe
    "kill-master" KillMaster Deployment Unsafe
    "freeze-master" FreezeMaster Deployment Unsafe
    "sentinel-failover" SentinelFailover Sentinels Unsafe
    "cut-off" CutOff Sentinels Unsafe
    "takeover" Takeover Cluster Unsafe
}

impl Fault {
    /// Whether the fault can be done to an engine, and says something about it.
    pub fn suits(self, engine: Engine) -> bool {
        match self.kind() {
            Kind::Workers => true,
            Kind::Links | Kind::Servers if !engine.is_deployment() => {
                let needs_several =
                    matches!(self, Self::CutLinks | Self::Lag | Self::RestartEmptyLate);
                !needs_several || engine == Engine::Quorum
            }
            Kind::Links | Kind::Servers => matches!(
                self,
                Self::Freeze | Self::Restart | Self::ClientKill | Self::ScriptFlush
            ),
            Kind::Deployment => engine.is_deployment(),
            Kind::Sentinels => engine == Engine::Sentinel,
            Kind::Cluster => engine == Engine::Cluster,
        }
    }

    /// Whether fencing puts up with it only as long as the counters are not lost.
    pub fn needs_counters(self) -> bool {
        matches!(self, Self::Lag)
    }

    /// Whether the servers need clocks of their own: not to be had everywhere, so no part of a
    /// mix, which a seed makes the same on all machines.
    pub fn needs_clocks(self) -> bool {
        matches!(self, Self::ClockRate | Self::ClockStep)
    }
}
