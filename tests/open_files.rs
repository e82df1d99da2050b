//! Runtimes that have ended leave nothing behind in a locker.

use std::thread;

use redlease::Locker;
use testkit::*;
use tokio::runtime::{Builder, Runtime};

const RUNTIMES: usize = 300;
/// Far fewer than one for each of the runtimes.
const SLACK: usize = 50;

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// How many files of its own runtimes this process has open, where the system tells it so: those
/// by which they wait, which a connection keeps open. The sockets of the proxy do not count.
fn open_files() -> usize {
    let Ok(files) = std::fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let files = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let names = files.map(|target| target.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("anon_inode")).count()
}

/// Uses locks from many runtimes, some of which end in the middle of something.
fn lock_from_many(locker: &Locker) {
    for number in 0..RUNTIMES {
        let lock = locker.mutex(unique_key());
        let thread = thread::spawn(move || {
            let runtime = runtime();
            runtime.block_on(async {
                match number % 3 {
                    0 => drop(lock.lock().await.unwrap()),
                    1 => {
                        let task = tokio::spawn(async move { drop(lock.lock().await) });
                        tokio::task::yield_now().await;
                        task.abort();
                    }
                    _ => assert!(lock.holder().await.unwrap().is_none()),
                }
            });
        });
        thread.join().expect("no panic");
    }
}

// One test in this program, so that no other one opens files meanwhile.
#[test]
fn ended_runtimes_leave_no_file_open() {
    let server = Server::start();
    let proxy = Proxy::before(server.port);
    proxy.refuse_hello();
    let resp2 = format!("{}?protocol=resp2", server.url());
    for url in [server.url(), resp2, proxy.url()] {
        let outer = runtime();
        let locker = outer.block_on(Locker::connect(&url)).unwrap();
        let before = open_files();
        assert!(before > 0 || !cfg!(target_os = "linux"), "none is found");
        lock_from_many(&locker);
        eventually_blocking(&format!("the files are closed: {url}"), || {
            open_files() < before + SLACK
        });
    }
}
