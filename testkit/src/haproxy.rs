//! A haproxy of our own: a real middle box that closes what is idle.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::end;
use crate::wait::eventually_blocking;

/// How many ports are tried.
const ATTEMPTS: usize = 10;

/// A haproxy in TCP mode on a free loopback port; ends with the value.
#[derive(Debug)]
pub struct HaProxy {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl HaProxy {
    /// Stands in front of the server at a loopback port, and closes connections that were idle for
    /// so long. Panics with the line that installs it if there is no haproxy.
    pub fn before(server: u16, idle: Duration) -> Self {
        // Somebody else may take a free port before haproxy does.
        for _ in 0..ATTEMPTS {
            let folder = tempfile::tempdir().expect("a folder");
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            let port = listener.local_addr().expect("its address").port();
            drop(listener);
            let idle = idle.as_millis();
            let settings = format!(
                "global\n  maxconn 1000\n\
                 defaults\n  mode tcp\n  timeout connect 5s\n  timeout client {idle}ms\n  \
                 timeout server {idle}ms\n\
                 listen redis\n  bind 127.0.0.1:{port}\n  server redis 127.0.0.1:{server}\n"
            );
            let file = folder.path().join("haproxy.cfg");
            fs::write(&file, settings).expect("a file of our own");
            let child = Command::new("haproxy")
                .arg("-db")
                .arg("-f")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let mut child = match child {
                Ok(child) => child,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    panic!("haproxy is not on the PATH; install it: apt-get install -y haproxy")
                }
                Err(error) => panic!("haproxy: {error}"),
            };
            let mut has_ended = false;
            eventually_blocking("haproxy comes up or ends", || {
                has_ended = child.try_wait().expect("our own child").is_some();
                has_ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !has_ended {
                return Self {
                    child,
                    port,
                    _folder: folder,
                };
            }
        }
        panic!("haproxy does not come up");
    }

    /// Its address.
    pub fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://{}/", self.server())
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
