//! The scripts, put together as the crate does it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

macro_rules! script {
    ($($file:literal)+) => {
        concat!($(include_str!(concat!("../../src/lua/", $file))),+)
    };
}

pub const ACQUIRE: &str = script!("fence.lua" "acquire.lua");
pub const ACQUIRE_MEMBER: &str = script!("fence.lua" "acquire_member.lua");
pub const ENQUEUE: &str = script!("writable.lua" "fence.lua" "queue.lua" "enqueue.lua");
pub const FORCE_RELEASE: &str = script!("fence.lua" "queue.lua" "force_release.lua");
pub const HOLDER: &str = script!("holder.lua");
pub const KEEP: &str = script!("writable.lua" "fence.lua" "queue.lua" "keep.lua");
pub const LEAVE: &str = script!("writable.lua" "fence.lua" "queue.lua" "leave.lua");
pub const LOOK: &str = script!("writable.lua" "look.lua");
pub const RAISE: &str = script!("writable.lua" "fence.lua" "raise.lua");
pub const RELEASE: &str = script!("writable.lua" "fence.lua" "queue.lua" "release.lua");
pub const RENEW: &str = script!("writable.lua" "renew.lua");
pub const RESTORE: &str = script!("fence.lua" "restore.lua");
