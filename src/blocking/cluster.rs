//! The same lockers on a cluster.

use crate::blocking::{Builder, Locker};
use crate::error::Error;

impl Locker {
    /// Connects to a Redis Cluster; see [`Locker::cluster`](crate::Locker::cluster).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn cluster(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, Error> {
        Self::builder().cluster(urls)
    }
}

impl Builder {
    /// Connects to a Redis Cluster by the URLs of some of its servers.
    ///
    /// # Errors
    ///
    /// As for [`Builder::cluster`](crate::Builder::cluster).
    pub fn cluster(self, urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Locker, Error> {
        self.cluster_lazily(urls)?
            .0
            .connected_blocking()
            .map(Locker)
    }

    /// Makes a locker for a Redis Cluster that need not be there yet.
    ///
    /// # Errors
    ///
    /// As for [`Builder::cluster_lazily`](crate::Builder::cluster_lazily).
    pub fn cluster_lazily(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        self.0.cluster_lazily(urls).map(Locker)
    }
}
