//! What locker, lock and guard have in common: the last of them waits for pending releases.

use std::ops::Deref;

use crate::hold::Context;

/// A user's share in a locker. The background thread has none, so that work which it still does
/// cannot keep the last handle from being the last.
#[derive(Debug)]
pub(crate) struct Handle(Context);

impl Handle {
    pub(crate) fn new(context: Context) -> Self {
        Self(context)
    }
}

impl Deref for Handle {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let engine = &self.0.engine;
        engine.driver.flush(engine.settings.flush_timeout);
    }
}
