//! Who holds a lock: the value in its key.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::error::Error;

const LONGEST_LABEL: usize = 256;
const UUID_LENGTH: usize = 36;

/// The owner label: what a human reads in the key, behind the UUID.
#[derive(Clone, Debug)]
pub(crate) struct Owner(Arc<str>);

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
        Ok(Self(label.into()))
    }

    /// `host/pid` of this process.
    pub(crate) fn of_this_process() -> Self {
        Self(format!("{}/{}", host(), std::process::id()).into())
    }

    pub(crate) fn label(&self) -> &str {
        &self.0
    }

    /// A value that no other acquisition ever had or will have (P6).
    pub(crate) fn fresh_value(&self) -> Arc<str> {
        let mut buffer = Uuid::encode_buffer();
        let uuid = Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
        let mut value = String::with_capacity(UUID_LENGTH + 1 + self.0.len());
        value.push_str(uuid);
        value.push(':');
        value.push_str(&self.0);
        value.into()
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
    use super::*;

    #[test]
    fn the_label_is_read_back_from_a_fresh_value() {
        let owner = Owner::new("worker: 7".to_owned()).unwrap();
        let value = owner.fresh_value();
        assert_ne!(value, owner.fresh_value());
        assert_eq!(label_in(value.as_bytes()), Some("worker: 7"));
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
