//! The quorum's fencing tokens, searched exhaustively for a counterexample. Releases and repairs
//! of one server have a model of their own in `quorum_release_model.rs`.
//!
//! # The model
//!
//! Servers, each with the lock's holder, the fencing counter and the value that wrote it; and
//! attempts, each with a value of its own, that acquire, write back, hold and repair.
//!
//! * There is no time. A lease vanishes from a server at any moment. So a renewal changes nothing,
//!   and a release is a lease that vanishes.
//! * A request that was sent is carried out at any later moment, or never. Its reply arrives at any
//!   later moment, or never: the attempt goes on with any majority of the replies there are. A
//!   second copy of a reply is not counted. Where an acquire can be carried out twice, either reply
//!   may be the one that arrives.
//! * An attempt that gives up is one that gets no more replies; what it sent is still carried out.
//! * What a renewal leads to, a repair, is carried out at any server at any moment from the grant
//!   on, also long after the release: more than the implementation allows.
//! * A server's queue gives the lock to an attempt at any moment at which it is free, once a server:
//!   the counter grows, and nobody hears of the number or is its owner.
//! * Counters start anywhere, and floors are any numbers: no clock is trusted.
//! * Servers are alike, so a state is kept with its servers sorted.
//!
//! `QUORUM_MODEL=deep` searches further: larger numbers, acquires that are
//! carried out twice, a third attempt.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

const UNIQUE: &str = "no two attempts get the same token";
const ORDERED: &str = "an attempt that began after another was granted gets a larger token";

/// The protocol with `N` servers and `A` attempts, or what is left of it.
#[derive(Clone)]
struct Protocol<const N: usize, const A: usize> {
    /// The largest number that a counter starts with.
    counters: u8,
    /// The largest floor.
    floors: u8,
    /// Whether an acquire can be carried out twice.
    duplicates: bool,
    /// Whether queues give the lock to attempts.
    queues: bool,
    rules: Rules,
}

/// What can be taken out.
#[derive(Clone, Copy)]
struct Rules {
    /// A number that was there already is accepted only if it was written by us, whose the lock
    /// is.
    owner_check: bool,
    /// A number of ours that is larger than the token is not accepted: it came with a grant that
    /// ran late, and somebody else may have had the token before.
    upper_bound: bool,
    /// Numbers that differ are written back.
    write_back: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State<const N: usize, const A: usize> {
    servers: [Server<A>; N],
    attempts: [Attempt; A],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Server<const A: usize> {
    holder: Option<u8>,
    counter: u8,
    owner: Option<u8>,
    /// Its queue has given the lock to somebody.
    gave: bool,
    with: [With; A],
}

/// What is under way between an attempt and a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct With {
    /// How often the acquire can still be carried out.
    acquires: u8,
    granted: Option<u8>,
    raises: bool,
    accepted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Attempt {
    phase: Phase,
    /// As long as it matters.
    floor: u8,
    /// The largest token granted before this attempt began.
    before: u8,
    token: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    Idle,
    Asking,
    WritingBack,
    Granted,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Begin {
        attempt: u8,
        floor: u8,
    },
    /// `heard`: this reply may arrive.
    Acquire {
        attempt: u8,
        server: u8,
        heard: bool,
    },
    /// The replies of these servers, as bits, have arrived first.
    Count {
        attempt: u8,
        servers: u8,
    },
    Raise {
        attempt: u8,
        server: u8,
    },
    CountAccepted {
        attempt: u8,
    },
    Repair {
        attempt: u8,
        server: u8,
    },
    Give {
        attempt: u8,
        server: u8,
    },
    Vanish {
        server: u8,
    },
}

impl<const N: usize, const A: usize> Model for Protocol<N, A> {
    type State = State<N, A>;
    type Action = Action;

    fn init_states(&self) -> Vec<Self::State> {
        let mut starts = vec![[0; N]];
        for index in 0..N {
            let mut longer = Vec::new();
            for start in starts {
                let least = if index == 0 { 0 } else { start[index - 1] };
                for counter in least..=self.counters {
                    let mut start = start;
                    start[index] = counter;
                    longer.push(start);
                }
            }
            starts = longer;
        }
        let state = |counters: [u8; N]| State {
            servers: counters.map(|counter| Server {
                holder: None,
                counter,
                owner: None,
                gave: !self.queues,
                with: [With::default(); A],
            }),
            attempts: [Attempt {
                phase: Phase::Idle,
                floor: 0,
                before: 0,
                token: 0,
            }; A],
        };
        starts.into_iter().map(state).collect()
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Action>) {
        if !state.can_still_break() {
            return;
        }
        for (index, Attempt { phase, .. }) in state.attempts.iter().enumerate() {
            let attempt = index as u8;
            if *phase == Phase::Idle {
                // They begin in the order of their numbers: the numbers mean nothing else.
                actions.extend((0..=self.floors).map(|floor| Action::Begin { attempt, floor }));
                break;
            }
            if *phase == Phase::Asking {
                let all = 0..1_u8 << N;
                let majorities = all.filter(|servers| servers.count_ones() as usize == N / 2 + 1);
                let heard = majorities.filter(|servers| {
                    let mut members = (0..N).filter(|server| servers & (1 << server) != 0);
                    members.all(|server| state.servers[server].with[index].granted.is_some())
                });
                actions.extend(heard.map(|servers| Action::Count { attempt, servers }));
            }
            if *phase == Phase::WritingBack {
                actions.push(Action::CountAccepted { attempt });
            }
            for (server, at) in state.servers.iter().enumerate() {
                let (server, with) = (server as u8, &at.with[index]);
                if with.acquires > 0 {
                    let heard = true;
                    actions.push(Action::Acquire {
                        attempt,
                        server,
                        heard,
                    });
                    // Without a first reply, one that is not heard is one that is not counted.
                    if with.granted.is_some() {
                        let heard = false;
                        actions.push(Action::Acquire {
                            attempt,
                            server,
                            heard,
                        });
                    }
                }
                if with.raises {
                    actions.push(Action::Raise { attempt, server });
                }
                if !at.gave && at.holder.is_none() {
                    actions.push(Action::Give { attempt, server });
                }
                if *phase == Phase::Granted && at.holder.is_none() {
                    actions.push(Action::Repair { attempt, server });
                }
            }
        }
        for (server, at) in state.servers.iter().enumerate() {
            if at.holder.is_some() {
                let server = server as u8;
                actions.push(Action::Vanish { server });
            }
        }
    }

    fn next_state(&self, last: &Self::State, action: Action) -> Option<Self::State> {
        let mut state = *last;
        match action {
            Action::Begin { attempt, floor } => {
                state.begin(attempt, floor, 1 + u8::from(self.duplicates));
            }
            Action::Acquire {
                attempt,
                server,
                heard,
            } => {
                let Attempt { phase, floor, .. } = state.attempts[attempt as usize];
                let at = &mut state.servers[server as usize];
                let number = at.acquire(attempt, floor);
                if phase == Phase::Asking && heard {
                    at.with[attempt as usize].granted = number;
                }
            }
            Action::Count { attempt, servers } => {
                state.count(attempt, servers, self.rules.write_back)
            }
            Action::Raise { attempt, server } => {
                let Attempt { phase, token, .. } = state.attempts[attempt as usize];
                let at = &mut state.servers[server as usize];
                let accepted = at.raise(attempt, token, self.rules);
                at.with[attempt as usize].accepted |= accepted && phase == Phase::WritingBack;
            }
            Action::CountAccepted { attempt } => state.count_accepted(attempt),
            Action::Repair { attempt, server } => {
                let token = state.attempts[attempt as usize].token;
                state.servers[server as usize].repair(attempt, token);
            }
            Action::Give { attempt, server } => {
                let at = &mut state.servers[server as usize];
                (at.gave, at.holder) = (true, Some(attempt));
                at.counter += 1;
            }
            Action::Vanish { server } => state.servers[server as usize].holder = None,
        }
        state.tidy();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(UNIQUE, |_, state: &State<N, A>| {
                let granted = || state.attempts.iter().filter(|attempt| attempt.is_granted());
                granted().enumerate().all(|(index, attempt)| {
                    let mut earlier = granted().take(index);
                    earlier.all(|other| other.token != attempt.token)
                })
            }),
            Property::always(ORDERED, |_, state: &State<N, A>| {
                let mut attempts = state.attempts.iter();
                attempts.all(|attempt| !attempt.is_granted() || attempt.token > attempt.before)
            }),
        ]
    }
}

impl<const N: usize, const A: usize> State<N, A> {
    fn begin(&mut self, number: u8, floor: u8, acquires: u8) {
        let granted = self.attempts.iter().filter(|attempt| attempt.is_granted());
        let before = granted.map(|attempt| attempt.token).max().unwrap_or(0);
        self.attempts[number as usize] = Attempt {
            phase: Phase::Asking,
            floor,
            before,
            token: 0,
        };
        for server in &mut self.servers {
            server.with[number as usize].acquires = acquires;
        }
    }

    /// With a majority of grants the token is known, and if they agree, it is settled.
    fn count(&mut self, number: u8, servers: u8, write_back: bool) {
        let index = number as usize;
        let counted = |server: usize| servers & (1 << server) != 0;
        let grants = self.servers.iter().enumerate();
        let grants = grants.filter(|(server, _)| counted(*server));
        let numbers: Vec<_> = grants.map(|(_, at)| at.with[index].granted).collect();
        let token = numbers.iter().flatten().max().copied().unwrap_or(0);
        let agreed = numbers.iter().all(|number| *number == Some(token));
        let attempt = &mut self.attempts[index];
        attempt.token = token;
        attempt.phase = if agreed || !write_back {
            Phase::Granted
        } else {
            Phase::WritingBack
        };
        for (server, at) in self.servers.iter_mut().enumerate() {
            let with = &mut at.with[index];
            if attempt.phase == Phase::WritingBack {
                with.accepted = counted(server) && with.granted == Some(token);
                with.raises = !with.accepted;
            }
            with.granted = None;
        }
    }

    fn count_accepted(&mut self, number: u8) {
        let index = number as usize;
        let accepted = self.servers.iter().filter(|at| at.with[index].accepted);
        if accepted.count() > N / 2 {
            self.attempts[index].phase = Phase::Granted;
            for server in &mut self.servers {
                server.with[index].accepted = false;
            }
        }
    }

    /// Whether two attempts can be granted, not both of which are yet.
    fn can_still_break(&self) -> bool {
        let granted = self.attempts.iter().filter(|attempt| attempt.is_granted());
        let hopeful = (0..A).filter(|&index| self.is_hopeful(index));
        hopeful.clone().count() > 0 && granted.count() + hopeful.count() > 1
    }

    /// Whether an attempt can yet be granted.
    fn is_hopeful(&self, index: usize) -> bool {
        let hopes = |hope: fn(&With) -> bool| {
            let servers = self.servers.iter();
            servers.filter(|at| hope(&at.with[index])).count() > N / 2
        };
        match self.attempts[index].phase {
            Phase::Idle => true,
            Phase::Asking => hopes(|with| with.acquires > 0 || with.granted.is_some()),
            Phase::WritingBack => hopes(|with| with.raises || with.accepted),
            Phase::Granted => false,
        }
    }

    /// Makes states equal that differ in nothing that matters.
    fn tidy(&mut self) {
        for index in 0..A {
            if self.servers.iter().all(|at| at.with[index].acquires == 0) {
                self.attempts[index].floor = 0;
            }
            let hopeful = self.is_hopeful(index);
            for at in &mut self.servers {
                let with = &mut at.with[index];
                if !hopeful {
                    with.granted = None;
                    with.accepted = false;
                }
                let may_raise = with.raises || self.attempts[index].phase == Phase::Asking;
                if at.owner == Some(index as u8) && !may_raise {
                    at.owner = None;
                }
            }
        }
        self.servers.sort_unstable();
    }
}

impl Attempt {
    fn is_granted(&self) -> bool {
        self.phase == Phase::Granted
    }
}

/// The scripts.
impl<const A: usize> Server<A> {
    fn acquire(&mut self, number: u8, floor: u8) -> Option<u8> {
        self.with[number as usize].acquires -= 1;
        if self.holder.is_some_and(|holder| holder != number) {
            return None;
        }
        self.holder = Some(number);
        self.counter = floor.max(self.counter + 1);
        self.owner = Some(number);
        Some(self.counter)
    }

    fn raise(&mut self, number: u8, token: u8, rules: Rules) -> bool {
        self.with[number as usize].raises = false;
        if self.counter >= token {
            let ours = self.holder == Some(number) && self.owner == Some(number);
            return (ours || !rules.owner_check) && (self.counter == token || !rules.upper_bound);
        }
        if self.holder != Some(number) {
            return false;
        }
        self.counter = token;
        self.owner = Some(number);
        true
    }

    fn repair(&mut self, number: u8, token: u8) {
        self.holder = Some(number);
        if self.counter < token {
            self.counter = token;
            self.owner = Some(number);
        }
    }
}

const ALL: Rules = Rules {
    owner_check: true,
    upper_bound: true,
    write_back: true,
};

fn whole<const N: usize, const A: usize>() -> Protocol<N, A> {
    Protocol {
        counters: 2,
        floors: 2,
        duplicates: false,
        queues: false,
        rules: ALL,
    }
}

fn holds<const N: usize, const A: usize>(protocol: Protocol<N, A>) {
    let start = Instant::now();
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
    println!(
        "{N} servers, {A} attempts: {} states in {:?}",
        checker.unique_state_count(),
        start.elapsed()
    );
}

fn is_broken<const N: usize, const A: usize>(protocol: Protocol<N, A>, property: &'static str) {
    let search = protocol.checker().threads(2);
    let search = search.finish_when(HasDiscoveries::AnyOf([property].into()));
    let found = search.spawn_bfs().join().discovery(property);
    assert!(found.is_some(), "nothing was found against: {property}");
}

fn is_deep() -> bool {
    std::env::var("QUORUM_MODEL").is_ok_and(|depth| depth == "deep")
}

#[test]
fn p8_tokens_are_unique_and_grow_whatever_is_late_lost_or_expired() {
    holds::<3, 2>(whole());
    holds::<3, 2>(Protocol {
        counters: 0,
        floors: 0,
        queues: true,
        ..whole()
    });
    if is_deep() {
        holds::<3, 2>(Protocol {
            counters: 1,
            floors: 1,
            queues: true,
            ..whole()
        });
        holds::<3, 2>(Protocol {
            counters: 3,
            floors: 4,
            ..whole()
        });
        let (counters, floors, duplicates) = (0, 0, true);
        holds::<3, 2>(Protocol {
            counters,
            floors,
            duplicates,
            ..whole()
        });
        let (counters, floors) = (0, 1);
        holds::<3, 3>(Protocol {
            counters,
            floors,
            ..whole()
        });
    }
}

#[test]
fn p8_without_the_owner_check_two_holders_get_the_same_token() {
    let rules = Rules {
        owner_check: false,
        ..ALL
    };
    is_broken::<3, 2>(Protocol { rules, ..whole() }, UNIQUE);
}

#[test]
fn p8_a_larger_number_of_a_late_grant_is_no_agreement() {
    let rules = Rules {
        upper_bound: false,
        ..ALL
    };
    is_broken::<3, 2>(Protocol { rules, ..whole() }, UNIQUE);
}

#[test]
fn p8_without_the_write_back_tokens_do_not_grow() {
    let rules = Rules {
        write_back: false,
        ..ALL
    };
    is_broken::<3, 2>(Protocol { rules, ..whole() }, ORDERED);
}
