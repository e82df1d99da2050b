//! One Redis server, or several of which each has its share of the keys.

pub(crate) mod call;
pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod echo;
pub(crate) mod error_class;
pub(crate) mod health;
pub(crate) mod opening;
mod pace;
pub(crate) mod place;
pub(crate) mod push;
mod queue;
pub(crate) mod reach;
pub(crate) mod redirection;
mod renew;
pub(crate) mod reply;
mod requests;
pub(crate) mod rights;
mod scheme;
pub(crate) mod script;
mod server_role;
pub(crate) mod settings;
mod suitability;
pub(crate) mod unsettled;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::backend::redis::call::Call;
use crate::backend::redis::connection::{Connection, Failure};
use crate::backend::redis::push::MissingPushes;
use crate::backend::redis::reach::{Reach, Way};
use crate::backend::redis::reply::{Reply, remaining};
use crate::backend::redis::script::{Argument, Script};
use crate::backend::redis::suitability::{Dangers, check_has_all_keys};
use crate::backend::redis::unsettled::{UnsettledRequest, UnsettledRequests};
use crate::backend::{
    Answer, Attempt, Backend, Claim, Fences, Freed, Kept, Listen, Look, Queue, Renewal, SentBehind,
};
use crate::clock::{Clock, Moment};
use crate::error::Fault;
use crate::holder::Holder;
use crate::key::Key;

/// How many locks are renewed in one request. The server enters all of them in its tracking table at
/// each read of one, so more would not cost less.
const MOST_RENEWED: usize = 16;

pub(crate) struct Server {
    reach: Reach,
    clock: Clock,
    role: Role,
    missing: MissingPushes,
    unsettled: UnsettledRequests,
    /// A key that nobody has, and whether it was seen that the user has the rights that it takes.
    probe: String,
    prefix: String,
    is_checked: AtomicBool,
}

/// How a server keeps the fencing counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its own word decides the number.
    Alone,
    /// It remembers who wrote the counter, so that the number can be agreed on with the others.
    Member,
}

impl Server {
    pub(crate) fn new(reach: Reach, clock: Clock, role: Role, prefix: &str) -> Self {
        Self {
            reach,
            clock,
            role,
            missing: MissingPushes::default(),
            unsettled: UnsettledRequests::default(),
            prefix: prefix.to_owned(),
            probe: format!("{prefix}redlease-probe:{}", Uuid::new_v4()),
            is_checked: AtomicBool::new(false),
        }
    }

    /// Finds out whether locks can be kept here, and what endangers them, in one go.
    async fn check(&self, connection: &Connection, until: Instant) -> Result<Dangers, Fault> {
        let rights = async {
            let is_in_cluster = matches!(self.reach, Reach::Cluster(_));
            let checked = rights::check(connection, &self.probe, is_in_cluster, until).await;
            checked.map_err(|failure| self.fault(failure))
        };
        let has_all_keys = async {
            match self.reach {
                Reach::One(_) => check_has_all_keys(connection, &self.prefix, until).await,
                Reach::Cluster(_) => Ok(()),
            }
        };
        let dangers = Dangers::of(connection, until);
        let (rights, has_all_keys, dangers) = tokio::join!(rights, has_all_keys, dangers);
        has_all_keys.and(rights).and(Ok(dangers))
    }

    async fn acquire(
        &self,
        claim: &Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Result<Attempt, Fault> {
        // All that the release will need: it must not be granted to a user who may not release it.
        let (alone, member) = (claim.key.with_queue(), claim.key.of_a_member());
        let (script, keys) = match self.role {
            Role::Alone => (&script::ACQUIRE, &alone[..]),
            Role::Member => (&script::ACQUIRE_MEMBER, &member[..]),
        };
        let all = [
            Argument::Text(&claim.value),
            Argument::Number(claim.ttl_millis()),
            Argument::Number(fences.first),
            Argument::Number(fences.last()),
        ];
        // Every argument that is not sent spares the server about as much as a step of the script.
        let arguments = if fences.count > 1 {
            &all[..]
        } else {
            &all[..3]
        };
        let (reply, request) = self.create(claim, script, keys, arguments, within).await?;
        let granted = |fences| {
            Ok(Attempt::Granted {
                fences,
                deadline: claim.deadline(reply.sent),
            })
        };
        let attempt = match reply.number_or_pair()? {
            (1, None) => granted(fences),
            (1, Some(first)) => granted(fences.granted_from(first)),
            (2, _) => Err(reply.same_server()),
            (3, _) => Err(reply.no_counter(claim)),
            (_, ttl) => Ok(Attempt::Held {
                ttl: ttl.and_then(remaining),
            }),
        };
        request.settle();
        attempt
    }

    /// Calls a script that may set the lock key. The request is unsettled until the reply was
    /// understood.
    pub(in crate::backend) async fn create<'a>(
        &'a self,
        claim: &'a Claim,
        script: &Script,
        keys: &[&str],
        arguments: &script::Arguments<'_>,
        within: Duration,
    ) -> Result<(Reply, UnsettledRequest<'a>), Fault> {
        let until = Instant::now() + within;
        let connection = self.reach.get(keys[0], Way::Own, until).await?;
        let call = Call {
            script,
            keys,
            arguments,
            listen: Listen::No,
        };
        let begin = |connection: &Arc<Connection>| self.unsettled.begin(claim, connection);
        let called = self.call_over(connection, Way::Own, call, until, begin);
        called.await.map_err(|failure| self.fault(failure))
    }

    /// Calls a script that may give the lock to the next waiter, with `more` arguments behind those
    /// that all of these take. Of these, a script that takes no more gets what it needs (see
    /// `acquire`): the channel only where others wait, as a rule.
    async fn give_up(
        &self,
        script: &Script,
        claim: &Claim,
        more: &script::Arguments<'_>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let until = Instant::now() + within;
        let way = Way::Any { within };
        let keys = claim.key.with_queue();
        let connection = self.connection(&keys, way, until).await?;
        let value = Argument::Text(&claim.value);
        let back = self.to_give_back(claim);
        let [used, reserved] = back.unwrap_or([Argument::Text(""); 2]);
        let needed = match back {
            None if more.is_empty() && !claim.has_waited() => 1,
            None if more.is_empty() => 2,
            _ => 4,
        };
        let mut arguments = [
            value,
            Argument::Channel,
            used,
            reserved,
            value,
            value,
            value,
        ];
        let count = needed + more.len();
        arguments[needed..count].copy_from_slice(more);
        let call = Call {
            script,
            keys: &keys,
            arguments: &arguments[..count],
            listen: Listen::No,
        };
        let called = self.call_over(connection, way, call, until, |_| ());
        called.await.map(|(reply, ())| reply)
    }

    /// The last fencing numbers in use and reserved, as the scripts take them: none if there is
    /// nothing to give back, or if the others of a quorum have them, too.
    fn to_give_back(&self, claim: &Claim) -> Option<[Argument<'static>; 2]> {
        let back = claim.to_give_back().filter(|_| self.role == Role::Alone);
        back.map(|(used, reserved)| [Argument::Number(used), Argument::Number(reserved)])
    }

    fn freed(&self, reply: Result<Reply, Failure>) -> Result<Freed, Fault> {
        reply.map_err(|failure| self.fault(failure))?.freed()
    }
}

impl Backend for Server {
    fn server(&self) -> Arc<str> {
        self.reach.present()
    }

    fn connect<'a>(&'a self, driver: &'a Handle, within: Duration) -> Answer<'a, ()> {
        Box::pin(async move {
            let until = Instant::now() + within;
            self.reach.connect(driver, until).await?;
            if !self.is_checked.load(Ordering::Relaxed) {
                let connection = self.reach.any(&self.probe, until).await?;
                let dangers = self.check(&connection, until).await?;
                if !self.is_checked.swap(true, Ordering::Relaxed) {
                    dangers.tell(connection.server());
                }
            }
            Ok(())
        })
    }

    fn acquire<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Attempt> {
        Box::pin(self.acquire(claim, fences, within))
    }

    fn disown(&self, claim: &Arc<Claim>) -> Option<Vec<SentBehind>> {
        let send_behind = |connection: Arc<Connection>| {
            let runtime = connection.runtime().clone();
            runtime.spawn(leave_over(connection, Arc::clone(claim)))
        };
        Some(
            self.unsettled
                .take(claim)?
                .into_iter()
                .map(send_behind)
                .collect(),
        )
    }

    fn renew<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        listen: Listen,
        within: Duration,
    ) -> Answer<'a, Renewal> {
        Box::pin(self.renew(claim, listen, within))
    }

    fn most_renewed(&self) -> usize {
        match self.reach {
            Reach::One(_) => MOST_RENEWED,
            // A script takes keys of one slot.
            Reach::Cluster(_) => 1,
        }
    }

    fn renew_many<'a>(
        &'a self,
        claims: &'a [Arc<Claim>],
        within: Duration,
    ) -> Answer<'a, Vec<Option<Moment>>> {
        Box::pin(self.renew_many(claims, within))
    }

    fn look<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Look> {
        Box::pin(self.look(claim, within))
    }

    fn release<'a>(&'a self, claim: &'a Arc<Claim>, within: Duration) -> Answer<'a, Freed> {
        Box::pin(async move {
            let reply = self.give_up(&script::RELEASE, claim, &[], within).await;
            if let Ok(reply) = &reply {
                self.unsettled.settle(claim, &reply.connection);
            }
            self.freed(reply)
        })
    }

    fn keep<'a>(
        &'a self,
        claim: &'a Arc<Claim>,
        fences: Fences,
        within: Duration,
    ) -> Answer<'a, Kept> {
        Box::pin(async move {
            let floor = Argument::Number(fences.first);
            let ttl = Argument::Number(claim.ttl_millis());
            let more = [floor, ttl, Argument::Number(fences.count)];
            let reply = self.give_up(&script::KEEP, claim, &more, within).await;
            match reply {
                Ok(reply) => match reply.pair()? {
                    (1, first) => Ok(Kept::Ours {
                        fences: fences.granted_from(first),
                        deadline: claim.deadline(reply.sent),
                    }),
                    (0, _) => Ok(Kept::PassedOn),
                    (3, _) => Err(reply.no_counter(claim)),
                    _ => Ok(Kept::NotOurs),
                },
                Err(failure) => Err(self.fault(failure)),
            }
        })
    }

    fn queue(&self) -> Option<&dyn Queue> {
        Some(self)
    }

    fn holder<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, Option<Holder>> {
        Box::pin(async move {
            let reply = self
                .call(&script::HOLDER, &[key.name()], &[], within)
                .await
                .map_err(|failure| self.fault(failure))?;
            reply.holder()
        })
    }

    fn force_release<'a>(&'a self, key: &'a Arc<Key>, within: Duration) -> Answer<'a, bool> {
        Box::pin(async move {
            let keys = key.with_queue();
            let reply = self
                .call_once(&script::FORCE_RELEASE, &keys, &[], within)
                .await
                .map_err(|failure| self.fault(failure))?;
            Ok(reply.number()? > 0)
        })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server")
            .field(&self.reach.present())
            .finish()
    }
}

/// The clean-up of P10: behind the acquire on the same connection, so that it runs after it.
async fn leave_over(connection: Arc<Connection>, claim: Arc<Claim>) -> Result<Freed, Fault> {
    // A frozen server answers when it thaws; a key that it sets then would live for a TTL.
    let until = Instant::now() + claim.ttl;
    // In full, so that no second request is needed whatever the server remembers.
    let server = Arc::clone(connection.server());
    let command = script::LEAVE.in_full(&claim.key.with_queue(), &leaving(&claim), "");
    match connection.send(&command, until).await {
        Ok(value) => Reply {
            connection,
            sent: Moment::NEVER,
            value,
        }
        .freed(),
        // Where the slot is now, the driver releases the claim, as it does after every failure.
        Err(failure) => Err(failure.into_fault(&server)),
    }
}

fn leaving(claim: &Claim) -> [Argument<'_>; 1] {
    [Argument::Text(&claim.value)]
}
