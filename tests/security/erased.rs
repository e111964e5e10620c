//! What was taken from the vault is in no file of the store when the answer is there: not in the rows, and not in what the
//! database keeps to be written into them. Of a running gateway: that is when its state is copied.

use crate::support::gateway::Gateway;

/// Every file of the store, as a thief copies them now.
fn copied(gateway: &Gateway) -> Vec<u8> {
    let mut all = Vec::new();
    for name in ["state.db", "state.db-wal", "state.db-journal"] {
        all.extend(std::fs::read(gateway.state().join(name)).unwrap_or_default());
    }
    all
}

fn holds(gateway: &Gateway, text: &[u8]) -> bool {
    copied(gateway).windows(text.len()).any(|part| part == text)
}

/// The bug: the header as it was before stood in the write-ahead log, and the recovery code that had been removed opened the
/// secrets of the new root key.
#[test]
fn a_removed_unlocker_and_a_removed_secret_are_in_no_file_of_the_store() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let set = |name: &str| assert_eq!(gateway.feed(&["vault", "set", name], b"a secret"), 0);
    set("KEPT_ONE");
    set("REMOVED_ONE");
    let made = gateway.json(&["vault", "unlockers", "add", "recovery"]);
    let id = made["unlocker"].as_str().unwrap().as_bytes();
    // That the search finds it is shown first.
    assert!(holds(&gateway, id) && holds(&gateway, b"REMOVED_ONE"));
    let of = std::str::from_utf8(id).unwrap();
    gateway.json(&["vault", "unlockers", "remove", of]);
    assert!(!holds(&gateway, id), "the unlocker");
    gateway.json(&["vault", "rm", "REMOVED_ONE"]);
    assert!(!holds(&gateway, b"REMOVED_ONE"), "the secret");
    assert!(holds(&gateway, b"KEPT_ONE"));
    gateway.json(&["vault", "rekey"]);
    assert!(!holds(&gateway, id), "after new keys");
}
