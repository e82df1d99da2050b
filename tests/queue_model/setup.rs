//! What one exhaustive check assumes: how many clients, which network, which fault.

pub(crate) type Name = u8;
/// A length of time. The model's clock is as coarse as the cases that are to be told apart.
pub(crate) type Tick = u8;

/// A fault that is planted, to see that the model finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// `enqueue` moves a waiter to the end of the queue.
    HeartbeatLosesItsPlace,
    /// A message that comes to a holder is taken for one that nobody waits for.
    HolderPassesOn,
    /// A grant's lease is counted from the message's arrival.
    LeaseFromArrival,
    /// A grant's lease is counted from the last heartbeat that was answered.
    LeaseFromLastAnswered,
    /// A grant's lease is counted from the last heartbeat that was sent.
    LeaseFromLastSent,
    /// `leave` deletes a key that was granted meanwhile.
    LeaverFreesItsGrant,
    /// `leave` does not touch a key that was granted meanwhile.
    LeaverKeepsItsGrant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Everything arrives at any time, in any order, or never; nobody need ever act.
    Wild,
    /// Requests run in time and are answered; clients that run do in time what they owe.
    Timely {
        /// All messages arrive at once; else at any time, or never.
        told: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) clients: usize,
    pub(crate) network: Network,
    pub(crate) fault: Fault,
    /// The TTL of the lock.
    pub(crate) ttl: Tick,
    /// How long a waiter lives after a heartbeat.
    pub(crate) life: Tick,
    /// How many requests of one client, and of all, are under way at once.
    pub(crate) requests_each: usize,
    pub(crate) requests: usize,
    /// How many messages are under way at once; further ones are lost.
    pub(crate) messages: usize,
    /// How often an answer is lost or comes too late, or a foreigner deletes the key.
    pub(crate) mishaps: u8,
    pub(crate) crashes: u8,
    pub(crate) stops: u8,
}

impl Setup {
    /// The distance of heartbeats, and how long a request is under way, in a timely network. Both
    /// together are shorter than a waiter's life, or no heartbeat would find a grant in time.
    pub(crate) const BEAT: Tick = 1;
    pub(crate) const DELAY: Tick = 1;
    /// How long a client holds the lock, in a timely network.
    pub(crate) const HOLD: Tick = 1;

    pub(crate) const WILD: Self = Self {
        clients: 2,
        network: Network::Wild,
        fault: Fault::None,
        ttl: 2,
        life: 2,
        requests_each: 2,
        requests: 3,
        messages: 2,
        mishaps: 1,
        crashes: 0,
        stops: 0,
    };

    pub(crate) const TIMELY: Self = Self {
        network: Network::Timely { told: false },
        ttl: 3,
        life: 3,
        mishaps: 0,
        ..Self::WILD
    };

    /// An age that no lease outlives.
    pub(crate) fn oldest(&self) -> Tick {
        self.ttl.max(self.life)
    }

    pub(crate) fn is_timely(&self) -> bool {
        self.network != Network::Wild
    }

    pub(crate) fn counts_beats(&self) -> bool {
        self.is_timely() || self.fault == Fault::LeaseFromLastSent
    }

    /// For how long, at most, the key is free while somebody waits.
    pub(crate) fn longest_free(&self) -> Tick {
        Self::BEAT + Self::DELAY
    }

    /// For how long, at most, somebody waits while nobody has the lock: each client that is
    /// granted it, and gives up before its heartbeat tells it so, costs a heartbeat; each deletion
    /// costs one; and each client that dies or stops costs what its key lives.
    pub(crate) fn longest_wasted(&self) -> Tick {
        let beats = self.clients as Tick + self.mishaps;
        let deaths = self.crashes + self.stops;
        beats * (Self::BEAT + Self::DELAY) + deaths * (self.oldest() + Self::DELAY)
    }
}
