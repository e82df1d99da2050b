//! What a quorum knows of one claim at its servers.
//!
//! # Invariants
//!
//! * **S1** A request that can set the claim's key (an acquire, a repair) is begun only while the
//!   claim has not ended. When it has ended, none is under way any more: each was answered, or is
//!   cut short by then, and is a doubt of its server.
//! * **S2** A server is told to release the claim at once. Down the connection of a request that
//!   was cut short, that release runs behind it, and settles the doubt. If a doubt is left, because
//!   that was another connection or the release was not answered, another release is sent behind
//!   each request in doubt.
//! * **S3** A server that refused every such request does not have the key, and is not told.
//!
//! So no repair outlives a release: not one that was about to start when the release came (S1),
//! and not one that was on its way (S2). A release that is tried again keeps what the
//! earlier tries heard.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::answer::{Fences, Freed};

#[derive(Debug)]
pub(crate) struct Stake {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    has_ended: bool,
    /// Requests under way that can set the key.
    creations: Vec<Arc<dyn CutShort>>,
    fences: Option<Fences>,
    /// A release was begun.
    is_released: bool,
    members: Vec<At>,
}

/// The claim at one server.
#[derive(Clone, Debug, Default)]
struct At {
    /// Requests that set the key, or may have, or may yet.
    chances: usize,
    /// Releases under way.
    releases: usize,
    /// The key was there, and was freed.
    freed: bool,
}

impl Stake {
    pub(super) fn new(members: usize) -> Self {
        Self {
            state: Mutex::new(State {
                creations: Vec::with_capacity(members),
                members: vec![At::default(); members],
                ..State::default()
            }),
            changed: Notify::new(),
        }
    }

    /// Begins a request that can set the key at `member`, unless the claim has ended (S1).
    pub(super) fn create<T: Send + 'static>(
        self: &Arc<Self>,
        member: usize,
        request: impl Future<Output = T> + Send + 'static,
    ) -> Creation<T> {
        let mut state = self.state.lock();
        let request: Option<Request<T>> = match state.has_ended {
            true => None,
            false => Some(Box::pin(request)),
        };
        let is_begun = request.is_some();
        let request = Arc::new(Mutex::new((request, None)));
        if is_begun {
            state.members[member].chances += 1;
            state.creations.push(Arc::clone(&request) as _);
        }
        Creation {
            stake: Arc::clone(self),
            request,
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
        let mut state = self.state.lock();
        let is_first = !std::mem::replace(&mut state.has_ended, true);
        // They leave the list for themselves, so that whoever ends the claim next waits for them.
        let creations = state.creations.clone();
        drop(state);
        for creation in creations {
            creation.cut_short();
        }
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

    /// Enters a server's release, which is under way until the value is dropped.
    pub(super) fn releasing(self: &Arc<Self>, member: usize) -> Releasing {
        self.state.lock().members[member].releases += 1;
        Releasing {
            stake: Arc::clone(self),
            member,
        }
    }

    /// Whether a release to the server is under way, which sees to its doubts (S2).
    pub(super) fn is_releasing(&self, member: usize) -> bool {
        self.state.lock().members[member].releases > 0
    }

    /// Waits until no release is under way.
    pub(super) async fn released(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state.lock().members.iter().all(|at| at.releases == 0) {
                return;
            }
            changed.await;
        }
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
}

type Request<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A request under way that can set the key; `None` if the claim ended before its answer. It does
/// not outlive this value.
pub(super) struct Creation<T: Send + 'static> {
    stake: Arc<Stake>,
    request: Arc<Mutex<(Option<Request<T>>, Option<Waker>)>>,
}

impl<T: Send + 'static> Future for Creation<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        // S1: under the lock, so that a request that is cut short sends nothing afterwards.
        let mut state = self.request.lock();
        let (request, waker) = &mut *state;
        let Some(pending) = request else {
            return Poll::Ready(None);
        };
        let answer = pending.as_mut().poll(context);
        if answer.is_ready() {
            *request = None;
        } else if !waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        answer.map(Some)
    }
}

impl<T: Send + 'static> Drop for Creation<T> {
    fn drop(&mut self) {
        self.request.lock().0 = None;
        let own = Arc::as_ptr(&self.request).cast::<()>();
        let mut state = self.stake.state.lock();
        state
            .creations
            .retain(|other| Arc::as_ptr(other).cast::<()>() != own);
    }
}

trait CutShort: Send + Sync {
    /// Drops the request, which is in doubt by then if it was sent, and tells who waits for it.
    fn cut_short(&self);
}

impl<T> CutShort for Mutex<(Option<Request<T>>, Option<Waker>)> {
    fn cut_short(&self) {
        let mut state = self.lock();
        state.0 = None;
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for dyn CutShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CutShort").finish_non_exhaustive()
    }
}

pub(super) struct Releasing {
    stake: Arc<Stake>,
    member: usize,
}

impl Drop for Releasing {
    fn drop(&mut self) {
        self.stake.state.lock().members[self.member].releases -= 1;
        self.stake.changed.notify_waiters();
    }
}
