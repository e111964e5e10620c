//! Rooms share nothing but messages: no lock, no static, no shared map, no task that nobody supervises.

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

fn findings(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree
        .iter()
        .filter(|source| source.is_rust() && !source.is_test())
    {
        let Some(room) = source.room().filter(|room| !MAY.contains(room)) else {
            continue;
        };
        let code = rust::shipped(&source.text);
        let mut find = |at: usize, what: &str| {
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
