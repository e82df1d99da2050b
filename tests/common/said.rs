//! What `tracing` was told, by any thread of this program.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::io;
use std::sync::LazyLock;

use parking_lot::Mutex;

static SAID: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(|| {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(|| Log)
        .init();
    Mutex::default()
});

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SAID.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to listen.
pub fn listen() {
    LazyLock::force(&SAID);
}

/// The lines about a server that have these words.
pub fn said(server: &str, words: &str) -> Vec<String> {
    let said = String::from_utf8_lossy(&SAID.lock()).into_owned();
    let about = format!("server={server} ");
    let lines = said.lines().map(|line| format!("{line} "));
    lines
        .filter(|line| line.contains(words) && line.contains(&about))
        .collect()
}

/// How many lines about a server have these words.
pub fn times_said(server: &str, words: &str) -> usize {
    said(server, words).len()
}
