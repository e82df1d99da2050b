//! A TCP proxy before the server for each worker, so that each can be cut off by itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Pass,
    /// They wait until the mode changes, as in a partition: TCP delivers them when it is over.
    Hold,
    Delay(Duration),
    /// A few at a time.
    Drip,
    /// Half of the next ones pass, then the connection is reset.
    Reset,
}

/// What a worker's proxy does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub requests: Mode,
    pub replies: Mode,
    /// New connections are closed at once.
    pub refuse: bool,
    /// A connection ends when this number changes.
    pub epoch: u64,
}

/// The proxies of all workers.
pub struct Proxies {
    pub target: Arc<AtomicU16>,
    lanes: Vec<(u16, watch::Sender<Weather>)>,
}

impl Proxies {
    pub async fn start(count: usize, target: u16) -> io::Result<Self> {
        let target = Arc::new(AtomicU16::new(target));
        let mut lanes = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let port = listener.local_addr()?.port();
            let (sender, weather) = watch::channel(Weather::default());
            tokio::spawn(listen(listener, Arc::clone(&target), weather));
            lanes.push((port, sender));
        }
        Ok(Self { target, lanes })
    }

    pub fn port(&self, lane: usize) -> u16 {
        self.lanes[lane].0
    }

    pub fn change(&self, lane: usize, change: impl FnOnce(&mut Weather)) {
        self.lanes[lane].1.send_modify(change);
    }

    pub fn calm(&self, lane: usize) {
        self.change(lane, |weather| {
            *weather = Weather {
                epoch: weather.epoch,
                ..Weather::default()
            };
        });
    }

    /// Ends all connections, and sends later ones to another server.
    pub fn point_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
        for lane in 0..self.lanes.len() {
            self.change(lane, |weather| weather.epoch += 1);
        }
    }
}

async fn listen(listener: TcpListener, target: Arc<AtomicU16>, weather: watch::Receiver<Weather>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        if weather.borrow().refuse {
            continue;
        }
        let port = target.load(Ordering::SeqCst);
        tokio::spawn(serve(client, port, weather.clone()));
    }
}

async fn serve(client: TcpStream, port: u16, mut weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let epoch = weather.borrow().epoch;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pump(from_client, to_server, weather.clone(), |w| w.requests);
    let replies = pump(from_server, to_client, weather.clone(), |w| w.replies);
    tokio::select! {
        _ = requests => {}
        _ = replies => {}
        _ = weather.wait_for(|w| w.epoch != epoch) => {}
    }
}

/// Carries bytes from one end to the other until either closes.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    mode: impl Fn(&Weather) -> Mode,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let arrived = Instant::now();
        let mut bytes = &buffer[..length];
        while !bytes.is_empty() {
            let now = mode(&weather.borrow_and_update());
            match now {
                Mode::Pass => {
                    to.write_all(bytes).await?;
                    bytes = &[];
                }
                Mode::Hold => {
                    let _ = weather.changed().await;
                }
                Mode::Delay(delay) => {
                    sleep_until(arrived + delay).await;
                    // What was delayed is on its way, unless a partition has begun.
                    if mode(&weather.borrow_and_update()) != Mode::Hold {
                        to.write_all(bytes).await?;
                        bytes = &[];
                    }
                }
                Mode::Drip => {
                    let (drop, rest) = bytes.split_at(bytes.len().min(7));
                    to.write_all(drop).await?;
                    bytes = rest;
                    sleep(Duration::from_millis(3)).await;
                }
                Mode::Reset => {
                    to.write_all(&bytes[..bytes.len() / 2]).await?;
                    // Unread bytes in the other direction turn the close into a reset.
                    return Ok(());
                }
            }
        }
    }
}
