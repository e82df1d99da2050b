//! Whether a server speaks TLS, where the URL says otherwise.
//!
//! A server with TLS hangs up on plain text, and one without waits in silence for the end of what
//! it takes for a line. Both look like an outage, and no retry helps. So a server that was never
//! reached is asked in the other way, over a connection of its own. Only an answer counts: silence
//! proves nothing, and one that was reached before is merely in trouble (P13).

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{ConnectionAddr, ErrorKind, RedisError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::backend::redis::error_class::is_not_understood;
use crate::error::{Cause, Fault};

/// After this, or half of its time, an opening is slow enough to ask.
const PATIENCE: Duration = Duration::from_millis(500);
/// The beginning of a handshake, whose message is empty. It is answered with an alert.
const EMPTY_CLIENT_HELLO: &[u8] = &[0x16, 3, 1, 0, 4, 1, 0, 0, 0];
const ALERT: u8 = 0x15;

const SPEAKS_TLS: &str =
    "the server speaks TLS: should the url begin with rediss:// rather than redis://?";
const SPEAKS_PLAIN_TEXT: &str = "the server answers in plain text, without TLS: should the url \
                                 begin with redis:// rather than rediss://?";

/// What is known of how a server is spoken to.
#[derive(Default)]
pub(super) struct Scheme {
    was_reached: AtomicBool,
}

impl Scheme {
    /// Waits for an opening; the mistake is named if it fails by one.
    pub(super) async fn check<T>(
        &self,
        server: &Arc<str>,
        address: &ConnectionAddr,
        until: Instant,
        opening: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        if self.was_reached.load(Ordering::Relaxed) {
            return opening.await;
        }
        let now = Instant::now();
        let late = async {
            sleep_until(now + PATIENCE.min((until - now) / 2)).await;
            match mistake(address).await {
                Some(mistake) => mistake,
                None => pending().await,
            }
        };
        let fault = tokio::select! {
            biased;
            outcome = opening => match outcome {
                Ok(opened) => {
                    self.was_reached.store(true, Ordering::Relaxed);
                    return Ok(opened);
                }
                Err(fault) => fault,
            },
            mistake = late => return Err(refusal(server, mistake, "no answer".to_owned())),
        };
        if !is_not_understood(&fault) {
            return Err(fault);
        }
        match timeout_at(until, mistake(address)).await {
            Ok(Some(mistake)) => Err(refusal(server, mistake, fault.cause.to_string())),
            _ => Err(fault),
        }
    }
}

/// What is wrong with the URL, by an answer of the server that leaves no doubt.
async fn mistake(address: &ConnectionAddr) -> Option<&'static str> {
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let answer = ask(host, *port, EMPTY_CLIENT_HELLO).await.ok()?;
            (answer == [ALERT, 3]).then_some(SPEAKS_TLS)
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let answer = ask(host, *port, b"PING\r\n").await.ok()?;
            // It may want a password, or be full.
            matches!(&answer, b"+P" | b"-N" | b"-D" | b"-E").then_some(SPEAKS_PLAIN_TEXT)
        }
        _ => None,
    }
}

/// The beginning of what a server answers.
async fn ask(host: &str, port: u16, question: &[u8]) -> io::Result<[u8; 2]> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(question).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn refusal(server: &Arc<str>, mistake: &'static str, seen: String) -> Fault {
    let error = RedisError::from((ErrorKind::InvalidClientConfig, mistake, seen));
    Fault {
        permanent: true,
        server: Arc::clone(server),
        cause: Cause::new(error),
    }
}
