//! Steps that must all be taken, whatever foreign code does in one of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Takes a step in which wakers of the caller's own may run. One that panics costs its own task
/// only: a loss is told and a turn ended for everybody else, and a drop does not panic (P4, P12).
pub(crate) fn contain(step: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(step));
}
