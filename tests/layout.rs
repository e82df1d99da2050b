//! Folders are layers: what stands in a folder imports only from itself and from below.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, the highest first: folders, and files beside them that are a layer of their own. A
/// file belongs to the first that its name begins with.
const LAYERS: [&str; 29] = [
    "lib.rs",
    "blocking",
    "locker",
    "builder",
    "lock.rs",
    "guard.rs",
    "acquire/",
    "driver/",
    "keys/",
    "released.rs",
    "backend/quorum/",
    "backend/cluster/",
    "backend/sentinel/",
    "backend/redis/",
    "backend/faulty.rs",
    "backend/memory.rs",
    "backend/",
    "lease",
    "options.rs",
    "holder.rs",
    "key.rs",
    "clock.rs",
    "backoff.rs",
    "tls.rs",
    "credentials.rs",
    "error.rs",
    "events.rs",
    "contain.rs",
    "sync.rs",
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

/// The number of a file's layer.
fn layer(file: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| file.starts_with(layer))
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

/// Every path into the crate that a file names, in an import or inline, comments left out.
fn paths(file: &str) -> Vec<String> {
    let text: String = read(file)
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut paths = Vec::new();
    for keyword in ["use crate::", "pub use crate::", "pub(crate) use crate::"] {
        paths.extend(statements(&text, keyword));
    }
    for (at, keyword) in text.match_indices("crate::") {
        let rest = &text[at + keyword.len()..];
        let is_part = |letter: char| letter.is_alphanumeric() || "_:".contains(letter);
        let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
        let path = rest[..end].trim_end_matches(':');
        if !path.is_empty() {
            paths.push(path.to_owned());
        }
    }
    paths
}

#[test]
fn every_file_has_its_layer() {
    let found = all_files();
    for file in &found {
        assert!(layer(file).is_some(), "{file} is in no layer");
    }
    for layer in LAYERS {
        let is_there = found.iter().any(|file| file.starts_with(layer));
        assert!(is_there, "{layer} is gone");
    }
}

#[test]
fn a_folder_imports_only_from_itself_and_from_below() {
    let top: HashMap<String, String> = statements(&read("lib.rs"), "pub use ")
        .into_iter()
        .filter_map(|path| {
            let name = path.rsplit("::").next()?.to_owned();
            Some((name, file_of(&path)?))
        })
        .collect();
    let mut imports = 0;
    for file in all_files() {
        for path in paths(&file) {
            let first = path.split("::").next().unwrap_or_default();
            let imported = file_of(&path)
                .or_else(|| top.get(first).cloned())
                .unwrap_or_else(|| panic!("{file}: where is crate::{path}?"));
            imports += 1;
            assert!(
                layer(&imported) >= layer(&file),
                "{file} names crate::{path}, which stands above it"
            );
        }
    }
    assert!(imports > 50, "the imports were not found");
}

/// So that the test above sees them all.
#[test]
fn imports_name_the_whole_way() {
    for file in all_files() {
        let is_of_tests =
            |name| file.ends_with(name) || file.contains("/tests/") || file.contains("/models/");
        let text = read(&file);
        let code = match is_of_tests("tests.rs") || is_of_tests("models.rs") {
            true => "",
            false => text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default(),
        };
        let short = statements(code, "use super::");
        assert!(short.is_empty(), "{file} imports super::{short:?}");
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
            let before = text[..at].trim_end();
            if before.ends_with("\nuse") {
                continue;
            }
            let is_emitted =
                before.ends_with("emit(move || {") || before.ends_with("emit_debug(move || {");
            assert!(is_emitted, "{file} calls tracing in place");
            events += 1;
        }
    }
    assert!(events > 5, "the events were not found");
}
