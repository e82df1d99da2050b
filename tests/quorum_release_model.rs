//! What one server of a quorum is sent by one holder, in every order: no repair and no late acquire
//! outlives the release. Servers do not depend on each other in this, so one is enough.
//!
//! Somebody else may have the key at first, and gives it up at any moment; until then an acquire and
//! a repair are refused. A lease vanishes at any moment. A request is carried out at any moment
//! after it was sent, or never; a release that was sent behind a request that was cut short goes the same
//! way, so it is carried out after it or not at all. The release that is sent at once may go that
//! way, too; then there is no other behind that request. Renewals answer what they found when they were
//! carried out, at any later moment. An answer "no such key" starts a repair, and so does the
//! refusal of the acquire, if the claim has not ended. A server that refused all it was sent is not
//! released.

use stateright::{Checker, Model, Property};

const RELEASED: &str = "once all releases are carried out, nothing sets the key again";

#[derive(Clone, Copy)]
struct Rules {
    /// S1: no repair begins when the claim has ended.
    no_repair_after_the_end: bool,
    /// S2: a release is sent again behind the requests that were under way on other connections.
    release_again: bool,
    /// S2: the release that is sent at once stands for one behind a request only on its connection.
    connections_are_told_apart: bool,
    /// S3: a refusal speaks for its own request alone.
    refusals_are_counted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    ours: bool,
    foreign: bool,
    ended: bool,
    /// The release that is sent at once goes the way of the acquire, or of the repair.
    behind: Way,
    /// Requests that may have set the key, or may yet, as the client knows.
    possible_grants: u8,
    acquire: Request,
    repair: Request,
    renewal: Renewal,
    /// The release that is sent at once, on any connection.
    release: Request,
    /// The one behind an acquire, on its connection.
    behind_acquire: Request,
    behind_repair: Request,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Request {
    #[default]
    None,
    Sent,
    /// Carried out in vain, which is not known yet.
    Refused,
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Way {
    #[default]
    Other,
    Acquire,
    Repair,
    Both,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Renewal {
    #[default]
    None,
    Sent,
    FoundNothing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Acquire,
    SendRenewal,
    Renew,
    HearOfRenewal,
    Repair,
    HearOfRefusedAcquire,
    HearOfRefusedRepair,
    ForeignLeaves,
    End,
    Release,
    ReleaseBehindAcquire,
    ReleaseBehindRepair,
    Vanish,
}

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut states = Vec::new();
        for behind in [Way::Other, Way::Acquire, Way::Repair, Way::Both] {
            states.extend([false, true].map(|foreign| State {
                acquire: Request::Sent,
                possible_grants: 1,
                foreign,
                behind,
                ..State::default()
            }));
        }
        states
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut can = |condition: bool, action: Action| {
            if condition {
                actions.push(action);
            }
        };
        can(state.acquire == Request::Sent, Action::Acquire);
        can(
            state.renewal == Renewal::None && !state.ended,
            Action::SendRenewal,
        );
        can(state.renewal == Renewal::Sent, Action::Renew);
        can(
            state.renewal == Renewal::FoundNothing,
            Action::HearOfRenewal,
        );
        can(state.repair == Request::Sent, Action::Repair);
        // What was under way at the end is cut short, so nobody hears.
        can(
            state.acquire == Request::Refused && !state.ended,
            Action::HearOfRefusedAcquire,
        );
        can(
            state.repair == Request::Refused && !state.ended,
            Action::HearOfRefusedRepair,
        );
        can(state.foreign, Action::ForeignLeaves);
        can(!state.ended, Action::End);
        can(
            state.release == Request::Sent
                && !(state.behind.is_acquires() && state.acquire == Request::Sent)
                && !(state.behind.is_repairs() && state.repair == Request::Sent),
            Action::Release,
        );
        let behind = |first: Request, second: Request| {
            matches!(first, Request::Done | Request::Refused) && second == Request::Sent
        };
        can(
            behind(state.acquire, state.behind_acquire),
            Action::ReleaseBehindAcquire,
        );
        can(
            behind(state.repair, state.behind_repair),
            Action::ReleaseBehindRepair,
        );
        can(state.ours, Action::Vanish);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Acquire => state.acquire = state.set(),
            Action::SendRenewal => state.renewal = Renewal::Sent,
            Action::Renew => {
                state.renewal = if state.ours {
                    Renewal::None
                } else {
                    Renewal::FoundNothing
                };
            }
            Action::HearOfRenewal => {
                state.renewal = Renewal::None;
                self.begin_repair(&mut state);
            }
            Action::Repair => state.repair = state.set(),
            Action::HearOfRefusedAcquire => {
                state.acquire = Request::Done;
                self.count_refusal(&mut state);
                self.begin_repair(&mut state);
            }
            Action::HearOfRefusedRepair => {
                state.repair = Request::Done;
                self.count_refusal(&mut state);
                self.begin_repair(&mut state);
            }
            Action::ForeignLeaves => state.foreign = false,
            Action::End => {
                state.ended = true;
                if state.possible_grants > 0 {
                    state.release = Request::Sent;
                }
                let alike = !self.connections_are_told_apart;
                let again = |request, is_behind: bool| {
                    self.release_again && request == Request::Sent && !is_behind && !alike
                };
                if again(state.acquire, state.behind.is_acquires()) {
                    state.behind_acquire = Request::Sent;
                }
                if again(state.repair, state.behind.is_repairs()) {
                    state.behind_repair = Request::Sent;
                }
            }
            Action::Release => {
                state.release = Request::Done;
                state.ours = false;
            }
            Action::ReleaseBehindAcquire => {
                state.behind_acquire = Request::Done;
                state.ours = false;
            }
            Action::ReleaseBehindRepair => {
                state.behind_repair = Request::Done;
                state.ours = false;
            }
            Action::Vanish => state.ours = false,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(RELEASED, |_, state: &State| {
            let waits = |release: Request| release == Request::Sent;
            let releases = [state.release, state.behind_acquire, state.behind_repair];
            !(state.ended && state.ours && !releases.into_iter().any(waits))
        })]
    }
}

impl Way {
    fn is_acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::Both)
    }

    fn is_repairs(self) -> bool {
        matches!(self, Self::Repair | Self::Both)
    }
}

impl State {
    /// Sets the key, if it is nobody else's.
    fn set(&mut self) -> Request {
        self.ours |= !self.foreign;
        if self.foreign {
            Request::Refused
        } else {
            Request::Done
        }
    }
}

impl Rules {
    fn begin_repair(&self, state: &mut State) {
        let may_begin = !state.ended || !self.no_repair_after_the_end;
        let is_idle = matches!(state.repair, Request::None | Request::Done);
        // More are like these.
        if may_begin && is_idle && state.possible_grants < 3 {
            state.repair = Request::Sent;
            state.possible_grants += 1;
        }
    }

    fn count_refusal(&self, state: &mut State) {
        if self.refusals_are_counted {
            state.possible_grants -= 1;
        } else {
            state.possible_grants = 0;
        }
    }
}

const ALL: Rules = Rules {
    no_repair_after_the_end: true,
    release_again: true,
    connections_are_told_apart: true,
    refusals_are_counted: true,
};

fn is_broken(rules: Rules) -> bool {
    let checker = rules.checker().spawn_bfs().join();
    checker.discovery(RELEASED).is_some()
}

#[test]
fn p10_no_repair_and_no_late_acquire_outlives_the_release() {
    assert!(!is_broken(ALL));
}

#[test]
fn p10_a_repair_that_begins_after_the_end_is_found() {
    assert!(is_broken(Rules {
        no_repair_after_the_end: false,
        ..ALL
    }));
}

#[test]
fn p10_a_release_that_is_sent_only_once_is_found() {
    assert!(is_broken(Rules {
        release_again: false,
        ..ALL
    }));
}

#[test]
fn p10_a_release_on_another_connection_that_is_taken_for_one_behind_a_request_is_found() {
    assert!(is_broken(Rules {
        connections_are_told_apart: false,
        ..ALL
    }));
}

#[test]
fn p10_a_refusal_that_is_taken_for_an_answer_to_all_is_found() {
    assert!(is_broken(Rules {
        refusals_are_counted: false,
        ..ALL
    }));
}
