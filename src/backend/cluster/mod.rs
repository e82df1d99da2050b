//! A Redis Cluster: a server for each share of the slots.
//!
//! # Invariants
//!
//! * **N1** What is known of the slots is a guess, and the servers decide. One that does not have a
//!   slot names the one that has it, which is entered at once.
//! * **N2** Whatever one server does or does not do delays nobody who wants another. Each has its own
//!   connections, and the slots are asked about on the driver's thread ([`refresh`]).
//! * **N3** A request that a server refused was not carried out there. One that it did not answer may
//!   yet be, and is cleaned up on the connection that it took (P10).

mod map;
mod refresh;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::{Client, ConnectionAddr, RedisError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::backend::cluster::map::{Address, Map};
use crate::backend::fan_out::FanOut;
use crate::backend::redis::connection::{Connection, no_answer};
use crate::backend::redis::connections::Connections;
use crate::backend::redis::place::{Place, like};
use crate::backend::redis::reach::Slots;
use crate::backend::redis::redirection::Redirection;
use crate::backend::redis::settings::OpeningOptions;
use crate::backend::{Answer, Signals};
use crate::error::Fault;
use crate::key::{number_in, slot};

/// How long connecting waits for the other servers when one has answered.
const FOR_THE_OTHERS: Duration = Duration::from_millis(250);

/// How long a server without slots is kept that single requests were sent to. More follow, as a
/// rule, while slots move there.
const GUESTS_STAY: Duration = Duration::from_secs(10);

pub(crate) struct Cluster {
    name: Arc<str>,
    /// The servers that the user named. The first is the model for the connections to all others.
    seeds: Vec<Client>,
    signals: Arc<dyn Signals>,
    options: OpeningOptions,
    table: RwLock<Table>,
    /// Servers without slots to which others sent single requests.
    guests: Mutex<HashMap<Address, Guest>>,
    changes: watch::Sender<()>,
    /// Why nothing is known of the slots.
    fault: Mutex<Option<Fault>>,
    is_outdated: Notify,
    this: Weak<Self>,
}

/// What is known of the slots.
struct Table {
    map: Map,
    /// Those to each master of the map.
    connections: Vec<Arc<Connections>>,
}

struct Guest {
    connections: Arc<Connections>,
    last_used: Instant,
}

impl Cluster {
    pub(crate) fn new(
        seeds: Vec<Client>,
        signals: Arc<dyn Signals>,
        options: OpeningOptions,
    ) -> Result<Arc<Self>, RedisError> {
        let names: Vec<_> = seeds
            .iter()
            .map(|seed| seed.get_connection_info().addr().to_string())
            .collect();
        let name = names.join(", ").into();
        let cluster = Arc::new_cyclic(|this| Self {
            name,
            seeds,
            signals,
            options,
            table: RwLock::new(Table {
                map: Map::empty(),
                connections: Vec::new(),
            }),
            guests: Mutex::default(),
            changes: watch::Sender::new(()),
            fault: Mutex::default(),
            is_outdated: Notify::new(),
            this: Weak::clone(this),
        });
        // What is made for each server later is made once, to see that it can be.
        for seed in &cluster.seeds {
            cluster.connections(seed)?;
        }
        Ok(cluster)
    }

    /// New connections, none of which is open, to a server that the user named.
    fn connections(&self, seed: &Client) -> Result<Arc<Connections>, RedisError> {
        let place = Shard {
            cluster: Weak::clone(&self.this),
            address: Address::of(seed.get_connection_info().addr()),
        };
        let signals = Arc::clone(&self.signals);
        let options = self.options.clone();
        let connections = Connections::new(seed, Box::new(place), signals, options)?;
        Ok(Arc::new(connections))
    }

    /// New connections to any other.
    fn connections_to(&self, address: &Address) -> Arc<Connections> {
        let info = self.seeds[0].get_connection_info().clone();
        let place = like(info.addr(), address.host.clone(), address.port);
        let client = Client::open(info.set_addr(place));
        let connections = client.and_then(|client| self.connections(&client));
        connections.expect("as with the first server, whose address is of this kind")
    }

    /// Enters what a server said of all slots.
    fn enter(&self, map: Map) {
        let mut table = self.table.write();
        let reused = |master: &Address| {
            // One that had no slots has no channel of its own.
            table.map.slot_of(master)?;
            let index = table.map.masters.iter().position(|known| known == master)?;
            Some(Arc::clone(&table.connections[index]))
        };
        let connections = map
            .masters
            .iter()
            .map(|master| reused(master).unwrap_or_else(|| self.connections_to(master)));
        let connections = connections.collect();
        let before = std::mem::replace(&mut *table, Table { map, connections });
        drop(table);
        // Connections that nobody uses any more end here, not under the lock.
        drop(before);
        let mut guests = self.guests.lock();
        guests.retain(|_, guest| guest.last_used.elapsed() < GUESTS_STAY);
    }

    /// The connections to a server to which a single request is to be sent.
    fn guest(&self, address: Address) -> Arc<Connections> {
        let table = self.table.read();
        if let Some(index) = table.map.masters.iter().position(|known| *known == address) {
            return Arc::clone(&table.connections[index]);
        }
        drop(table);
        let mut guests = self.guests.lock();
        let guest = guests.entry(address).or_insert_with_key(|address| Guest {
            connections: self.connections_to(address),
            last_used: Instant::now(),
        });
        guest.last_used = Instant::now();
        Arc::clone(&guest.connections)
    }

    /// Enters that a slot is with a master. Says whether that is new.
    fn pass_on(&self, slot: usize, master: Address) -> bool {
        let mut table = self.table.write();
        let known = table.map.owner(slot).map(|index| &table.map.masters[index]);
        if known == Some(&master) {
            return false;
        }
        table.map.pass_on(slot, master.clone());
        if table.map.masters.len() > table.connections.len() {
            table.connections.push(self.connections_to(&master));
        }
        true
    }

    /// Waits until something is known of the slots.
    async fn known(&self, until: Instant) -> Result<Vec<Arc<Connections>>, Fault> {
        let mut changes = self.changes.subscribe();
        self.refresh();
        loop {
            let connections = self.table.read().connections.clone();
            if !connections.is_empty() {
                return Ok(connections);
            }
            if timeout_at(until, changes.changed()).await.is_err() {
                return Err(self.unknown());
            }
            // Not before: what was refused long ago may be allowed now.
            if let Some(fault) = self.fault.lock().take_if(|fault| fault.permanent) {
                return Err(fault);
            }
            self.refresh();
        }
    }

    fn unknown(&self) -> Fault {
        let fault = self.fault.lock().clone();
        fault.unwrap_or_else(|| no_answer(&self.name, "the cluster has not answered"))
    }

    async fn connect(&self, driver: &Handle, until: Instant) -> Result<(), Fault> {
        let servers = self.known(until).await?;
        let mut opened = FanOut::new();
        for (number, connections) in servers.into_iter().enumerate() {
            let driver = driver.clone();
            opened.ask(
                number,
                async move { connections.connect(&driver, until).await },
            );
        }
        let mut until = until;
        let mut outcome = Err(self.unknown());
        while let Ok(Some((_, answer))) = timeout_at(until, opened.next()).await {
            match answer {
                Ok(()) if outcome.is_err() => {
                    until = until.min(Instant::now() + FOR_THE_OTHERS);
                    outcome = Ok(());
                }
                Err(fault) if fault.permanent => return Err(fault),
                Err(fault) if outcome.is_err() => outcome = Err(fault),
                Ok(()) | Err(_) => {}
            }
        }
        opened.finish_behind();
        outcome
    }
}

impl Slots for Cluster {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn signals(&self) -> &Arc<dyn Signals> {
        &self.signals
    }

    fn connect<'a>(&'a self, driver: &'a Handle, until: Instant) -> Answer<'a, ()> {
        Box::pin(self.connect(driver, until))
    }

    fn of(&self, key: &str) -> Result<Arc<Connections>, Fault> {
        let table = self.table.read();
        match table.map.owner(slot(key)) {
            Some(index) => Ok(Arc::clone(&table.connections[index])),
            None if table.connections.is_empty() => Err(self.unknown()),
            None => Err(no_answer(&self.name, "no server has the slot of the key")),
        }
    }

    fn any(&self, key: &str) -> Option<Arc<Connections>> {
        let all = self.table.read().connections.clone();
        let mut candidates = self.of(key).ok().into_iter().chain(all);
        candidates.find(|known| known.answering().is_some())
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn refresh(&self) {
        self.is_outdated.notify_one();
    }

    fn redirected(&self, key: &str, to: &Redirection, by: &Connection) -> Arc<Connections> {
        let host = match to.host.as_str() {
            "" => host_of(by.server()),
            host => host,
        };
        let address = Address {
            host: host.to_owned(),
            port: to.port,
        };
        if !to.is_once && self.pass_on(slot(key), address.clone()) {
            self.changes.send_replace(());
            self.refresh();
        }
        self.guest(address)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.name).finish()
    }
}

impl Address {
    fn of(address: &ConnectionAddr) -> Self {
        let (host, port) = match address {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host.clone(), *port)
            }
            other => (other.to_string(), 0),
        };
        Self { host, port }
    }
}

/// The host in the name of a connection's server.
fn host_of(server: &str) -> &str {
    server.rsplit_once(':').map_or(server, |(host, _)| host)
}

/// The place of one server of a cluster.
#[derive(Debug)]
struct Shard {
    cluster: Weak<Cluster>,
    address: Address,
}

impl Place for Shard {
    fn tag(&self) -> Option<String> {
        let cluster = self.cluster.upgrade()?;
        let slot = cluster.table.read().map.slot_of(&self.address)?;
        Some(number_in(slot).to_string())
    }
}
