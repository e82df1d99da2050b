//! A proxy that can stop passing anything on, without closing anything.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Passes connections on to a port of this machine until it is told to swallow all.
pub struct BlackHole {
    port: u16,
    swallows: Arc<AtomicBool>,
}

impl BlackHole {
    pub fn before(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let swallows = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&swallows);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                for (from, to) in [
                    (stream.try_clone(), server.try_clone()),
                    (Ok(server), Ok(stream)),
                ] {
                    let (Ok(from), Ok(to)) = (from, to) else {
                        continue;
                    };
                    let flag = Arc::clone(&flag);
                    std::thread::spawn(move || pass(from, to, &flag));
                }
            }
        });
        Self { port, swallows }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub fn swallow(&self, swallow: bool) {
        self.swallows.store(swallow, Ordering::SeqCst);
    }
}

/// Passes one direction on. What comes while the hole swallows is passed on later.
fn pass(mut from: TcpStream, mut to: TcpStream, swallows: &AtomicBool) {
    let _ = to.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        while swallows.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
