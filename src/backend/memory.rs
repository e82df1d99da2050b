//! Locks in this process's memory: the semantics of a Redis server without one.

use std::collections::HashMap;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::backend::{
    Answer, Attempt, Backend, Claim, Fences, Freed, Kept, Listen, Look, Queue, Renewal, SentBehind,
    Signals,
};
use crate::clock::{Clock, Moment};
use crate::holder::Holder;
use crate::key::Key;

#[derive(Debug)]
pub(crate) struct Memory {
    clock: Clock,
    signals: Arc<dyn Signals>,
    store: Mutex<Store>,
}

#[derive(Debug, Default)]
struct Store {
    held: HashMap<Arc<str>, Entry>,
    /// One counter for all keys: it grows for each of them, and does not grow with their number.
    fence: u64,
}

#[derive(Debug)]
struct Entry {
    value: Arc<str>,
    expires: Moment,
}

impl Memory {
    pub(crate) fn new(clock: Clock, signals: Arc<dyn Signals>) -> Self {
        Self {
            clock,
            signals,
            store: Mutex::default(),
        }
    }

    fn try_acquire(&self, claim: &Claim, fences: u64) -> Attempt {
        let now = self.clock.now();
        let mut store = self.store.lock();
        if let Some(entry) = store.live(&claim.key, now)
            && entry.value != claim.value
        {
            return Attempt::Held {
                ttl: Some(entry.expires.since(now)),
            };
        }
        let entry = Entry {
            value: Arc::clone(&claim.value),
            expires: now + claim.ttl,
        };
        store.held.insert(Arc::clone(claim.key.name()), entry);
        Attempt::Granted {
            fences: store.reserve(fences),
            deadline: claim.deadline(now),
        }
    }

    fn try_renew(&self, claim: &Claim) -> Renewal {
        let now = self.clock.now();
        let mut store = self.store.lock();
        match store.live(&claim.key, now) {
            None => Renewal::Removed,
            Some(entry) if entry.value != claim.value => Renewal::Stolen,
            Some(entry) => {
                entry.expires = entry.expires.max(now + claim.ttl);
                Renewal::Renewed {
                    deadline: claim.deadline(now),
                }
            }
        }
    }

    fn look_at(&self, claim: &Claim) -> Look {
        let mut store = self.store.lock();
        match store.live(&claim.key, self.clock.now()) {
            None => Look::Removed,
            Some(entry) if entry.value != claim.value => Look::Stolen,
            Some(entry) => Look::Ours {
                until: Some(entry.expires),
            },
        }
    }

    /// Nobody but this locker knows these locks, so nobody else waits.
    fn try_keep(&self, claim: &Claim, fences: u64) -> Kept {
        match self.try_renew(claim) {
            Renewal::Renewed { deadline } => Kept::Ours {
                fences: self.store.lock().reserve(fences),
                deadline,
            },
            Renewal::Removed | Renewal::Stolen => Kept::NotOurs,
        }
    }

    fn try_release(&self, claim: &Claim) -> Freed {
        let mut store = self.store.lock();
        match store.live(&claim.key, self.clock.now()) {
            Some(entry) if entry.value == claim.value => {
                store.held.remove(claim.key.name());
                Freed::Freed
            }
            _ => Freed::NotOurs,
        }
    }
}

impl Store {
    fn reserve(&mut self, count: u64) -> Fences {
        let first = self.fence + 1;
        self.fence += count;
        Fences { first, count }
    }

    /// The holder of a key, after the expiry that a server would have done.
    fn live(&mut self, key: &Key, now: Moment) -> Option<&mut Entry> {
        if self.held.get(key.name())?.expires <= now {
            self.held.remove(key.name());
        }
        self.held.get_mut(key.name())
    }
}

impl Backend for Memory {
    fn server(&self) -> Arc<str> {
        "memory".into()
    }

    fn connect<'a>(&'a self, _driver: &'a Handle, _within: Duration) -> Answer<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        _within: Duration,
    ) -> Answer<'a, Attempt> {
        Box::pin(ready(Ok(self.try_acquire(claim, fences.count))))
    }

    fn disown(&self, _claim: &Arc<Claim>) -> Option<Vec<SentBehind>> {
        None
    }

    fn renew<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        _listen: Listen,
        _within: Duration,
    ) -> Answer<'a, Renewal> {
        Box::pin(ready(Ok(self.try_renew(claim))))
    }

    fn look<'a>(&'a self, claim: &'a Arc<Claim>, _within: Duration) -> Answer<'a, Look> {
        Box::pin(ready(Ok(self.look_at(claim))))
    }

    fn release<'a>(&'a self, claim: &'a Arc<Claim>, _within: Duration) -> Answer<'a, Freed> {
        Box::pin(ready(Ok(self.try_release(claim))))
    }

    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        _within: Duration,
    ) -> Answer<'a, Kept> {
        Box::pin(ready(Ok(self.try_keep(claim, fences.count))))
    }

    fn queue(&self) -> Option<&dyn Queue> {
        None
    }

    fn holder<'a>(&'a self, key: &'a Arc<Key>, _within: Duration) -> Answer<'a, Option<Holder>> {
        let now = self.clock.now();
        let mut store = self.store.lock();
        let holder = store.live(key, now).map(|entry| {
            let ttl = entry.expires.since(now);
            Holder::new(entry.value.as_bytes().to_vec(), Some(ttl))
        });
        Box::pin(ready(Ok(holder)))
    }

    fn force_release<'a>(&'a self, key: &'a Arc<Key>, _within: Duration) -> Answer<'a, bool> {
        let mut store = self.store.lock();
        let held = store.live(key, self.clock.now()).is_some();
        store.held.remove(key.name());
        drop(store);
        self.signals.changed(key.name());
        Box::pin(ready(Ok(held)))
    }
}
