//! A server's wall clock, which Debian's `faketime` lets run wrong or jump.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::history::now;

/// The library that stands between a process and the clock; `None` where it is not installed.
fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let files = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.exists())
}

/// The clock shows the true time, and `offset` seconds more, and as much more as it has gone too
/// fast since `since`.
pub struct Clock {
    library: PathBuf,
    folder: TempDir,
    since: u64,
    offset: f64,
    rate: f64,
}

impl Clock {
    /// A clock that is right, for a process that is about to start.
    pub fn new() -> io::Result<Self> {
        let clock = Self {
            library: library().ok_or_else(|| {
                io::Error::other(
                    "the library of faketime is not there; install it: apt-get install -y faketime",
                )
            })?,
            folder: tempfile::tempdir()?,
            since: now(),
            offset: 0.0,
            rate: 1.0,
        };
        clock.write()?;
        Ok(clock)
    }

    /// What puts the clock before a process.
    pub fn environment(&self) -> [(&'static str, OsString); 4] {
        // The allocator of redis-server asks for the time while the library still looks for the
        // real clock, and would wait for itself: the C library's own allocator comes first here.
        let preload = format!("{} libc.so.6", self.library.display());
        [
            ("LD_PRELOAD", preload.into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }

    /// The process is about to start again; its clock makes no step by that.
    pub fn begin(&mut self) -> io::Result<()> {
        self.offset = self.ahead();
        self.since = now();
        self.write()
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

    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
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
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{:+.6} x{:.6}\n", self.offset, self.rate))?;
        std::fs::rename(new, self.file())
    }
}
