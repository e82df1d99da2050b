//! Which server is the master, by the word of the sentinels that watch it.
//!
//! # Protocol
//!
//! 1. Each opening of a connection asks all sentinels at once for the address of the master and the
//!    epoch of that configuration ([`round`]). Of the answers of one round the highest epoch wins:
//!    while sentinels disagree, both servers say that they are a master. Who answers too late for the
//!    opening corrects it. An epoch lower than that of the round before only makes it wait longer for
//!    the others, as an operator may begin them anew.
//! 2. A server that a connection was opened to must say that it is a master.
//! 3. The background thread listens to `+switch-master` at *every* sentinel ([`listen`]), and asks
//!    all of them again at each message and after each (re)connection. Messages are hints: any may
//!    be missing, and what they say is not believed.
//! 4. When another server is named, the connections to the one before are left at once, and what
//!    is under way there is not waited for; leases are asked about at the new one ([C5]).
//!
//! # Limitations
//!
//! Redis replicates behind the client's back, so the new master may lack a key that the old one
//! had set: then its guard is told. A client that is cut off together with the old master and its
//! sentinels goes on there until the partition ends; only `min-replicas-to-write` bounds that.
//!
//! [C5]: crate::backend::redis::connections

mod listen;
mod round;
mod urls;

use std::fmt;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use redis::{ConnectionAddr, RedisError};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::backend::redis::connections::Connections;
use crate::backend::redis::place::{Place, like, text_of};
use crate::backend::redis::settings::OpeningOptions;
use crate::backend::sentinel::listen::listen;
use crate::backend::sentinel::round::{Late, Sentinel, ask_all};
pub(crate) use crate::backend::sentinel::urls::Deployment;
use crate::backend::{Answer, Signals};
use crate::error::Fault;
use crate::events::emit;

/// An answer of the sentinels serves all openings that begin this long after: those of several
/// runtimes, as a rule.
const FRESH: Duration = Duration::from_millis(100);
/// So long after a round was decided, what others say still counts.
const LATEST: Duration = Duration::from_secs(1);
/// After this long, it is listened again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// The sentinels, and what they said last.
pub(crate) struct Sentinels {
    all: Vec<Arc<Sentinel>>,
    /// The name by which they know the master.
    master: Arc<str>,
    /// The name in messages while no address is known.
    name: Arc<str>,
    /// The kind of address that the master has.
    template: ConnectionAddr,
    limit: Duration,
    /// How many rounds were begun.
    rounds: AtomicU64,
    known: watch::Sender<Known>,
    connections: OnceLock<Weak<Connections>>,
    /// A first round was begun.
    begun: Notify,
    /// What is known may be out of date.
    hint: Notify,
}

#[derive(Default)]
struct Known {
    /// The number of the round that it comes from.
    round: u64,
    /// That of the configuration.
    epoch: Option<u64>,
    asked: Option<Instant>,
    server: Option<Named>,
}

/// A server that was named as the master.
#[derive(Clone)]
struct Named {
    address: ConnectionAddr,
    /// Its name in messages.
    name: Arc<str>,
}

impl Sentinels {
    /// Returns them, with the connections to the present master.
    pub(crate) fn new(
        deployment: Deployment,
        signals: Arc<dyn Signals>,
        options: OpeningOptions,
    ) -> Result<(Arc<Self>, Arc<Connections>), RedisError> {
        let client = deployment.template.clone();
        let this = Arc::new(Self::of(deployment, options.limit)?);
        let place = Box::new(Master(Arc::clone(&this)));
        let connections = Arc::new(Connections::new(&client, place, signals, options)?);
        let known = this.connections.set(Arc::downgrade(&connections));
        debug_assert!(known.is_ok(), "it was made here");
        Ok((this, connections))
    }

    fn of(deployment: Deployment, limit: Duration) -> Result<Self, RedisError> {
        let Deployment {
            sentinels,
            master,
            template,
        } = deployment;
        let all = sentinels.iter().map(Sentinel::new);
        let all = all.collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = all.iter().map(|sentinel| &*sentinel.name).collect();
        Ok(Self {
            name: format!("{master} (of the sentinels {})", names.join(", ")).into(),
            template: template.get_connection_info().addr().clone(),
            all: all.into_iter().map(Arc::new).collect(),
            master,
            limit,
            rounds: AtomicU64::new(0),
            known: watch::Sender::default(),
            connections: OnceLock::new(),
            begun: Notify::new(),
            hint: Notify::new(),
        })
    }

    /// Listens to the sentinels for as long as the present runtime lives. A panic, of a waker of the
    /// caller's own for instance, does not end it for good.
    pub(crate) async fn keep_up(self: Arc<Self>) {
        loop {
            let _ = tokio::spawn(listen(Arc::clone(&self))).await;
            sleep(AFTER_PANIC).await;
        }
    }

    /// Asks the sentinels for the master, unless that was done a moment ago.
    async fn find(self: &Arc<Self>, until: Instant) -> Result<ConnectionAddr, Fault> {
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        self.ask(until).await
    }

    fn fresh(&self) -> Option<ConnectionAddr> {
        let known = self.known.borrow();
        let asked = known.asked.filter(|asked| asked.elapsed() < FRESH);
        asked.and(known.server.as_ref().map(|named| named.address.clone()))
    }

    async fn ask(self: &Arc<Self>, until: Instant) -> Result<ConnectionAddr, Fault> {
        let round = self.rounds.fetch_add(1, Ordering::Relaxed) + 1;
        self.begun.notify_one();
        let known = self.known.borrow().epoch;
        let asked = ask_all(&self.all, &self.master, &self.name, known, until);
        let (answer, late) = asked.await?;
        let address = self.note(round, &answer);
        if late.open() > 0 {
            tokio::spawn(Arc::clone(self).hear_out(round, answer.epoch, late));
        }
        Ok(address)
    }

    /// Waits for those who had not answered when a round was decided. Each that is far away is always
    /// among them, and may be the one that knows of a failover: its epoch counts, too.
    async fn hear_out(self: Arc<Self>, round: u64, mut epoch: Option<u64>, mut late: Late) {
        let until = Instant::now() + LATEST;
        while let Ok(Some((_, answer))) = timeout_at(until, late.next()).await {
            if let Ok(answer) = answer
                && answer.epoch > epoch
            {
                epoch = answer.epoch;
                self.note(round, &answer);
            }
        }
    }

    /// An address of the same kind as the master's.
    fn address(&self, answer: &round::Named) -> ConnectionAddr {
        like(&self.template, answer.host.clone(), answer.port)
    }

    /// Enters what a round found, unless one that began later has ended before. Returns the address
    /// that is to be used.
    fn note(&self, round: u64, answer: &round::Named) -> ConnectionAddr {
        let address = self.address(answer);
        let found = Named {
            name: format!("{} at {}", self.master, text_of(&address)).into(),
            address,
        };
        let mut before = None;
        let is_another = self.known.send_if_modified(|known| {
            if known.round > round {
                return false;
            }
            known.round = round;
            known.epoch = answer.epoch;
            known.asked = Some(Instant::now());
            if known.server.as_ref().is_some_and(|s| s.name == found.name) {
                return false;
            }
            before = known.server.replace(found.clone());
            true
        });
        if is_another && let Some(before) = before {
            let connections = self.connections.get().and_then(Weak::upgrade);
            if let Some(connections) = connections {
                connections.move_on();
            }
            let (from, to) = (before.name, found.name);
            emit(move || {
                tracing::info!(%from, %to, "the sentinels name another master");
            });
        }
        let known = self.known.borrow();
        let server = known.server.as_ref();
        server.map_or(found.address, |server| server.address.clone())
    }

    fn present(&self) -> Option<Arc<str>> {
        let known = self.known.borrow();
        known.server.as_ref().map(|named| Arc::clone(&named.name))
    }
}

/// The place of the master, whichever server has it.
struct Master(Arc<Sentinels>);

impl Place for Master {
    fn address(&self, until: Instant) -> Answer<'_, Option<ConnectionAddr>> {
        Box::pin(async move { self.0.find(until).await.map(Some) })
    }

    fn name_of(&self, address: &ConnectionAddr) -> Arc<str> {
        format!("{} at {}", self.0.master, text_of(address)).into()
    }

    fn present(&self) -> Option<Arc<str>> {
        let present = self.0.present();
        Some(present.unwrap_or_else(|| Arc::clone(&self.0.name)))
    }

    fn moved(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut from = self.0.present();
        let mut known = self.0.known.subscribe();
        Box::pin(async move {
            let has_moved = |known: &Known| {
                let now = known.server.as_ref().map(|named| &named.name);
                // The first is no other than before.
                now.is_some_and(|now| now != from.get_or_insert_with(|| Arc::clone(now)))
            };
            if known.wait_for(has_moved).await.is_err() {
                pending::<()>().await;
            }
        })
    }

    fn is_of_a_master(&self) -> bool {
        true
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Master").field(&self.present()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use redis::Client;

    use super::*;

    #[test]
    fn only_another_master_than_the_first_is_a_move() {
        let parse = |url: &str| Ok(Client::open(url).expect("a url"));
        let deployment = Deployment::new(["redis://127.0.0.1/"], "mymaster", parse);
        let sentinels = Sentinels::of(deployment.expect("a deployment"), Duration::from_secs(1));
        let sentinels = Arc::new(sentinels.expect("sentinels"));
        let server = |port| round::Named {
            host: "127.0.0.1".to_owned(),
            port,
            epoch: None,
        };
        let place = Master(Arc::clone(&sentinels));
        let mut moved = place.moved();
        assert!(moved.as_mut().now_or_never().is_none(), "none is known");
        sentinels.note(1, &server(1));
        assert!(moved.as_mut().now_or_never().is_none(), "it is the first");
        sentinels.note(2, &server(2));
        assert!(moved.as_mut().now_or_never().is_some(), "it is another");
        assert!(place.moved().now_or_never().is_none(), "it is the same");
    }
}
