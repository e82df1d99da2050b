//! A locker behind sentinels.

use crate::builder::Builder;
use crate::error::Error;
use crate::locker::Locker;

impl Locker {
    /// Connects to the master that Redis Sentinel names, with the defaults of [`Builder`], and
    /// follows it through failovers.
    ///
    /// `urls` are those of the sentinels, all of them as a rule; one that answers is enough. Each
    /// has the credentials of its sentinel, if it wants some, and `rediss://` if it wants TLS; the
    /// port is 26379 if none is said. `master` is the name by which the sentinels know the master;
    /// where that wants credentials, a database, TLS or RESP2, a URL with the name in place of the
    /// host: `rediss://user:password@mymaster/1?protocol=resp2`.
    ///
    /// All sentinels are asked at once each time a connection is opened, and of their answers that
    /// with the highest epoch counts; a server that does not say itself that it is a master is not
    /// used. The background thread listens for failovers at every sentinel. When one names another
    /// master, the connections to the old one are left at once, whatever state it is in; waiters go
    /// on at the new one, and each held lock is asked about there. While no sentinel can be reached,
    /// locks go on over the connections that there are, and no other is opened.
    ///
    /// # What a failover costs
    ///
    /// * A lock whose key reached the new master is held on, if the failover takes less time than
    ///   is left of its lease: let the TTL be longer than failovers take (10 s by default, where
    ///   sentinels that wait for 1 s take about 2 s).
    /// * Redis replicates after it has answered. So a key that was set just before the old master
    ///   failed may be missing at the new one: its guard is told
    ///   [`Removed`](crate::LostReason::Removed) as soon as the new master is known, and until then
    ///   somebody else can hold the lock, too (P1). [Fencing tokens](crate#fencing) go on growing.
    /// * An old master that is cut off from its replicas and sentinels goes on granting locks to
    ///   those who cannot reach the sentinels either, until the partition ends. With
    ///   `min-replicas-to-write 1` on all servers it stops to, after `min-replicas-max-lag`.
    ///
    /// Where that is not good enough, [`quorum`](Self::quorum) loses no lock to a minority of
    /// failing servers.
    ///
    /// # Cancel safety
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a URL that is not one, no sentinel, the same one twice, or what is no
    /// name of a master; [`Error::Unavailable`] if no sentinel names a master or it cannot be
    /// reached; [`Error::Refused`] if none of the sentinels knows the name or lets us ask, and as
    /// for [`connect`](Self::connect).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), redlease::Error> {
    /// let sentinels = ["redis://sentinel-a/", "redis://sentinel-b/", "redis://sentinel-c/"];
    /// let locker = redlease::Locker::sentinel(sentinels, "mymaster").await?;
    /// let guard = locker.mutex("invoice:42").lock().await?;
    /// # drop(guard);
    ///
    /// // The sentinels and the master each have credentials of their own.
    /// let sentinels = ["redis://:one@sentinel-a/", "redis://:one@sentinel-b/"];
    /// let master = "redis://locks:two@mymaster/";
    /// let locker = redlease::Locker::sentinel(sentinels, master).await?;
    /// # Ok(()) }
    /// ```
    pub async fn sentinel(
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Self, Error> {
        Self::builder().sentinel(urls, master).await
    }
}

impl Builder {
    /// Connects to the master that Redis Sentinel names; see [`Locker::sentinel`].
    ///
    /// # Errors
    ///
    /// As for [`Locker::sentinel`], and [`Error::Invalid`] for a setting that is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn sentinel(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Locker, Error> {
        self.sentinel_lazily(urls, master)?.connected().await
    }

    /// Makes a locker for the master that Redis Sentinel names, where neither need be there yet: to
    /// [`sentinel`](Self::sentinel) what [`connect_lazily`](Self::connect_lazily) is to
    /// [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// As for [`connect_lazily`](Self::connect_lazily), and [`Error::Invalid`] for no sentinel, the
    /// same one twice, or what is no name of a master.
    pub fn sentinel_lazily(
        self,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Locker, Error> {
        let handle = self.on_master(urls, master.as_ref())?;
        Ok(Locker { handle })
    }
}
