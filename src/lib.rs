//! Distributed locks on Redis: a guard whose lease renews itself, and says so on time when it is
//! lost.

#![forbid(unsafe_code)]

mod acquire;
mod backend;
mod backoff;
pub mod blocking;
mod engine;
mod error;
mod fault;
mod guard;
mod handle;
mod hold;
mod key;
mod lease;
mod lock;
mod locker;
mod lost;
mod options;
mod owner;

pub use error::Error;
pub use fault::Cause;
pub use guard::LockGuard;
pub use hold::Released;
pub use lock::Lock;
pub use locker::{Builder, Locker};
pub use lost::{Lost, LostReason};
pub use owner::Holder;
pub use tokio_util::sync::CancellationToken;
