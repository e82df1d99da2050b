//! The replies of our scripts.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use crate::backend::redis::connection::Connection;
use crate::backend::{Claim, Freed};
use crate::clock::Moment;
use crate::error::Fault;
use crate::holder::Holder;

pub(in crate::backend) struct Reply {
    pub(in crate::backend) connection: Arc<Connection>,
    /// The moment before the request was handed to the connection.
    pub(in crate::backend) sent: Moment,
    pub(in crate::backend) value: Value,
}

impl Reply {
    pub(in crate::backend) fn number(&self) -> Result<i64, Fault> {
        match self.value {
            Value::Int(number) => Ok(number),
            _ => Err(self.unexpected()),
        }
    }

    pub(in crate::backend) fn pair(&self) -> Result<(i64, i64), Fault> {
        match self.numbers()[..] {
            [first, second] => Ok((first, second)),
            _ => Err(self.unexpected()),
        }
    }

    /// A number, or two.
    pub(in crate::backend) fn number_or_pair(&self) -> Result<(i64, Option<i64>), Fault> {
        match self.value {
            Value::Int(number) => Ok((number, None)),
            _ => self.pair().map(|(first, second)| (first, Some(second))),
        }
    }

    /// Empty, if the reply is anything but an array of few numbers.
    pub(in crate::backend) fn numbers(&self) -> Numbers {
        let none = Numbers::default();
        let Value::Array(items) = &self.value else {
            return none;
        };
        let mut numbers = Numbers {
            count: items.len(),
            ..none
        };
        if numbers.count > numbers.items.len() {
            return none;
        }
        for (number, item) in numbers.items.iter_mut().zip(items) {
            match item {
                Value::Int(item) => *number = *item,
                _ => return none,
            }
        }
        numbers
    }

    /// So many numbers, each 1 or 0.
    pub(in crate::backend) fn flags(&self, count: usize) -> Result<Vec<bool>, Fault> {
        let Value::Array(items) = &self.value else {
            return Err(self.unexpected());
        };
        let flags: Option<Vec<_>> = items
            .iter()
            .map(|item| match item {
                Value::Int(flag @ (0 | 1)) => Some(*flag == 1),
                _ => None,
            })
            .collect();
        let flags = flags.filter(|flags| flags.len() == count);
        flags.ok_or_else(|| self.unexpected())
    }

    pub(in crate::backend) fn freed(&self) -> Result<Freed, Fault> {
        Ok(match self.number()? {
            0 => Freed::NotOurs,
            _ => Freed::Freed,
        })
    }

    pub(in crate::backend) fn holder(&self) -> Result<Option<Holder>, Fault> {
        match &self.value {
            Value::Nil => Ok(None),
            Value::Array(pair) => match &pair[..] {
                [Value::BulkString(value), Value::Int(ttl)] => {
                    Ok(Some(Holder::new(value.clone(), remaining(*ttl))))
                }
                _ => Err(self.unexpected()),
            },
            _ => Err(self.unexpected()),
        }
    }

    /// The fault of a counter that no number can be taken from (P8).
    pub(in crate::backend) fn no_counter(&self, claim: &Claim) -> Fault {
        let counter = claim.key.fence();
        let text =
            format!("the fencing counter {counter:?} holds no number, or one too close to 2^53");
        self.connection.refusal(text)
    }

    /// The fault of a server that is in a quorum twice.
    pub(in crate::backend) fn same_server(&self) -> Fault {
        let text = "another name of a server of this quorum";
        self.connection.refusal(text.to_owned())
    }

    pub(in crate::backend) fn unexpected(&self) -> Fault {
        self.connection.unexpected(&self.value)
    }
}

/// The numbers of a reply.
#[derive(Clone, Copy, Default)]
pub(in crate::backend) struct Numbers {
    items: [i64; 4],
    count: usize,
}

impl Deref for Numbers {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.items[..self.count]
    }
}

/// A PTTL as Redis answers it: negative for a key without one.
pub(in crate::backend) fn remaining(pttl: i64) -> Option<Duration> {
    u64::try_from(pttl).ok().map(Duration::from_millis)
}
