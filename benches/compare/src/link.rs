//! A slow link: a proxy before a server that passes each byte on after a fixed time, in order,
//! without a limit of bandwidth. Connecting takes no extra time.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Links to some servers; gone with the value.
pub struct Links {
    _runtime: Runtime,
    pub ports: Vec<u16>,
}

impl Links {
    /// Puts a link of `delay` in each direction before each port.
    pub fn before(ports: &[u16], delay: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut own = Vec::new();
        for &server in ports {
            let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
            own.push(listener.local_addr()?.port());
            runtime.spawn(serve(listener, server, delay));
        }
        Ok(Self {
            _runtime: runtime,
            ports: own,
        })
    }
}

async fn serve(listener: TcpListener, server: u16, delay: Duration) -> std::io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let server = TcpStream::connect(("127.0.0.1", server)).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        one_way(client_read, server_write, delay);
        one_way(server_read, client_write, delay);
    }
}

fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + delay;
            if sender.send((due, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
}
