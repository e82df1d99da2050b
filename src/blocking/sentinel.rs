//! The same lockers behind sentinels.

use crate::blocking::{Builder, Locker};
use crate::error::Error;

impl Locker {
    /// Connects to the master that Redis Sentinel names; see
    /// [`Locker::sentinel`](crate::Locker::sentinel).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sentinel(
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Self, Error> {
        Self::builder().sentinel(urls, master)
    }
}

impl Builder {
    /// Connects to the master that Redis Sentinel names.
    ///
    /// # Errors
    ///
    /// As for [`Builder::sentinel`](crate::Builder::sentinel).
    pub fn sentinel(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Locker, Error> {
        let lazily = self.sentinel_lazily(urls, master)?;
        lazily.0.connected_blocking().map(Locker)
    }

    /// Makes a locker for the master that Redis Sentinel names, where neither need be there yet.
    ///
    /// # Errors
    ///
    /// As for [`Builder::sentinel_lazily`](crate::Builder::sentinel_lazily).
    pub fn sentinel_lazily(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Locker, Error> {
        self.0.sentinel_lazily(urls, master).map(Locker)
    }
}
