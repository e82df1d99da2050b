//! What the server on the PATH can do. It is asked; nothing is concluded from its version.

use std::io::{Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;

use super::Server;

impl Server {
    /// A server that has a command. Where it has not, none, and the test says that it is left out.
    pub fn with_command(command: &str) -> Option<Self> {
        let server = Self::start();
        let known: Vec<Value> = server.command(&["COMMAND", "INFO", command]);
        if known != [Value::Nil] {
            return Some(server);
        }
        left_out(&format!("the server has no {command}"));
        None
    }

    /// Whether a parameter can be set.
    pub fn has_parameter(&self, name: &str) -> bool {
        let values: Vec<String> = self.command(&["CONFIG", "GET", name]);
        !values.is_empty()
    }

    /// Whether users have rights to channels.
    pub fn has_channel_rights(&self) -> bool {
        self.has_parameter("acl-pubsub-default")
    }

    /// Makes a user with the password `pw`. Rights to channels (`&…`) are passed over where there
    /// are none: everybody may use all channels there.
    pub fn add_user(&self, name: &str, rights: &[&str]) {
        let mut words = vec!["ACL", "SETUSER", name, "on", ">pw"];
        words.extend(rights);
        if !self.has_channel_rights() {
            words.retain(|word| !word.starts_with('&'));
        }
        self.command(&words)
    }

    /// Says once a program which server its tests run on.
    pub(super) fn introduce(&self) {
        static DONE: AtomicBool = AtomicBool::new(false);
        if DONE.swap(true, Ordering::SeqCst) {
            return;
        }
        let client = redis::Client::open(self.url()).expect("a url");
        let info = client
            .get_connection()
            .and_then(|mut connection| redis::cmd("INFO").arg("server").query(&mut connection));
        // One that wants a password does not tell; the next may.
        let Ok::<String, _>(info) = info else {
            return DONE.store(false, Ordering::SeqCst);
        };
        // Valkey has a redis_version, too: of the Redis that it is compatible with.
        let version = |name: &str| {
            let mut lines = info.lines();
            let version = lines.find_map(|line| line.strip_prefix(&format!("{name}_version:")))?;
            Some(format!("{name} {version}"))
        };
        let version = version("valkey").or_else(|| version("redis"));
        say(&format!("tested on {}", version.expect("a version")));
    }
}

/// Says that the running test, or a part of it, is left out.
pub fn left_out(why: &str) {
    let thread = std::thread::current();
    say(&format!(
        "left out: {}: {why}",
        thread.name().unwrap_or("?")
    ));
}

/// Says something even if the test passes: what it prints with `println!` is kept back then.
fn say(what: &str) {
    writeln!(stderr(), "{what}").expect("standard error");
}
