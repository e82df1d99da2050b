//! The locks and atomics of what the concurrency models run: `loom`'s in the models, the usual
//! ones everywhere else.
//!
//! `RUSTFLAGS="--cfg redlease_loom" cargo test --lib models` runs the models: every order in which
//! the threads of each can run, and every value that an atomic may show them.

#[cfg(not(all(test, redlease_loom)))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(all(test, redlease_loom)))]
pub(crate) use std::sync::atomic::AtomicU64;

#[cfg(all(test, redlease_loom))]
pub(crate) use self::modelled::Mutex;
#[cfg(all(test, redlease_loom))]
pub(crate) use loom::sync::MutexGuard;
#[cfg(all(test, redlease_loom))]
pub(crate) use loom::sync::atomic::AtomicU64;

#[cfg(all(test, redlease_loom))]
mod modelled {
    use loom::sync::MutexGuard;

    /// `loom`'s, with the interface of `parking_lot`.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of a model panics")
        }
    }
}
