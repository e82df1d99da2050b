//! Whether the user may run what the scripts need.

use redis::Value;
use tokio::time::Instant;

use crate::backend::redis::connection::{Connection, Failure};
use crate::backend::redis::error_class::is_about_a_key;
use crate::backend::redis::script::{self, Argument, Script};

/// Fails if a command is missing without which a lock could be acquired and not be released.
///
/// `name` is a key that nobody has. Rights to keys are not asked for: they depend on the lock, and
/// acquiring it names all of its keys.
pub(super) async fn check(
    connection: &Connection,
    name: &str,
    is_in_cluster: bool,
    until: Instant,
) -> Result<(), Failure> {
    // A release that is to follow a slot which moves needs it; it shows at no other time.
    let arguments = [Argument::Text(name), Argument::Text("ASKING")];
    let arguments = if is_in_cluster {
        &arguments[..]
    } else {
        &arguments[..1]
    };
    // `EVAL` is needed after `SCRIPT FLUSH`, a restart, and for what is cleaned up (P10).
    for call in [Script::by_digest, Script::in_full] {
        let with_key = call(&script::PROBE, &[name], arguments, "");
        let mut answer = connection.send(&with_key, until).await;
        if let Err(Failure::Fault(_) | Failure::NotNow(_) | Failure::Redirected(..)) = answer {
            // The key alone may be what is refused, or not served here.
            let without_key = call(&script::PROBE, &[], arguments, "");
            answer = connection.send(&without_key, until).await;
        }
        match answer {
            Ok(reply) => {
                let missing = names(&reply);
                if !missing.is_empty() {
                    let text = format!(
                        "the user may not run, or the server does not have, commands that locks \
                         need: {}",
                        missing.join(", ")
                    );
                    return Err(Failure::Fault(connection.refusal(text)));
                }
            }
            Err(Failure::NoScript) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Names the keys for which a request was refused: the server does not tell them apart.
pub(super) async fn name_keys(
    connection: &Connection,
    keys: &[&str],
    failure: Failure,
    until: Instant,
) -> Failure {
    let Failure::Fault(fault) = &failure else {
        return failure;
    };
    if !is_about_a_key(fault) {
        return failure;
    }
    let mut refused = Vec::new();
    for &key in keys {
        // As the scripts do it: a script may read and write all of its keys.
        let mut command = redis::cmd("EVAL");
        command.arg("return 1").arg(1).arg(key);
        match connection.send(&command, until).await {
            Err(Failure::Fault(fault)) if is_about_a_key(&fault) => refused.push(key),
            _ => {}
        }
    }
    if refused.is_empty() {
        return failure;
    }
    let text = format!(
        "the user may not read and write these keys, which the lock needs: {}",
        refused.join(", ")
    );
    Failure::Fault(connection.refusal(text))
}

fn names(reply: &Value) -> Vec<String> {
    redis::from_redis_value_ref(reply).unwrap_or_default()
}
