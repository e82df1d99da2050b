//! What connections are opened with.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisConnectionInfo;
use tokio::time::{Instant, timeout_at};

use crate::backend::redis::connection::no_answer;
use crate::credentials::CredentialsProvider;
use crate::error::Fault;

/// What all connections of a locker have in common.
#[derive(Clone, Debug)]
pub(crate) struct OpeningOptions {
    /// How long an opening may take.
    pub(crate) limit: Duration,
    /// Who is asked for the credentials, if they are not the client's.
    pub(crate) credentials: Option<CredentialsProvider>,
}

impl OpeningOptions {
    /// What a client says, with the credentials of now.
    pub(super) async fn settings(
        &self,
        of_client: &RedisConnectionInfo,
        server: &Arc<str>,
        until: Instant,
    ) -> Result<RedisConnectionInfo, Fault> {
        let Some(provider) = &self.credentials else {
            return Ok(of_client.clone());
        };
        let credentials = match timeout_at(until, provider.ask()).await {
            Ok(Ok(credentials)) => credentials,
            Ok(Err(cause)) => {
                return Err(Fault {
                    permanent: false,
                    server: Arc::clone(server),
                    cause,
                });
            }
            Err(_) => return Err(no_answer(server, "no credentials in time")),
        };
        // Made anew: a user name cannot be taken away.
        let mut settings = RedisConnectionInfo::default()
            .set_protocol(of_client.protocol())
            .set_db(of_client.db())
            .set_password(credentials.password());
        if let Some(name) = credentials.name() {
            settings = settings.set_username(name);
        }
        if of_client.skip_set_lib_name() {
            settings = settings.set_skip_set_lib_name();
        } else if let (Some(name), Some(version)) = (of_client.lib_name(), of_client.lib_ver()) {
            settings = settings.set_lib_name(name, version);
        }
        Ok(settings)
    }
}
