//! Who holds a lock: the value in its key.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::error::Error;

const LONGEST_LABEL: usize = 256;
const UUID_LENGTH: usize = 36;

/// The owner label: what a human reads in the key, behind the UUID.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    label: Arc<str>,
    uuids: Arc<Uuids>,
}

impl Owner {
    pub(crate) fn new(label: String) -> Result<Self, Error> {
        if label.is_empty() || label.len() > LONGEST_LABEL {
            return Err(Error::invalid(
                None,
                format!("the owner label must have 1 to {LONGEST_LABEL} bytes"),
            ));
        }
        if label.chars().any(char::is_control) {
            return Err(Error::invalid(
                None,
                "the owner label must not hold control characters",
            ));
        }
        Ok(Self::of(label))
    }

    /// `host/pid` of this process.
    pub(crate) fn of_this_process() -> Self {
        Self::of(format!("{}/{}", host(), std::process::id()))
    }

    fn of(label: String) -> Self {
        Self {
            label: label.into(),
            uuids: Arc::new(Uuids::new()),
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// A value that no other acquisition ever had or will have (P6).
    pub(crate) fn fresh_value(&self) -> Arc<str> {
        let length = UUID_LENGTH + 1 + self.label.len();
        let mut buffer = [b':'; UUID_LENGTH + 1 + LONGEST_LABEL];
        self.uuids.next().hyphenated().encode_lower(&mut buffer);
        buffer[UUID_LENGTH + 1..length].copy_from_slice(self.label.as_bytes());
        match std::str::from_utf8(&buffer[..length]) {
            Ok(value) => value.into(),
            Err(_) => unreachable!("a label is UTF-8"),
        }
    }
}

/// Random UUIDs without a system call for the random bits of each: those cost as much as half of
/// all else that a request does outside of the kernel.
///
/// A hash of a seed from the system, which is kept secret, and a count. Nobody can foretell the
/// next from those before, and two that are equal are as unlikely as with random ones. A process
/// that forks shares the seed and the count with its child, but not the process id.
#[derive(Debug)]
struct Uuids {
    seeded: DefaultHasher,
    count: AtomicU64,
}

impl Uuids {
    fn new() -> Self {
        let mut seeded = RandomState::new().build_hasher();
        // The keys of `RandomState` are random once a thread only.
        seeded.write(Uuid::new_v4().as_bytes());
        seeded.write(Uuid::new_v4().as_bytes());
        Self {
            seeded,
            count: AtomicU64::new(0),
        }
    }

    fn next(&self) -> Uuid {
        let mut hasher = self.seeded.clone();
        hasher.write_u64(self.count.fetch_add(1, Ordering::Relaxed));
        hasher.write_u64(std::process::id().into());
        let high = hasher.finish();
        hasher.write_u64(high);
        let bits = (u128::from(high) << 64) | u128::from(hasher.finish());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

/// Who has a lock, as Redis tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Holder {
    /// The owner label (`host/pid` by default), if the value has the form that this crate writes.
    pub owner: Option<String>,
    /// The raw value in the key, whoever wrote it.
    pub value: Vec<u8>,
    /// How long the key still lives if nobody extends it; `None` for a key without a TTL.
    pub ttl: Option<Duration>,
}

impl Holder {
    pub(crate) fn new(value: Vec<u8>, ttl: Option<Duration>) -> Self {
        Self {
            owner: label_in(&value).map(str::to_owned),
            value,
            ttl,
        }
    }
}

fn label_in(value: &[u8]) -> Option<&str> {
    let (uuid, label) = std::str::from_utf8(value).ok()?.split_once(':')?;
    (uuid.len() == UUID_LENGTH && Uuid::try_parse(uuid).is_ok()).then_some(label)
}

#[cfg(unix)]
fn host() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_label_is_read_back_from_a_fresh_value() {
        let owner = Owner::new("worker: 7".to_owned()).unwrap();
        let value = owner.fresh_value();
        assert_ne!(value, owner.fresh_value());
        assert_eq!(label_in(value.as_bytes()), Some("worker: 7"));
    }

    #[test]
    fn p6_no_value_comes_twice_and_each_is_a_random_uuid() {
        const COUNT: usize = 100_000;
        let owners = [(); 4].map(|()| Owner::new("same".to_owned()).unwrap());
        let mut values = HashSet::new();
        let mut ones = [0; 128];
        for _ in 0..COUNT / owners.len() {
            for owner in &owners {
                let value = owner.fresh_value();
                let uuid = Uuid::try_parse(&value[..UUID_LENGTH]).unwrap();
                assert_eq!(uuid.get_version(), Some(uuid::Version::Random));
                for (bit, ones) in ones.iter_mut().enumerate() {
                    *ones += usize::from(uuid.as_u128() >> bit & 1 == 1);
                }
                values.insert(value);
            }
        }
        assert_eq!(values.len(), COUNT);
        // Six bits say which kind of UUID it is. The others are as often one as zero.
        let even = ones
            .iter()
            .filter(|ones| ones.abs_diff(COUNT / 2) < COUNT / 50);
        assert_eq!(even.count(), 122);
    }

    #[test]
    fn values_of_others_have_no_label() {
        assert_eq!(label_in(b"redis-py-token"), None);
        assert_eq!(label_in(b"not-a-uuid:label"), None);
        assert_eq!(label_in(&[0xff, 0xfe]), None);
    }

    #[test]
    fn a_label_that_would_garble_the_value_is_refused() {
        for label in ["", "a\nb", &"x".repeat(257)] {
            assert!(Owner::new(label.to_owned()).is_err(), "{label:?}");
        }
    }
}
