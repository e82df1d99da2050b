//! What a quorum knows of one claim at its servers.
//!
//! # Invariants
//!
//! * **S1** A request that can set the claim's key (an acquire, a repair) is begun only while the
//!   claim has not ended. When it ends, those under way are cut short.
//! * **S2** A server is told to release the claim at once, and if such a request was under way to
//!   it then, a second time when that has ended. If it was cut short, it is among the doubts of
//!   its node by then, which sends that release down the same connection, behind it.
//! * **S3** A server that refused every such request does not have the key, and is not told.
//!
//! So no repair outlives a release: not one that was about to start when the release came (S1),
//! and not one that was on its way (S2). A release that is tried again keeps what the
//! earlier tries heard.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backend::answer::{Fences, Freed};

#[derive(Debug)]
pub(crate) struct Stake {
    ended: CancellationToken,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    fences: Option<Fences>,
    /// A release was begun.
    is_released: bool,
    /// Releases under way.
    releases: usize,
    members: Vec<At>,
}

/// The claim at one server.
#[derive(Clone, Debug, Default)]
struct At {
    /// Requests under way that can set the key.
    creations: usize,
    /// Requests that set the key, or may have, or may yet.
    chances: usize,
    /// The key was there, and was freed.
    freed: bool,
}

impl Stake {
    pub(super) fn new(members: usize) -> Self {
        Self {
            ended: CancellationToken::new(),
            state: Mutex::new(State {
                members: vec![At::default(); members],
                ..State::default()
            }),
            changed: Notify::new(),
        }
    }

    /// Runs a request that can set the key at `member`; `None` if the claim ended first (S1).
    pub(super) async fn create<T>(
        self: &Arc<Self>,
        member: usize,
        request: impl Future<Output = T>,
    ) -> Option<T> {
        // S2: dropped last, when a request that was cut short has left its doubt behind.
        let _creation = self.begin(member);
        tokio::select! {
            // S1: asked first, so that a request is not even begun after the end.
            biased;
            () = self.ended.cancelled() => None,
            answer = request => Some(answer),
        }
    }

    fn begin(self: &Arc<Self>, member: usize) -> Creation {
        let mut state = self.state.lock();
        let at = &mut state.members[member];
        at.creations += 1;
        at.chances += 1;
        Creation {
            stake: Arc::clone(self),
            member,
        }
    }

    /// One of the requests to the server was answered that the key there is somebody else's, or was
    /// undone (S3).
    pub(super) fn note_gone(&self, member: usize) {
        self.state.lock().members[member].chances -= 1;
    }

    /// Whether the server may have the key, or may get it yet (S3).
    pub(super) fn may_be_at(&self, member: usize) -> bool {
        self.state.lock().members[member].chances > 0
    }

    pub(super) fn note_fences(&self, fences: Fences) {
        self.state.lock().fences = Some(fences);
    }

    /// The numbers that the grant reserved; `None` before there is a grant.
    pub(super) fn fences(&self) -> Option<Fences> {
        self.state.lock().fences
    }

    /// Ends the claim (S1); says whether nobody had before.
    pub(super) fn end(&self) -> bool {
        let _one_at_a_time = self.state.lock();
        let is_first = !self.ended.is_cancelled();
        self.ended.cancel();
        is_first
    }

    /// Ends the claim for a release (S1).
    pub(super) fn begin_release(&self) {
        self.end();
        self.state.lock().is_released = true;
    }

    /// Whether a server may have the key and no release was begun.
    pub(super) fn is_left(&self) -> bool {
        let state = self.state.lock();
        !state.is_released && state.members.iter().any(|at| at.chances > 0)
    }

    pub(super) fn is_quiet(&self, member: usize) -> bool {
        self.state.lock().members[member].creations == 0
    }

    /// Waits until no request that can set the key at `member` is under way (S2).
    pub(super) async fn quiet(&self, member: usize) {
        self.wait_for(|state| state.members[member].creations == 0)
            .await;
    }

    /// Enters a server's release, which is under way until the value is dropped.
    pub(super) fn releasing(self: &Arc<Self>) -> Releasing {
        self.state.lock().releases += 1;
        Releasing(Arc::clone(self))
    }

    /// Waits until no release is under way.
    pub(super) async fn released(&self) {
        self.wait_for(|state| state.releases == 0).await;
    }

    /// Enters the answer to a release, and returns what all answers of this server together say:
    /// one that freed the key does not find it again.
    pub(super) fn note_release(&self, member: usize, answer: Freed) -> Freed {
        let mut state = self.state.lock();
        let at = &mut state.members[member];
        at.freed |= answer == Freed::Freed;
        if at.freed {
            Freed::Freed
        } else {
            Freed::NotOurs
        }
    }

    async fn wait_for(&self, mut done: impl FnMut(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if done(&self.state.lock()) {
                return;
            }
            changed.await;
        }
    }
}

struct Creation {
    stake: Arc<Stake>,
    member: usize,
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.stake.state.lock().members[self.member].creations -= 1;
        self.stake.changed.notify_waiters();
    }
}

pub(super) struct Releasing(Arc<Stake>);

impl Drop for Releasing {
    fn drop(&mut self) {
        self.0.state.lock().releases -= 1;
        self.0.changed.notify_waiters();
    }
}
