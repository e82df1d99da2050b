//! A model of the queue in Redis and of those who wait in it, searched exhaustively.
//!
//! # What is modelled
//!
//! * The scripts of `src/lua` that touch the lock key or the queue (`acquire`, `enqueue`, `keep`,
//!   `leave`, `release`, `renew`), case by case, in `server.rs`.
//! * The clients in `client.rs`: one acquisition each, from the first try (or the heartbeat that
//!   goes before it) through grants, renewals and keeping to the release, or to giving up, also
//!   with a grant on its way: what was granted to one who has left is passed on.
//! * Time, in ticks. The key expires, a waiter dies, a lease ends by its holder's own count.
//! * A *wild* network, for safety: requests and messages arrive at any time, in any order (so over
//!   any number of connections), or never; answers are lost; a client sends the next request
//!   before the last one has run. No client ever has to act: one that was killed or stopped at any
//!   moment, with all it had sent still under way, is one that takes no more steps for a while or
//!   for ever.
//! * A *timely* network, for progress: requests run within a delay and in order, and clients that
//!   run send their heartbeats and release what they hold. Grants are told at once, or else at any
//!   time and perhaps never. Clients crash and stop (`SIGSTOP`) at any moment, and go on.
//! * A foreigner who holds the lock at the start, and one who deletes the key at any moment. A
//!   lease whose key it deleted is not counted as held.
//!
//! # What is not modelled
//!
//! * Clock rates: all clocks run alike, so the margin of P3 is zero.
//! * Fencing numbers, hand-over within a process, and pushes of client tracking, which are hints.
//! * Order among those who do not wait in the queue: `acquire` may take a key that expired or was
//!   deleted before those who wait for it. (A release never leaves it free for that.)
//! * More dead waiters than one call drops, and values that a process has forgotten.
//! * Memory that runs out, a server that restarts, the expiry of the queue's keys, `force_release`.
//! * A second acquisition of the same process: it has a new value, so it is a client of its own.
//!
//! # Bounds
//!
//! Time has no bound: ages are counted only up to where they make no difference, so the states are
//! finite. How many requests and messages are under way at once is bounded, and so is the number
//! of mishaps (`Setup::mishaps`). `REDLEASE_MODEL_DEPTH=n` adds n mishaps to every check, and from
//! 1 on room for two requests of each of three clients; the default is 0.

mod client;
mod normal;
mod promises;
mod server;
mod setup;
mod steps;
mod world;

use stateright::{Checker, Model};

use promises::{COVERED, EXCLUSION, NEVER_FREE, ORDER, WASTED_SHORTLY};
use setup::{Fault, Network, Setup};

fn depth() -> u8 {
    match std::env::var("REDLEASE_MODEL_DEPTH") {
        Ok(depth) => depth
            .parse()
            .expect("REDLEASE_MODEL_DEPTH is a small number"),
        Err(_) => 0,
    }
}

/// Searches all states, and asserts every property in them.
fn check(setup: Setup) {
    let setup = Setup {
        mishaps: setup.mishaps + depth(),
        ..setup
    };
    let checker = setup.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

/// Searches until each of these properties is found broken.
fn finds(setup: Setup, broken: &[&'static str]) {
    let until = stateright::HasDiscoveries::AllOf(broken.iter().copied().collect());
    let checker = setup.checker().finish_when(until).spawn_bfs().join();
    for name in broken {
        let path = checker.discovery(name);
        let path = path.unwrap_or_else(|| panic!("{:?} is not found: {name}", setup.fault));
        println!("{name}: broken by {:?}", path.into_actions());
    }
}

fn faulty(fault: Fault) -> Setup {
    Setup {
        fault,
        ..Setup::WILD
    }
}

#[test]
fn two_clients_never_both_hold_on_a_wild_network() {
    check(Setup {
        mishaps: 2,
        ..Setup::WILD
    });
}

#[test]
fn a_waiter_may_live_longer_than_the_ttl() {
    check(Setup {
        life: 3,
        requests: 2,
        ..Setup::WILD
    });
}

#[test]
fn a_waiter_may_live_shorter_than_the_ttl() {
    check(Setup {
        ttl: 3,
        requests: 2,
        ..Setup::WILD
    });
}

#[test]
fn three_clients_never_both_hold_and_keep_their_order_on_a_wild_network() {
    let room = if depth() > 0 { 2 } else { 1 };
    check(Setup {
        clients: 3,
        requests_each: room,
        requests: room + 1,
        messages: room,
        ..Setup::WILD
    });
}

#[test]
fn p11_two_waiters_get_a_free_lock_although_every_message_is_lost() {
    check(Setup::TIMELY);
}

#[test]
fn p11_three_waiters_get_a_free_lock_although_every_message_is_lost() {
    check(Setup {
        clients: 3,
        ..Setup::TIMELY
    });
}

#[test]
fn p9_a_crash_a_stop_and_a_deletion_cost_a_bounded_time() {
    check(Setup {
        mishaps: 1,
        crashes: 1,
        stops: 1,
        ..Setup::TIMELY
    });
}

#[test]
fn p9_a_waiter_that_dies_among_three_costs_a_bounded_time() {
    check(Setup {
        clients: 3,
        crashes: 1,
        ..Setup::TIMELY
    });
}

#[test]
fn grants_that_are_told_need_no_more_time() {
    check(Setup {
        network: Network::Timely { told: true },
        ..Setup::TIMELY
    });
}

#[test]
fn a_lease_counted_from_the_arrival_is_found() {
    finds(faulty(Fault::LeaseFromArrival), &[EXCLUSION, COVERED]);
}

#[test]
fn a_lease_counted_from_the_last_heartbeat_sent_is_found() {
    finds(faulty(Fault::LeaseFromLastSent), &[EXCLUSION, COVERED]);
}

#[test]
fn a_lease_counted_from_the_last_heartbeat_answered_is_found() {
    finds(faulty(Fault::LeaseFromLastAnswered), &[EXCLUSION, COVERED]);
}

#[test]
fn a_leaver_that_keeps_what_it_was_granted_is_found() {
    let setup = Setup {
        network: Network::Timely { told: true },
        fault: Fault::LeaverKeepsItsGrant,
        ..Setup::TIMELY
    };
    finds(setup, &[WASTED_SHORTLY]);
}

#[test]
fn a_leaver_that_frees_what_it_was_granted_is_found() {
    finds(faulty(Fault::LeaverFreesItsGrant), &[NEVER_FREE]);
}

#[test]
fn a_heartbeat_that_loses_its_place_is_found() {
    finds(faulty(Fault::HeartbeatLosesItsPlace), &[ORDER]);
}

#[test]
fn a_holder_that_passes_its_own_grant_on_is_found() {
    finds(faulty(Fault::HolderPassesOn), &[EXCLUSION]);
}
