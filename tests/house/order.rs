//! The one order: who starts before whom, and so who may call whom.

use super::rust;
use super::{Source, file, found, none, room_names, tree};

/// Start order. What stands later may call what stands earlier, never the other way round.
pub const ORDER: &[&str] = &[
    "store",
    "audit",
    "vault",
    "pairing",
    "auth",
    "sandbox_pool",
    "approval",
    "exec",
    "dashboard",
    "edge",
    "connection",
];

/// The place of a room in the order.
pub fn place(room: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == room)
}

/// `src/tree.rs` states the order as `const ORDER: &[&str]`, and every room has a place in it.
fn findings(tree: &[Source]) -> Vec<String> {
    let mut findings = vec![];
    for room in room_names(tree) {
        if place(room).is_none() {
            findings.push(format!("actors/{room}: has no place in the order"));
        }
    }
    match file(tree, "src/tree.rs") {
        None if room_names(tree).is_empty() => {}
        None => findings.push("src/tree.rs is missing, and there are rooms".to_owned()),
        Some(source) => match stated(&source.text) {
            None => findings.push("src/tree.rs: no `const ORDER: &[&str] = &[...]`".to_owned()),
            Some(names) if names != ORDER => {
                findings.push(format!("src/tree.rs: ORDER is {names:?}, not {ORDER:?}"));
            }
            Some(_) => {}
        },
    }
    findings
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
    let room = Source::new("actors/vault/mod.rs", "");
    let stated = format!("pub const ORDER: &[&str] = &{ORDER:?};");
    none(&findings(&[
        room.clone(),
        Source::new("src/tree.rs", &stated),
    ]));
    let turned = stated.replace("\"audit\", \"vault\"", "\"vault\", \"audit\"");
    found(
        &findings(&[room.clone(), Source::new("src/tree.rs", &turned)]),
        "ORDER is",
    );
    found(
        &findings(&[room.clone(), Source::new("src/tree.rs", "")]),
        "no `const ORDER",
    );
    found(&findings(&[room]), "src/tree.rs is missing");
    found(
        &findings(&[Source::new("actors/attic/mod.rs", "")]),
        "no place",
    );
}
