//! Processes of our own, stopped and continued.

use std::process::Child;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

fn pid(child: &Child) -> Pid {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.expect("a pid")
}

/// Stops a process; none of its threads runs any more when this returns.
pub fn freeze(child: &Child) {
    kill_process(pid(child), Signal::STOP).expect("our own child");
    let stopped = waitpid(Some(pid(child)), WaitOptions::UNTRACED);
    let (_, status) = stopped.expect("our own child").expect("it was waited for");
    assert!(status.stopped(), "{status:?}");
}

/// Lets a process go on that was stopped by [`freeze`].
pub fn thaw(child: &Child) {
    kill_process(pid(child), Signal::CONT).expect("our own child");
}

/// Ends a process for good.
pub(crate) fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
