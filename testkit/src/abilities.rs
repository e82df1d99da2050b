//! What the server on the PATH can do. It is asked; nothing is concluded from its version.

use std::io::{Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;

use crate::launch::Launch;
use crate::server::Server;
use crate::tls::Tls;

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

    /// A server that listens with TLS, too. Where it is built without TLS, none, and the test says
    /// that it is left out.
    pub fn with_tls(tls: Tls) -> Option<Self> {
        let launch = Launch::with_tls(tls)?;
        Some(Self::launch(launch).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Whether the server speaks RESP3. Where it does not, the test says that it is left out.
    pub fn has_hello(&self) -> bool {
        let known: Vec<Value> = self.command(&["COMMAND", "INFO", "HELLO"]);
        let has = known != [Value::Nil];
        if !has {
            left_out("the server has no HELLO");
        }
        has
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
    pub(crate) fn introduce(&self) {
        static DONE: AtomicBool = AtomicBool::new(false);
        if DONE.swap(true, Ordering::SeqCst) {
            return;
        }
        // One that wants a password does not tell; the next may.
        let Ok(version) = self.version() else {
            return DONE.store(false, Ordering::SeqCst);
        };
        say(&format!("tested on {version}"));
    }
}

impl Launch {
    /// Of servers that listen with TLS, too; as [`Server::with_tls`].
    pub fn with_tls(tls: Tls) -> Option<Self> {
        // One that is built with TLS complains of the missing certificate; others know no such
        // parameter, or crash.
        let words = ["CONFIG", "SET", "tls-replication", "yes"];
        let answer = Server::start().query::<()>(&words);
        if answer.is_err_and(|error| error.to_string().contains("TLS configuration")) {
            return Some(Self::default().tls(tls));
        }
        left_out("the server is built without TLS");
        None
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
