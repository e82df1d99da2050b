//! Hearing of failovers, on the background thread.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use redis::{Msg, RedisError, Value};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::fan_out::FanOut;
use crate::backend::sentinel::Sentinels;
use crate::backend::sentinel::round::Sentinel;
use crate::backoff::Backoff;

/// What each sentinel says when it adopts another master.
const SWITCH: &str = "+switch-master";
/// What the sentinel says that appoints another master. It names that from then on, some 100 ms
/// before the others do. Not all users may hear it.
const PROMOTION: &str = "+promoted-slave";
/// A sentinel that was silent for so long is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Listens to every sentinel from the first time on that they were asked, and asks all of them at
/// each hint. Never ends.
pub(super) async fn listen(sentinels: Arc<Sentinels>) {
    if sentinels.rounds.load(Ordering::Relaxed) == 0 {
        sentinels.begun.notified().await;
    }
    let mut listeners = FanOut::new();
    for (number, sentinel) in sentinels.all.iter().enumerate() {
        let listener = listen_to(Arc::clone(&sentinels), Arc::clone(sentinel));
        listeners.ask(number, listener);
    }
    let ask_at_hints = async {
        loop {
            sentinels.hint.notified().await;
            // Who finds none asks again when a connection is to be opened.
            let _ = sentinels.ask(Instant::now() + sentinels.limit).await;
        }
    };
    tokio::select! {
        _ = listeners.next() => {}
        () = ask_at_hints => {}
    }
    pending::<()>().await;
}

async fn listen_to(sentinels: Arc<Sentinels>, sentinel: Arc<Sentinel>) {
    let fresh = || Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut retry = fresh();
    loop {
        if hear(&sentinels, &sentinel).await {
            retry = fresh();
        }
        sleep(retry.next()).await;
    }
}

/// Listens over one connection until it fails. Says whether it was of use.
async fn hear(sentinels: &Sentinels, sentinel: &Sentinel) -> bool {
    let subscribe = async {
        let mut connection = sentinel.client.get_async_pubsub().await?;
        let subscribed = connection.subscribe(SWITCH).await;
        if subscribed.as_ref().is_err_and(is_refusal) {
            // Who may not hear asks, as often as it tries.
            sentinels.hint.notify_one();
        }
        subscribed?;
        let _ = connection.subscribe(PROMOTION).await;
        Ok(connection.split())
    };
    let Some((mut sink, mut messages)) = in_time(sentinels.limit, subscribe).await else {
        return false;
    };
    let mut answers = 0_u32;
    loop {
        sentinel.note_answer();
        if answers == 0 {
            // What was said before was missed.
            sentinels.hint.notify_one();
        }
        answers = answers.saturating_add(1);
        let message = tokio::select! {
            biased;
            message = messages.next() => message,
            () = sleep(PING_EVERY) => {
                match timeout(sentinels.limit, sink.ping::<Value>()).await {
                    Ok(Ok(_)) => continue,
                    // To be told that one may not is an answer.
                    Ok(Err(error)) if is_refusal(&error) => continue,
                    Ok(Err(_)) | Err(_) => None,
                }
            }
        };
        match message {
            Some(message) if is_about(&message, &sentinels.master) => sentinels.hint.notify_one(),
            Some(_) => {}
            None => return answers > 1,
        }
    }
}

fn is_refusal(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

async fn in_time<T>(
    limit: Duration,
    request: impl Future<Output = redis::RedisResult<T>>,
) -> Option<T> {
    timeout(limit, request).await.ok()?.ok()
}

/// Whether the name of the master is a word of the message, perhaps for another reason.
fn is_about(message: &Msg, master: &str) -> bool {
    let mut words = message.get_payload_bytes().split(|byte| *byte == b' ');
    words.any(|word| word == master.as_bytes())
}
