//! What can happen next, and what comes of it.

use stateright::{Model, Property};

use crate::client::{Client, Phase, Request, Script};
use crate::server::{Message, Server};
use crate::setup::{Name, Network, Setup, Tick};
use crate::world::World;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// Time passes.
    Tick,
    /// A client sends a request; what it had sent of this kind, it does not await any more.
    Send(Name, Script),
    /// A client goes to the queue without a try before.
    Join(Name),
    /// A client that does not hold yet wants the lock no more.
    GiveUp(Name),
    /// The server runs a request, and its answer is heard or not.
    Run(Request, bool),
    Hear(Message),
    /// A foreigner deletes the key.
    Delete,
    Crash(Name),
    Stop(Name),
    Continue(Name),
}

impl Model for Setup {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let world = |foreigner: Option<Tick>| World {
            server: Server::new(foreigner),
            clients: vec![Client::IDLE; self.clients],
            requests: Vec::new(),
            messages: Vec::new(),
            wasted: 0,
            free: 0,
            mishaps: self.mishaps,
            crashes: self.crashes,
            stops: self.stops,
        };
        vec![world(None), world(Some(1))]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let is_wild = !self.is_timely();
        if world.may_pass(self) {
            steps.push(Step::Tick);
        }
        for name in world.names() {
            let client = &world.clients[usize::from(name)];
            if client.runs() {
                world.deeds(name, self, steps);
                if world.crashes > 0 && !matches!(client.phase, Phase::Idle | Phase::Done) {
                    steps.push(Step::Crash(name));
                }
                if world.stops > 0 && matches!(client.phase, Phase::Waiting | Phase::Holding) {
                    steps.push(Step::Stop(name));
                }
            } else if client.stopped {
                steps.push(Step::Continue(name));
            }
        }
        for (at, &request) in world.requests.iter().enumerate() {
            let is_behind = |r: &Request| r.from == request.from;
            if !is_wild && world.requests[..at].iter().any(is_behind) {
                continue;
            }
            let runs = world.clients[usize::from(request.from)].runs();
            let can_hear = request.awaited && runs;
            if can_hear {
                steps.push(Step::Run(request, true));
            }
            if !can_hear || world.mishaps > 0 && is_wild {
                steps.push(Step::Run(request, false));
            }
        }
        for &message in &world.messages {
            if world.clients[usize::from(message.to)].runs() {
                steps.push(Step::Hear(message));
            }
        }
        if world.mishaps > 0 && world.server.key.is_some() {
            steps.push(Step::Delete);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::Tick => world.pass_time(self),
            Step::Send(name, script) => {
                if world.awaited(name, &[script]).is_some() {
                    world.mishaps -= 1;
                }
                let client = world.client(name);
                match script {
                    Script::Acquire => client.phase = Phase::Trying,
                    Script::Enqueue => client.sent = 0,
                    Script::Keep => client.phase = Phase::Keeping,
                    Script::Release | Script::Leave => client.end(),
                    Script::Renew => {}
                }
                world.send(name, script);
            }
            Step::Join(name) => world.client(name).wait(self),
            Step::GiveUp(name) => {
                world.client(name).end();
                world.send(name, Script::Leave);
            }
            Step::Run(request, heard) => {
                if !self.is_timely() && request.awaited && !heard {
                    world.mishaps -= 1;
                }
                world.run(request, heard, self);
            }
            Step::Hear(message) => {
                let reaction = world.client(message.to).told(&message, self);
                world.take_message(&message);
                if let Some(script) = reaction {
                    world.send(message.to, script);
                }
            }
            Step::Delete => {
                world.mishaps -= 1;
                world.delete();
            }
            Step::Crash(name) => {
                world.client(name).die();
                world.crashes -= 1;
            }
            Step::Stop(name) => {
                world.client(name).stopped = true;
                world.stops -= 1;
            }
            Step::Continue(name) => world.client(name).stopped = false,
        }
        world.normalise(self);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::promises::all(self)
    }
}

impl World {
    /// Whether a timely network and timely clients have done what they must before time passes.
    fn may_pass(&self, setup: &Setup) -> bool {
        let Network::Timely { told } = setup.network else {
            return true;
        };
        let hears = |name: Name| self.clients[usize::from(name)].runs();
        self.requests
            .iter()
            .all(|request| request.age < Setup::DELAY)
            && !(told && self.messages.iter().any(|message| hears(message.to)))
            && self.names().all(|name| self.has_acted(name))
    }

    fn has_acted(&self, name: Name) -> bool {
        let client = &self.clients[usize::from(name)];
        if !client.runs() {
            return true;
        }
        match client.phase {
            Phase::Waiting => !self.is_beat_due(name),
            Phase::Holding => client.lease > 0 && client.held < Setup::HOLD,
            _ => true,
        }
    }

    fn is_beat_due(&self, name: Name) -> bool {
        let client = &self.clients[usize::from(name)];
        client.sent >= Setup::BEAT && self.awaited(name, &[Script::Enqueue]).is_none()
    }

    /// What a client can do of its own accord.
    fn deeds(&self, name: Name, setup: &Setup, steps: &mut Vec<Step>) {
        let client = &self.clients[usize::from(name)];
        let mine = self.requests.iter().filter(|r| r.from == name).count();
        let has_room = mine < setup.requests_each && self.requests.len() < setup.requests;
        // It does not give up on an answer within the tick.
        let is_free = |script| {
            let known = self.awaited(name, &[script]);
            known.is_none_or(|r| r.age > 0 && self.mishaps > 0 && !setup.is_timely())
        };
        let mut send = |script| {
            // Letting go needs no room: it comes once.
            if (has_room || script == Script::Release) && is_free(script) {
                steps.push(Step::Send(name, script));
            }
        };
        match client.phase {
            Phase::Idle => {
                send(Script::Acquire);
                steps.push(Step::Join(name));
            }
            Phase::Trying => send(Script::Acquire),
            Phase::Waiting if !setup.is_timely() || self.is_beat_due(name) => {
                send(Script::Enqueue);
            }
            Phase::Holding => {
                if client.lease > 0 {
                    send(Script::Renew);
                    send(Script::Keep);
                }
                send(Script::Release);
            }
            Phase::Keeping if !setup.is_timely() => send(Script::Release),
            _ => {}
        }
        if matches!(client.phase, Phase::Trying | Phase::Waiting) {
            steps.push(Step::GiveUp(name));
        }
    }
}
