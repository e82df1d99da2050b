//! The locks and atomics of what the concurrency models run: `loom`'s in the models, the usual
//! ones everywhere else.
//!
//! `RUSTFLAGS="--cfg redlease_loom" cargo test --lib models` runs the models: every order in which
//! the threads of each can run, and every value that an atomic may show them.

#[cfg(not(all(test, redlease_loom)))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(all(test, redlease_loom)))]
pub(crate) use std::sync::atomic::AtomicU64;
#[cfg(not(all(test, redlease_loom)))]
pub(crate) use tokio::sync::oneshot;

#[cfg(all(test, redlease_loom))]
pub(crate) use self::modelled::{Mutex, oneshot};
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

    /// tokio's channel, whose steps are taken as one each: before each of them another thread may
    /// run, and sees what was done before an earlier one.
    pub(crate) mod oneshot {
        use std::pin::Pin;
        use std::sync::Arc;
        use std::sync::atomic::Ordering;
        use std::task::{Context, Poll};

        use loom::sync::atomic::AtomicU64;
        use tokio::sync::oneshot;
        use tokio::sync::oneshot::error::RecvError;

        #[derive(Clone)]
        struct Steps(Arc<AtomicU64>);

        impl Steps {
            fn step(&self) {
                self.0.fetch_add(1, Ordering::AcqRel);
            }
        }

        pub(crate) struct Sender<T> {
            sender: oneshot::Sender<T>,
            steps: Steps,
        }

        pub(crate) struct Receiver<T> {
            receiver: Option<oneshot::Receiver<T>>,
            steps: Steps,
        }

        pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = oneshot::channel();
            let steps = Steps(Arc::new(AtomicU64::new(0)));
            let receiver = Receiver {
                receiver: Some(receiver),
                steps: steps.clone(),
            };
            (Sender { sender, steps }, receiver)
        }

        impl<T> Sender<T> {
            pub(crate) fn send(self, value: T) -> Result<(), T> {
                self.steps.step();
                self.sender.send(value)
            }

            pub(crate) fn is_closed(&self) -> bool {
                self.steps.step();
                self.sender.is_closed()
            }
        }

        impl<T> Future for Receiver<T> {
            type Output = Result<T, RecvError>;

            fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
                self.steps.step();
                let receiver = self.receiver.as_mut().expect("it is there until the drop");
                Pin::new(receiver).poll(context)
            }
        }

        impl<T> Drop for Receiver<T> {
            fn drop(&mut self) {
                self.steps.step();
                drop(self.receiver.take());
            }
        }
    }
}
