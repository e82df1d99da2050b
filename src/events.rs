//! What the crate tells through `tracing`.
//!
//! A subscriber is foreign code: it may take its time, and it may panic. So nothing that an event
//! is about depends on it:
//!
//! * On the locker's background thread, an event is passed to a thread that does nothing else, and
//!   there to the subscriber, in order. More than [`QUEUED`] events that a slow subscriber leaves
//!   waiting are dropped, and so are those that the system refuses a thread for.
//! * On any other thread the subscriber is called in place. Callers tell last, when all is done
//!   that they tell of, and hold no lock.
//! * A panic of the subscriber costs the event and nothing else.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tracing::level_filters::LevelFilter;

const QUEUED: usize = 1024;

type Event = Box<dyn FnOnce() + Send>;

thread_local! {
    static DESK: RefCell<Option<Desk>> = const { RefCell::new(None) };
}

/// Has the events of this thread told on another one, from now on.
pub(crate) fn tell_elsewhere() {
    DESK.set(Some(Desk::default()));
}

/// Tells what `event` tells, which calls a macro of `tracing` and does nothing else.
pub(crate) fn emit(event: impl FnOnce() + Send + 'static) {
    let mut event = Some(event);
    let asked = DESK.try_with(|desk| {
        if let Some(desk) = &mut *desk.borrow_mut()
            && let Some(event) = event.take()
        {
            desk.pass_on(Box::new(event));
        }
    });
    // At its very end a thread has no desk, and perhaps had one: then nothing is told.
    if let (Ok(()), Some(event)) = (asked, event) {
        tell(event);
    }
}

/// As [`emit`], for what happens in the normal course of things: it starts no thread where nobody
/// wants to hear of it.
pub(crate) fn emit_debug(event: impl FnOnce() + Send + 'static) {
    // A number that subscribers left behind: no foreign code runs here.
    if LevelFilter::current() >= LevelFilter::DEBUG {
        emit(event);
    }
}

/// Where a thread leaves its events for another to tell.
#[derive(Default)]
struct Desk(Option<SyncSender<Event>>);

impl Desk {
    fn pass_on(&mut self, event: Event) {
        if self.0.is_none() {
            self.0 = open();
        }
        if let Some(events) = &self.0 {
            let _ = events.try_send(event);
        }
    }
}

/// Starts a thread that tells events, until nobody can send any more.
fn open() -> Option<SyncSender<Event>> {
    let (sender, events) = sync_channel::<Event>(QUEUED);
    thread::Builder::new()
        .name("redlease-events".to_owned())
        .spawn(move || events.into_iter().for_each(tell))
        .ok()
        .map(|_| sender)
}

fn tell(event: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(event));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::{Thread, ThreadId, current};
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn told_on() -> Receiver<ThreadId> {
        let (sender, told) = channel();
        emit(move || sender.send(current().id()).expect("the test waits"));
        told
    }

    #[test]
    fn an_event_is_told_in_place() {
        let here = told_on().try_recv();
        assert_eq!(here, Ok(current().id()));
    }

    #[test]
    fn a_panic_costs_only_the_event() {
        emit(|| panic!("on purpose"));
        an_event_is_told_in_place();
    }

    #[test]
    fn a_busy_thread_leaves_its_events_to_another() {
        let busy = || {
            tell_elsewhere();
            emit(|| panic!("on purpose"));
            let (go_on, stalled) = channel::<()>();
            emit(move || assert!(stalled.recv().is_err(), "nothing was sent"));
            for _ in 0..2 * QUEUED {
                emit(|| {});
            }
            // Whoever stalls is left behind; what came after is told when it goes on.
            drop(go_on);
            loop {
                if let Ok(thread) = told_on().recv_timeout(DEADLINE) {
                    return (current(), thread);
                }
            }
        };
        let (busy, told_on): (Thread, _) = thread::spawn(busy).join().expect("no panic");
        assert_ne!(busy.id(), told_on);
    }
}
