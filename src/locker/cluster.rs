//! A locker on a cluster.

use crate::builder::Builder;
use crate::error::Error;
use crate::locker::Locker;

impl Locker {
    /// Connects to a Redis Cluster, with the defaults of [`Builder`]. Each key is on the server that
    /// has its slot.
    ///
    /// One URL is enough; more of them help where that server is away when the locker starts. The
    /// other servers are found through the first that answers, and are reached with the user,
    /// password and TLS settings of the first URL, under the addresses that the cluster announces.
    ///
    /// # What moves
    ///
    /// A slot that moves from one server to another takes its locks along: they are renewed and
    /// released where they are. While a slot moves key by key (`CLUSTER SETSLOT`, `redis-cli
    /// --cluster reshard`), its locks cannot be acquired or released, as these need several keys at
    /// once; that is tried again until the [time-out of a command](Builder::command_timeout).
    /// Renewals go on. A move of whole slots at once, as newer servers offer it, does not delay
    /// anything for long.
    ///
    /// # Failover
    ///
    /// When a master fails, a replica takes its place, without the writes that had not reached it
    /// yet. So a lock can be lost by a failover, and somebody else may have acquired it before its
    /// holder is told ([`LostReason::Removed`](crate::LostReason::Removed)). Fencing tokens go on
    /// growing. A lock survives, if its TTL is longer than the election takes: twice
    /// `cluster-node-timeout`, as a rule. A server that fails takes only its own locks away; with
    /// `cluster-require-full-coverage no` the others go on serving meanwhile.
    ///
    /// # Limits
    ///
    /// Connecting warns of one server's settings only (`maxmemory-policy`). A cluster has database 0
    /// only. Servers before version 7 send a message about each hand-over
    /// to all servers of the cluster; later ones to that of the key and its replicas.
    ///
    /// # Cancel safety
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect); [`Error::Invalid`] also for a URL with a database or a
    /// unix socket, [`Error::Refused`] also for a server that is not one of a cluster. Once one
    /// server can be used, the others may be away.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), redlease::Error> {
    /// let locker = redlease::Locker::cluster(["redis://redis-a/", "redis://redis-b/"]).await?;
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub async fn cluster(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, Error> {
        Self::builder().cluster(urls).await
    }
}

impl Builder {
    /// Connects to a Redis Cluster by the URLs of some of its servers; see [`Locker::cluster`].
    ///
    /// # Errors
    ///
    /// As for [`Locker::cluster`], and [`Error::Invalid`] for a setting that is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn cluster(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        self.cluster_lazily(urls)?.connected().await
    }

    /// Makes a locker for a Redis Cluster that need not be there yet: to
    /// [`cluster`](Self::cluster) what [`connect_lazily`](Self::connect_lazily) is to
    /// [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// As for [`connect_lazily`](Self::connect_lazily), and [`Error::Invalid`] for no URL at all, and
    /// for a URL with a database or a unix socket.
    pub fn cluster_lazily(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Locker, Error> {
        let handle = self.on_cluster(urls)?;
        Ok(Locker { handle })
    }
}
