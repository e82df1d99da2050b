//! Where locks are kept: what a lock asks of a store, and the stores that can answer.

pub(crate) mod answer;
pub(crate) mod claim;
pub(crate) mod cluster;
mod fan_out;
#[cfg(test)]
pub(crate) mod faulty;
pub(crate) mod memory;
pub(crate) mod quorum;
pub(crate) mod redis;
pub(crate) mod sentinel;

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub(crate) use crate::backend::answer::{
    Attempt, Beat, Fences, Freed, Grant, Kept, Look, Renewal, Standing, Tells,
};
pub(crate) use crate::backend::claim::Claim;
use crate::clock::Moment;
use crate::error::Fault;
use crate::holder::Holder;
use crate::key::Key;

pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send + 'a>>;

/// A release that was sent behind an unsettled request, over the same connection and on its runtime,
/// so that it cannot overtake that request.
pub(crate) type SentBehind = JoinHandle<Result<Freed, Fault>>;

/// A store of locks. Every method does its I/O on the runtime it is called on, and takes at most
/// about `within`.
///
/// A [`Fault`] leaves open whether the request was or will yet be carried out.
pub(crate) trait Backend: Send + Sync + fmt::Debug + 'static {
    /// The name of the store in messages: the server's address.
    fn server(&self) -> Arc<str>;

    /// Makes sure that the store can be reached from the present runtime and from the driver's,
    /// and is usable.
    fn connect<'a>(&'a self, driver: &'a Handle, within: Duration) -> Answer<'a, ()>;

    /// Takes the lock if it is free, reserving `fences`, from its first number on or from a later
    /// one. Idempotent for a value.
    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt>;

    /// Gives up on a claim for good: sends a release behind each request that may yet set its key.
    /// `None` if there is none; otherwise the key may be there already, so that the claim is to be
    /// released at once as well.
    fn disown(&self, claim: &Arc<Claim>) -> Option<Vec<SentBehind>>;

    /// Whether a claim that was not granted is of no more use: it may have left traces, which are
    /// yet to be cleaned up under its value, so the next attempt needs another.
    fn is_spent(&self, _claim: &Claim) -> bool {
        false
    }

    /// How many fencing numbers may be reserved at once.
    fn largest_block(&self) -> u64 {
        u64::MAX
    }

    /// Extends the lock if it is ours; never shortens and never creates it (P7).
    fn renew<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        listen: Listen,
        within: Duration,
    ) -> Answer<'a, Renewal>;

    /// How many locks [`renew_many`](Self::renew_many) takes, if it is there.
    fn most_renewed(&self) -> usize {
        1
    }

    /// Extends those of the locks that are ours, in one request, and [listens](Listen::Yes). Returns
    /// until when each counts; what is to be said of the others, [`renew`](Self::renew) tells.
    fn renew_many<'a>(
        &'a self,
        claims: &'a [Arc<Claim>],
        _within: Duration,
    ) -> Answer<'a, Vec<Option<Moment>>> {
        Box::pin(ready(Ok(vec![None; claims.len()])))
    }

    /// Looks whether the lock is ours, and until when. Changes nothing, and
    /// [listens](Listen::Yes).
    fn look<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Look>;

    /// Frees the lock if it is ours (P6). Idempotent.
    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed>;

    /// Keeps the lock for another stretch, unless somebody else waits for it.
    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Kept>;

    /// The queue between processes, if there is one here.
    fn queue(&self) -> Option<&dyn Queue>;

    /// Waits for what an answered release left to be done behind the scenes, at most `within`.
    fn settle<'a>(
        &'a self,
        _claim: &'a Arc<Claim>,
        _within: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(ready(()))
    }

    /// Tells who has the lock.
    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>>;

    /// Takes the lock from whoever has it; says whether anybody had.
    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool>;
}

/// Whether the store is to tell ([`Signals::changed`]) when the key changes after a request. It
/// does so once, and is to be asked again then. To have it told costs the store time, so that is
/// not asked for by requests after which the lock is often let go soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Yes,
    No,
}

/// A first-come, first-served queue between processes, with direct grants.
pub(crate) trait Queue: Send + Sync {
    /// Takes a place, or keeps it: the heartbeat. Idempotent for a claim.
    fn enqueue<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Beat>;

    /// Leaves for good, and passes on a lock that was granted meanwhile.
    fn leave<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed>;

    /// A grant was sent to us and did not arrive.
    fn note_missed_grant(&self);
}

/// What a store tells without being asked. All of it is hints: any of it may be missing (P11).
pub(crate) trait Signals: Send + Sync + fmt::Debug + 'static {
    /// Somebody changed the key.
    fn changed(&self, key: &str);

    /// Whatever is told over the connection of this number may have been missed, or concerns all
    /// keys at once. `None`: over any connection.
    fn pushes_missed(&self, connection: Option<u64>);

    /// A releaser gave a lock to a waiter of this process.
    fn granted(&self, grant: Grant);
}
