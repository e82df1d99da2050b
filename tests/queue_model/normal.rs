//! Which worlds are the same: those that differ only in what makes no difference any more, or in
//! the names of the clients.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::client::{Phase, Script};
use crate::server::FOREIGNER;
use crate::setup::{Name, Setup};
use crate::world::World;

impl World {
    /// Forgets what makes no difference any more, and names the clients in an order of their own:
    /// they are all alike.
    pub(crate) fn normalise(&mut self, setup: &Setup) {
        let oldest = setup.oldest();
        for request in &mut self.requests {
            let phase = self.clients[usize::from(request.from)].phase;
            request.awaited &= match request.script {
                Script::Acquire => phase == Phase::Trying,
                Script::Enqueue => phase == Phase::Waiting,
                Script::Renew => matches!(phase, Phase::Holding | Phase::Keeping),
                Script::Keep => phase == Phase::Keeping,
                Script::Leave | Script::Release => false,
            };
            let is_stamp = request.script == Script::Enqueue && phase == Phase::Waiting;
            if !setup.is_timely() && !request.awaited && !is_stamp {
                request.age = oldest;
            }
        }
        let is_over = |name: Name| {
            let phase = self.clients[usize::from(name)].phase;
            matches!(phase, Phase::Done | Phase::Dead)
        };
        for place in &mut self.server.queue {
            if place.rest == 0 || is_over(place.value) {
                place.stamp = oldest;
            }
        }
        self.messages
            .retain(|message| self.clients[usize::from(message.to)].phase != Phase::Dead);
        for message in self.messages.iter_mut().filter(|m| is_over(m.to)) {
            (message.stamp, message.life, message.robbed) = (oldest, oldest, false);
        }
        self.rename();
        if setup.is_timely() {
            // What one client sent stays in order.
            self.requests.sort_by_key(|request| request.from);
        } else {
            self.requests.sort_unstable();
        }
        self.messages.sort_unstable();
    }

    fn rename(&mut self) {
        let mut order: Vec<(u64, Name)> = self.names().map(|n| (self.sight(n), n)).collect();
        order.sort_unstable();
        let mut names = [0; 4];
        for (new, &(_, old)) in (0..).zip(&order) {
            names[usize::from(old)] = new;
        }
        let rename = |name: &mut Name| *name = names[usize::from(*name)];
        self.clients = order
            .iter()
            .map(|&(_, old)| self.clients[usize::from(old)])
            .collect();
        if let Some(key) = &mut self.server.key
            && key.value != FOREIGNER
        {
            rename(&mut key.value);
        }
        self.server.arrivals.iter_mut().for_each(rename);
        for place in &mut self.server.queue {
            rename(&mut place.value);
        }
        for request in &mut self.requests {
            rename(&mut request.from);
        }
        for message in &mut self.messages {
            rename(&mut message.to);
        }
    }

    /// All that concerns one client, whatever its name.
    fn sight(&self, name: Name) -> u64 {
        let mut hash = DefaultHasher::new();
        self.clients[usize::from(name)].hash(&mut hash);
        self.server.holds(name).hash(&mut hash);
        let arrived = self.server.arrivals.iter().position(|&n| n == name);
        arrived.hash(&mut hash);
        for (at, place) in self.server.queue.iter().enumerate() {
            if place.value == name {
                (at, place.rest, place.stamp).hash(&mut hash);
            }
        }
        for request in self.requests.iter().filter(|r| r.from == name) {
            (request.script, request.age, request.awaited).hash(&mut hash);
        }
        for message in self.messages.iter().filter(|m| m.to == name) {
            (message.stamp, message.life, message.robbed).hash(&mut hash);
        }
        hash.finish()
    }
}
