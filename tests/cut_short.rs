//! Requests and replies that were cut short.

mod common;

use std::time::Duration;

use common::*;
use redlease::{Error, Locker};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// Stands before a server, and can keep back what comes in over the first connection: the
/// caller's. The second is the background thread's.
async fn gate(port: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let front = listener.local_addr().unwrap().port();
    let (closed, is_closed) = watch::channel(false);
    tokio::spawn(async move {
        let mut is_first = true;
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let mut is_closed = std::mem::take(&mut is_first).then(|| is_closed.clone());
            tokio::spawn(async move {
                let (mut requests, mut back) = client.into_split();
                let (mut replies, mut forth) = server.into_split();
                let incoming = async {
                    use tokio::io::AsyncReadExt;
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = requests.read(&mut buffer).await {
                        if let Some(is_closed) = &mut is_closed {
                            let _ = is_closed.wait_for(|is_closed| !is_closed).await;
                        }
                        if forth.write_all(&buffer[..length]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(incoming, tokio::io::copy(&mut replies, &mut back)).1
            });
        }
    });
    (front, closed)
}

/// A question whether to keep the lock, that nobody waits for any more, may arrive at any later
/// time, and pass the lock on. So the lock must not go on to the next of the process.
#[tokio::test]
async fn p1_a_release_cut_short_is_not_followed_by_a_local_hand_over() {
    // Where HELLO is refused, other connections are opened than are counted on here.
    let Some(server) = Server::with_command("HELLO") else {
        return;
    };
    let (port, closed) = gate(server.port).await;
    let locker = Locker::connect(format!("redis://127.0.0.1:{port}/"))
        .await
        .unwrap();
    let key = unique_key();
    // A stretch that is over at once, so that each release asks whether to keep the lock.
    let lock = locker.mutex(&key).handover_for(Duration::from_nanos(1));
    let guard = lock.lock().await.unwrap();
    let mut next = Box::pin(lock.lock());
    let is_queued = timeout(Duration::ZERO, &mut next).await.is_err();
    assert!(is_queued);
    closed.send(true).unwrap();
    let is_cut_short = timeout(Duration::from_millis(50), guard.release())
        .await
        .is_err();
    assert!(is_cut_short);
    eventually("the lock is given up", || server.get(&key).is_none()).await;
    closed.send(false).unwrap();
    let guard = timeout(DEADLINE, next).await.unwrap().unwrap();
    guard.renew().await.unwrap();
    assert!(!guard.is_lost());
}

#[tokio::test]
async fn p13_a_connection_that_breaks_while_it_is_opened_is_not_a_refusal() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            // The beginning of an answer to HELLO.
            let _ = client.write_all(b"%7\r\n$6\r\nserver\r\n$5\r\nre").await;
        }
    });
    let outcome = Locker::connect(format!("redis://127.0.0.1:{port}/")).await;
    assert!(
        matches!(outcome, Err(Error::Unavailable { .. })),
        "{outcome:?}"
    );
}
