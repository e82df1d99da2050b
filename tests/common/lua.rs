//! The scripts, put together as the crate does it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

macro_rules! script {
    ($($file:literal)+) => {
        concat!($(include_str!(concat!("../../src/lua/", $file))),+)
    };
}

pub const ACQUIRE: &str =
    script!("counter.lua" "take.lua" "acquire.lua" "number.lua" "fence.lua" "number_beyond.lua");
pub const ACQUIRE_MEMBER: &str = script!("counter.lua" "take.lua" "acquire_member.lua" "number.lua" "fence.lua" "number_beyond.lua");
pub const ENQUEUE: &str = script!(
    "counter.lua" "waiters.lua" "enqueue.lua"
    "writable.lua" "fence.lua" "queue.lua" "enqueue_free.lua"
);
pub const FORCE_RELEASE: &str =
    script!("counter.lua" "fence.lua" "waiters.lua" "queue.lua" "force_release.lua");
pub const HOLDER: &str = script!("holder.lua");
pub const KEEP: &str =
    script!("counter.lua" "writable.lua" "fence.lua" "waiters.lua" "queue.lua" "keep.lua");
pub const LEAVE: &str =
    script!("counter.lua" "writable.lua" "fence.lua" "waiters.lua" "queue.lua" "leave.lua");
pub const LOOK: &str = script!("writable.lua" "look.lua");
pub const RAISE: &str = script!("counter.lua" "writable.lua" "fence.lua" "raise.lua");
pub const RELEASE: &str = script!(
    "early_release.lua"
    "counter.lua" "writable.lua" "fence.lua" "waiters.lua" "queue.lua" "release.lua"
);
pub const RENEW: &str = script!("renew.lua" "writable.lua" "renew_lost.lua");
pub const RESTORE: &str = script!("counter.lua" "fence.lua" "restore.lua");
