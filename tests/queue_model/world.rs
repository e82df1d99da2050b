//! The world: the server, the clients, what is under way between them, and what can happen next.

use crate::client::{Client, Phase, Request, Script};
use crate::server::{Call, FOREIGNER, Message, Server};
use crate::setup::{Name, Setup, Tick};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) clients: Vec<Client>,
    pub(crate) requests: Vec<Request>,
    pub(crate) messages: Vec<Message>,
    /// For how long somebody has waited who lives, and nobody has had the lock.
    pub(crate) wasted: Tick,
    /// For how long the key has been free although somebody waited who lives.
    pub(crate) free: Tick,
    /// How many of these may yet be.
    pub(crate) mishaps: u8,
    pub(crate) crashes: u8,
    pub(crate) stops: u8,
}

impl World {
    pub(crate) fn client(&mut self, name: Name) -> &mut Client {
        &mut self.clients[usize::from(name)]
    }

    fn waits(&self, name: Name) -> bool {
        let client = &self.clients[usize::from(name)];
        client.runs() && client.phase == Phase::Waiting && self.server.lives(name)
    }

    fn somebody_waits(&self) -> bool {
        self.names().any(|name| self.waits(name))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = Name> + use<> {
        0..self.clients.len() as Name
    }

    pub(crate) fn believers(&self) -> impl Iterator<Item = (Name, &Client)> {
        let all = self.names().zip(&self.clients);
        all.filter(|(_, client)| client.believes() && !client.robbed)
    }

    /// The phase of the client whose value is in the key.
    pub(crate) fn phase_of_owner(&self) -> Option<Phase> {
        let value = self.server.key?.value;
        Some(self.clients.get(usize::from(value))?.phase)
    }

    pub(crate) fn awaited(&self, name: Name, scripts: &[Script]) -> Option<&Request> {
        let mut requests = self.requests.iter();
        requests.find(|r| r.from == name && r.awaited && scripts.contains(&r.script))
    }

    pub(crate) fn send(&mut self, from: Name, script: Script) {
        let awaited = !matches!(script, Script::Leave | Script::Release);
        for request in &mut self.requests {
            let same = request.script == script
                || (script == Script::Enqueue && request.script == Script::Acquire);
            request.awaited &= request.from != from || !same;
        }
        self.requests.push(Request {
            from,
            script,
            age: 0,
            awaited,
        });
    }

    fn take(&mut self, request: &Request) {
        let at = self.requests.iter().position(|known| known == request);
        self.requests.remove(at.expect("under way"));
    }

    pub(crate) fn take_message(&mut self, message: &Message) {
        let at = self.messages.iter().position(|known| known == message);
        self.messages.remove(at.expect("under way"));
    }

    pub(crate) fn run(&mut self, request: Request, heard: bool, setup: &Setup) {
        self.take(&request);
        let mut call = Call {
            server: &mut self.server,
            setup,
            message: None,
        };
        let name = request.from;
        let was_taken = call.server.key.is_some();
        let answer = match request.script {
            Script::Acquire => Some(call.acquire(name)),
            Script::Enqueue => Some(call.enqueue(name, request.age)),
            Script::Keep => Some(call.keep(name)),
            Script::Renew => Some(call.renew(name)),
            Script::Leave => {
                call.leave(name);
                None
            }
            Script::Release => {
                call.release(name);
                None
            }
        };
        call.judge(was_taken);
        if call.server.key.is_some() {
            self.free = 0;
        }
        if let Some(message) = call.message
            && self.messages.len() < setup.messages
        {
            self.messages.push(message);
        }
        if heard && let Some(answer) = answer {
            let client = self.client(name);
            if let Some(script) = client.answered(&request, answer, setup) {
                self.send(name, script);
            }
        }
    }

    pub(crate) fn delete(&mut self) {
        let Some(key) = self.server.key.take() else {
            return;
        };
        if key.value != FOREIGNER {
            let client = self.client(key.value);
            client.robbed = client.lease > 0;
        }
        for message in self.messages.iter_mut().filter(|m| m.to == key.value) {
            message.robbed = true;
        }
    }

    pub(crate) fn pass_time(&mut self, setup: &Setup) {
        let idle = self.somebody_waits();
        let holder = self.clients.iter().any(|c| c.believes() && c.runs());
        if setup.is_timely() {
            let is_wasted = idle && !holder && !self.server.holds(FOREIGNER);
            self.wasted = if is_wasted {
                self.wasted.saturating_add(1)
            } else {
                0
            };
            let is_free = idle && self.server.key.is_none();
            self.free = if is_free {
                self.free.saturating_add(1)
            } else {
                0
            };
        }
        let oldest = setup.oldest();
        self.server.pass_time(oldest);
        for client in &mut self.clients {
            client.pass_time(setup);
        }
        for request in &mut self.requests {
            request.age = oldest.min(request.age + 1);
        }
        for message in &mut self.messages {
            message.stamp = oldest.min(message.stamp + 1);
        }
    }
}
