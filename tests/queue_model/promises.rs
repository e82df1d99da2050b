//! What must hold in every state, and what must happen in some state for that to mean anything.

use stateright::{Model, Property};

use crate::client::Phase;
use crate::server::FOREIGNER;
use crate::setup::{Fault, Network, Setup};
use crate::world::World;

pub(crate) const EXCLUSION: &str = "two guards are never both held";
pub(crate) const COVERED: &str = "a lease never outlives the server's key";
pub(crate) const ORDER: &str = "nobody is granted the lock past one that waits before it";
pub(crate) const NEVER_FREE: &str = "no script frees the key while somebody waits";
pub(crate) const FREE_SHORTLY: &str = "a free key is taken within a heartbeat and its delay";
pub(crate) const WASTED_SHORTLY: &str = "somebody has the lock again in a bounded time";
pub(crate) const NO_DEAD_END: &str = "something can always happen";

pub(crate) fn all(setup: &Setup) -> Vec<Property<Setup>> {
    let mut properties = safety();
    if setup.is_timely() {
        properties.extend(progress());
    }
    if setup.fault == Fault::None {
        properties.extend(scenes(setup));
    }
    properties
}

fn safety() -> Vec<Property<Setup>> {
    vec![
        Property::always(EXCLUSION, |_: &Setup, world: &World| {
            world.believers().count() <= 1
        }),
        Property::always(COVERED, |_, world: &World| {
            world.believers().all(|(name, client)| {
                let key = world.server.key;
                key.is_some_and(|key| key.value == name && key.rest >= client.lease)
            })
        }),
        Property::always(ORDER, |_, world: &World| !world.server.overtaken),
        Property::always(NEVER_FREE, |_, world: &World| !world.server.left_free),
    ]
}

fn progress() -> Vec<Property<Setup>> {
    vec![
        Property::always(FREE_SHORTLY, |setup: &Setup, world: &World| {
            world.free <= setup.longest_free()
        }),
        Property::always(WASTED_SHORTLY, |setup, world: &World| {
            world.wasted <= setup.longest_wasted()
        }),
        Property::always(NO_DEAD_END, |setup, world: &World| {
            let mut steps = Vec::new();
            setup.actions(world, &mut steps);
            !steps.is_empty()
        }),
    ]
}

fn scenes(setup: &Setup) -> Vec<Property<Setup>> {
    let mut scenes = vec![
        Property::sometimes(
            "the lock is held while all others wait",
            |_, world: &World| {
                let waiting = world.clients.iter().filter(|c| c.phase == Phase::Waiting);
                world.believers().count() == 1 && waiting.count() + 1 == world.clients.len()
            },
        ),
        Property::sometimes("a grant was not told yet", |_, world: &World| {
            world.phase_of_owner() == Some(Phase::Waiting)
        }),
        Property::sometimes("all are through", |_, world: &World| {
            world.clients.iter().all(|c| c.phase == Phase::Done) && world.server.key.is_none()
        }),
        Property::sometimes(
            "a foreigner holds, and somebody waits",
            |_, world: &World| world.server.holds(FOREIGNER) && !world.server.queue.is_empty(),
        ),
    ];
    if setup.network == Network::Wild {
        scenes.push(Property::sometimes(
            "a late heartbeat was granted the lock for one who had left",
            |_, world: &World| {
                let is_over = world.phase_of_owner() == Some(Phase::Done);
                is_over && world.requests.is_empty()
            },
        ));
    }
    if setup.mishaps > 0 {
        scenes.push(Property::sometimes(
            "a holder's key was deleted by others",
            |_, world: &World| world.clients.iter().any(|c| c.robbed),
        ));
    }
    if setup.crashes > 0 {
        scenes.push(Property::sometimes(
            "one who died has the key",
            |_, world: &World| world.phase_of_owner() == Some(Phase::Dead),
        ));
    }
    if setup.stops > 0 {
        scenes.push(Property::sometimes(
            "a holder that was stopped wakes up lost",
            |_, world: &World| {
                let mut clients = world.clients.iter();
                clients.any(|c| c.stopped && c.phase == Phase::Holding && c.lease == 0)
            },
        ));
    }
    scenes
}
