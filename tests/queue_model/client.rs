//! A client: one acquisition of one process, from the first try until it has let go.
//!
//! What `src/acquire`, `src/hold.rs` and the driver do with the answers and messages that come.

use crate::server::{Answer, Message};
use crate::setup::{Fault, Name, Setup, Tick};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) phase: Phase,
    /// How long its lease lasts by its own count; at zero `is_lost` is true.
    pub(crate) lease: Tick,
    /// A foreigner deleted the key that this lease was for.
    pub(crate) robbed: bool,
    /// Does not run: `SIGSTOP`.
    pub(crate) stopped: bool,
    /// How long ago it sent its last heartbeat (a timely network, and faults).
    pub(crate) sent: Tick,
    /// How long ago it sent the last heartbeat that was answered (a fault).
    pub(crate) answered: Option<Tick>,
    /// How long it has held (a timely network).
    pub(crate) held: Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    /// Asked with the short script.
    Trying,
    /// Listens for a grant, and sends heartbeats.
    Waiting,
    /// Has a guard.
    Holding,
    /// Asked whether it may go on for a further stretch; nobody has a guard meanwhile.
    Keeping,
    /// Let go, or gave up, or lost.
    Done,
    Dead,
}

/// A request on its way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) from: Name,
    pub(crate) script: Script,
    /// How long ago it was sent.
    pub(crate) age: Tick,
    /// The client has not given up on the answer.
    pub(crate) awaited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Script {
    Acquire,
    Enqueue,
    Keep,
    Leave,
    Release,
    Renew,
}

impl Client {
    pub(crate) const IDLE: Self = Self {
        phase: Phase::Idle,
        lease: 0,
        robbed: false,
        stopped: false,
        sent: 0,
        answered: None,
        held: 0,
    };

    pub(crate) fn runs(&self) -> bool {
        !self.stopped && self.phase != Phase::Dead
    }

    /// Whether its guard, if asked, would say that it is held.
    pub(crate) fn believes(&self) -> bool {
        self.phase == Phase::Holding && self.lease > 0
    }

    /// Takes an answer to a request that it still awaits; says what it sends in turn.
    pub(crate) fn answered(
        &mut self,
        request: &Request,
        answer: Answer,
        setup: &Setup,
    ) -> Option<Script> {
        let lease = setup.ttl.saturating_sub(request.age);
        match (request.script, answer) {
            (Script::Acquire | Script::Enqueue, Answer::Granted) => {
                if lease == 0 {
                    // The next try goes under a new value: not this client's any more.
                    self.end();
                    return Some(Script::Leave);
                }
                self.hold(lease, false);
            }
            (Script::Acquire, _) => self.wait(setup),
            (Script::Enqueue, _) if setup.fault == Fault::LeaseFromLastAnswered => {
                self.answered = Some(request.age);
            }
            (Script::Renew, Answer::Granted) if self.lease > 0 => self.extend(lease),
            (Script::Keep, Answer::Granted) => {
                if self.lease == 0 {
                    self.end();
                    return Some(Script::Release);
                }
                self.extend(lease);
                self.phase = Phase::Holding;
                self.held = 0;
            }
            (Script::Renew | Script::Keep, Answer::NotOurs | Answer::PassedOn) => self.end(),
            _ => {}
        }
        None
    }

    /// Takes a message; says what it sends in turn.
    pub(crate) fn told(&mut self, message: &Message, setup: &Setup) -> Option<Script> {
        match self.phase {
            Phase::Waiting => {
                let age = match setup.fault {
                    Fault::LeaseFromArrival => 0,
                    Fault::LeaseFromLastSent => self.sent,
                    Fault::LeaseFromLastAnswered => self.answered.unwrap_or(message.stamp),
                    _ => message.stamp,
                };
                let lease = message.life.saturating_sub(age);
                if lease > 0 {
                    self.hold(lease, message.robbed);
                }
                None
            }
            Phase::Holding | Phase::Keeping if self.lease > 0 => {
                (setup.fault == Fault::HolderPassesOn).then_some(Script::Leave)
            }
            Phase::Dead => None,
            // Nobody here waits for this any more.
            _ => Some(Script::Leave),
        }
    }

    pub(crate) fn wait(&mut self, setup: &Setup) {
        self.phase = Phase::Waiting;
        self.sent = setup.oldest();
    }

    pub(crate) fn end(&mut self) {
        *self = Self {
            phase: Phase::Done,
            stopped: self.stopped,
            ..Self::IDLE
        };
    }

    pub(crate) fn die(&mut self) {
        *self = Self {
            phase: Phase::Dead,
            ..Self::IDLE
        };
    }

    pub(crate) fn pass_time(&mut self, setup: &Setup) {
        let oldest = setup.oldest();
        self.lease = self.lease.saturating_sub(1);
        if self.phase == Phase::Waiting {
            if setup.counts_beats() {
                self.sent = oldest.min(self.sent + 1);
            }
            self.answered = self.answered.map(|age| oldest.min(age + 1));
        }
        if self.phase == Phase::Holding && setup.is_timely() {
            self.held = oldest.min(self.held + 1);
        }
        if self.lease == 0 {
            self.robbed = false;
        }
    }

    fn hold(&mut self, lease: Tick, robbed: bool) {
        *self = Self {
            phase: Phase::Holding,
            lease,
            robbed,
            stopped: self.stopped,
            ..Self::IDLE
        };
    }

    fn extend(&mut self, lease: Tick) {
        self.lease = self.lease.max(lease);
        self.robbed = false;
    }
}
