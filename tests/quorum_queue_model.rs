//! Waiting in turn on a quorum (`src/backend/quorum/turn.rs`), searched exhaustively for a state from
//! which somebody waits for ever, and for two holders.
//!
//! # The model
//!
//! Three servers, each with the lock's key and a queue; and contenders of as many processes, each of
//! which takes the lock once. A request to a server is one step, so votes and releases of several
//! interleave in every way.
//!
//! * *Steps* are what has to happen in the end: heartbeats, votes, releases, giving up, and the
//!   expiry of what the dead and the gone have left. Messages are no steps: all may be lost, and
//!   one that arrives does no more than a heartbeat that comes at once.
//! * *Mishaps* may happen, up to a number: a server dies (one at a time), comes back with its data
//!   or empty, a contender dies.
//! * Progress: from every state that can be reached, steps alone lead to one where every contender
//!   that lives has had the lock. So there is a way out of everything, and who tries at random
//!   finds it.
//! * Exclusion is searched for without empty servers, against which no quorum excludes.
//! * There is no time: a lease does not end while its holder lives. Requests that run late are the
//!   subject of `quorum_release_model.rs`, fencing numbers that of `quorum_model.rs`.
//!
//! `QUORUM_MODEL=deep` searches with a third contender and more mishaps.

use std::collections::HashMap;
use std::time::Instant;

use stateright::{Checker, Model, Property};

const SERVERS: usize = 3;
const MAJORITY: u32 = 2;
const EXCLUSION: &str = "at most one holds";

#[derive(Clone, Copy, Debug)]
struct Setup {
    contenders: usize,
    mishaps: u8,
    /// Whether servers may come back empty.
    may_forget: bool,
    /// Every other contender names the servers the other way round.
    disagree: bool,
    rules: Rules,
}

/// What can be taken out.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// T1: the queue's word is no lock.
    votes_decide: bool,
    /// A heartbeat finds a grant, and a free key.
    heartbeats_look: bool,
    /// A server that does not answer is passed over.
    next_serves: bool,
    /// What a dead waiter has, its place or a grant, is gone after a while.
    dead_expire: bool,
    /// Who has its turn in vain gives it up.
    vain_gives_up: bool,
}

const ALL: Rules = Rules {
    votes_decide: true,
    heartbeats_look: true,
    next_serves: true,
    dead_expire: true,
    vain_gives_up: true,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    servers: [Server; SERVERS],
    contenders: Vec<Contender>,
    mishaps: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Server {
    is_down: bool,
    key: Option<u8>,
    queue: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Contender {
    phase: Phase,
    /// Whose queue it is in.
    place: Option<u8>,
    /// Servers as bits.
    asked: u8,
    votes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waiting,
    /// It asks for votes: in its turn, or at random.
    Asking,
    Random,
    Holding,
    Releasing,
    Done,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Beat(u8),
    Ask(u8, u8),
    /// Nothing came of it: all votes but that of the queue's server are given back.
    GiveBack(u8),
    GiveUp(u8),
    AskAtRandom(u8),
    Return(u8),
    Release(u8),
    ReleaseAt(u8, u8),
    Expire(u8),
    Drop(u8),
    // Mishaps.
    Fall(u8),
    Rise(u8),
    Forget(u8),
    Die(u8),
}

impl Action {
    fn is_mishap(self) -> bool {
        matches!(
            self,
            Self::Fall(_) | Self::Rise(_) | Self::Forget(_) | Self::Die(_)
        )
    }
}

fn bit(server: u8) -> u8 {
    1 << server
}

impl State {
    /// Gives the key to the first that waits.
    fn pass_on(&mut self, server: u8, rules: Rules) {
        let contenders = &self.contenders;
        let server = &mut self.servers[server as usize];
        if rules.dead_expire {
            let lives = |c: &u8| contenders[*c as usize].phase != Phase::Dead;
            server.queue.retain(lives);
        }
        server.key = match server.queue.is_empty() {
            true => None,
            false => Some(server.queue.remove(0)),
        };
    }

    fn release(&mut self, c: u8, server: u8, rules: Rules) {
        let at = &mut self.servers[server as usize];
        if at.is_down {
            return;
        }
        at.queue.retain(|other| *other != c);
        if at.key == Some(c) {
            self.pass_on(server, rules);
        }
    }

    fn is_done(&self) -> bool {
        let mut contenders = self.contenders.iter();
        contenders.all(|c| matches!(c.phase, Phase::Done | Phase::Dead))
    }

    /// Whether the key is nobody's who lives, or of one that has forgotten it.
    fn is_stale(&self, server: u8) -> bool {
        let Some(c) = self.servers[server as usize].key else {
            return false;
        };
        let contender = &self.contenders[c as usize];
        match contender.phase {
            Phase::Dead | Phase::Done => true,
            Phase::Waiting => contender.place != Some(server),
            Phase::Asking => contender.place != Some(server) && contender.votes & bit(server) == 0,
            // A grant of a queue that it has left, or a vote that it did not hear of.
            Phase::Random | Phase::Holding | Phase::Releasing => contender.votes & bit(server) == 0,
        }
    }

    fn beat(&mut self, c: u8, setup: &Setup) {
        let rules = setup.rules;
        let mut order: Vec<u8> = (0..SERVERS as u8).collect();
        if setup.disagree && c % 2 == 1 {
            order.reverse();
        }
        let serves = |s: &u8| !self.servers[*s as usize].is_down || !rules.next_serves;
        let server = order.into_iter().find(serves).expect("two are up");
        if self.servers[server as usize].is_down {
            return;
        }
        let before = self.contenders[c as usize].place.replace(server);
        if let Some(before) = before.filter(|before| *before != server) {
            self.release(c, before, rules);
        }
        let at = &mut self.servers[server as usize];
        if at.key != Some(c) && !at.queue.contains(&c) {
            at.queue.push(c);
        }
        if !rules.heartbeats_look {
            return;
        }
        if at.key.is_none() {
            self.pass_on(server, rules);
        }
        if self.servers[server as usize].key == Some(c) {
            let contender = &mut self.contenders[c as usize];
            contender.phase = if rules.votes_decide {
                Phase::Asking
            } else {
                Phase::Holding
            };
            contender.votes = bit(server);
            contender.asked = bit(server);
        }
    }

    fn ask(&mut self, c: u8, server: u8) {
        let at = &mut self.servers[server as usize];
        let contender = &mut self.contenders[c as usize];
        contender.asked |= bit(server);
        if !at.is_down && (at.key.is_none() || at.key == Some(c)) {
            at.key = Some(c);
            contender.votes |= bit(server);
        }
        if contender.votes.count_ones() >= MAJORITY {
            contender.phase = Phase::Holding;
        }
    }

    fn give_back(&mut self, c: u8, kept: u8, rules: Rules) {
        let votes = self.contenders[c as usize].votes & !kept;
        for server in (0..SERVERS as u8).filter(|s| votes & bit(*s) != 0) {
            self.release(c, server, rules);
        }
        let contender = &mut self.contenders[c as usize];
        contender.votes &= kept;
        contender.asked = contender.votes;
    }
}

impl Model for Setup {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let contender = Contender {
            phase: Phase::Waiting,
            place: None,
            asked: 0,
            votes: 0,
        };
        vec![State {
            servers: Default::default(),
            contenders: vec![contender; self.contenders],
            mishaps: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let all = bit(SERVERS as u8) - 1;
        for (c, contender) in (0..).zip(&state.contenders) {
            match contender.phase {
                Phase::Waiting => actions.push(Action::Beat(c)),
                Phase::Asking if contender.asked == all => {
                    actions.push(Action::GiveBack(c));
                    if self.rules.vain_gives_up {
                        actions.push(Action::GiveUp(c));
                    }
                }
                Phase::Asking => {
                    let open = (0..SERVERS as u8).filter(|s| contender.asked & bit(*s) == 0);
                    actions.extend(open.map(|s| Action::Ask(c, s)));
                }
                Phase::Random => {
                    let open = (0..SERVERS as u8).filter(|s| contender.asked & bit(*s) == 0);
                    actions.extend(open.map(|s| Action::Ask(c, s)));
                    if contender.asked == all {
                        actions.push(Action::AskAtRandom(c));
                    }
                    if contender.asked == 0 {
                        actions.push(Action::Return(c));
                    }
                }
                Phase::Holding => actions.push(Action::Release(c)),
                Phase::Releasing => {
                    let open = (0..SERVERS as u8).filter(|s| contender.asked & bit(*s) != 0);
                    actions.extend(open.map(|s| Action::ReleaseAt(c, s)));
                }
                Phase::Done | Phase::Dead => {}
            }
            let lives = !matches!(contender.phase, Phase::Done | Phase::Dead);
            if lives && state.mishaps < self.mishaps {
                actions.push(Action::Die(c));
            }
        }
        let is_down = state.servers.iter().any(|server| server.is_down);
        for (s, server) in (0..).zip(&state.servers) {
            let is_dead = |c: &u8| state.contenders[*c as usize].phase == Phase::Dead;
            let may_expire = self.rules.dead_expire || !server.key.as_ref().is_some_and(is_dead);
            if state.is_stale(s) && !server.is_down && may_expire {
                actions.push(Action::Expire(s));
            }
            let first = server.queue.first();
            let is_dead = |c: &u8| {
                let contender = &state.contenders[*c as usize];
                contender.phase == Phase::Dead || contender.place != Some(s)
            };
            if self.rules.dead_expire && !server.is_down && first.is_some_and(is_dead) {
                actions.push(Action::Drop(s));
            }
            if server.is_down {
                actions.push(Action::Rise(s));
            } else if state.mishaps < self.mishaps {
                if !is_down {
                    actions.push(Action::Fall(s));
                }
                if self.may_forget && (server.key.is_some() || !server.queue.is_empty()) {
                    actions.push(Action::Forget(s));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let rules = self.rules;
        match action {
            Action::Beat(c) => state.beat(c, self),
            Action::Ask(c, s) => state.ask(c, s),
            Action::GiveBack(c) => {
                let place = state.contenders[c as usize].place;
                state.give_back(c, place.map_or(0, bit), rules);
            }
            Action::GiveUp(c) => {
                state.give_back(c, 0, rules);
                if let Some(place) = state.contenders[c as usize].place.take() {
                    state.release(c, place, rules);
                }
                state.contenders[c as usize].phase = Phase::Random;
            }
            Action::AskAtRandom(c) => state.give_back(c, 0, rules),
            Action::Return(c) => state.contenders[c as usize].phase = Phase::Waiting,
            Action::Release(c) => {
                let contender = &mut state.contenders[c as usize];
                contender.phase = Phase::Releasing;
                contender.asked = bit(SERVERS as u8) - 1;
            }
            Action::ReleaseAt(c, s) => {
                state.release(c, s, rules);
                let contender = &mut state.contenders[c as usize];
                contender.asked &= !bit(s);
                contender.votes &= !bit(s);
                if contender.asked == 0 {
                    contender.phase = Phase::Done;
                    contender.place = None;
                }
            }
            Action::Expire(s) => state.servers[s as usize].key = None,
            Action::Drop(s) => {
                state.servers[s as usize].queue.remove(0);
            }
            Action::Fall(s) => {
                state.servers[s as usize].is_down = true;
                state.mishaps += 1;
            }
            Action::Rise(s) => state.servers[s as usize].is_down = false,
            Action::Forget(s) => {
                state.servers[s as usize] = Server::default();
                state.mishaps += 1;
            }
            Action::Die(c) => {
                state.contenders[c as usize].phase = Phase::Dead;
                state.mishaps += 1;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(EXCLUSION, |_, state: &State| {
            let holding = state.contenders.iter();
            holding.filter(|c| c.phase == Phase::Holding).count() <= 1
        })]
    }
}

/// A state from which no steps lead to the end, if there is one.
fn stuck(setup: Setup) -> Option<State> {
    let start = Instant::now();
    let mut states = setup.init_states();
    let mut numbers: HashMap<State, usize> = states.iter().cloned().zip(0..).collect();
    // For each state those from which a step leads to it.
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); states.len()];
    let mut next = 0;
    let mut actions = Vec::new();
    while next < states.len() {
        let state = states[next].clone();
        setup.actions(&state, &mut actions);
        for action in actions.drain(..) {
            let Some(after) = setup.next_state(&state, action) else {
                continue;
            };
            let number = *numbers.entry(after).or_insert_with_key(|after| {
                states.push(after.clone());
                before.push(Vec::new());
                states.len() - 1
            });
            if !action.is_mishap() {
                before[number].push(next);
            }
        }
        next += 1;
    }
    let done = (0..states.len()).filter(|&number| states[number].is_done());
    let mut open: Vec<usize> = done.collect();
    let mut reaches = vec![false; states.len()];
    while let Some(number) = open.pop() {
        if !std::mem::replace(&mut reaches[number], true) {
            open.extend(&before[number]);
        }
    }
    println!("{} states in {:?}", states.len(), start.elapsed());
    let stuck = reaches.iter().position(|reaches| !reaches)?;
    Some(states[stuck].clone())
}

fn whole() -> Setup {
    let is_deep = std::env::var("QUORUM_MODEL").is_ok_and(|depth| depth == "deep");
    Setup {
        contenders: 2 + usize::from(is_deep),
        mishaps: 2,
        may_forget: false,
        disagree: false,
        rules: ALL,
    }
}

/// As many setups as there are opinions and losses of data.
fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for may_forget in [false, true] {
        setups.extend([false, true].map(|disagree| Setup {
            may_forget,
            disagree,
            ..whole()
        }));
    }
    setups
}

#[test]
fn p1_two_never_hold_whatever_the_queue_says() {
    for setup in setups().into_iter().filter(|setup| !setup.may_forget) {
        let checker = setup.checker().threads(2).spawn_bfs().join();
        println!("{} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn p11_nobody_waits_for_ever() {
    for setup in setups() {
        let stuck = stuck(setup);
        assert!(stuck.is_none(), "{setup:?}: {stuck:?}");
    }
}

#[test]
fn p1_a_queue_whose_word_is_taken_for_the_lock_is_found() {
    let rules = Rules {
        votes_decide: false,
        ..ALL
    };
    let setup = Setup {
        disagree: true,
        rules,
        ..whole()
    };
    let checker = setup.checker().spawn_bfs().join();
    assert!(checker.discovery(EXCLUSION).is_some());
}

fn is_stuck(rules: Rules) -> bool {
    let mut setups = setups().into_iter();
    setups.any(|setup| stuck(Setup { rules, ..setup }).is_some())
}

#[test]
fn p11_waiters_that_rely_on_messages_are_found() {
    assert!(is_stuck(Rules {
        heartbeats_look: false,
        ..ALL
    }));
}

#[test]
fn p11_a_queue_that_ends_with_its_server_is_found() {
    assert!(is_stuck(Rules {
        next_serves: false,
        ..ALL
    }));
}

#[test]
fn p11_dead_waiters_that_keep_what_they_have_are_found() {
    assert!(is_stuck(Rules {
        dead_expire: false,
        ..ALL
    }));
}

#[test]
fn p11_contenders_that_insist_on_their_turns_are_found() {
    assert!(is_stuck(Rules {
        vain_gives_up: false,
        ..ALL
    }));
}
