//! The files stand in layers: each imports only from files below it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file of the crate, the highest first.
const LAYERS: [&str; 67] = [
    "lib.rs",
    "blocking.rs",
    "locker.rs",
    "topology.rs",
    "lock.rs",
    "guard.rs",
    "handle.rs",
    "acquire/waiting.rs",
    "acquire/mod.rs",
    "acquire/outage.rs",
    "hold.rs",
    "engine.rs",
    "acquire/wakeup.rs",
    "acquire/queue/reclaim.rs",
    "acquire/queue.rs",
    "acquire/queue/occupied.rs",
    "acquire/queue/waiter.rs",
    "released.rs",
    "driver/release.rs",
    "driver/mod.rs",
    "driver/loss.rs",
    "driver/watchdog.rs",
    "driver/watch.rs",
    "lease.rs",
    "driver/pending.rs",
    "backend/quorum/renew.rs",
    "backend/quorum/repair.rs",
    "backend/quorum/release.rs",
    "backend/quorum/fence.rs",
    "backend/quorum/holder.rs",
    "backend/quorum/mod.rs",
    "backend/quorum/fake.rs",
    "backend/quorum/seat.rs",
    "backend/quorum/member.rs",
    "backend/quorum/round.rs",
    "backend/redis/queue.rs",
    "backend/redis/call.rs",
    "backend/redis/held.rs",
    "backend/redis/mod.rs",
    "backend/redis/rights.rs",
    "backend/redis/unsettled.rs",
    "backend/redis/reply.rs",
    "backend/redis/connections.rs",
    "backend/redis/opening.rs",
    "backend/redis/connection.rs",
    "backend/redis/push.rs",
    "backend/redis/error_class.rs",
    "backend/redis/health.rs",
    "backend/redis/echo.rs",
    "backend/redis/script.rs",
    "backend/faulty.rs",
    "backend/memory.rs",
    "backend/mod.rs",
    "backend/claim.rs",
    "backend/quorum/stake.rs",
    "backend/answer.rs",
    "clock.rs",
    "holder.rs",
    "options.rs",
    "key.rs",
    "backoff.rs",
    "error.rs",
    "lost.rs",
    "fault.rs",
    "contain.rs",
    "sync.rs",
    "events.rs",
];
const LONGEST_FILE: usize = 450;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The Rust files below `src`, with `/` between the parts of their names. A `tests.rs` and a
/// `models.rs` count as parts of the file beside or above them.
fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(source()).expect("a file of src");
            found.push(name.to_string_lossy().replace('\\', "/"));
        }
    }
}

fn all_files() -> Vec<String> {
    let mut found = Vec::new();
    files(&source(), &mut found);
    found
}

fn read(file: &str) -> String {
    fs::read_to_string(source().join(file)).expect("a file of src")
}

/// The file whose private part a file of tests is.
fn subject(file: &str) -> String {
    let tests = ["/tests.rs", "/models.rs"];
    match tests.iter().find_map(|name| file.strip_suffix(name)) {
        None => file.to_owned(),
        Some(module) => match source().join(format!("{module}.rs")).exists() {
            true => format!("{module}.rs"),
            false => format!("{module}/mod.rs"),
        },
    }
}

fn layer(file: &str) -> Option<usize> {
    LAYERS.iter().position(|&known| known == file)
}

/// The paths of a `use` tree, `a::{b, c::d}` written out.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        paths.push(format!("{prefix}{path}"));
        return;
    };
    let prefix = format!("{prefix}{}", &tree[..open]);
    let inside = &tree[open + 1..tree.rfind('}').expect("a closing brace")];
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in inside.char_indices().chain([(inside.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inside[start..at].trim().is_empty() {
                    expand(&prefix, &inside[start..at], paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// What follows each `keyword` at the beginning of a line, up to the semicolon.
fn statements(text: &str, keyword: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let begins = |at: usize| {
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        text[line..at].chars().all(|letter| letter == ' ')
    };
    for (at, _) in text.match_indices(keyword).filter(|&(at, _)| begins(at)) {
        let rest = &text[at + keyword.len()..];
        let end = rest.find(';').expect("a semicolon");
        expand("", &rest[..end], &mut paths);
    }
    paths
}

/// The file that a path of modules leads to, if it leads to one.
fn file_of(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split("::").collect();
    while !parts.is_empty() {
        let stem = parts.join("/");
        for file in [format!("{stem}.rs"), format!("{stem}/mod.rs")] {
            if source().join(&file).exists() {
                return Some(file);
            }
        }
        parts.pop();
    }
    None
}

#[test]
fn every_file_has_its_layer() {
    let found = all_files();
    for file in &found {
        assert!(
            layer(&subject(file)).is_some(),
            "{file} is in no layer: put it into LAYERS"
        );
    }
    for file in LAYERS {
        assert!(found.iter().any(|known| known == file), "{file} is gone");
    }
}

#[test]
fn a_file_imports_only_from_below() {
    let top: HashMap<String, String> = statements(&read("lib.rs"), "pub use ")
        .into_iter()
        .filter_map(|path| {
            let name = path.rsplit("::").next()?.to_owned();
            Some((name, file_of(&path)?))
        })
        .collect();
    let mut imports = 0;
    for file in all_files() {
        let importer = subject(&file);
        for path in statements(&read(&file), "use crate::") {
            let first = path.split("::").next().unwrap_or_default();
            let imported = file_of(&path)
                .or_else(|| top.get(first).cloned())
                .unwrap_or_else(|| panic!("{file}: where is crate::{path}?"));
            imports += 1;
            assert!(
                imported == importer || layer(&imported) > layer(&importer),
                "{file} imports crate::{path}, which stands above it"
            );
        }
    }
    assert!(imports > 50, "the imports were not found");
}

#[test]
fn imports_name_the_whole_way() {
    for file in all_files() {
        for path in statements(&read(&file), "use super::") {
            let for_tests = read(&file)
                .find("#[cfg(test)]\nmod tests {")
                .is_some_and(|tests| read(&file).find("use super::").unwrap_or(0) > tests);
            assert!(
                for_tests || subject(&file) != file,
                "{file} imports super::{path}"
            );
        }
    }
}

#[test]
fn files_stay_short() {
    for file in all_files() {
        let lines = read(&file).lines().count();
        assert!(lines <= LONGEST_FILE, "{file} has {lines} lines");
    }
}

/// A subscriber is never called where it could be in the way: see `events.rs`.
#[test]
fn every_event_is_emitted() {
    let mut events = 0;
    for file in all_files() {
        let text = read(&file);
        for (at, _) in text.match_indices("tracing::") {
            let is_emitted = text[..at].trim_end().ends_with("emit(move || {");
            assert!(is_emitted, "{file} calls tracing in place");
            events += 1;
        }
    }
    assert!(events > 5, "the events were not found");
}
