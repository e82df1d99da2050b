//! A control for all that is measured: how late the machine lets a process be.
//!
//! A thread is woken late on a busy machine, and not at all while its process is stopped. Nothing
//! of that is the crate's doing. So a control chooses moments and notes when it notices them, by
//! the same means as what is to be measured. Each beat begins where the one before it ended, so that
//! no pause falls between two.

use std::sync::Arc;
use std::time::Duration;

use redlease::CancellationToken;
use tokio::runtime::{self, Handle};
use tokio::time::sleep;

use crate::history::{History, now};
use crate::worker::tell;

const BEAT: Duration = Duration::from_millis(3);
/// A beat takes this long when nothing is in the way: timers are rounded up to a millisecond.
const USUAL: Duration = Duration::from_millis(5);

/// Notes the pauses of a worker. The way from the timer of a background thread over a token to a
/// task of the `witness` is that of the tokens of the locks.
pub fn of_worker(witness: &Handle) {
    let Ok(runtime) = runtime::Builder::new_current_thread().enable_time().build() else {
        return;
    };
    runtime.block_on(async {
        let mut began = now();
        loop {
            let token = CancellationToken::new();
            let fall = token.clone();
            let witnessed = witness.spawn(async move {
                fall.cancelled().await;
                now()
            });
            sleep(BEAT).await;
            token.cancel();
            let Ok(noticed) = witnessed.await else { return };
            if is_late(began, noticed) {
                tell(&format!("pause {began} {noticed}"));
            }
            began = noticed;
        }
    });
}

/// Notes when the runtime on which it is spawned, that of the proxies, did not run.
pub async fn of_traffic(history: Arc<History>) {
    let mut began = now();
    loop {
        sleep(BEAT).await;
        let noticed = now();
        if is_late(began, noticed) {
            history.with(|record| record.starved.push((began, noticed)));
        }
        began = noticed;
    }
}

fn is_late(began: u64, noticed: u64) -> bool {
    Duration::from_nanos(noticed - began) > USUAL
}
