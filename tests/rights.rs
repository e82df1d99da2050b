//! What an ACL user must be allowed: just what the docs say, told at once where it is missing, and
//! never by a lock that cannot be released.

#[path = "common/rules.rs"]
mod rules;
#[path = "common/waiters.rs"]
mod waiters;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redlease::{Builder, Error, LockGuard, Locker, Released};
use rules::*;
use testkit::*;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use waiters::*;

/// What follows when a word of a rule is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    /// Connecting fails, and says what is missing.
    NoLocker,
    /// Acquiring fails, and says what is missing.
    NoLock,
    /// The server refuses it, and all goes on.
    Fallback,
}

use Without::{Fallback, NoLock, NoLocker};

/// What each word of the rule for one server is good for.
const ONE_SERVER: [(&str, Without); 26] = [
    ("~invoice:42", NoLock),
    ("~{invoice:42}:fence", NoLock),
    ("~{invoice:42}:lock-queue", NoLock),
    ("~{invoice:42}:lock-waiters", NoLock),
    ("&redlease:*", Fallback),
    ("+evalsha", NoLocker),
    ("+eval", NoLocker),
    ("+time", NoLocker),
    ("+get", NoLocker),
    ("+set", NoLocker),
    ("+exists", NoLocker),
    ("+pttl", NoLocker),
    ("+pexpire", NoLocker),
    ("+del", NoLocker),
    ("+zadd", NoLocker),
    ("+zrem", NoLocker),
    ("+zrange", NoLocker),
    ("+zpopmin", NoLocker),
    ("+hset", NoLocker),
    ("+hget", NoLocker),
    ("+hdel", NoLocker),
    ("+subscribe", Fallback),
    ("+publish", Fallback),
    ("+client|tracking", Fallback),
    ("+client|caching", Fallback),
    ("+ping", Fallback),
];

/// Servers on which locks are kept, and lockers for them.
trait Deployment: Sync {
    /// The rule in the docs.
    fn rule(&self) -> Vec<String>;

    /// What each word of it is good for.
    fn table(&self) -> Vec<(&'static str, Without)>;

    /// The servers on which the user's rights are.
    fn servers(&self) -> Vec<&Server>;

    /// The servers that have the lock.
    fn with_the_lock(&self) -> Vec<&Server> {
        self.servers()
    }

    fn locker(&self) -> impl Future<Output = Result<Locker, Error>> + Send;

    /// Whether one of the servers refused what a word would have allowed.
    fn refused(&self, word: &str) -> bool {
        let servers = self.servers();
        servers
            .iter()
            .any(|server| refused_for_want_of(server, word))
    }

    fn grant(&self, rule: &[String], missing: &str) {
        for server in self.servers() {
            grant(server, rule, missing);
        }
    }

    /// What only these servers do.
    async fn more_works(&self, _locker: &Locker) {}
}

struct One(Server);

impl Deployment for One {
    fn rule(&self) -> Vec<String> {
        rule("One server")
    }

    fn table(&self) -> Vec<(&'static str, Without)> {
        ONE_SERVER.into()
    }

    fn servers(&self) -> Vec<&Server> {
        vec![&self.0]
    }

    async fn locker(&self) -> Result<Locker, Error> {
        connect_as_ann(&self.0).await
    }
}

struct Quorum(Servers);

impl Deployment for Quorum {
    fn rule(&self) -> Vec<String> {
        rule("A server of a quorum")
    }

    fn table(&self) -> Vec<(&'static str, Without)> {
        let mut table = ONE_SERVER.to_vec();
        table.push(("~{invoice:42}:fence-owner", NoLock));
        table
    }

    fn servers(&self) -> Vec<&Server> {
        self.0.0.iter().collect()
    }

    async fn locker(&self) -> Result<Locker, Error> {
        patient().quorum(self.0.0.iter().map(url_of_ann)).await
    }
}

struct Nodes {
    cluster: Cluster,
    /// Whether there are channels that belong to a slot.
    has_shards: bool,
}

impl Nodes {
    /// Three masters alone.
    fn start() -> Self {
        let cluster = Cluster::with(&ClusterOptions {
            replicas: 0,
            ..ClusterOptions::default()
        });
        let has_shards = !is_old(&cluster.nodes[0]);
        Self {
            cluster,
            has_shards,
        }
    }

    fn master(&self) -> &Server {
        &self.cluster.nodes[self.cluster.master_of(KEY)]
    }
}

impl Deployment for Nodes {
    fn rule(&self) -> Vec<String> {
        let rule = rule("A server of a cluster").into_iter();
        let plain = |word: String| match word.as_str() {
            "+ssubscribe" if !self.has_shards => "+subscribe".to_owned(),
            "+spublish" if !self.has_shards => "+publish".to_owned(),
            _ => word,
        };
        rule.map(plain).collect()
    }

    fn table(&self) -> Vec<(&'static str, Without)> {
        let mut table = ONE_SERVER.to_vec();
        if self.has_shards {
            table.retain(|(word, _)| !["+subscribe", "+publish"].contains(word));
            table.extend([("+ssubscribe", Fallback), ("+spublish", Fallback)]);
        }
        table.extend([("+cluster|slots", NoLocker), ("+asking", NoLocker)]);
        table
    }

    fn servers(&self) -> Vec<&Server> {
        self.cluster.nodes.iter().collect()
    }

    fn with_the_lock(&self) -> Vec<&Server> {
        vec![self.master()]
    }

    async fn locker(&self) -> Result<Locker, Error> {
        patient()
            .cluster(self.cluster.nodes.iter().map(url_of_ann))
            .await
    }

    /// A held lock moves to another server, and is renewed on the way.
    async fn more_works(&self, locker: &Locker) {
        let guard = locker.mutex(KEY).ttl(TTL).lock().await.unwrap();
        let from = self.cluster.master_of(KEY);
        let moving = self.cluster.move_slot(slot_of(KEY), (from + 1) % 3);
        moving.import();
        moving.migrate();
        moving.move_keys();
        guard.renew().await.unwrap();
        moving.assign();
        guard.renew().await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

/// A master, its replicas and the sentinels, with the rights that stand under one heading taken
/// apart.
struct Watched {
    set: Sentinels,
    is_about_sentinels: bool,
}

impl Watched {
    fn start(is_about_sentinels: bool) -> Self {
        let set = Sentinels::start();
        let watched = Self {
            set,
            is_about_sentinels,
        };
        let (servers, sentinels) = (&watched.set.servers, &watched.set.sentinels);
        for server in servers {
            grant(server, &rule(OF_A_MASTER), "");
        }
        for sentinel in sentinels {
            grant(sentinel, &rule(OF_A_SENTINEL), "");
        }
        watched
    }
}

const OF_A_MASTER: &str = "A master behind sentinels";
const OF_A_SENTINEL: &str = "A sentinel";

impl Deployment for Watched {
    fn rule(&self) -> Vec<String> {
        rule(if self.is_about_sentinels {
            OF_A_SENTINEL
        } else {
            OF_A_MASTER
        })
    }

    fn table(&self) -> Vec<(&'static str, Without)> {
        if self.is_about_sentinels {
            return vec![
                ("+sentinel|get-master-addr-by-name", NoLocker),
                ("+sentinel|master", Fallback),
                ("+subscribe", Fallback),
                ("+ping", Fallback),
                ("&+switch-master", Fallback),
                ("&+promoted-slave", Fallback),
            ];
        }
        let mut table = ONE_SERVER.to_vec();
        table.push(("+role", NoLocker));
        table
    }

    fn servers(&self) -> Vec<&Server> {
        match self.is_about_sentinels {
            true => self.set.sentinels.iter().collect(),
            false => self.set.servers.iter().collect(),
        }
    }

    fn with_the_lock(&self) -> Vec<&Server> {
        vec![&self.set.servers[self.set.master()]]
    }

    async fn locker(&self) -> Result<Locker, Error> {
        let sentinels = self.set.sentinels.iter().map(url_of_ann);
        patient()
            .sentinel(sentinels, format!("redis://ann:pw@{MASTER}/"))
            .await
    }
}

/// For a machine that does much else.
fn patient() -> Builder {
    Locker::builder().command_timeout(DEADLINE / 3)
}

async fn connect_as_ann(server: &Server) -> Result<Locker, Error> {
    patient().connect(url_of_ann(server)).await
}

/// Waits until so many wait for the lock at one of the servers.
async fn until_waiting(servers: &[&Server], count: u64) {
    let waiting = || servers.iter().map(|server| queued(server, KEY)).max();
    eventually("so many wait", || waiting() == Some(count)).await;
}

/// Two lockers take turns by all the ways there are.
async fn all_works(deployment: &impl Deployment, a: &Locker, b: &Locker) {
    let servers = deployment.with_the_lock();
    let lock = |locker: &Locker| locker.mutex(KEY).ttl(TTL);
    let first = lock(a).lock().await.unwrap();
    first.renew().await.unwrap();
    assert!(lock(b).try_lock().await.unwrap().is_none());
    let holder = lock(b).holder().await.unwrap().expect("a holder");
    assert_eq!(holder.value, first.value().as_bytes());
    let far = wait_for(&lock(b));
    until_waiting(&servers, 1).await;
    let near = wait_for(&lock(a).handover_for(Duration::from_nanos(1)));
    tokio::task::yield_now().await;
    assert_eq!(first.release().await.unwrap(), Released::Freed);
    // In a quorum whose servers tell nothing, either can be the first.
    let in_time = async |waiter: JoinHandle<LockGuard>| {
        drop(within(TTL / 2, "granted", waiter).await.unwrap())
    };
    tokio::join!(in_time(far), in_time(near));
    // A waiter that gives up, and a lock that is taken away.
    let taken = lock(a).lock().await.unwrap();
    let waiter = wait_for(&lock(b));
    until_waiting(&servers, 1).await;
    waiter.abort();
    until_waiting(&servers, 0).await;
    assert!(lock(b).force_release().await.unwrap());
    taken.renew().await.unwrap_err();
    // An acquire that is cut short.
    let wanted = lock(a);
    let mut cancelled = Box::pin(wanted.lock());
    begin(&mut cancelled);
    drop(cancelled);
    drop(within(TTL / 2, "free", lock(b).lock()).await.unwrap());
    // Connections that end.
    let guard = lock(a).lock().await.unwrap();
    for server in deployment.servers() {
        server.command::<u64>(&["CLIENT", "KILL", "USER", "ann"]);
    }
    eventually_renewed(&guard).await;
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

/// Whether something is so within the time that is between two PINGs to a sentinel, and more.
async fn within_reason(is_so: impl Fn() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        if Instant::now() > until {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    true
}

/// A request that is under way when its connection ends fails.
async fn eventually_renewed(guard: &LockGuard) {
    let tries = async {
        while guard.renew().await.is_err() {
            assert!(!guard.is_lost(), "{:?}", guard.lost_reason());
        }
    };
    within(DEADLINE, "it is renewed", tries).await;
}

async fn until_only_counters_are_left(servers: &[&Server]) {
    let is_counter = |key: &String| key.ends_with(":fence") || key.ends_with(":fence-owner");
    for server in servers {
        eventually("only counters are left", || {
            let keys: Vec<String> = server.command(&["KEYS", "*"]);
            keys.iter().all(is_counter)
        })
        .await;
    }
}

/// Checks what follows when a word is missing. `Err` if nothing does.
async fn check_missing(
    deployment: &impl Deployment,
    rule: &[String],
    word: &str,
    without: Without,
) -> Result<(), String> {
    deployment.grant(rule, word);
    let says = |error: &Error| {
        let why = why(error).to_lowercase();
        let name = &word[1..];
        // Servers before version 7 name the command alone.
        let command = name.split('|').next().unwrap_or_default();
        let whole = [name, &name.replace('|', " "), command];
        assert!(whole.iter().any(|name| why.contains(name)), "{word}: {why}");
    };
    let a = match (deployment.locker().await, without) {
        (Err(error), NoLocker) => {
            says(&error);
            return Ok(());
        }
        (Err(error), _) => return Err(format!("no locker without {word}: {error:?}")),
        (Ok(_), NoLocker) => return Err(format!("a locker without {word}")),
        (Ok(locker), _) => locker,
    };
    if without == NoLock {
        let lock = a.mutex(KEY).ttl(TTL);
        for outcome in [lock.lock().await.map(Some), lock.try_lock().await] {
            match outcome {
                Err(error) => says(&error),
                Ok(_) => return Err(format!("a lock without {word}")),
            }
        }
        for server in deployment.with_the_lock() {
            assert_eq!(server.command::<i64>(&["DBSIZE"]), 0, "{word}");
        }
        return Ok(());
    }
    let b = deployment.locker().await.unwrap();
    all_works(deployment, &a, &b).await;
    until_only_counters_are_left(&deployment.with_the_lock()).await;
    for server in deployment.with_the_lock() {
        server.command::<()>(&["FLUSHALL"]);
    }
    match within_reason(|| deployment.refused(word)).await {
        true => Ok(()),
        false => Err(format!("nothing was refused without {word}")),
    }
}

/// Each word of the rule in the docs is looked at, and no other.
async fn check_rule(deployment: &impl Deployment) {
    let rule = deployment.rule();
    let table = deployment.table();
    let in_docs: BTreeSet<&str> = rule
        .iter()
        .map(String::as_str)
        .filter(|w| allows(w))
        .collect();
    let in_table: BTreeSet<&str> = table.iter().map(|&(word, _)| word).collect();
    assert_eq!(
        in_docs, in_table,
        "the docs have one list, the test the other"
    );
    for (word, without) in table {
        let checked = check_missing(deployment, &rule, word, without).await;
        checked.unwrap_or_else(|problem| panic!("{problem}"));
    }
}

/// With the whole rule nothing is refused that a lock needs, and each command is used by more than
/// the check of the rights.
async fn check_suffices(deployment: &impl Deployment) {
    let rule = deployment.rule();
    deployment.grant(&rule, "");
    let a = deployment.locker().await.unwrap();
    let b = deployment.locker().await.unwrap();
    for server in deployment.servers() {
        server.command::<()>(&["CONFIG", "RESETSTAT"]);
    }
    all_works(deployment, &a, &b).await;
    deployment.more_works(&a).await;
    let knows_subcommands = deployment.servers().iter().all(|server| !is_old(server));
    for word in rule.iter().filter(|word| word.starts_with('+')) {
        let whole = &word[1..];
        let command = whole.split('|').next().unwrap_or_default();
        let name = if knows_subcommands { whole } else { command };
        if name == whole {
            assert!(!deployment.refused(word), "{word}");
        }
        let servers = deployment.servers();
        let calls = || servers.iter().map(|server| server.calls(name)).sum::<u64>();
        let is_asked_when_connecting = whole == "cluster|slots";
        assert!(
            is_asked_when_connecting || within_reason(|| calls() > 0).await,
            "{word} is not used"
        );
    }
    drop((a, b));
    until_only_counters_are_left(&deployment.with_the_lock()).await;
}

#[tokio::test]
async fn the_rule_for_one_server_is_enough() {
    check_suffices(&One(Server::start())).await;
}

#[tokio::test]
async fn no_word_of_the_rule_for_one_server_can_be_missing_unnoticed() {
    check_rule(&One(Server::start())).await;
}

#[tokio::test]
async fn the_rule_for_a_server_of_a_quorum_is_enough() {
    check_suffices(&Quorum(Servers::start(3))).await;
}

#[tokio::test]
async fn no_word_of_the_rule_for_a_quorum_can_be_missing_unnoticed() {
    check_rule(&Quorum(Servers::start(3))).await;
}

#[tokio::test]
async fn the_rule_for_a_server_of_a_cluster_is_enough() {
    check_suffices(&Nodes::start()).await;
}

#[tokio::test]
async fn no_word_of_the_rule_for_a_cluster_can_be_missing_unnoticed() {
    check_rule(&Nodes::start()).await;
}

#[tokio::test]
async fn the_rules_behind_sentinels_are_enough() {
    check_suffices(&Watched::start(false)).await;
}

#[tokio::test]
async fn no_word_of_the_rule_for_a_master_behind_sentinels_can_be_missing_unnoticed() {
    check_rule(&Watched::start(false)).await;
}

#[tokio::test]
async fn no_word_of_the_rule_for_a_sentinel_can_be_missing_unnoticed() {
    check_rule(&Watched::start(true)).await;
}

/// The old master stays up, and says nothing.
#[tokio::test]
async fn a_failover_is_followed_by_a_user_who_may_not_listen_to_the_sentinels() {
    for missing in ["+subscribe", "&+switch-master"] {
        let watched = Watched::start(true);
        watched.grant(&watched.rule(), missing);
        let locker = watched.locker().await.unwrap();
        let lock = locker.mutex(KEY).ttl(TTL);
        drop(lock.lock().await.unwrap());
        let switch = watched.set.failover(watched.set.master()).await;
        let master = &watched.set.servers[switch.master];
        let followed = async {
            loop {
                if let Ok(guard) = lock.lock().await
                    && master.exists(KEY)
                {
                    return drop(guard);
                }
            }
        };
        within(Duration::from_secs(6), "it is followed", followed).await;
    }
}

/// ROLE is the cheaper of two ways to ask.
#[tokio::test]
async fn info_serves_in_place_of_role() {
    let watched = Watched::start(false);
    let mut rule = watched.rule();
    rule.push("+info".to_owned());
    watched.grant(&rule, "+role");
    let locker = watched.locker().await.unwrap();
    drop(locker.mutex(KEY).lock().await.unwrap());
}

/// So that the tests above find a word too many in the docs.
#[tokio::test]
async fn a_word_that_nothing_needs_is_found() {
    let one = One(Server::start());
    for word in ["+ttl", "~other", "&other:*"] {
        for without in [NoLocker, NoLock, Fallback] {
            let mut rule = one.rule();
            rule.push(word.to_owned());
            one.0.command::<()>(&["FLUSHALL"]);
            let checked = check_missing(&one, &rule, word, without).await;
            checked.expect_err(word);
        }
    }
}

#[tokio::test]
async fn the_patterns_for_a_prefix_serve_all_locks_behind_it() {
    let server = Server::start();
    let mut rule = rule("One server");
    rule.retain(|word| !word.starts_with('~'));
    rule.extend(["~app:*".to_owned(), "~{app:*".to_owned()]);
    grant(&server, &rule, "");
    let locker = Locker::builder().prefix("app:");
    let locker = locker.connect(url_of_ann(&server)).await.unwrap();
    for key in ["a", "invoice:42", "x:y"] {
        drop(locker.mutex(key).lock().await.unwrap());
    }
    let denied = refused(&server);
    // The name of the library is refused, a command on which nothing depends.
    assert!(
        denied.iter().all(|(kind, _)| kind == "command"),
        "{denied:?}"
    );
    locker.close(DEADLINE).await.unwrap();
    let other = Locker::connect(url_of_ann(&server)).await.unwrap();
    why(&other.mutex("a").try_lock().await.unwrap_err());
}

/// In a cluster, either both of the sharded commands are used or none: a grant on the one kind of
/// channel is not heard on the other.
#[tokio::test]
async fn grants_in_a_cluster_are_told_by_plain_channels_if_either_sharded_command_is_missing() {
    let nodes = Nodes::start();
    if !nodes.has_shards {
        return left_out("the server has no sharded channels");
    }
    let mut rule = nodes.rule();
    rule.extend(["+subscribe".to_owned(), "+publish".to_owned()]);
    for (missing, sharded) in [("", true), ("+spublish", false), ("+ssubscribe", false)] {
        nodes.grant(&rule, missing);
        let (a, b) = (nodes.locker().await.unwrap(), nodes.locker().await.unwrap());
        let master = nodes.master();
        let first = a.mutex(KEY).ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&b.mutex(KEY).ttl(TTL));
        until_waiting(&[master], 1).await;
        let before = (master.calls("spublish"), master.calls("publish"));
        first.release().await.unwrap();
        drop(within(TTL / 2, "granted", waiter).await.unwrap());
        let after = (master.calls("spublish"), master.calls("publish"));
        let told = (after.0 > before.0, after.1 > before.1);
        assert_eq!(told, (sharded, !sharded), "without {missing:?}");
        let clients: String = master.command(&["CLIENT", "LIST"]);
        let heard = if sharded { " ssub=1 " } else { " sub=1 " };
        let of_ann = clients.lines().filter(|line| line.contains(" user=ann "));
        assert!(
            of_ann.filter(|line| line.contains(heard)).count() > 0,
            "without {missing:?}: {clients}"
        );
    }
}

#[tokio::test]
async fn a_key_that_the_user_may_not_touch_is_named() {
    let server = Server::start();
    let rule = rule("One server");
    grant(&server, &rule, "~{invoice:42}:lock-queue");
    let locker = connect_as_ann(&server).await.unwrap();
    let error = locker.mutex(KEY).try_lock().await.unwrap_err();
    let why = why(&error);
    assert!(why.contains(": {invoice:42}:lock-queue"), "{why}");
    assert!(!why.contains("fence"), "only what is missing: {why}");
    // Also by a user who only takes locks away.
    let error = locker.mutex(KEY).force_release().await.unwrap_err();
    assert!(rules::why(&error).contains("lock-queue"), "{error:?}");
}

/// The commands of the rule for one server that connecting asks for.
fn needed() -> impl Iterator<Item = &'static str> {
    let needed = ONE_SERVER
        .iter()
        .filter(|(_, without)| *without == NoLocker);
    needed.map(|(word, _)| &word[1..])
}

fn grant_but(server: &Server, command: &str) {
    grant(server, &rule("One server"), &format!("+{command}"));
}

#[tokio::test]
async fn p10_a_locker_made_lazily_is_granted_nothing_while_a_command_is_missing() {
    let server = Server::start();
    for command in needed() {
        grant_but(&server, command);
        let locker = Locker::builder().connect_lazily(url_of_ann(&server));
        let lock = locker.unwrap().mutex(KEY).ttl(TTL);
        for outcome in [lock.lock().await.map(Some), lock.try_lock().await] {
            let why = why(&outcome.expect_err(command)).to_lowercase();
            assert!(why.contains(command), "{command}: {why}");
        }
        assert_eq!(server.command::<i64>(&["DBSIZE"]), 0, "{command}");
        grant_but(&server, "");
        drop(lock.lock().await.expect("the rights are there now"));
        until_only_fences_are_left(&server).await;
        server.command::<()>(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn a_command_is_found_missing_by_a_user_of_all_keys_too() {
    let server = Server::start();
    server.command::<()>(&["CONFIG", "SET", "appendonly", "yes"]);
    for command in needed() {
        grant_but(&server, command);
        server.command::<()>(&["ACL", "SETUSER", "ann", "~*"]);
        let error = connect_as_ann(&server).await.expect_err(command);
        let why = why(&error).to_lowercase();
        assert!(why.contains(command), "{command}: {why}");
    }
    grant_but(&server, "");
    server.command::<()>(&["ACL", "SETUSER", "ann", "~*"]);
    let _locker = connect_as_ann(&server).await.unwrap();
    assert_eq!(server.command::<i64>(&["DBSIZE"]), 0);
    let persistence: String = server.command(&["INFO", "persistence"]);
    assert!(
        persistence.contains("rdb_changes_since_last_save:0"),
        "nothing was written"
    );
}

#[tokio::test]
async fn connecting_does_not_fail_for_what_is_not_for_good() {
    let server = Server::start();
    let states: [(&[&str], &[&str]); 4] = [
        (
            &["REPLICAOF", "127.0.0.1", "1"],
            &["REPLICAOF", "NO", "ONE"],
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
        ),
        (&["SCRIPT", "FLUSH"], &["PING"]),
    ];
    for (begin, end) in states {
        server.command::<redis::Value>(begin);
        let connected = connect_as_default(&server).await;
        assert!(connected.is_ok(), "{begin:?}: {connected:?}");
        server.command::<redis::Value>(end);
    }
}

async fn connect_as_default(server: &Server) -> Result<Locker, Error> {
    patient().connect(server.url()).await
}

/// A right that goes while the locker is in use.
fn revoke(server: &Server, command: &str) {
    server.command::<()>(&["ACL", "SETUSER", "ann", &format!("-{command}")]);
}

#[tokio::test]
async fn p11_a_waiter_that_may_not_take_its_turn_hears_of_it() {
    for command in ["zpopmin", "hget"] {
        let server = Server::start();
        grant_but(&server, "");
        let locker = connect_as_ann(&server).await.unwrap();
        let () = server.command(&["SET", KEY, "foreign", "PX", "60000"]);
        let lock = locker.mutex(KEY).ttl(TTL);
        let waiter = tokio::spawn(async move { lock.lock().await });
        until_queued(&server, KEY, 1).await;
        revoke(&server, command);
        server.command::<i64>(&["DEL", KEY]);
        let error = within(TTL / 2, "an answer", waiter).await.unwrap();
        let error = error.expect_err(command);
        why(&error);
    }
}

#[tokio::test]
async fn a_holder_that_may_not_look_who_waits_lets_go_all_the_same() {
    for command in ["zpopmin", "hget"] {
        let server = Server::start();
        grant_but(&server, "");
        let locker = connect_as_ann(&server).await.unwrap();
        let guard = locker.mutex(KEY).ttl(TTL).lock().await.unwrap();
        let waiter = wait_for(&connect(&server).await.mutex(KEY).ttl(TTL));
        until_queued(&server, KEY, 1).await;
        revoke(&server, command);
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
        // By its next heartbeat.
        let guard = within(TTL / 2, "the waiter has it", waiter).await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn a_waiter_behind_what_is_no_queue_hears_of_it() {
    let server = Server::start();
    let locker = connect(&server).await;
    for what in ["lock-queue", "lock-waiters"] {
        let key = unique_key();
        let () = server.command(&["SET", &key, "foreign", "PX", "60000"]);
        let place = format!("{{{key}}}:{what}");
        server.command::<i64>(&["LPUSH", &place, "x"]);
        let outcome = within(DEADLINE, "an answer", locker.mutex(&key).lock()).await;
        why(&outcome.expect_err(what));
    }
}
