//! A TCP proxy in front of a server, with a network's bad habits.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const PASS: u8 = 0;
const SWALLOW_REPLIES: u8 = 1;
const HOLD: u8 = 2;

/// Passes bytes on, until it is told otherwise. Ends with the value.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    server: AtomicU16,
    mode: AtomicU8,
    stopped: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Stands in front of the server at a loopback port.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        let proxy = Self { port, state };
        proxy.lead_to(server);
        thread::spawn(move || of_thread.accept(&listener));
        proxy
    }

    /// Leads new connections to the server at another port; those that are there stay.
    pub fn lead_to(&self, server: u16) {
        self.state.server.store(server, Ordering::SeqCst);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Passes everything on again, what was held up first.
    pub fn pass(&self) {
        self.state.mode.store(PASS, Ordering::SeqCst);
    }

    /// Requests reach the server; its replies vanish.
    pub fn swallow_replies(&self) {
        self.state.mode.store(SWALLOW_REPLIES, Ordering::SeqCst);
    }

    /// Holds up everything, both ways, as a network does that will deliver later.
    pub fn hold(&self) {
        self.state.mode.store(HOLD, Ordering::SeqCst);
    }

    /// Breaks all connections; new ones are taken.
    pub fn cut(&self) {
        for stream in self.state.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener, which then sees that it is to end.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            let server = self.server.load(Ordering::SeqCst);
            let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else {
                continue;
            };
            for stream in [&client, &upstream] {
                let _ = stream.set_nodelay(true);
                let copy = stream.try_clone().expect("a second handle");
                self.streams.lock().expect("no panic").push(copy);
            }
            self.pump(&client, &upstream, false);
            self.pump(&upstream, &client, true);
        }
    }

    fn pump(self: &Arc<Self>, from: &TcpStream, to: &TcpStream, replies: bool) {
        let state = Arc::clone(self);
        let mut from = from.try_clone().expect("a second handle");
        let mut to = to.try_clone().expect("a second handle");
        thread::spawn(move || {
            let mut bytes = [0; 16 * 1024];
            while let Ok(length @ 1..) = from.read(&mut bytes) {
                while state.mode.load(Ordering::SeqCst) == HOLD {
                    if state.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                let swallow = state.mode.load(Ordering::SeqCst) == SWALLOW_REPLIES;
                if swallow && replies {
                    continue;
                }
                if to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
}
