//! What locker, lock and guard have in common: the last of them waits for pending releases.

use std::ops::Deref;
use std::sync::Arc;

use crate::driver::Driver;

/// A user's share in a locker. The background thread has none, so that work which it still does
/// cannot keep the last share from being the last.
#[derive(Debug)]
pub(crate) struct Share(Arc<Driver>);

impl Share {
    pub(crate) fn new(driver: Arc<Driver>) -> Self {
        Self(driver)
    }
}

impl Deref for Share {
    type Target = Arc<Driver>;

    fn deref(&self) -> &Arc<Driver> {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.flush(self.0.settings.flush_timeout);
        self.0.finish();
    }
}
