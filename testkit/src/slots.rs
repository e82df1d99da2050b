//! The slots of a cluster, and keys in them.

use crate::wait::unique_key;

/// How many slots a cluster has.
pub(crate) const SLOTS: u16 = 16_384;

/// The slot of a key.
pub fn slot_of(key: &str) -> u16 {
    crc16(tag_of(key).as_bytes()) % SLOTS
}

/// A key in a slot that no other test has. Without braces, so that it can be a tag, too.
pub fn key_in(slot: u16) -> String {
    let key = unique_key();
    let mut keys = (0_u32..).map(|number| format!("{key}:{number}"));
    let key = keys.find(|key| slot_of(key) == slot);
    key.expect("a key for each slot")
}

/// What decides on the slot of a key: what is between the first `{` and the next `}`, if anything.
fn tag_of(key: &str) -> &str {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    match tag {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    }
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for &byte in bytes {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            let carry = crc & 0x8000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1021;
            }
        }
    }
    crc
}
