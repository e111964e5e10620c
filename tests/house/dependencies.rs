//! `core, cell <- actors <- src <- tests`, read from manifests and from the paths that the code names.

use super::order::place;
use super::rust;
use super::{Source, file, found, none, tree};

/// Each crate of ours: manifest, folder of its code, which of ours it may use.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("core/Cargo.toml", "core/", &[]),
    ("cell/Cargo.toml", "cell/", &[]),
    (
        "actors/Cargo.toml",
        "actors/",
        &["portcullis-core", "portcullis-cell"],
    ),
    (
        "Cargo.toml",
        "src/",
        &["portcullis-core", "portcullis-cell", "portcullis-actors"],
    ),
    ("xtask/Cargo.toml", "xtask/", &[]),
];
const OURS: &[&str] = &[
    "portcullis",
    "portcullis-core",
    "portcullis-cell",
    "portcullis-actors",
    "xtask",
];
/// The only crates that the deciding core may be built of: what computes, nothing that acts.
const CORE_MAY_USE: &[&str] = &[
    "aes-gcm",
    "aws-lc-rs",
    "base64",
    "bcrypt",
    "ed25519-dalek",
    "hkdf",
    "hmac",
    // With its checks of time switched off, which would ask the clock: core/auth/assertion.rs compares them.
    "jsonwebtoken",
    "p256",
    "scrypt",
    "serde",
    "rmp-serde",
    "serde_json",
    "sha2",
    "subtle",
    "thiserror",
    // Reads the named sandbox profiles, which are in the program.
    "toml",
    "zeroize",
    // Readers of shell lines: text to trees, nothing else.
    "shuck-parser",
    "shuck-ast",
];
/// What the core must not name: the world.
const WORLD: &[&str] = &[
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::process",
    "std::env",
    "std::thread",
    "std::io",
    "std::os",
    "std::time::Instant",
    "std::time::SystemTime",
];

fn manifests(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for (path, _, allowed) in CRATES {
        let Some(source) = file(tree, path) else {
            continue;
        };
        let manifest: toml::Table = match source.text.parse() {
            Ok(manifest) => manifest,
            Err(error) => {
                findings.push(format!("{path}: {error}"));
                continue;
            }
        };
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(list) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, detail) in list {
                // A renamed crate is still that crate.
                let name = detail
                    .get("package")
                    .and_then(toml::Value::as_str)
                    .unwrap_or(name);
                if OURS.contains(&name) && !allowed.contains(&name) {
                    findings.push(format!("{path}: [{section}] must not have {name}"));
                }
                if *path == "core/Cargo.toml"
                    && section == "dependencies"
                    && !CORE_MAY_USE.contains(&name)
                {
                    findings.push(format!(
                        "{path}: {name} is not among what the deciding core may be built of"
                    ));
                }
                let optional = detail.get("optional").and_then(toml::Value::as_bool) == Some(true);
                if *path == "cell/Cargo.toml" && section == "dependencies" && !optional {
                    findings.push(format!(
                        "{path}: {name} must be optional: the frames half is std-only"
                    ));
                }
            }
        }
    }
    findings
}

fn code_paths(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree.iter().filter(|source| source.is_rust()) {
        let Some((_, folder, allowed)) = CRATES
            .iter()
            .find(|(_, folder, _)| source.path.starts_with(folder))
        else {
            continue;
        };
        let code = rust::shipped(&source.text);
        for name in OURS.iter().filter(|name| !allowed.contains(name)) {
            // A binary names the library of its own package.
            let own =
                [("src/", "portcullis"), ("cell/", "portcullis-cell")].contains(&(*folder, *name));
            if own || *name == "xtask" {
                continue;
            }
            for (at, _) in rust::paths(&code, &[&name.replace('-', "_")]) {
                findings.push(format!(
                    "{}:{}: must not name {name}",
                    source.path,
                    rust::line(&code, at)
                ));
            }
        }
        if *folder == "core/" && !source.is_test() {
            for (at, path) in rust::paths(&code, &["std"]) {
                let path = path.join("::");
                if WORLD
                    .iter()
                    .any(|world| path == *world || path.starts_with(&format!("{world}::")))
                {
                    findings.push(format!(
                        "{}:{}: core must not name {path}",
                        source.path,
                        rust::line(&code, at)
                    ));
                }
            }
        }
    }
    findings
}

/// A room names core, supervision, store, itself, and of rooms below it the handle and the message values.
fn room_paths(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree
        .iter()
        .filter(|source| source.is_rust() && !source.is_test())
    {
        let Some(room) = source.room() else {
            continue;
        };
        let code = rust::shipped(&source.text);
        let mut paths = rust::paths(&code, &["crate"]);
        // `super` out of a room's own folder is another room by the back door.
        for (at, path) in rust::paths(&code, &["super"]) {
            if path.iter().filter(|part| **part == "super").count()
                >= source.path.matches('/').count()
            {
                paths.push((at, path));
            }
        }
        for (at, path) in paths {
            let spelled = path.join("::");
            let line = rust::line(&code, at);
            let Some(other) = path
                .iter()
                .copied()
                .find(|part| !matches!(*part, "crate" | "super"))
            else {
                continue;
            };
            if other == room
                || other == "supervision"
                || (other == "store" && room != "supervision")
            {
                continue;
            }
            let Some(index) = path.iter().position(|part| *part == other) else {
                continue;
            };
            let is_room = tree
                .iter()
                .any(|file| file.path == format!("actors/{other}/mod.rs"));
            if !is_room {
                continue;
            }
            if room == "supervision" || room == "store" {
                findings.push(format!(
                    "{}:{line}: {room} must not know the room in {spelled}",
                    source.path
                ));
                continue;
            }
            if place(other) >= place(room) {
                findings.push(format!(
                    "{}:{line}: {spelled} is not below {room} in the order",
                    source.path
                ));
            }
            let item = path.get(index + 1).copied().unwrap_or("*");
            let is_module = item.starts_with(|first: char| first.is_ascii_lowercase());
            if item == "*" || (is_module && !matches!(item, "messages" | "handle")) {
                findings.push(format!(
                    "{}:{line}: {spelled} is neither handle nor message value",
                    source.path
                ));
            } else if let Some(actor) = file(tree, &format!("actors/{other}/actor.rs"))
                && defines(&actor.text, item)
            {
                findings.push(format!(
                    "{}:{line}: {spelled} is defined in {other}'s actor.rs",
                    source.path
                ));
            }
        }
    }
    findings
}

fn defines(text: &str, item: &str) -> bool {
    let code = rust::code(text);
    let words: Vec<&str> = rust::words(&code).map(|(_, word)| word).collect();
    words.windows(2).any(|pair| {
        matches!(pair[0], "struct" | "enum" | "type" | "trait" | "fn") && pair[1] == item
    })
}

/// Only supervision/ names ractor; only handle.rs files send.
fn sending(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for source in tree
        .iter()
        .filter(|source| source.is_rust() && !source.is_test())
    {
        let in_room = source.room();
        if in_room == Some("supervision") || !(in_room.is_some() || source.path.starts_with("src/"))
        {
            continue;
        }
        let code = rust::shipped(&source.text);
        // Only a raw handle's calls are sends (sockets and tables of methods have calls of their own), and a file gets
        // one by its type's name or as its room's own.
        let may_send = rust::has_word(&code, "myself")
            || rust::paths(&code, &["crate", "portcullis_actors", "supervision"])
                .iter()
                .any(|(_, path)| matches!(path[..], [.., "supervision", "Handle" | "*"]));
        for (at, word) in rust::words(&code) {
            let line = rust::line(&code, at);
            if word == "ractor" {
                findings.push(format!(
                    "{}:{line}: only supervision/ names ractor",
                    source.path
                ));
            }
            let is_method = code[..at].trim_end().ends_with('.');
            let is_called = code[at + word.len()..].trim_start().starts_with(['(', ':']);
            if matches!(word, "call" | "tell" | "cast")
                && is_method
                && is_called
                && may_send
                && !source.path.ends_with("/handle.rs")
            {
                findings.push(format!(
                    "{}:{line}: .{word}( belongs in a handle.rs",
                    source.path
                ));
            }
        }
    }
    findings
}

#[test]
fn crates_depend_one_way_only() {
    none(&manifests(&tree()));
}

#[test]
fn code_names_only_what_its_crate_may_use() {
    none(&code_paths(&tree()));
}

#[test]
fn rooms_know_only_handles_and_messages_of_rooms_below() {
    none(&room_paths(&tree()));
}

#[test]
fn only_supervision_names_ractor_and_only_handles_send() {
    none(&sending(&tree()));
}

#[test]
fn a_manifest_that_points_upward_is_found() {
    let bad = |path: &str, text: &str| manifests(&[Source::new(path, text)]);
    found(
        &bad(
            "core/Cargo.toml",
            "[dependencies]\nportcullis-actors.workspace = true",
        ),
        "must not have",
    );
    found(
        &bad(
            "core/Cargo.toml",
            "[dependencies]\nx = { package = \"portcullis-cell\" }",
        ),
        "must not have",
    );
    found(
        &bad("core/Cargo.toml", "[dependencies]\ntokio = \"1\""),
        "not among",
    );
    found(
        &bad("cell/Cargo.toml", "[dependencies]\nrustix = \"1\""),
        "must be optional",
    );
    found(
        &bad(
            "actors/Cargo.toml",
            "[dev-dependencies]\nportcullis.workspace = true",
        ),
        "must not have",
    );
    found(
        &bad("actors/Cargo.toml", "no manifest"),
        "actors/Cargo.toml",
    );
    none(&bad(
        "actors/Cargo.toml",
        "[dependencies]\nportcullis-core.workspace = true",
    ));
}

#[test]
fn a_use_line_that_points_upward_is_found() {
    let bad = |path: &str, text: &str| code_paths(&[Source::new(path, text)]);
    found(
        &bad("core/plan.rs", "use portcullis_actors::audit::AuditHandle;"),
        "must not name",
    );
    found(
        &bad("cell/src/lib.rs", "fn f() { portcullis_core::ids::new() }"),
        "must not name",
    );
    found(
        &bad("actors/vault/actor.rs", "use portcullis::tree;"),
        "must not name",
    );
    found(
        &bad("core/plan.rs", "use std::{fmt, time::{Duration, Instant}};"),
        "std::time::Instant",
    );
    found(
        &bad("core/plan.rs", "fn f() { std::fs::read(\"x\"); }"),
        "std::fs::read",
    );
    none(&bad(
        "core/plan.rs",
        "// std::fs::read\nuse std::time::Duration;\n#[cfg(test)]\nmod tests { use std::fs; }",
    ));
    none(&bad(
        "src/main.rs",
        "use portcullis::tree; use portcullis_actors::audit::AuditHandle;",
    ));
}

#[test]
fn a_room_that_looks_into_another_is_found() {
    let look = |path: &str, text: &str| {
        room_paths(&[
            Source::new("actors/audit/mod.rs", ""),
            Source::new("actors/audit/actor.rs", "pub struct Audit { }"),
            Source::new("actors/vault/mod.rs", ""),
            Source::new("actors/exec/mod.rs", ""),
            Source::new(path, text),
        ])
    };
    found(
        &look("actors/vault/actor.rs", "use crate::audit::actor::Audit;"),
        "neither handle nor message",
    );
    found(
        &look("actors/vault/actor.rs", "use crate::audit::Audit;"),
        "actor.rs",
    );
    found(
        &look("actors/vault/actor.rs", "use crate::audit::*;"),
        "neither handle nor message",
    );
    found(
        &look(
            "actors/vault/actor.rs",
            "use super::super::audit::writer::Disk;",
        ),
        "neither handle nor message",
    );
    found(
        &look("actors/vault/actor.rs", "use crate::{exec::ExecHandle};"),
        "not below",
    );
    found(
        &look(
            "actors/supervision/slot.rs",
            "use crate::audit::AuditHandle;",
        ),
        "must not know",
    );
    none(&look(
        "actors/vault/actor.rs",
        "use crate::audit::{AuditHandle, messages::Entry};\nuse crate::supervision::Room;",
    ));
    none(&look(
        "actors/exec/actor.rs",
        "use super::messages::X; use crate::vault::VaultHandle; use crate::store::Store;",
    ));
}

#[test]
fn a_send_outside_a_handle_is_found() {
    let send = |path: &str, text: &str| sending(&[Source::new(path, text)]);
    let call = "use crate::supervision::{Ctx, Handle};\nself.audit.call(x, y)";
    found(&send("actors/vault/actor.rs", call), ".call(");
    let tell = "let me = ctx.myself();\nme\n    .tell(Msg::A)";
    found(&send("actors/vault/actor.rs", tell), ".tell(");
    let raw = "use portcullis_actors::{audit::A, supervision::Handle};\nhandle.call::<u8>(x)";
    found(&send("src/edge/mod.rs", raw), ".call(");
    let ractor = "use ractor::registry;";
    found(&send("actors/vault/actor.rs", ractor), "only supervision/");
    none(&send("src/cli/status.rs", "socket.call(x)"));
    none(&send("actors/connection/answer.rs", "methods.call(x)"));
    none(&send("actors/vault/handle.rs", call));
    none(&send(
        "actors/supervision/shell.rs",
        "use ractor::Actor; use super::Handle; a.cast(b)",
    ));
    none(&send(
        "actors/vault/actor.rs",
        "// me.tell(x)\nuse crate::supervision::Handle;\nfn call() { call() }",
    ));
}
