//! The names that one lock has in Redis.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use crate::error::Error;

/// How many slots a cluster has.
pub(crate) const SLOTS: usize = 16_384;
/// How much longer than a key a neighbour's name is, at most.
const LONGEST_ADDITION: usize = "{999999}:lock-waiters".len();

/// A lock's key and the keys beside it, which hash to the same cluster slot.
///
/// A cluster hashes the text between the first `{` and the next `}` if there is any, else the
/// whole key. So `invoice:42` has its neighbours under `{invoice:42}`, and `a{b}c`, which carries
/// a tag of its own, keeps it. A key with a `}` and no tag cannot become one: its neighbours are
/// under the first number that hashes to its slot. The forms begin or end differently, so that no
/// two locks ever share a neighbour.
///
/// The names are the same whether or not the server belongs to a cluster: all clients of a key must
/// agree on them, also where one takes a node of a cluster for a single server.
#[derive(Debug)]
pub(crate) struct Key {
    name: Arc<str>,
    prefix_length: usize,
    /// The neighbours' names, one behind the other: a `Lock` is often made for one acquisition.
    neighbours: String,
    /// Where each neighbour's name ends.
    ends: [usize; NEIGHBOURS.len()],
}

const NEIGHBOURS: [&str; 4] = ["fence", "fence-owner", "lock-queue", "lock-waiters"];

impl Key {
    pub(crate) fn new(prefix: &str, key: String) -> Self {
        let name: Arc<str> = if prefix.is_empty() {
            key.into()
        } else {
            format!("{prefix}{key}").into()
        };
        let tag = Tag::of(&name);
        let longest = name.len() + LONGEST_ADDITION;
        let mut neighbours = String::with_capacity(NEIGHBOURS.len() * longest);
        let ends = NEIGHBOURS.map(|what| {
            tag.write_beside(&mut neighbours, &name, what);
            neighbours.len()
        });
        Self {
            prefix_length: prefix.len(),
            name,
            neighbours,
            ends,
        }
    }

    /// Refuses a key that the user left empty, with or without a prefix.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.name.len() == self.prefix_length {
            let problem = "the key must not be empty";
            return Err(Error::invalid(Some(&self.name), problem));
        }
        Ok(())
    }

    /// The lock key: the user's key behind the prefix, verbatim.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the fencing counter is.
    pub(crate) fn fence(&self) -> &str {
        let [fence, ..] = self.neighbours();
        fence
    }

    fn neighbours(&self) -> [&str; NEIGHBOURS.len()] {
        let mut begin = 0;
        self.ends.map(|end| {
            let name = &self.neighbours[begin..end];
            begin = end;
            name
        })
    }

    /// All the keys that the scripts of a quorum's servers take; the third is where a server keeps
    /// the value of the claim that wrote the fencing counter.
    pub(crate) fn of_a_member(&self) -> [&str; 5] {
        let [fence, owner, queue, waiters] = self.neighbours();
        [&self.name, fence, owner, queue, waiters]
    }

    /// All the keys that the scripts of the queue take.
    pub(crate) fn with_queue(&self) -> [&str; 4] {
        let [fence, _, queue, waiters] = self.neighbours();
        [&self.name, fence, queue, waiters]
    }
}

/// What a key's neighbours have in common with it.
enum Tag {
    /// The tag that the key carries.
    Own,
    /// The whole key.
    Whole,
    /// A number in the key's slot.
    Number(u32),
}

impl Tag {
    fn of(name: &str) -> Self {
        if tag(name).is_some() {
            Self::Own
        } else if name.contains('}') {
            Self::Number(number_in(slot(name)))
        } else {
            Self::Whole
        }
    }

    fn write_beside(&self, names: &mut String, name: &str, what: &str) {
        let written = match self {
            Self::Own => write!(names, "{name}:{{{what}}}"),
            Self::Whole => write!(names, "{{{name}}}:{what}"),
            Self::Number(number) => write!(names, "{{{number}}}{name}:{what}"),
        };
        written.expect("a String takes all that is written");
    }
}

/// The first number, written in decimal, that a cluster hashes to each slot. The search takes
/// about a millisecond, so it is done once a process and not once a key.
static FIRST_NUMBERS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut numbers = vec![None; SLOTS];
    let mut missing = SLOTS;
    // The CRC of each number so far. That of a longer one is one step away from its prefix'.
    let mut crcs: Vec<u16> = Vec::new();
    for (number, digit) in (0_u32..).zip((b'0'..=b'9').cycle()) {
        let before = if number < 10 {
            0
        } else {
            crcs[crcs.len() / 10]
        };
        let crc = crc16_step(before, digit);
        crcs.push(crc);
        let first = &mut numbers[usize::from(crc) % SLOTS];
        if first.is_none() {
            *first = Some(number);
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    numbers.into_iter().flatten().collect()
});

/// The first number that a cluster hashes to a slot.
pub(crate) fn number_in(slot: usize) -> u32 {
    FIRST_NUMBERS[slot]
}

/// The slot of a key in a cluster: CRC16 as XMODEM has it, of the key's tag if there is one, modulo
/// the number of slots.
pub(crate) fn slot(name: &str) -> usize {
    let hashed = tag(name).unwrap_or(name);
    usize::from(hashed.bytes().fold(0, crc16_step)) % SLOTS
}

/// The text between the first `{` and the next `}`, if there is any.
fn tag(name: &str) -> Option<&str> {
    let (_, behind) = name.split_once('{')?;
    let (tag, _) = behind.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

/// Names that nobody has, behind the prefix: in the first, the middle and the last slot of a
/// cluster, unless the prefix has a tag, so that all keys are in its slot.
pub(crate) fn spread(prefix: &str) -> [String; 3] {
    let slots = [0, SLOTS / 2 - 1, SLOTS - 1];
    slots.map(|slot| format!("{prefix}{{{}}}redlease-probe", number_in(slot)))
}

fn crc16_step(crc: u16, byte: u8) -> u16 {
    (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
}

/// The CRC16 of each byte.
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn fence(name: &str) -> String {
        Key::new("", name.to_owned()).fence().to_owned()
    }

    #[test]
    fn a_spread_reaches_from_the_first_slot_to_the_last() {
        let slots = [0, SLOTS / 2 - 1, SLOTS - 1];
        assert_eq!(spread("app:").map(|name| slot(&name)), slots);
        let with_a_tag = spread("{app}").map(|name| slot(&name));
        assert_eq!(with_a_tag, [slot("app"); 3]);
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

    /// Clients of all versions must agree on them.
    #[test]
    fn the_neighbours_of_keys_with_a_stray_brace_stay_what_they_are() {
        for (name, neighbour) in [
            ("}", "{5305}}:fence"),
            ("a}b", "{20658}a}b:fence"),
            ("{}x", "{19354}{}x:fence"),
            ("{}", "{42430}{}:fence"),
            ("{}{a}", "{3626}{}{a}:fence"),
            ("a{}b}", "{14008}a{}b}:fence"),
            ("}{", "{10048}}{:fence"),
            ("x}y{z", "{7019}x}y{z:fence"),
            ("}}}", "{915}}}}:fence"),
            ("{{}}", "{{}}:{fence}"),
            ("e}é", "{5205}e}é:fence"),
            ("k}1", "{79592}k}1:fence"),
            ("k}6", "{18148}k}6:fence"),
        ] {
            assert_eq!(fence(name), neighbour);
        }
    }

    #[test]
    fn the_first_number_of_a_slot_is_the_first() {
        for number in 0..1000 {
            let first = FIRST_NUMBERS[slot(&number.to_string())];
            assert!(first <= number, "{first} for {number}");
            assert_eq!(slot(&first.to_string()), slot(&number.to_string()));
        }
    }

    #[test]
    fn a_stray_brace_hardly_makes_a_key_dearer() {
        const KEYS: u32 = 100;
        // The time that this thread runs, however busy the machine is.
        let thread_time = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::try_from(now).expect("a time since the thread began")
        };
        let time_of = |brace: &str| {
            let names: Vec<String> = (0..KEYS).map(|n| format!("key-{n}{brace}")).collect();
            let began = thread_time();
            for name in names {
                std::hint::black_box(Key::new("", name));
            }
            thread_time() - began
        };
        let best_of = |brace: &str| (0..5).map(|_| time_of(brace)).min().unwrap_or_default();
        time_of("}");
        let (plain, stray) = (best_of(""), best_of("}"));
        // A search for each key would take a thousand times as long.
        assert!(stray < plain * 100, "{stray:?} against {plain:?}");
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

    #[test]
    fn an_empty_key_is_refused_whatever_the_prefix() {
        for prefix in ["", "app:"] {
            let error = Key::new(prefix, String::new()).check().unwrap_err();
            assert!(error.to_string().contains("empty"), "{error}");
            Key::new(prefix, "a".to_owned()).check().unwrap();
        }
    }
}
