//! The names that one lock has in Redis.

use std::sync::Arc;

/// A lock's key and the keys beside it, which hash to the same cluster slot.
///
/// A cluster hashes the text between the first `{` and the next `}` if there is any, else the
/// whole key. So `invoice:42` has its neighbours under `{invoice:42}`, and `a{b}c`, which carries
/// a tag of its own, keeps it. The two forms end differently, so that no two locks ever share a
/// neighbour.
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
    } else {
        format!("{{{name}}}:{what}")
    }
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
        assert_eq!(fence("{}x"), "{{}x}:fence");
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
