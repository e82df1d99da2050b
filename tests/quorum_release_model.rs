//! What one server of a quorum is sent by one holder, in every order: no repair and no late acquire
//! outlives the release. Servers do not depend on each other in this, so one is enough.
//!
//! A lease vanishes at any moment. A request is carried out at any moment after it was sent, or
//! never; a release that was sent behind a request that was cut short goes the same way, so it is
//! carried out after it or not at all. Renewals answer what they found when they were carried out,
//! at any later moment; an answer "no such key" starts a repair, if the claim has not ended.

use stateright::{Checker, Model, Property};

const RELEASED: &str = "once all releases are carried out, nothing sets the key again";

#[derive(Clone, Copy)]
struct Rules {
    /// S1: no repair begins when the claim has ended.
    no_repair_after_the_end: bool,
    /// S2: a release is sent again behind the requests that were under way.
    release_again: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    ours: bool,
    ended: bool,
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
    Done,
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
        vec![State {
            acquire: Request::Sent,
            ..State::default()
        }]
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
        can(!state.ended, Action::End);
        can(state.release == Request::Sent, Action::Release);
        let behind =
            |first: Request, second: Request| first == Request::Done && second == Request::Sent;
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
            Action::Acquire => {
                state.acquire = Request::Done;
                state.ours = true;
            }
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
                let may_begin = !state.ended || !self.no_repair_after_the_end;
                if may_begin && state.repair != Request::Sent {
                    state.repair = Request::Sent;
                }
            }
            Action::Repair => {
                state.repair = Request::Done;
                state.ours = true;
            }
            Action::End => {
                state.ended = true;
                state.release = Request::Sent;
                if self.release_again && state.acquire == Request::Sent {
                    state.behind_acquire = Request::Sent;
                }
                if self.release_again && state.repair == Request::Sent {
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
            // A second release that is still to come is the first that has not been carried out.
            let waits = |second: Request| second == Request::Sent;
            let releasing = waits(state.behind_acquire) || waits(state.behind_repair);
            !(state.ours && state.release == Request::Done && !releasing)
        })]
    }
}

const ALL: Rules = Rules {
    no_repair_after_the_end: true,
    release_again: true,
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
