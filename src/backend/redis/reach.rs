//! Which server has a key, and a connection to it.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::backend::redis::connection::{Connection, Failure};
use crate::backend::redis::connections::Connections;
use crate::backend::redis::redirection::Redirection;
use crate::backend::{Answer, Signals};
use crate::error::Fault;

/// How long after a server could not be reached it is tried again, if nothing is heard of another.
const RETRY: Duration = Duration::from_millis(50);
/// How often it is asked who has the key while its server does not let us connect.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// At least this long a request rests that no server takes.
const LEAST_REST: Duration = Duration::from_millis(10);

/// The servers on which keys are.
pub(crate) enum Reach {
    /// One has all of them.
    One(Arc<Connections>),
    /// Each key is on the server that has its slot.
    Cluster(Arc<dyn Slots>),
}

/// The servers of a cluster, as far as they are known.
pub(crate) trait Slots: Send + Sync + fmt::Debug + 'static {
    /// The cluster's name in messages.
    fn name(&self) -> &Arc<str>;

    fn signals(&self) -> &Arc<dyn Signals>;

    /// Makes sure that the servers can be reached from the present runtime and from the driver's.
    fn connect<'a>(&'a self, driver: &'a Handle, until: Instant) -> Answer<'a, ()>;

    /// The connections to the server that has the key, as far as is known.
    fn of(&self, key: &str) -> Result<Arc<Connections>, Fault>;

    /// The connections to a server over which requests are answered from the present runtime: if
    /// possible, to the one that has the key.
    fn any(&self, key: &str) -> Option<Arc<Connections>>;

    /// Tells when [`of`](Self::of) may answer something else than before.
    fn changes(&self) -> watch::Receiver<()>;

    /// What is known may be out of date: finds out, behind the scenes.
    fn refresh(&self);

    /// A server that was asked for the key over a connection names another.
    fn redirected(&self, key: &str, to: &Redirection, by: &Connection) -> Arc<Connections>;
}

/// What kind of connection a request needs.
#[derive(Clone, Copy)]
pub(in crate::backend) enum Way {
    /// The present runtime's.
    Own,
    /// Another runtime's will do, for a request that has to arrive and has so much time in all.
    Any { within: Duration },
}

impl Way {
    fn ready(self, connections: &Connections) -> Option<Arc<Connection>> {
        match self {
            Self::Own => connections.ready(),
            Self::Any { .. } => connections.answering(),
        }
    }

    async fn open(
        self,
        connections: &Connections,
        until: Instant,
    ) -> Result<Arc<Connection>, Fault> {
        match self {
            Self::Own => connections.open(until).await,
            Self::Any { within } => connections.open_or_borrow(until, within).await,
        }
    }
}

impl Reach {
    pub(crate) fn name(&self) -> &Arc<str> {
        match self {
            Self::One(connections) => connections.server(),
            Self::Cluster(slots) => slots.name(),
        }
    }

    /// The name, with that of the server that is in question now where it is not always the same.
    pub(crate) fn present(&self) -> Arc<str> {
        match self {
            Self::One(connections) => connections.present(),
            Self::Cluster(slots) => Arc::clone(slots.name()),
        }
    }

    pub(crate) fn signals(&self) -> &Arc<dyn Signals> {
        match self {
            Self::One(connections) => connections.signals(),
            Self::Cluster(slots) => slots.signals(),
        }
    }

    pub(crate) async fn connect(&self, driver: &Handle, until: Instant) -> Result<(), Fault> {
        match self {
            Self::One(connections) => Arc::clone(connections).connect(driver, until).await,
            Self::Cluster(slots) => slots.connect(driver, until).await,
        }
    }

    /// A connection to the server that has the key.
    pub(in crate::backend) async fn get(
        &self,
        key: &str,
        way: Way,
        until: Instant,
    ) -> Result<Arc<Connection>, Fault> {
        // Boxed, so that what is seldom needed does not make every request's future large.
        match self {
            Self::One(connections) => match way.ready(connections) {
                Some(ready) => Ok(ready),
                None if connections.may_move() => {
                    Box::pin(find_master(connections, way, until)).await
                }
                None => Box::pin(way.open(connections, until)).await,
            },
            Self::Cluster(slots) => match slots.of(key).ok().and_then(|known| way.ready(&known)) {
                Some(ready) => Ok(ready),
                None => Box::pin(find(&**slots, key, way, until)).await,
            },
        }
    }

    /// A connection to a server that can be reached: if possible, to the one that has the key.
    pub(in crate::backend) async fn any(
        &self,
        key: &str,
        until: Instant,
    ) -> Result<Arc<Connection>, Fault> {
        if let Self::Cluster(slots) = self
            && let Some(ready) = slots.any(key).and_then(|known| known.ready())
        {
            return Ok(ready);
        }
        self.get(key, Way::Own, until).await
    }

    /// A connection to the server that another names in its place.
    pub(in crate::backend) async fn follow(
        &self,
        key: &str,
        to: &Redirection,
        by: &Connection,
        way: Way,
        until: Instant,
    ) -> Result<Arc<Connection>, Failure> {
        let Self::Cluster(slots) = self else {
            return Err(Failure::Fault(one_of_a_cluster(by)));
        };
        let named = slots.redirected(key, to, by);
        let connection = match way.ready(&named) {
            Some(ready) => Ok(ready),
            None if to.is_once => way.open(&named, until).await,
            // It may pass on to yet another before it can be reached.
            None => find(&**slots, key, way, until).await,
        };
        connection.map_err(Failure::Fault)
    }

    /// A server cannot serve the key for now. Waits until it is worthwhile to ask again; returns
    /// whether there is time for that.
    pub(in crate::backend) async fn rest(&self, until: Instant) -> bool {
        let Self::Cluster(slots) = self else {
            return false;
        };
        let over = Instant::now() + RETRY;
        if over >= until {
            return false;
        }
        let mut changes = slots.changes();
        slots.refresh();
        // Servers that name each other change what is known with each answer.
        sleep(LEAST_REST).await;
        let _ = timeout_at(over, changes.changed()).await;
        true
    }
}

/// A connection to the one master, which may be another before one was opened.
async fn find_master(
    connections: &Connections,
    way: Way,
    until: Instant,
) -> Result<Arc<Connection>, Fault> {
    let mut moves = connections.moves();
    loop {
        moves.borrow_and_update();
        let fault = match way.open(connections, until).await {
            Err(fault) if !fault.permanent => fault,
            connection => return connection,
        };
        let over = Instant::now() + RETRY;
        if over >= until {
            return Err(fault);
        }
        let _ = timeout_at(over, moves.changed()).await;
    }
}

/// The fault of a connection that leads to one server of a cluster, though others have keys, too.
pub(super) fn one_of_a_cluster(connection: &Connection) -> Fault {
    let text = "the server is one of a Redis Cluster, and others of it have some of the keys: \
                connect with `Locker::cluster`";
    connection.refusal(text.to_owned())
}

/// A connection to the server of a cluster that has the key, which may be another before one was
/// opened.
async fn find(
    slots: &dyn Slots,
    key: &str,
    way: Way,
    until: Instant,
) -> Result<Arc<Connection>, Fault> {
    let mut changes = slots.changes();
    loop {
        changes.borrow_and_update();
        let known = slots.of(key);
        let is_in_doubt = match &known {
            Ok(known) => known.answering().is_none(),
            Err(_) => true,
        };
        if is_in_doubt {
            slots.refresh();
        }
        let open = async {
            match &known {
                Ok(connections) => way.open(connections, until).await,
                Err(fault) => Err(fault.clone()),
            }
        };
        let passed_on = async {
            loop {
                match timeout(ASK_AGAIN, changes.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return pending().await,
                    Err(_) => {
                        slots.refresh();
                        continue;
                    }
                }
                let is_same = match (&known, &slots.of(key)) {
                    (Ok(before), Ok(now)) => Arc::ptr_eq(before, now),
                    (Ok(_), Err(_)) => true,
                    (Err(_), _) => false,
                };
                if !is_same {
                    return;
                }
            }
        };
        let fault = tokio::select! {
            biased;
            connection = open => match connection {
                Err(fault) if !fault.permanent => fault,
                connection => return connection,
            },
            () = passed_on => continue,
        };
        let over = Instant::now() + RETRY;
        if over >= until {
            return Err(fault);
        }
        let _ = timeout_at(over, changes.changed()).await;
    }
}
