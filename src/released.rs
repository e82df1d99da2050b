//! What becomes of a release.

use crate::backend::Freed;

/// What became of a release that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Released {
    /// The key was no longer ours when the release arrived: the lease had been lost before.
    AlreadyLost,
    /// The key was ours until now. It is free, or the next waiter has it.
    Freed,
}

impl Released {
    /// What an answer means. An earlier try that came to no answer may have been carried out; a
    /// key that is gone before its lease is over was given up by that one.
    pub(crate) fn from_answer(freed: Freed, was_tried: bool, is_lost: bool) -> Self {
        match freed {
            Freed::NotOurs if !was_tried || is_lost => Self::AlreadyLost,
            Freed::NotOurs | Freed::Freed => Self::Freed,
        }
    }
}
