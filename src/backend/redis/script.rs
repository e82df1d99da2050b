//! The Lua scripts and how they are called.

use std::sync::LazyLock;

use redis::Cmd;

/// A script, and the digest by which a server that has seen it knows it.
pub(crate) struct Script {
    code: &'static str,
    digest: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self {
            digest: redis::Script::new(code).get_hash().to_owned(),
            code,
        }
    }

    /// The usual call, by digest.
    pub(crate) fn by_digest(&self, keys: &[&str], arguments: &Arguments, channel: &str) -> Cmd {
        call("EVALSHA", &self.digest, keys, arguments, channel)
    }

    /// The call for a server that does not know the digest (it restarted, or was told `SCRIPT
    /// FLUSH`): runs the script and makes it known in one request.
    pub(crate) fn in_full(&self, keys: &[&str], arguments: &Arguments, channel: &str) -> Cmd {
        call("EVAL", self.code, keys, arguments, channel)
    }
}

/// The arguments of a call.
pub(crate) type Arguments<'a> = [Argument<'a>];

#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// The channel of the connection over which the call is sent, which may be another each time.
    Channel,
    Number(u64),
    Text(&'a str),
}

fn call(command: &str, script: &str, keys: &[&str], arguments: &Arguments, channel: &str) -> Cmd {
    let mut cmd = Cmd::with_capacity(3 + keys.len() + arguments.len(), 512);
    cmd.arg(command).arg(script).arg(keys.len());
    for key in keys {
        cmd.arg(*key);
    }
    for argument in arguments {
        match argument {
            Argument::Channel => cmd.arg(channel),
            Argument::Number(number) => cmd.arg(*number),
            Argument::Text(text) => cmd.arg(*text),
        };
    }
    cmd
}

macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)*) => {
        $(pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!($(include_str!(concat!("../../lua/", $file))),+))
        });)*
    };
}

scripts! {
    ACQUIRE = "counter.lua" "take.lua" "acquire.lua" "number.lua" "fence.lua" "number_beyond.lua";
    ACQUIRE_MEMBER =
        "counter.lua" "take.lua" "acquire_member.lua" "number.lua" "fence.lua" "number_beyond.lua";
    ENQUEUE =
        "counter.lua" "waiters.lua" "enqueue.lua"
        "writable.lua" "fence.lua" "queue.lua" "enqueue_free.lua";
    FORCE_RELEASE = "counter.lua" "fence.lua" "waiters.lua" "queue.lua" "force_release.lua";
    HOLDER = "holder.lua";
    KEEP = "counter.lua" "writable.lua" "fence.lua" "waiters.lua" "queue.lua" "keep.lua";
    LEAVE = "counter.lua" "writable.lua" "fence.lua" "waiters.lua" "queue.lua" "leave.lua";
    LOOK = "writable.lua" "look.lua";
    PROBE = "probe.lua";
    RAISE = "counter.lua" "writable.lua" "fence.lua" "raise.lua";
    RELEASE =
        "early_release.lua"
        "counter.lua" "writable.lua" "fence.lua" "waiters.lua" "queue.lua" "release.lua";
    RENEW = "renew.lua" "writable.lua" "renew_lost.lua";
    RENEW_MANY = "renew_many.lua";
    RESTORE = "counter.lua" "fence.lua" "restore.lua";
}
