//! What a quorum knows of one claim at its servers.
//!
//! # Invariants
//!
//! * **S1** A request that can set the claim's key (an acquire, a repair) is begun only while the
//!   claim has not ended. When it has ended, none is under way any more: each was answered, or is
//!   cut short by then, and is unsettled at its server.
//! * **S2** A server is told to release the claim at once. Down the connection of a request that
//!   was cut short, that release runs behind it, and settles it. If a request is left unsettled,
//!   because that was another connection or the release was not answered, another release is sent
//!   behind it.
//! * **S3** A server that refused every such request does not have the key, and is not told.
//!
//! * **S4** A vote of a server counts only if the server has answered all that could take it back,
//!   and all earlier attempts: a release that runs late takes no key that counts.
//!
//! So no repair outlives a release: not one that was about to start when the release came (S1),
//! and not one that was on its way (S2). A release that is tried again keeps what the
//! earlier tries heard.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::answer::{Fences, Freed};
use crate::backend::quorum::waiters::Entry;
use crate::clock::Moment;

/// A server's grant, which counts as one of a majority.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vote {
    pub(super) member: usize,
    /// What the server reserved: a vote that was kept may have reserved less than is asked for now.
    pub(super) fences: Fences,
    pub(super) deadline: Moment,
}

#[derive(Debug)]
pub(crate) struct ClaimState {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    has_ended: bool,
    /// Requests under way that can set the key.
    creations: Vec<Arc<dyn CutShort>>,
    fences: Option<Fences>,
    place: Option<Place>,
    /// A release was begun.
    is_released: bool,
    members: Vec<At>,
}

/// The claim at one server.
#[derive(Clone, Debug, Default)]
struct At {
    /// Requests that set the key, or may have, or may yet.
    possible_grants: usize,
    /// Attempts and releases of a single vote that were not answered (S4).
    unanswered: usize,
    /// It has been in the queue there.
    is_queued: bool,
    /// Releases under way.
    releases: usize,
    /// The key was there, and was freed.
    freed: bool,
}

/// A claim that waits in turn.
#[derive(Debug)]
struct Place {
    /// The server whose queue it is in, or whose vote it has kept.
    member: usize,
    entry: Entry,
    /// That server's vote, from an attempt that had no majority.
    vote: Option<Vote>,
    /// Since when it has been its turn in vain.
    in_vain_since: Option<Instant>,
}

impl ClaimState {
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
        let underway = Arc::new(Mutex::new(Underway {
            request: None,
            waker: None,
        }));
        if !state.has_ended {
            underway.lock().request = Some(Box::pin(request));
            state.members[member].possible_grants += 1;
            state.creations.push(Arc::clone(&underway) as _);
        }
        Creation {
            claim: Arc::clone(self),
            underway,
        }
    }

    /// One of the requests to the server was answered that the key there is somebody else's, or was
    /// undone (S3).
    pub(super) fn note_gone(&self, member: usize) {
        self.state.lock().members[member].possible_grants -= 1;
    }

    /// Whether the server may have the key, or may get it yet (S3).
    pub(super) fn may_be_at(&self, member: usize) -> bool {
        self.state.lock().members[member].possible_grants > 0
    }

    /// An attempt at the server, or a release of its vote, is about to be sent.
    pub(super) fn note_asked(&self, member: usize) {
        self.state.lock().members[member].unanswered += 1;
    }

    pub(super) fn note_answered(&self, member: usize) {
        self.state.lock().members[member].unanswered -= 1;
    }

    /// Whether a vote of the server would count (S4).
    pub(super) fn is_clean(&self, member: usize) -> bool {
        self.state.lock().members[member].unanswered == 0
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    /// Notes that the claim is about to enter a server's queue.
    pub(super) fn note_queueing(&self, member: usize) {
        self.state.lock().members[member].is_queued = true;
    }

    pub(super) fn is_queued(&self, member: usize) -> bool {
        self.state.lock().members[member].is_queued
    }

    pub(super) fn note_left(&self, member: usize) {
        self.state.lock().members[member].is_queued = false;
    }

    /// Notes in whose queue the claim is; returns in whose it was, if that is another.
    pub(super) fn enter(&self, member: usize, entry: impl FnOnce() -> Entry) -> Option<usize> {
        let mut state = self.state.lock();
        if let Some(place) = &mut state.place {
            let before = std::mem::replace(&mut place.member, member);
            return (before != member).then_some(before);
        }
        state.place = Some(Place {
            member,
            entry: entry(),
            vote: None,
            in_vain_since: None,
        });
        None
    }

    /// In whose queue it is, or was.
    pub(super) fn place(&self) -> Option<usize> {
        self.state.lock().place.as_ref().map(|place| place.member)
    }

    pub(super) fn with_entry<T>(&self, ask: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.state
            .lock()
            .place
            .as_ref()
            .map(|place| ask(&place.entry))
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.state.lock().place.as_ref()?.vote
    }

    pub(super) fn keep_vote(&self, vote: Option<Vote>) {
        if let Some(place) = &mut self.state.lock().place {
            place.vote = vote;
        }
    }

    /// For how long it has been its turn in vain.
    pub(super) fn in_vain_for(&self) -> Duration {
        let mut state = self.state.lock();
        let place = state.place.as_mut();
        place.map_or(Duration::ZERO, |place| {
            place
                .in_vain_since
                .get_or_insert_with(Instant::now)
                .elapsed()
        })
    }

    /// Notes the grant: the claim does not wait any more.
    pub(super) fn note_fences(&self, fences: Fences) {
        let mut state = self.state.lock();
        state.fences = Some(fences);
        let place = state.place.take();
        drop(state);
        drop(place);
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
        let place = state.place.take();
        drop(state);
        drop(place);
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
        !state.is_released && state.members.iter().any(|at| at.possible_grants > 0)
    }

    /// Enters a server's release, which is under way until the value is dropped.
    pub(super) fn releasing(self: &Arc<Self>, member: usize) -> Releasing {
        self.state.lock().members[member].releases += 1;
        Releasing {
            claim: Arc::clone(self),
            member,
        }
    }

    /// Whether a release to the server is under way, which sees to the unsettled requests there
    /// (S2).
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

/// Where a request is, for the one that waits for it and the one that cuts it short.
struct Underway<T> {
    request: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    waker: Option<Waker>,
}

/// A request under way that can set the key; `None` if the claim ended before its answer. It does
/// not outlive this value.
pub(super) struct Creation<T: Send + 'static> {
    claim: Arc<ClaimState>,
    underway: Arc<Mutex<Underway<T>>>,
}

impl<T: Send + 'static> Future for Creation<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        // S1: under the lock, so that a request that is cut short sends nothing afterwards.
        let mut underway = self.underway.lock();
        let Underway { request, waker } = &mut *underway;
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
        self.underway.lock().request = None;
        let own = Arc::as_ptr(&self.underway).cast::<()>();
        let mut state = self.claim.state.lock();
        state
            .creations
            .retain(|other| Arc::as_ptr(other).cast::<()>() != own);
    }
}

trait CutShort: Send + Sync {
    /// Drops the request, which is unsettled by then if it was sent, and tells who waits for it.
    fn cut_short(&self);
}

impl<T> CutShort for Mutex<Underway<T>> {
    fn cut_short(&self) {
        let mut underway = self.lock();
        underway.request = None;
        let waker = underway.waker.take();
        drop(underway);
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
    claim: Arc<ClaimState>,
    member: usize,
}

impl Drop for Releasing {
    fn drop(&mut self) {
        self.claim.state.lock().members[self.member].releases -= 1;
        self.claim.changed.notify_waiters();
    }
}
