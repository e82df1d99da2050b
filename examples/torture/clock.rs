//! A server's wall clock, which Debian's `faketime` lets run wrong or jump.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::history::now;

/// The library that stands between a process and the clock; `None` where it is not installed.
pub fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let files = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.exists())
}

/// The clock shows the true time, and `offset` seconds more, and as much more as it has gone too
/// fast since `since`.
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
    since: u64,
    offset: f64,
    rate: f64,
}

impl Clock {
    /// A clock that is right.
    pub fn new(library: PathBuf, folder: &Path) -> Self {
        Self {
            library,
            file: folder.join("clock"),
            since: now(),
            offset: 0.0,
            rate: 1.0,
        }
    }

    /// Puts the clock before a process that is about to start, without a step.
    pub fn rule(&mut self, command: &mut Command) -> io::Result<()> {
        self.offset = self.ahead();
        self.since = now();
        self.write()?;
        // The allocator of redis-server asks for the time while the library still looks for the
        // real clock, and would wait for itself: the C library's own allocator comes first here.
        let preload = format!("{} libc.so.6", self.library.display());
        command
            .env("LD_PRELOAD", preload)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Ok(())
    }

    /// From now on the clock goes so many times as fast, without a step.
    pub fn run_at(&mut self, rate: f64) -> io::Result<()> {
        let elapsed = self.elapsed();
        self.offset += (self.rate - rate) * elapsed;
        self.rate = rate;
        self.write()
    }

    /// The clock jumps by so many seconds.
    pub fn step(&mut self, by: f64) -> io::Result<()> {
        self.offset += by;
        self.write()
    }

    fn elapsed(&self) -> f64 {
        (now() - self.since) as f64 / 1e9
    }

    fn ahead(&self) -> f64 {
        self.offset + (self.rate - 1.0) * self.elapsed()
    }

    /// The library counts from the start of its process. It reads the file each time, so the file
    /// must never be seen half-written.
    fn write(&self) -> io::Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{:+.6} x{:.6}\n", self.offset, self.rate))?;
        std::fs::rename(new, &self.file)
    }
}
