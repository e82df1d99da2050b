//! A master with replicas, watched by sentinels.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::launch::Launch;
use crate::replication::{Switch, replicated};
use crate::server::Server;
use crate::wait::{eventually_agreed, eventually_all, eventually_blocking};

/// The name by which the sentinels know the master.
pub const MASTER: &str = "mymaster";

/// How long a failover takes that comes to something. One that does not is not begun anew by itself.
const ATTEMPT: Duration = Duration::from_secs(25);

/// Who the sentinels and the replicas are to a server: users of their own, so that these can be
/// shut out while all others still reach it.
const PEERS: [&str; 2] = ["sentinel", "replica"];

/// What a sentinel must not do as the default user, which it is where it cannot log in: see that
/// the server is up, and make it a replica.
const DENIED: [&str; 3] = ["ping", "replicaof", "slaveof"];

/// What a deployment with sentinels is made of.
#[derive(Clone, Debug)]
pub struct SentinelOptions {
    /// How many replicas the master has. Defaults to 2.
    pub replicas: usize,
    /// How many sentinels there are; more than half of them are a quorum. Defaults to 3.
    pub sentinels: usize,
    /// How long a server is silent until a sentinel takes it for down. Defaults to 1 s.
    pub down_after: Duration,
    /// Half the time after which a failover that came to nothing is tried again. Defaults to 10 s.
    pub failover_timeout: Duration,
    /// Further arguments, TLS and environment, for all servers and sentinels.
    pub launch: Launch,
}

impl Default for SentinelOptions {
    fn default() -> Self {
        Self {
            replicas: 2,
            sentinels: 3,
            down_after: Duration::from_secs(1),
            failover_timeout: Duration::from_secs(10),
            launch: Launch::default(),
        }
    }
}

/// A master with replicas, watched by sentinels. All of them end with the value.
///
/// A sentinel that was frozen for more than 2 s takes part in nothing for 30 s after: it cannot
/// trust its clock. It does answer.
#[derive(Debug)]
pub struct Sentinels {
    /// The master and the replicas, the first master first. A replica can be written to.
    pub servers: Vec<Server>,
    /// The sentinels.
    pub sentinels: Vec<Server>,
}

impl Sentinels {
    /// Starts a master, 2 replicas and 3 sentinels, and waits until each knows all others.
    pub fn start() -> Self {
        Self::with(&SentinelOptions::default())
    }

    /// The same, of other sizes.
    pub fn with(options: &SentinelOptions) -> Self {
        let servers = start_servers(options);
        let sentinels = start_sentinels(options, &servers[0]);
        let started = Self { servers, sentinels };
        started.introduce();
        eventually_blocking("the sentinels know all others", || started.is_settled());
        started
    }

    /// The URLs of the sentinels over TCP.
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Server::url).collect()
    }

    /// The number of the server that all running sentinels name and that says itself that it is
    /// the master. Waits while there is none.
    pub fn master(&self) -> usize {
        let mut master = None;
        eventually_blocking("all sentinels name a master", || {
            master = self.agreed(&self.named());
            master.is_some()
        });
        master.expect("it was waited for")
    }

    /// The numbers of the other servers.
    pub fn replicas(&self) -> Vec<usize> {
        let master = self.master();
        (0..self.servers.len()).filter(|&n| n != master).collect()
    }

    /// Waits until the running replicas have all that the master has written by now.
    pub async fn replicated(&self) {
        let replicas: Vec<_> = self.replicas().iter().map(|&n| &self.servers[n]).collect();
        let running: Vec<_> = replicas.into_iter().filter(|r| r.runs()).collect();
        replicated(&self.servers[self.master()], &running).await;
    }

    /// Deletes a key on all running replicas once they have it, as if the master had died before
    /// it reached them.
    pub async fn lose_on_replicas(&self, key: &str) {
        self.replicated().await;
        let replicas = self.replicas();
        let replicas = replicas.iter().map(|&number| &self.servers[number]);
        for replica in replicas.filter(|replica| replica.runs()) {
            replica.command::<()>(&["DEL", key]);
        }
    }

    /// Lets the sentinels appoint another master than this one, which stays up, and stays a master until
    /// the sentinels make it a replica some seconds later.
    pub async fn failover(&self, from: usize) -> Switch {
        let mut sentinels = self.sentinels.iter();
        let sentinel = sentinels.find(|sentinel| sentinel.runs());
        let sentinel = sentinel.expect("a sentinel that runs");
        let mut asked: Option<Instant> = None;
        let ask = || {
            if asked.is_none_or(|asked| asked.elapsed() > ATTEMPT) {
                let answer = sentinel.query::<()>(&["SENTINEL", "FAILOVER", MASTER]);
                asked = answer.ok().map(|()| Instant::now());
            }
        };
        self.switched_by(from, ask).await
    }

    /// Waits until all running sentinels name another master than this one, and it says that it is
    /// one. The moment is that at which the first sentinel named it.
    pub async fn switched(&self, from: usize) -> Switch {
        self.switched_by(from, || ()).await
    }

    /// The same, with something to be done until then.
    async fn switched_by(&self, from: usize, mut act: impl FnMut()) -> Switch {
        let mut at = None;
        let mut master = from;
        eventually_agreed("the sentinels name another master", || {
            act();
            let named = self.named();
            if named.iter().flatten().any(|&number| number != from) {
                at.get_or_insert_with(Instant::now);
            }
            master = self.agreed(&named).unwrap_or(from);
            master != from
        })
        .await;
        let at = at.expect("it was named");
        Switch { master, at }
    }

    /// Waits until all servers and sentinels run, and each knows all others in their roles: a
    /// demoted master is a replica by then.
    pub async fn settled(&self) {
        eventually_all("the sentinels know all others", || self.is_settled()).await;
    }

    /// Shuts the sentinels and the other servers out of a server, which they take for down then.
    /// The users of a lock still reach it: a partition, with these on the side of the server. The
    /// default user may no longer PING there; other users may all that they could before.
    pub fn cut_off(&self, number: usize) {
        self.allow(number, "-");
        let server = &self.servers[number];
        for peer in PEERS {
            server.command::<()>(&["ACL", "SETUSER", peer, "off"]);
            server.command::<()>(&["CLIENT", "KILL", "USER", peer]);
        }
    }

    /// Ends [`Self::cut_off`].
    pub fn reconnect(&self, number: usize) {
        self.allow(number, "+");
        for peer in PEERS {
            self.servers[number].command::<()>(&["ACL", "SETUSER", peer, "on"]);
        }
    }

    fn allow(&self, number: usize, sign: &str) {
        let rights = DENIED.map(|command| format!("{sign}{command}"));
        let mut words = vec!["ACL", "SETUSER", "default"];
        words.extend(rights.iter().map(String::as_str));
        self.servers[number].command(&words)
    }

    /// What each running sentinel names as master.
    fn named(&self) -> Vec<Option<usize>> {
        let named = |sentinel: &Server| {
            let words = ["SENTINEL", "get-master-addr-by-name", MASTER];
            let (_, port): (String, u16) = sentinel.query(&words).ok()?;
            self.number(port)
        };
        let running = self.sentinels.iter().filter(|sentinel| sentinel.runs());
        running.map(named).collect()
    }

    /// The master that all of these name, if it says that it is one.
    fn agreed(&self, named: &[Option<usize>]) -> Option<usize> {
        let master = (*named.first()?)?;
        let agreed = named.iter().all(|&number| number == Some(master));
        let server = &self.servers[master];
        (agreed && server.runs() && server.is_master()).then_some(master)
    }

    fn number(&self, port: u16) -> Option<usize> {
        self.servers
            .iter()
            .position(|server| server.known_port() == port)
    }

    fn is_settled(&self) -> bool {
        let mut all = self.servers.iter().chain(&self.sentinels);
        let all_run = all.all(Server::runs);
        let Some(master) = self.agreed(&self.named()).filter(|_| all_run) else {
            return false;
        };
        let port = self.servers[master].known_port();
        let mut replicas = self.servers.iter().filter(|one| one.known_port() != port);
        replicas.all(|replica| replica.followed() == Some(port))
            && self
                .sentinels
                .iter()
                .all(|sentinel| self.is_known_to(sentinel))
    }

    /// Whether a sentinel knows all others, and finds fault with none. What it says of a replica's
    /// link can be 10 s old, and what it says that other sentinels say (`master_down`) older.
    fn is_known_to(&self, sentinel: &Server) -> bool {
        let others = |what: &str| -> Vec<HashMap<String, String>> {
            let answer = sentinel.query(&["SENTINEL", what, MASTER]);
            answer.unwrap_or_default()
        };
        let (replicas, sentinels) = (others("SLAVES"), others("SENTINELS"));
        let words = ["SENTINEL", "MASTER", MASTER];
        let master: HashMap<String, String> = sentinel.query(&words).unwrap_or_default();
        let up = |other: &HashMap<String, String>| {
            let mut flags = other["flags"].split(',');
            flags.all(|flag| !["s_down", "o_down", "disconnected"].contains(&flag))
        };
        replicas.len() + 1 == self.servers.len()
            && sentinels.len() + 1 == self.sentinels.len()
            && master.get("flags").is_some_and(|flags| flags == "master")
            && replicas.iter().all(|one| one["flags"] == "slave")
            && sentinels.iter().all(up)
    }

    /// Makes the sentinels known to each other at once; they tell each other every 2 s only.
    fn introduce(&self) {
        let master = self.servers[0].known_port();
        for sentinel in &self.sentinels {
            let port = sentinel.known_port();
            let id: String = sentinel.command(&["SENTINEL", "MYID"]);
            let hello = format!("127.0.0.1,{port},{id},0,{MASTER},127.0.0.1,{master},0");
            let others = self
                .sentinels
                .iter()
                .filter(|other| other.port != sentinel.port);
            for other in others {
                other.command::<()>(&["PUBLISH", "__sentinel__:hello", &hello]);
            }
        }
    }
}

/// Starts a master, and replicas that follow it.
fn start_servers(options: &SentinelOptions) -> Vec<Server> {
    let launch = options.launch.clone().configuration("").and(&[
        "--replica-read-only",
        "no",
        "--repl-diskless-sync",
        "yes",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    let servers = Launch::start_all(vec![launch; options.replicas + 1]);
    for server in &servers {
        for peer in PEERS {
            server.add_user(peer, &["~*", "&*", "+@all"]);
        }
        server.command::<()>(&["CONFIG", "SET", "masteruser", "replica"]);
        server.command::<()>(&["CONFIG", "SET", "masterauth", "pw"]);
    }
    let (master, replicas) = servers.split_first().expect("a master");
    let port = master.known_port().to_string();
    for replica in replicas {
        replica.command::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    }
    for server in &servers {
        server.command::<()>(&["CONFIG", "REWRITE"]);
    }
    // A sentinel that finds replicas at its first look need not wait for the next, 10 s later.
    eventually_blocking("the replicas follow", || {
        replicas.iter().all(Server::follows)
    });
    servers
}

fn start_sentinels(options: &SentinelOptions, master: &Server) -> Vec<Server> {
    let SentinelOptions {
        down_after,
        failover_timeout,
        ..
    } = options;
    let port = master.known_port();
    let quorum = options.sentinels / 2 + 1;
    let configuration = format!(
        "sentinel monitor {MASTER} 127.0.0.1 {port} {quorum}\n\
         sentinel auth-user {MASTER} sentinel\n\
         sentinel auth-pass {MASTER} pw\n\
         sentinel down-after-milliseconds {MASTER} {}\n\
         sentinel failover-timeout {MASTER} {}\n\
         sentinel parallel-syncs {MASTER} {}\n",
        down_after.as_millis(),
        failover_timeout.as_millis(),
        options.replicas.max(1),
    );
    let launch = options
        .launch
        .clone()
        .configuration(configuration)
        .and(&["--sentinel"]);
    Launch::start_all(vec![launch; options.sentinels])
}
