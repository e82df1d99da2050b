//! Distributed locks on Redis: a guard whose lease renews itself, and says so on time when it is
//! lost.
//!
//! Acquiring a [`Lock`] returns a [`LockGuard`]. While the guard lives, a watchdog renews its
//! lease, so a job may take far longer than the TTL; when the guard is dropped, the lock is
//! released; when the holder crashes, the TTL frees it. If the lease is lost all the same, the
//! guard says so on time, whatever state Redis, the network or the caller's runtime is in.
//!
//! ```no_run
//! use redlease::Locker;
//!
//! # async fn settle(id: u32, token: u64) {}
//! # async fn commit(id: u32) {}
//! # async fn example() -> Result<(), redlease::Error> {
//! let locker = Locker::connect("redis://127.0.0.1/").await?; // one per process; clones are cheap
//! let lock = locker.mutex("invoice:42"); // a handle; no I/O
//!
//! let guard = lock.lock().await?; // waits its turn
//! settle(42, guard.fencing_token()).await; // may take far longer than the TTL
//! guard.ensure_held()?; // or: if guard.is_lost() { … }
//! commit(42).await;
//! guard.release().await?; // or drop(guard)
//! # Ok(()) }
//! ```
//!
//! The asynchronous API needs a tokio runtime. [`blocking`] has the same names without `async`
//! and needs none; the two convert into each other. [`Locker::in_memory`] serves unit tests without
//! a Redis, and [`Builder::connect_lazily`] a process that starts before its Redis does.
//!
//! # Which lock should you use?
//!
//! * Only one process is involved: a `Mutex` (of `std`, or of `tokio` across an `.await`). It
//!   costs nanoseconds, and cannot be lost.
//! * All that the lock protects is in one database that has locks or transactions: use those.
//!   They hold exactly as long as the transaction they protect, which no lease outside can.
//! * Several processes share something that has no lock of its own (a job that is to run once, a
//!   file store, an API of somebody else), and a Redis is there: this crate.
//! * Two holders at a time would be a disaster rather than a waste: a lease is not enough,
//!   whoever grants it. Let the protected store check the [fencing token](#fencing).
//!
//! # Promises
//!
//! Their numbers return in the names of the tests and in comments.
//!
//! * **P1 exclusion** Two guards of one key are never both `!is_lost()` at one instant, given that
//!   clocks run at rates within 1 % of each other, that the server's wall clock is not stepped,
//!   and that Redis does not lose the key by eviction, loss of data or failover.
//! * **P2 exclusion over a quorum** The same over a majority of independent servers, with any
//!   minority of them crashed, frozen or cut off, given that none comes back without its data
//!   before the longest TTL has passed.
//! * **P3 conservative deadline** A lease ends here before it ends in Redis: at the instant before
//!   the request was handed to the connection + TTL − (TTL/100 + 2 ms).
//!   [`is_lost`](LockGuard::is_lost) turns true then by the clock alone.
//! * **P4 prompt token** [`lost`](LockGuard::lost) fires at the deadline even if every thread of
//!   the caller's runtime is blocked or a subscriber of `tracing` stalls or panics, and at once
//!   when Redis says that the key is not ours.
//! * **P5 final** A guard that is lost stays lost; after that nothing is renewed.
//! * **P6 owner only** Renewing and releasing touch only our own value, which is new for each
//!   acquisition in Redis. A guard that passed its lease on to a waiter of the same process can no
//!   longer reach it.
//! * **P7 renewal only extends** A renewal never shortens a lease and never re-creates a key. (In
//!   a quorum, one node's key may be repaired while the majority stands.)
//! * **P8 fencing** Tokens are unique and grow in real time: if A's acquire returned before B's
//!   began, B's token is larger. No assumption about timing. It survives the loss of the server's
//!   data up to the error of the clients' wall clocks.
//!   One exception: a lease that was taken from a process that has not heard of it yet (by
//!   [`force_release`](Lock::force_release), a foreign `DEL`, or a clock that is wrong) is still
//!   handed on there, with a number reserved before. A store that has seen the larger one refuses it.
//! * **P9 no deadlock** A crashed holder's lock is free after its TTL, a released one within a
//!   round trip. One that Redis granted to a future which is not polled counts as a crashed
//!   holder's; handed to it within the process, it goes on after 1 to 1.5 s, and *n* such futures in
//!   a row take *n* times that. One exception: a [`release`](LockGuard::release) that is polled once and then
//!   neither polled nor dropped keeps its turn in the process for as long as it lives; its key is
//!   freed by Redis or by the TTL.
//! * **P10 no leak** An acquire that was cancelled, timed out or failed leaves no key behind: it is
//!   gone a moment later, at worst after one TTL.
//! * **P11 no lost wake-up** A waiter tries again within a bounded time, even if every
//!   notification is lost: a third of its TTL, but no more than 1 s and no less than 170 ms. (In a
//!   quorum also if the server of the queue fails: the next one serves.) Of the
//!   waiters of one process the first tries for all; if it is not polled for 1 to 1.5 s, because its
//!   runtime is blocked or nobody awaits it, the next one tries, too. That time passes for each of
//!   them that is not polled. The exception is that of P9.
//! * **P12 drop anywhere** Dropping a guard never panics, never blocks an asynchronous thread on
//!   I/O, and works with no runtime, on any thread, while unwinding, and as the last act before
//!   `main` returns. One drop waits, by design: that of a [`Locker`]'s last handle, on its thread,
//!   for pending releases, at most [`Builder::flush_timeout`].
//! * **P13 trouble is not loss** NOSCRIPT, LOADING, READONLY, MOVED, a reconnect or a time-out is
//!   retried inside the lease, and never turned into "lost" before the deadline. A server that is
//!   down is [`Error::Unavailable`], never "taken", never an endless loop.
//!
//! # What is not promised
//!
//! * Exclusion after `is_lost()` was read. A process can be paused between the question and the
//!   write that follows, for longer than the lease lasts: use the fencing token.
//! * Exclusion across what makes Redis forget or misjudge the key: a failover that lost it (a
//!   replica may lack an acknowledged write; see [`Locker::sentinel`]), a restart without its data,
//!   a step of the server's clock, eviction (set `maxmemory-policy noeviction`), `FLUSHALL`.
//! * Anything from a replica that takes writes (`replica-read-only no`): it is taken for a master,
//!   with a warning when the locker connects.
//! * An end to a holder that hangs. It is renewed for as long as its process lives, and so is a
//!   guard that was leaked, unless [`Lock::max_hold`] is set.
//! * Re-entrance. A task that acquires a key that it holds waits for itself.
//!
//! # Losing the lock
//!
//! A lease is lost when it could not be renewed in time, when Redis says that its key is gone or
//! is somebody else's, at [`Lock::max_hold`], and when the locker is closed; [`LostReason`] says
//! which. What a holder does about it, from cheap to thorough:
//!
//! * ask [`is_lost`](LockGuard::is_lost) or [`ensure_held`](LockGuard::ensure_held) before each
//!   step: a look at the clock, no I/O;
//! * race the work against [`lost`](LockGuard::lost), or let
//!   [`run_until_lost`](LockGuard::run_until_lost) and [`Lock::run`] do it: the work is dropped at
//!   its next `.await`;
//! * call [`renew`](LockGuard::renew) before a step that counts: a round trip, which asks Redis
//!   and starts the lease's full length anew;
//! * send the fencing token along with each write.
//!
//! A loss ends the lease, not the process' outstanding writes: undoing them is the caller's.
//!
//! # Fencing
//!
//! [`fencing_token`](LockGuard::fencing_token) is a number that is larger for each later
//! acquisition of the same key. A store that remembers the largest one it has seen, and refuses
//! smaller ones, is safe from a holder that was paused and does not know that its lease is over:
//!
//! ```sql
//! UPDATE invoice SET state = 'settled', fence = :token WHERE id = 42 AND fence <= :token
//! ```
//!
//! The number is below 2^53, so it fits a `BIGINT` and a double. It is the larger of the last one
//! plus one and the wall clock in microseconds, so it keeps growing when Redis has lost its counter,
//! as long as the clocks differ by less than the time between the two acquisitions. (The clock is
//! the client's, or Redis' where a lock is passed on to a waiter.) (A process that hands a lock over more than a million times a second among its own
//! tasks gets ahead of the clock by as much.) Only the order means something; numbers are left out.
//! In memory they count from 1.
//!
//! # Time and clocks
//!
//! This process measures a duration, from the request to the deadline (P3). Redis keeps a key's
//! expiry by its wall clock, which is why a step of that clock breaks P1. The client's wall clock
//! serves as the floor of the fencing token and for nothing else.
//!
//! On Linux the deadline is kept by `CLOCK_BOOTTIME`, which goes on while the machine sleeps, so
//! that a laptop that wakes up does not take an old lease for a live one. The lease is shorter
//! than the TTL by 1 % and 2 ms, for clocks that run at different rates and for the server's
//! resolution.
//!
//! A server that answers slowly shortens the lease by as much, because it counts from the request.
//!
//! # Cancel safety
//!
//! Every future of this crate may be dropped at any `.await`.
//!
//! | dropped | what follows |
//! |---|---|
//! | [`Lock::lock`], [`Lock::try_lock`], [`Lock::try_lock_for`] | the place in the queue is lost; a request under way is undone (P10) |
//! | [`Lock::run`] | the routine is dropped, the lock is released in the background |
//! | [`LockGuard::run_until_lost`] | the future inside is dropped; the lock stays held |
//! | [`LockGuard::renew`] | the key may have been extended; the guard counts on the shorter lease |
//! | [`LockGuard::release`] | the background thread releases the lock |
//! | [`Locker::close`] | once polled, the locker is closed; only the wait ends |
//!
//! # Data in Redis
//!
//! For the lock `invoice:42`:
//!
//! | key | what it is |
//! |---|---|
//! | `invoice:42` | the lock: a string `<uuid>:<owner label>`, set with NX and PX; exists while the lock is held |
//! | `{invoice:42}:fence` | the fencing counter, in the same cluster slot; expires seven days after its last use |
//! | `{invoice:42}:lock-queue` | the waiters by arrival, a sorted set; exists while somebody waits |
//! | `{invoice:42}:lock-waiters` | what is known of each waiter, a hash; exists while somebody waits |
//!
//! Grants are published to the channels `redlease:<uuid>`, one for each connection that has waited.
//! The key is used verbatim, behind [`Builder::prefix`] if there is one. A key that has a hash tag of
//! its own, `a{b}c`, keeps it: its counter is `a{b}c:{fence}`. A quorum's servers also keep
//! `{invoice:42}:fence-owner`, as long as the counter.
//!
//! `redis-cli GET invoice:42` answers who has the lock: the label is `host/pid` unless
//! [`Builder::owner`] says otherwise. `SET key value NX PX` is what most lock libraries in other
//! languages do, and we exclude each other on the same key. A value that somebody else wrote is
//! opaque to us; a key of another type (Redisson's locks are hashes) is [`Error::Refused`].
//!
//! # Deployments and rights
//!
//! What each kind of deployment gives and loses, its settings, TLS, the exact rights that an ACL user
//! needs, and the servers that were tested: [`guide::deployments`].
//!
//! # Broken on purpose
//!
//! `cargo run --release -p torture -- --seconds 60 --servers 1 --seed 7 --fault none` runs 32 tasks
//! of 8 processes on six keys with TTLs of 0.3 to 1 s, injects faults, and checks the history
//! against the promises. A minute each, on two cores:
//!
//! | servers | `--fault` | holds | hand-overs between processes | overlaps | updates lost, with fencing | lost too early, of 1,000 holds |
//! |---|---|---|---|---|---|---|
//! | 1 | `none` | 16,745 | 13,084 | 0 | 0 | 0 |
//! | 1 | `mix`: all safe faults, two at a time | 6,544 | 4,883 | 0 | 0 | 0.46 |
//! | 1 | each of 17 safe faults | 5,661 … 14,320 | 4,574 … 11,809 | 0 | 0 | 0 … 0.78 |
//! | 1 | `unsafe`: Redis forgets the keys | 10,933 | 8,437 | 593 | 0 | 0 |
//! | 3 | `none` | 10,943 | 8,159 | 0 | 0 | 0 |
//! | 3 | `mix` | 7,849 | 5,147 | 0 | 0 | 0.13 |
//! | 3 | each of 18 safe faults | 4,097 … 12,274 | 3,048 … 8,617 | 0 | 0 | 0 … 0.37 |
//!
//! Only the first row was measured on a machine that had nothing else to do. "Lost too early" is a
//! lease that ended although the server would have kept it for longer than the margin of P3: its
//! holder was cut off. `--mutations` breaks this crate in eight ways, and each is caught in a minute.
//!
//! # TLS
//!
//! With the feature `tls`, a URL that begins with `rediss://` is connected to with TLS, with
//! every engine, in both APIs. The servers of a cluster are reached as the first URL says, a master
//! behind sentinels as its own URL says. The server is trusted if its
//! certificate is valid now, names the host of the URL, and was issued by an authority that the
//! system knows, or that [`Builder::root_certificates`] names. [`Builder::client_certificate`] is what
//! the server knows us by. A `redis::Client` with TLS settings of its own is for
//! [`Builder::connect_client`].
//!
//! A certificate that one side refuses is [`Error::Refused`], at once, with the words of rustls in
//! its [`source()`](std::error::Error::source). A guard that is held then is lost at its deadline
//! and no earlier. A `redis://` URL for a server that speaks TLS, or a `rediss://` one for a server
//! that does not, is refused as well, in less than [`Builder::command_timeout`], and the error names
//! the mistake. (To find out, a server that was never reached, and hangs up or is slow, is asked in
//! the other way over one more connection.) A server that answers in neither way is
//! [`Error::Unavailable`].
//!
//! rustls wants a provider of cryptography for the process. If there is none when a locker with TLS
//! is made, one is installed: ring with the feature `tls`, otherwise aws-lc-rs. To use another,
//! install it before.
//!
//! Limits:
//!
//! * The system's authorities are read from disk whenever a connection is opened, also where others
//!   are named: 5 to 14 ms, and [`Error::Refused`] if they cannot be read.
//! * `tls-webpki-roots` avoids that, but takes the system's authorities away from everything in the
//!   binary that uses the `redis` crate.
//! * A host that is given by its IP address must stand as such in the certificate (as an IP SAN).
//!
//! # Cargo features
//!
//! None is on by default.
//!
//! | feature | what it adds |
//! |---|---|
//! | `tls` | TLS by rustls with ring, and the system's authorities |
//! | `tls-webpki-roots` | `tls`, and Mozilla's authorities in place of the system's |
//! | `tls-aws-lc-rs` | TLS by rustls with aws-lc-rs, for those who prefer it; it takes longer to compile |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(doc)]
pub mod guide {
    //! Chapters beside the first page.

    #[doc = include_str!("../docs/deployments.md")]
    pub mod deployments {}
}

mod acquire;
mod backend;
mod backoff;
pub mod blocking;
mod builder;
mod clock;
mod contain;
mod credentials;
mod driver;
mod error;
mod events;
mod guard;
mod holder;
mod key;
mod keys;
mod lease;
mod lock;
mod locker;
mod options;
mod released;
mod sync;
mod tls;

pub use builder::Builder;
pub use credentials::Credentials;
pub use error::{Cause, Error, Lost, LostReason};
pub use guard::LockGuard;
pub use holder::Holder;
pub use lock::Lock;
pub use locker::Locker;
/// The crate of the [`redis::Client`] that [`Builder::connect_client`] takes, and of the
/// `redis::RedisError` that is the [`source()`](std::error::Error::source) of many an error.
#[doc(no_inline)]
pub use redis;
pub use released::Released;
/// What [`LockGuard::lost`] returns, from [`tokio_util`].
#[doc(no_inline)]
pub use tokio_util::sync::CancellationToken;

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
