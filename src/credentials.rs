//! The user and the password of a connection, and who is asked for them.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;

use crate::error::Cause;

/// A password, and the name of the user whose it is, as a provider of
/// [`Builder::credentials`](crate::Builder::credentials) returns them.
///
/// `Debug` leaves the password out.
///
/// # Examples
///
/// ```
/// use redlease::Credentials;
///
/// let of_a_user = Credentials::new("a token").user("billing");
/// let of_the_default_user = Credentials::new("secret");
/// # drop((of_a_user, of_the_default_user));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Option<String>,
    password: String,
}

impl Credentials {
    /// A password, or a token that serves as one, of the default user.
    pub fn new(password: impl Into<String>) -> Self {
        Self {
            user: None,
            password: password.into(),
        }
    }

    /// Sets the name of the user.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.user = Some(name.into());
        self
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

type Asked = Pin<Box<dyn Future<Output = Result<Credentials, Cause>> + Send>>;

/// Whoever knows the credentials of the moment: code of the caller's.
#[derive(Clone)]
pub(crate) struct CredentialsProvider {
    provider: Arc<dyn Fn() -> Asked + Send + Sync>,
    /// One for each thread that it may keep. Taken for as long as it runs there.
    permits: Arc<Semaphore>,
}

/// So many questions at a time: a provider that blocks for ever, and is asked again and again, does
/// not take all threads of a runtime.
const MOST_ASKED: usize = 16;

impl CredentialsProvider {
    pub(crate) fn new<F, R, E>(provider: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let provider = Arc::new(move || -> Asked {
            let asked = provider();
            Box::pin(async move { asked.await.map_err(|error| Cause::boxed(error.into())) })
        });
        Self {
            provider,
            permits: Arc::new(Semaphore::new(MOST_ASKED)),
        }
    }

    /// Asks for the credentials of now. A panic of the provider is an error like any other.
    ///
    /// It is polled on a thread of its own: one that blocks must not block the driver's thread, and
    /// with it renewals and tokens (P4).
    pub(crate) async fn ask(&self) -> Result<Credentials, Cause> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(Cause::new)?;
        let provider = Arc::clone(&self.provider);
        let here = Handle::current();
        let (_asking, given_up) = oneshot::channel::<Infallible>();
        let answer = spawn_blocking(move || {
            let _permit = permit;
            here.block_on(async move {
                tokio::select! {
                    biased;
                    _ = given_up => None,
                    answer = async { provider().await } => Some(answer),
                }
            })
        });
        match answer.await {
            Ok(answer) => answer.expect("it is still asked for"),
            Err(panic) => Err(Cause::new(panic)),
        }
    }
}

impl fmt::Debug for CredentialsProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialsProvider")
            .finish_non_exhaustive()
    }
}

// Its panics are contained, and nothing of ours is changed while it runs.
impl UnwindSafe for CredentialsProvider {}
impl RefUnwindSafe for CredentialsProvider {}
