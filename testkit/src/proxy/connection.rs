//! One connection that the proxy passes on: the rules, applied to each request and reply.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::resp::Frames;
use super::{Mode, Rules, State};

/// What [`Mode::Drip`] lets through at a time.
const DROP: usize = 7;
const BETWEEN_DROPS: Duration = Duration::from_millis(3);

/// Something that was read, and when; `None` is the end.
type Item = Option<(Instant, Vec<u8>)>;

/// Takes connections until the proxy has gone.
pub(super) async fn accept(state: Arc<State>, listener: StdListener) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    let mut rules = state.rules.subscribe();
    let mut number = 0;
    loop {
        let client = tokio::select! {
            client = listener.accept() => client,
            _ = rules.wait_for(|rules| rules.is_closed) => return,
        };
        let Ok((client, _)) = client else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        if !state.rules.borrow().refuses {
            let state = Arc::clone(&state);
            tokio::spawn(Connection { state, number }.serve(client));
        }
        number += 1;
        state.taken.store(number, Ordering::SeqCst);
    }
}

struct Connection {
    state: Arc<State>,
    number: usize,
}

impl Connection {
    async fn serve(self, client: TcpStream) -> io::Result<()> {
        let mut rules = self.state.rules.subscribe();
        let (port, epoch) = {
            let rules = rules.borrow();
            (rules.server, rules.epoch)
        };
        let server = TcpStream::connect(("127.0.0.1", port)).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (requests, asked) = unbounded_channel();
        let (replies, answered) = unbounded_channel();
        let reading = async {
            tokio::join!(
                read(from_client, &requests),
                read(from_server, &replies),
                // The end of the connection is what comes behind all that was read.
                std::future::pending::<()>(),
            )
        };
        tokio::select! {
            _ = reading => Ok(()),
            forth = self.pass_requests(asked, to_server, &replies) => forth,
            back = self.pass_replies(answered, to_client) => back,
            _ = rules.wait_for(|rules| rules.epoch != epoch || rules.is_closed) => Ok(()),
        }
    }

    async fn pass_requests(
        &self,
        mut requests: UnboundedReceiver<Item>,
        mut to: OwnedWriteHalf,
        replies: &UnboundedSender<Item>,
    ) -> io::Result<()> {
        let mut rules = self.state.rules.subscribe();
        while let Some(Some((arrived, request))) = requests.recv().await {
            self.wait_while_held(&mut rules).await;
            if self.is_silent() {
                continue;
            }
            self.hear(&request);
            match self.answer_to(&request) {
                None => deliver(arrived, &request, &mut to, &mut rules, |r| r.requests).await?,
                Some(error) if error.is_empty() => return Ok(()),
                Some(error) => {
                    let reply = format!("-{error}\r\n").into_bytes();
                    let _ = replies.send(Some((arrived, reply)));
                }
            }
        }
        self.hide_end(&mut rules).await
    }

    async fn pass_replies(
        &self,
        mut replies: UnboundedReceiver<Item>,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut rules = self.state.rules.subscribe();
        while let Some(Some((arrived, reply))) = replies.recv().await {
            let is_push = reply[0] == b'>';
            if self.is_silent() || is_push && self.state.rules.borrow().swallows_pushes {
                continue;
            }
            deliver(arrived, &reply, &mut to, &mut rules, |r| r.replies).await?;
        }
        self.hide_end(&mut rules).await
    }

    /// One end has closed a connection: if that is silent, the other does not hear of it.
    async fn hide_end(&self, rules: &mut watch::Receiver<Rules>) -> io::Result<()> {
        if self.is_silent() {
            let _ = rules.wait_for(|rules| rules.is_closed).await;
        }
        Ok(())
    }

    async fn wait_while_held(&self, rules: &mut watch::Receiver<Rules>) {
        let is_held = |rules: &Rules| rules.held.contains(&self.number);
        if is_held(&rules.borrow()) {
            let _waiting = Waiting::new(&self.state.waiting);
            let _ = rules.wait_for(|rules| !is_held(rules)).await;
        }
    }

    fn is_silent(&self) -> bool {
        self.state.rules.borrow().silent.contains(&self.number)
    }

    /// If this request has the last words, the connection is silent from now on.
    fn hear(&self, request: &[u8]) {
        self.state.rules.send_if_modified(|rules| {
            let words = rules.last_words.take_if(|words| has(request, words));
            words.is_some() && rules.silent.insert(self.number)
        });
    }

    fn answer_to(&self, request: &[u8]) -> Option<String> {
        let command = request.split(|&byte| byte == b'\n').nth(2)?;
        let command = std::str::from_utf8(command).ok()?.trim_end();
        self.state.rules.borrow().answers.get(command).cloned()
    }
}

/// Counts a connection while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn has(request: &[u8], words: &str) -> bool {
    let words = words.as_bytes();
    request.windows(words.len()).any(|window| window == words)
}

async fn read(mut from: OwnedReadHalf, to: &UnboundedSender<Item>) {
    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let arrived = Instant::now();
        for frame in frames.push(&buffer[..length]) {
            let _ = to.send(Some((arrived, frame)));
        }
    }
    if let Some(rest) = frames.rest() {
        let _ = to.send(Some((Instant::now(), rest)));
    }
    let _ = to.send(None);
}

async fn deliver(
    arrived: Instant,
    mut bytes: &[u8],
    to: &mut OwnedWriteHalf,
    rules: &mut watch::Receiver<Rules>,
    mode: impl Fn(&Rules) -> Mode,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let now = mode(&rules.borrow_and_update());
        match now {
            Mode::Pass => return to.write_all(bytes).await,
            Mode::Swallow => return Ok(()),
            Mode::Hold => {
                let _ = rules.changed().await;
            }
            Mode::Delay(delay) => {
                sleep_until(arrived + delay).await;
                // What was delayed is on its way, unless a partition has begun.
                if mode(&rules.borrow_and_update()) != Mode::Hold {
                    return to.write_all(bytes).await;
                }
            }
            Mode::Drip => {
                let (drop, rest) = bytes.split_at(bytes.len().min(DROP));
                to.write_all(drop).await?;
                bytes = rest;
                sleep(BETWEEN_DROPS).await;
            }
            Mode::Reset => {
                to.write_all(&bytes[..bytes.len() / 2]).await?;
                to.as_ref().set_zero_linger()?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }
    Ok(())
}
