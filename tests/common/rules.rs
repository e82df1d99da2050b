//! The ACL rules of the docs, and what a server says of a user that keeps to one.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::error::Error as _;

use redis::Value;
use redlease::Error;
use testkit::Server;

/// The lock that the rules of the docs are for.
pub const KEY: &str = "invoice:42";

/// The words of the rule under a heading of the docs.
pub fn rule(heading: &str) -> Vec<String> {
    let chapter = include_str!("../../docs/deployments.md");
    let begin = format!("\n#### {heading}\n");
    let (_, section) = chapter.split_once(&begin).expect("the heading");
    let section = section.split("\n#").next().expect("a section");
    let (_, block) = section.split_once("```text\n").expect("a rule");
    let (words, _) = block.split_once("```").expect("the end of the rule");
    words.split_whitespace().map(str::to_owned).collect()
}

/// Whether a word of a rule allows something. Others take away what a user may have from before.
pub fn allows(word: &str) -> bool {
    word.starts_with(['+', '~', '&', '%'])
}

/// Makes the user `ann` anew, with a rule of the docs but for one word.
pub fn grant(server: &Server, rule: &[String], missing: &str) {
    let words = rule.iter().filter(|word| *word != missing);
    let mut all = vec!["ACL", "SETUSER", "ann", "reset", "on", ">pw"];
    all.extend(words.map(String::as_str));
    server.command::<()>(&all);
    server.command::<()>(&["ACL", "LOG", "RESET"]);
}

/// The URL of a server for the user `ann`.
pub fn url_of_ann(server: &Server) -> String {
    format!("redis://ann:pw@127.0.0.1:{}/", server.port)
}

/// What the server refused to `ann`: kind and name.
pub fn refused(server: &Server) -> Vec<(String, String)> {
    let log: Vec<HashMap<String, Value>> = server.command(&["ACL", "LOG", "128"]);
    let text = |entry: &HashMap<String, Value>, field: &str| {
        let value = entry.get(field).cloned().unwrap_or(Value::Nil);
        redis::from_redis_value::<String>(value).unwrap_or_default()
    };
    log.iter()
        .map(|entry| (text(entry, "reason"), text(entry, "object").to_lowercase()))
        .collect()
}

/// Whether the server refused what a word of a rule would have allowed.
pub fn refused_for_want_of(server: &Server, word: &str) -> bool {
    let (sign, rest) = word.split_at(1);
    let matches = |(kind, object): &(String, String)| match sign {
        "+" => {
            kind == "command"
                && (object == rest || rest.split('|').next() == Some(object) && is_old(server))
        }
        "&" => kind == "channel" && object.starts_with(rest.trim_end_matches('*')),
        _ => kind == "key" && object == rest,
    };
    refused(server).iter().any(matches)
}

/// Whether it is older than version 7: it has no sharded channels, and names a subcommand by its
/// command alone where it refuses or counts it.
pub fn is_old(server: &Server) -> bool {
    let known: Vec<Value> = server.command(&["COMMAND", "INFO", "spublish"]);
    known == [Value::Nil]
}

/// What the server said, of an error that a retry cannot help.
pub fn why(error: &Error) -> String {
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    error.source().expect("a cause").to_string()
}
