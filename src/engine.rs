//! What all handles of one locker share.

use std::future::Future;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::acquire::wakeup::Wakeups;
use crate::backend::Backend;
use crate::clock::Clock;
use crate::driver::{Driver, Vacate, is_background_thread};
use crate::error::Error;
use crate::holder::Owner;

/// The settings of a locker.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) owner: Owner,
    pub(crate) prefix: String,
    pub(crate) command_timeout: Duration,
    pub(crate) flush_timeout: Duration,
}

/// The inside of a locker. The background thread may still use it when the last handle is gone.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) wakeups: Arc<Wakeups>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
}

impl Engine {
    pub(crate) fn start(
        backend: Arc<dyn Backend>,
        wakeups: Arc<Wakeups>,
        clock: Clock,
        settings: Settings,
        turns: Arc<dyn Vacate>,
    ) -> std::io::Result<Arc<Self>> {
        let driver = Driver::start(
            Arc::clone(&backend),
            clock.clone(),
            settings.command_timeout,
            turns,
        )?;
        wakeups.attach(&driver);
        Ok(Arc::new(Self {
            backend,
            driver,
            wakeups,
            clock,
            settings,
        }))
    }

    /// Runs a future on the driver's thread and blocks until it is done. The error is about `key`
    /// if the thread is gone, or is the present one.
    pub(crate) fn block_on<T: Send + 'static>(
        &self,
        key: Option<&Arc<str>>,
        future: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        check_may_block(key)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        self.driver.spawn(async move {
            // What the future holds is dropped before the caller goes on, so that the last handle
            // of a locker is never dropped on this thread, which cannot wait for itself.
            let output = future.await;
            let _ = sender.send(output);
        });
        let output = receiver.recv();
        output.unwrap_or_else(|_| Err(Error::Closed { key: key.cloned() }))
    }
}

/// A waker that a user passed in, for instance, runs on the background thread.
pub(crate) fn check_may_block(key: Option<&Arc<str>>) -> Result<(), Error> {
    if is_background_thread() {
        let problem = "a blocking call is not possible on the background thread of a locker";
        return Err(Error::invalid(key, problem));
    }
    Ok(())
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.driver.finish();
    }
}
