//! The names that one lock has in Redis.

use std::sync::Arc;

/// A lock's key and the keys beside it, which hash to the same cluster slot.
///
/// A cluster hashes the text between the first `{` and the next `}` if there is any, else the
/// whole key. So `invoice:42` has its neighbours under `{invoice:42}`, and `a{b}c`, which carries
/// a tag of its own, keeps it. A key with a `}` and no tag cannot become one: its neighbours are
/// under the first number that hashes to its slot. The forms begin or end differently, so that no
/// two locks ever share a neighbour.
#[derive(Debug)]
pub(crate) struct Key {
    name: Arc<str>,
    fence: String,
    fence_owner: String,
    queue: String,
    waiters: String,
}

impl Key {
    pub(crate) fn new(prefix: &str, key: String) -> Self {
        let name: Arc<str> = if prefix.is_empty() {
            key.into()
        } else {
            format!("{prefix}{key}").into()
        };
        Self {
            fence: beside(&name, "fence"),
            fence_owner: beside(&name, "fence-owner"),
            queue: beside(&name, "lock-queue"),
            waiters: beside(&name, "lock-waiters"),
            name,
        }
    }

    /// The lock key: the user's key behind the prefix, verbatim.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the fencing counter is.
    pub(crate) fn fence(&self) -> &str {
        &self.fence
    }

    /// Where a server of a quorum keeps the value of the claim that wrote the fencing counter.
    pub(crate) fn fence_owner(&self) -> &str {
        &self.fence_owner
    }

    /// All the keys that the scripts of the queue take.
    pub(crate) fn with_queue(&self) -> [&str; 4] {
        [&self.name, &self.fence, &self.queue, &self.waiters]
    }
}

fn beside(name: &str, what: &str) -> String {
    let has_tag = name
        .find('{')
        .is_some_and(|open| name[open + 1..].find('}').is_some_and(|length| length > 0));
    if has_tag {
        format!("{name}:{{{what}}}")
    } else if name.contains('}') {
        format!("{{{}}}{name}:{what}", number_in_slot_of(name))
    } else {
        format!("{{{name}}}:{what}")
    }
}

/// The first number that a cluster hashes as it does the whole of `name`.
fn number_in_slot_of(name: &str) -> u32 {
    let slot = slot(name);
    let found = (0..).find(|number: &u32| self::slot(&number.to_string()) == slot);
    found.unwrap_or_default()
}

/// The slot of a text in a cluster: CRC16 as XMODEM has it, modulo the number of slots.
fn slot(text: &str) -> u16 {
    let crc = text.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(name: &str) -> String {
        Key::new("", name.to_owned()).fence
    }

    #[test]
    fn a_plain_key_becomes_the_hash_tag_of_its_neighbours() {
        assert_eq!(fence("invoice:42"), "{invoice:42}:fence");
    }

    #[test]
    fn a_key_with_a_tag_keeps_it() {
        assert_eq!(fence("a{b}c"), "a{b}c:{fence}");
    }

    #[test]
    fn a_key_with_a_brace_and_no_tag_has_its_neighbours_in_its_slot() {
        assert_eq!(slot("123456789"), 0x31c3);
        for name in ["{}x", "a}b", "}", "a{}b}"] {
            let fence = fence(name);
            let (tag, rest) = fence[1..].split_once('}').unwrap();
            assert_eq!(slot(tag), slot(name), "{fence}");
            assert_eq!(rest, format!("{name}:fence"));
        }
    }

    #[test]
    fn two_keys_never_share_a_neighbour() {
        assert_ne!(fence("a"), fence("{a}"));
    }

    #[test]
    fn the_prefix_is_part_of_the_name() {
        let key = Key::new("app:", "a".to_owned());
        assert_eq!(&**key.name(), "app:a");
        assert_eq!(key.fence(), "{app:a}:fence");
    }
}
