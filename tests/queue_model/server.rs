//! The server: the lock key, the queue, and the scripts of `src/lua` that touch them.
//!
//! One function a script, with the same cases in the same order. A script runs at one instant.

use crate::setup::{Fault, Name, Setup, Tick};

/// Who is no client of the model: a program that takes the lock with a plain `SET … NX PX`.
pub(crate) const FOREIGNER: Name = Name::MAX;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) key: Option<Key>,
    /// The sorted set and the hash: their entries come and go together.
    pub(crate) queue: Vec<Place>,
    /// Who waits, by the first heartbeat that ran: kept by the model, to judge the grants by.
    pub(crate) arrivals: Vec<Name>,
    /// Somebody was granted the lock although one who lived had arrived before.
    pub(crate) overtaken: bool,
    /// A script left the key free although somebody who lived waited for it.
    pub(crate) left_free: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) value: Name,
    /// `PTTL`.
    pub(crate) rest: Tick,
}

/// A waiter's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) value: Name,
    /// How long it still lives: `beat + life - now`.
    pub(crate) rest: Tick,
    /// How long ago it sent the last heartbeat that ran: `now - stamp`.
    pub(crate) stamp: Tick,
}

/// What is published to a waiter that was granted the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Message {
    pub(crate) to: Name,
    pub(crate) stamp: Tick,
    /// How long after the stamp, at least, the server keeps the key.
    pub(crate) life: Tick,
    /// A foreigner deleted the key after this grant.
    pub(crate) robbed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted,
    Waiting,
    NotOurs,
    PassedOn,
}

/// One call of a script.
pub(crate) struct Call<'a> {
    pub(crate) server: &'a mut Server,
    pub(crate) setup: &'a Setup,
    pub(crate) message: Option<Message>,
}

impl Server {
    pub(crate) fn new(foreigner: Option<Tick>) -> Self {
        Self {
            key: foreigner.map(|rest| Key {
                value: FOREIGNER,
                rest,
            }),
            queue: Vec::new(),
            arrivals: Vec::new(),
            overtaken: false,
            left_free: false,
        }
    }

    pub(crate) fn holds(&self, value: Name) -> bool {
        self.key.is_some_and(|key| key.value == value)
    }

    pub(crate) fn lives(&self, value: Name) -> bool {
        self.queue.iter().any(|p| p.value == value && p.rest > 0)
    }

    pub(crate) fn pass_time(&mut self, oldest: Tick) {
        if let Some(key) = &mut self.key {
            key.rest -= 1;
            if key.rest == 0 {
                self.key = None;
            }
        }
        for place in &mut self.queue {
            place.rest = place.rest.saturating_sub(1);
            place.stamp = oldest.min(place.stamp + 1);
        }
    }

    fn leave_queue(&mut self, value: Name) {
        self.queue.retain(|place| place.value != value);
        self.arrivals.retain(|&name| name != value);
    }
}

impl Call<'_> {
    pub(crate) fn acquire(&mut self, value: Name) -> Answer {
        if self.server.key.is_some() && !self.server.holds(value) {
            return Answer::Waiting;
        }
        self.extend(value, self.setup.ttl);
        Answer::Granted
    }

    pub(crate) fn enqueue(&mut self, value: Name, stamp: Tick) -> Answer {
        if self.server.holds(value) {
            self.server.leave_queue(value);
            self.extend(value, self.setup.ttl);
            return Answer::Granted;
        }
        self.take_place(value, stamp);
        if self.server.key.is_none() && self.pass_on(Some(value)) == Some(value) {
            self.extend(value, self.setup.ttl);
            return Answer::Granted;
        }
        while let Some(first) = self.server.queue.first().copied() {
            if first.value == value || first.rest > 0 {
                break;
            }
            self.server.leave_queue(first.value);
        }
        Answer::Waiting
    }

    pub(crate) fn keep(&mut self, value: Name) -> Answer {
        if !self.server.holds(value) {
            return Answer::NotOurs;
        }
        if self.pass_on(None).is_some() {
            return Answer::PassedOn;
        }
        self.extend(value, self.setup.ttl);
        Answer::Granted
    }

    pub(crate) fn leave(&mut self, value: Name) {
        self.server.leave_queue(value);
        if self.server.holds(value) {
            match self.setup.fault {
                Fault::LeaverKeepsItsGrant => {}
                Fault::LeaverFreesItsGrant => self.server.key = None,
                _ => self.give_up(),
            }
        }
    }

    pub(crate) fn release(&mut self, value: Name) {
        if self.server.holds(value) {
            self.give_up();
        }
    }

    pub(crate) fn renew(&mut self, value: Name) -> Answer {
        match &mut self.server.key {
            Some(key) if key.value == value => {
                key.rest = key.rest.max(self.setup.ttl);
                Answer::Granted
            }
            _ => Answer::NotOurs,
        }
    }

    /// Notes whether the script that has run kept the promise of the queue.
    pub(crate) fn judge(&mut self, was_taken: bool) {
        let server = &mut *self.server;
        server.left_free |=
            was_taken && server.key.is_none() && server.queue.iter().any(|p| p.rest > 0);
    }

    fn give_up(&mut self) {
        if self.pass_on(None).is_none() {
            self.server.key = None;
        }
    }

    fn take_place(&mut self, value: Name, stamp: Tick) {
        let place = Place {
            value,
            rest: self.setup.life,
            stamp,
        };
        let queue = &mut self.server.queue;
        match queue.iter().position(|known| known.value == value) {
            Some(at) if self.setup.fault == Fault::HeartbeatLosesItsPlace => {
                queue.remove(at);
                queue.push(place);
            }
            Some(at) => queue[at] = place,
            None => {
                queue.push(place);
                self.server.arrivals.push(value);
            }
        }
    }

    fn pass_on(&mut self, caller: Option<Name>) -> Option<Name> {
        while !self.server.queue.is_empty() {
            let waiter = self.server.queue.remove(0);
            let arrived = self.server.arrivals.iter().position(|&n| n == waiter.value);
            let before = self.server.arrivals.iter().take(arrived.unwrap_or(0));
            let overtakes = before.clone().any(|&name| self.server.lives(name));
            self.server.arrivals.retain(|&name| name != waiter.value);
            if waiter.rest == 0 {
                continue;
            }
            self.server.overtaken |= overtakes;
            let lease = waiter.rest.min(self.setup.ttl);
            self.server.key = Some(Key {
                value: waiter.value,
                rest: lease,
            });
            if caller != Some(waiter.value) {
                self.message = Some(Message {
                    to: waiter.value,
                    stamp: waiter.stamp,
                    life: self.setup.life - waiter.rest + lease,
                    robbed: false,
                });
            }
            return Some(waiter.value);
        }
        None
    }

    /// `SET … PX`, or `PEXPIRE` of a key that is the value's.
    fn extend(&mut self, value: Name, rest: Tick) {
        self.server.key = Some(Key { value, rest });
    }
}
