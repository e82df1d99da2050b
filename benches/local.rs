//! What a lock costs in the process itself, without a server: `cargo bench --bench local`.
//!
//! The counts of allocations are held by `tests/footprint.rs`.

use divan::{Bencher, black_box};
use redlease::{Lock, LockGuard, Locker};
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

/// Hand-overs in one iteration of [`hand_over`], shared among its tasks.
const HAND_OVERS: usize = 1_000;

/// A lock in memory, and the runtime that it is used on.
struct Setting {
    // Dropped before the runtime.
    lock: Lock,
    runtime: Runtime,
}

impl Setting {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        Self {
            lock: Locker::in_memory().mutex("bench"),
            runtime: builder.enable_all().build().expect("a runtime"),
        }
    }

    fn acquire(&self) -> LockGuard {
        self.runtime.block_on(self.lock.lock()).expect("a guard")
    }
}

#[divan::bench]
fn acquire_and_release(bencher: Bencher<'_, '_>) {
    let setting = Setting::new();
    bencher.bench_local(|| {
        setting.runtime.block_on(async {
            let guard = setting.lock.lock().await.expect("a guard");
            guard.release().await.expect("a release")
        })
    });
}

#[divan::bench]
fn try_lock_of_a_key_that_is_held_here(bencher: Bencher<'_, '_>) {
    let setting = Setting::new();
    let _guard = setting.acquire();
    bencher.bench_local(|| {
        let refused = setting.runtime.block_on(setting.lock.try_lock());
        assert!(refused.expect("an answer").is_none());
    });
}

/// One task releases, the next one in line has the lock: `HAND_OVERS` times.
#[divan::bench(args = [2, 64])]
fn hand_over(bencher: Bencher<'_, '_>, tasks: usize) {
    let setting = Setting::new();
    bencher
        .counter(divan::counter::ItemsCount::new(HAND_OVERS))
        .bench_local(|| {
            setting.runtime.block_on(async {
                let contenders: Vec<_> = (0..tasks)
                    .map(|_| tokio::spawn(contend(setting.lock.clone(), HAND_OVERS / tasks)))
                    .collect();
                for contender in contenders {
                    contender.await.expect("no panic");
                }
            });
        });
}

async fn contend(lock: Lock, times: usize) {
    for _ in 0..times {
        let guard = lock.lock().await.expect("a guard");
        // The others queue up behind it.
        tokio::task::yield_now().await;
        drop(guard);
    }
}

#[divan::bench]
fn is_lost(bencher: Bencher<'_, '_>) {
    let setting = Setting::new();
    let guard = setting.acquire();
    bencher.bench_local(|| black_box(&guard).is_lost());
}

#[divan::bench]
fn ensure_held(bencher: Bencher<'_, '_>) {
    let setting = Setting::new();
    let guard = setting.acquire();
    bencher.bench_local(|| black_box(&guard).ensure_held().is_ok());
}

/// A renewal asked for by the holder: the lease is extended.
#[divan::bench]
fn renew(bencher: Bencher<'_, '_>) {
    let setting = Setting::new();
    let guard = setting.acquire();
    bencher.bench_local(|| setting.runtime.block_on(guard.renew()).expect("a renewal"));
}
