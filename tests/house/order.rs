//! The one order: who starts before whom, and so who may call whom.

use super::rust;
use super::{Source, file, found, none, room_names, tree};

/// Start order. What stands later may call what stands earlier, never the other way round. `nodes` and `orchestrator` have
/// their places before they are built.
pub const ORDER: &[&str] = &[
    "store",
    "audit",
    "vault",
    "sinks",
    "pairing",
    "signing",
    "auth",
    "sandbox_pool",
    "nodes",
    "approval",
    "exec",
    "notices",
    "orchestrator",
    "dashboard",
    "edge",
    "connection",
];
/// No rooms of the tree: the store has its own threads, connections are the edge's children.
const NOT_PLANTED: &[&str] = &["store", "connection"];

/// The place of a room in the order.
pub fn place(room: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == room)
}

/// `src/tree.rs` states the order as `const ORDER: &[&str]`, every room has a place in it, and `plant` keeps it.
fn findings(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for room in room_names(tree) {
        if place(room).is_none() {
            findings.push(format!("actors/{room}: has no place in the order"));
        }
    }
    let Some(source) = file(tree, "src/tree.rs") else {
        if !room_names(tree).is_empty() {
            findings.push("src/tree.rs is missing, and there are rooms".to_owned());
        }
        return findings;
    };
    let built: Vec<&str> = ORDER
        .iter()
        .copied()
        .filter(|name| {
            ["actors", "src"]
                .iter()
                .any(|above| file(tree, &format!("{above}/{name}/mod.rs")).is_some())
        })
        .collect();
    match stated(&source.text) {
        None => findings.push("src/tree.rs: no `const ORDER: &[&str] = &[...]`".to_owned()),
        Some(names) if names != built => {
            findings.push(format!("src/tree.rs: ORDER is {names:?}, not {built:?}"));
        }
        Some(_) => {}
    }
    let rooms: Vec<&str> = built
        .into_iter()
        .filter(|name| !NOT_PLANTED.contains(name))
        .collect();
    let planted = planted(&source.text);
    if planted != rooms {
        findings.push(format!("src/tree.rs: plants {planted:?}, not {rooms:?}"));
    }
    findings
}

/// The rooms in the order in which they are added to the tree: `VaultHandle::add(&mut tree, ..)`, `tree.room::<Vault>(..)`.
fn planted(text: &str) -> Vec<String> {
    let code = rust::shipped(text);
    let (offsets, words): (Vec<usize>, Vec<&str>) = rust::words(&code).unzip();
    let added = words
        .windows(4)
        .zip(&offsets)
        .filter(|(w, _)| w[1..] == ["add", "mut", "tree"])
        .filter_map(|(w, at)| Some((at, w[0].strip_suffix("Handle")?)));
    let placed = words
        .windows(3)
        .zip(&offsets)
        .filter(|(w, _)| w[..2] == ["tree", "room"])
        .map(|(w, at)| (at, w[2]));
    let mut rooms: Vec<_> = added.chain(placed).collect();
    rooms.sort_unstable();
    rooms.into_iter().map(|(_, name)| noun(name)).collect()
}

/// `SandboxPool` is `sandbox_pool`.
fn noun(name: &str) -> String {
    let mut noun = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !noun.is_empty() {
            noun.push('_');
        }
        noun.push(letter.to_ascii_lowercase());
    }
    noun
}

fn stated(text: &str) -> Option<Vec<String>> {
    let code = rust::code_and_strings(text);
    let list = code
        .split_once("const ORDER: &[&str] = &[")?
        .1
        .split_once(']')?
        .0;
    Some(
        list.split(',')
            .map(|name| name.trim().trim_matches('"').to_owned())
            .filter(|name| !name.is_empty())
            .collect(),
    )
}

#[test]
fn the_tree_states_the_one_order() {
    none(&findings(&tree()));
}

#[test]
fn an_order_turned_round_is_found() {
    let tree = |text: &str| -> Vec<Source> {
        ["store", "audit", "vault"]
            .iter()
            .map(|room| Source::new(&format!("actors/{room}/mod.rs"), ""))
            .chain([Source::new("src/tree.rs", text)])
            .collect()
    };
    let good = "pub const ORDER: &[&str] = &[\"store\", \"audit\", \"vault\"];
        fn plant() { let a = AuditHandle::add(&mut tree, wiring); H::new(tree.room::<Vault>(a)); }";
    none(&findings(&tree(good)));
    let look = |from: &str, to: &str| findings(&tree(&good.replace(from, to)));
    found(
        &look("\"audit\", \"vault\"", "\"vault\", \"audit\""),
        "ORDER is",
    );
    found(&look(", \"vault\"", ""), "ORDER is");
    found(
        &look("AuditHandle::add(&mut tree, wiring)", "1"),
        "plants [\"vault\"]",
    );
    found(
        &look("H::new", "SandboxPoolHandle::add(&mut tree); H::new"),
        "plants [\"audit\", \"sandbox_pool\", \"vault\"]",
    );
    found(&findings(&tree("")), "no `const ORDER");
    let room = Source::new("actors/vault/mod.rs", "");
    found(&findings(&[room]), "src/tree.rs is missing");
    found(
        &findings(&[Source::new("actors/attic/mod.rs", "")]),
        "no place",
    );
}
