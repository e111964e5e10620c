//! Rooms share nothing but messages: no lock, no static, no shared map, no task that nobody supervises.

use std::collections::BTreeSet;

use super::rust;
use super::{Source, found, none, tree};

const WORDS: &[&str] = &[
    "Mutex",
    "RwLock",
    "OnceLock",
    "OnceCell",
    "LazyLock",
    "LazyCell",
    "DashMap",
    "Semaphore",
    "Condvar",
    "Notify",
    "ArcSwap",
    "RefCell",
    "UnsafeCell",
    "thread_local",
    "lazy_static",
    "spawn_blocking",
    "spawn_local",
    "JoinSet",
];
/// The folders that may: the first is what everything shares through, the second owns its threads.
const MAY: &[&str] = &["supervision", "store"];
/// The one room file that owns a thread.
const WRITER: &str = "actors/audit/writer.rs";
/// What a room in src/ has beside messages, and why that shares nothing between rooms.
const KNOWN: &[(&str, &str)] = &[
    // One connection's own, within its one task: looked up once.
    ("src/edge/http.rs", "OnceLock"),
    // The node host has one room: it hands its commands' tasks their places and the threads that read files.
    ("src/node/messages.rs", "Semaphore"),
    ("src/node/mod.rs", "Semaphore"),
    ("src/node/commands.rs", "spawn_blocking"),
    // The process' own runtime, before there is a room.
    (
        "src/node/mod.rs",
        "tokio::runtime::Builder::new_multi_thread",
    ),
];

/// Folders in src/ that are rooms too.
fn rooms_of_src(tree: &[Source]) -> BTreeSet<&str> {
    let of_src = tree
        .iter()
        .filter_map(|source| Some((source.path.strip_prefix("src/")?, source)));
    of_src
        .filter(|(_, source)| rust::shipped(&source.text).contains("impl Room for "))
        .filter_map(|(path, _)| Some(path.split_once('/')?.0))
        .collect()
}

fn findings(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    let of_src = rooms_of_src(tree);
    for source in tree
        .iter()
        .filter(|source| source.is_rust() && !source.is_test())
    {
        let in_src = || {
            let (room, _) = source.path.strip_prefix("src/")?.split_once('/')?;
            of_src.contains(room).then_some(room)
        };
        let room = source.room().or_else(in_src);
        let Some(room) = room.filter(|room| !MAY.contains(room)) else {
            continue;
        };
        let code = rust::shipped(&source.text);
        let mut find = |at: usize, what: &str| {
            if KNOWN.contains(&(source.path.as_str(), what)) {
                return;
            }
            findings.push(format!(
                "{}:{}: {what} in the room {room}",
                source.path,
                rust::line(&code, at)
            ));
        };
        for (at, word) in rust::words(&code) {
            let before = code[..at].trim_end();
            if WORDS.contains(&word) || word.starts_with("Atomic") {
                find(at, word);
            }
            if word == "static" && !before.ends_with('\'') {
                find(at, "static");
            }
        }
        for (at, path) in rust::paths(&code, &["tokio", "std", "watch", "thread", "task"]) {
            let spelled = path.join("::");
            let spawns = path.contains(&"spawn") || path.contains(&"Builder");
            let thread = path.contains(&"thread");
            if path.contains(&"watch") || (spawns && !(thread && source.path == WRITER)) {
                find(at, &spelled);
            }
        }
    }
    findings
}

#[test]
fn rooms_share_nothing_but_messages() {
    none(&findings(&tree()));
}

#[test]
fn a_shared_thing_in_a_room_is_found() {
    let look = |path: &str, text: &str| findings(&[Source::new(path, text)]);
    for text in [
        "use std::sync::Mutex;",
        "struct A { b: tokio::sync::RwLock<u8> }",
        "static A: u8 = 1;",
        "pub static mut A: u8 = 1;",
        "use std::sync::atomic::{AtomicU64, Ordering};",
        "use tokio::sync::{mpsc, watch};",
        "watch::channel(1);",
        "tokio::spawn(async {});",
        "use tokio::task; fn f() { task::spawn(async {}); }",
        "tokio::task::spawn_blocking(|| ());",
        "std::thread::spawn(|| ());",
        "use std::thread; fn f() { thread::Builder::new(); }",
        "thread_local! { }",
    ] {
        found(&look("actors/vault/actor.rs", text), "in the room vault");
    }
    let room = Source::new("src/edge/actor.rs", "impl Room for Edge {}");
    let with = |text: &str| findings(&[room.clone(), Source::new("src/edge/http.rs", text)]);
    found(&with("use tokio::sync::Mutex;"), "in the room edge");
    none(&with("use tokio::sync::mpsc;"));
    none(&look("src/edge/http.rs", "use tokio::sync::Mutex;"));
    none(&look(
        "actors/supervision/gate.rs",
        "use tokio::sync::{Semaphore, watch};",
    ));
    none(&look(
        "actors/audit/writer.rs",
        "use std::thread; fn f() { thread::Builder::new(); }",
    ));
    none(&look(
        "actors/vault/actor.rs",
        "// Mutex\nconst A: &'static str = \"static Mutex\"; use tokio::sync::{mpsc, oneshot};\nfn watch() { self.watch(1) }",
    ));
    none(&look(
        "actors/vault/actor.rs",
        "fn a() {}\n#[cfg(test)]\nmod tests { use std::sync::Mutex; }",
    ));
}
