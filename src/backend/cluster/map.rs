//! Which server of a cluster has which slots.

use redis::Value;

use crate::key::SLOTS;

/// A server of a cluster, as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// The masters of a cluster and their slots, as one server sees them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Map {
    pub(super) masters: Vec<Address>,
    /// The index of each slot's master.
    owners: Vec<u16>,
}

/// The index of no master.
const NOBODY: u16 = u16::MAX;

impl Map {
    pub(super) fn empty() -> Self {
        Self {
            masters: Vec::new(),
            owners: vec![NOBODY; SLOTS],
        }
    }

    /// Reads the answer to `CLUSTER SLOTS` of the server at `asked`. `None` if it is none.
    ///
    /// A master whose host is unknown, which a server says by a question mark, has no slots here:
    /// its replicas, which stand behind it in the answer, do not serve them.
    pub(super) fn read(answer: &Value, asked: &str) -> Option<Self> {
        let Value::Array(ranges) = answer else {
            return None;
        };
        let mut read = Vec::new();
        for range in ranges {
            let Value::Array(range) = range else {
                return None;
            };
            let [
                Value::Int(first),
                Value::Int(last),
                Value::Array(master),
                ..,
            ] = &range[..]
            else {
                return None;
            };
            let slots = usize::try_from(*first).ok()?..=usize::try_from(*last).ok()?;
            if slots.is_empty() || *slots.end() >= SLOTS {
                return None;
            }
            read.push((slots, address(master, asked)?));
        }
        // Two servers that say the same in another order make the same map.
        read.sort_by_key(|(slots, _)| *slots.start());
        let mut map = Self::empty();
        for (slots, master) in read {
            if let Some(master) = master {
                let index = map.index_of(master)?;
                map.owners[slots].fill(index);
            }
        }
        Some(map)
    }

    /// How many slots have a master.
    pub(super) fn covered(&self) -> usize {
        self.owners.iter().filter(|owner| **owner != NOBODY).count()
    }

    pub(super) fn is_whole(&self) -> bool {
        self.covered() == SLOTS
    }

    /// The index of a slot's master.
    pub(super) fn owner(&self, slot: usize) -> Option<usize> {
        let owner = self.owners[slot];
        (owner != NOBODY).then_some(usize::from(owner))
    }

    /// The last slot of the master: tools that move some of a server's slots begin with the first,
    /// and a connection ends when the slot of its channel leaves the server.
    pub(super) fn slot_of(&self, master: &Address) -> Option<usize> {
        let index = self.masters.iter().position(|known| known == master)?;
        self.owners
            .iter()
            .rposition(|owner| usize::from(*owner) == index)
    }

    /// Gives a slot to a master.
    pub(super) fn pass_on(&mut self, slot: usize, master: Address) {
        if let Some(index) = self.index_of(master) {
            self.owners[slot] = index;
        }
    }

    /// The index of a master, which is added if it is new.
    fn index_of(&mut self, master: Address) -> Option<u16> {
        let known = self.masters.iter().position(|known| *known == master);
        let index = known.unwrap_or_else(|| {
            self.masters.push(master);
            self.masters.len() - 1
        });
        u16::try_from(index).ok().filter(|index| *index != NOBODY)
    }
}

/// The server of an entry: its host, which is that of the asked server if there is none, and its
/// port. `Some(None)` if the host is unknown.
fn address(entry: &[Value], asked: &str) -> Option<Option<Address>> {
    let [host, Value::Int(port), ..] = entry else {
        return None;
    };
    let host = match host {
        Value::Nil => "",
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        _ => return None,
    };
    let port = u16::try_from(*port).ok()?;
    let host = match host {
        "?" => return Some(None),
        "" => asked,
        host => host,
    };
    Some(Some(Address {
        host: host.to_owned(),
        port,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, servers: &[(Value, i64)]) -> Value {
        let mut range = vec![Value::Int(first), Value::Int(last)];
        range.extend(
            servers.iter().map(|(host, port)| {
                Value::Array(vec![host.clone(), Value::Int(*port), text("id")])
            }),
        );
        Value::Array(range)
    }

    fn at(port: u16) -> Address {
        let host = "h".to_owned();
        Address { host, port }
    }

    fn master_of(map: &Map, slot: usize) -> Option<&Address> {
        map.owner(slot).map(|index| &map.masters[index])
    }

    #[test]
    fn the_first_server_of_a_range_is_its_master() {
        let answer = Value::Array(vec![
            range(0, 99, &[(text("h"), 1), (text("h"), 4)]),
            range(100, 16_383, &[(text("h"), 2)]),
        ]);
        let map = Map::read(&answer, "asked").unwrap();
        assert!(map.is_whole());
        assert_eq!(master_of(&map, 0), Some(&at(1)));
        assert_eq!(master_of(&map, 99), Some(&at(1)));
        assert_eq!(master_of(&map, 100), Some(&at(2)));
        assert_eq!(map.slot_of(&at(1)), Some(99));
        assert_eq!(map.slot_of(&at(4)), None);
    }

    #[test]
    fn a_master_without_a_host_has_that_of_the_server_that_was_asked() {
        for host in [Value::Nil, text("")] {
            let answer = Value::Array(vec![range(0, 16_383, &[(host, 1)])]);
            let map = Map::read(&answer, "h").unwrap();
            assert_eq!(master_of(&map, 5), Some(&at(1)));
        }
    }

    #[test]
    fn a_replica_does_not_stand_in_for_a_master_that_is_unknown() {
        let answer = Value::Array(vec![range(0, 9, &[(text("?"), 1), (text("h"), 4)])]);
        let map = Map::read(&answer, "asked").unwrap();
        assert_eq!(map.covered(), 0);
        assert_eq!(master_of(&map, 5), None);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for answer in [
            Value::Okay,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(0, 16_384, &[(text("h"), 1)])]),
            Value::Array(vec![range(-1, 5, &[(text("h"), 1)])]),
            Value::Array(vec![range(9, 5, &[(text("h"), 1)])]),
            Value::Array(vec![range(0, 5, &[])]),
            Value::Array(vec![range(0, 5, &[(text("h"), 70_000)])]),
            Value::Array(vec![range(0, 5, &[(Value::Int(1), 1)])]),
        ] {
            assert_eq!(Map::read(&answer, "asked"), None, "{answer:?}");
        }
    }

    proptest! {
        #[test]
        fn each_slot_is_with_the_master_of_the_range_that_has_it(
            ends in proptest::collection::btree_set(1..SLOTS, 0..20),
            moved in 0..SLOTS,
        ) {
            let mut first = 0;
            let ends = ends.into_iter().chain([SLOTS]);
            let mut expected = Vec::new();
            let ranges = ends.zip(1_u16..).map(|(end, port)| {
                expected.extend((first..end).map(|_| at(port)));
                let range = range(first as i64, end as i64 - 1, &[(text("h"), port.into())]);
                first = end;
                range
            });
            let mut map = Map::read(&Value::Array(ranges.collect()), "asked").unwrap();
            map.pass_on(moved, at(9999));
            expected[moved] = at(9999);
            for (slot, master) in expected.iter().enumerate() {
                prop_assert_eq!(master_of(&map, slot), Some(master));
            }
        }
    }
}
