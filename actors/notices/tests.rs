//! What `[notices]` may say, and what is kept over a restart.

use super::kept::Kept;
use super::*;
use crate::audit::SecretRef;
use crate::plugins::Plugins;
use portcullis_core::ids::ApprovalId;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

fn config(address: &str) -> NoticesConfig {
    NoticesConfig {
        webhook: WebhookConfig {
            address: address.to_owned(),
            key: SecretRef {
                vault: "HOOK".to_owned(),
            },
            ..WebhookConfig::default()
        },
        ..NoticesConfig::default()
    }
}

fn read(config: &NoticesConfig) -> Result<Settings, &'static str> {
    settings(config, &Plugins::default()).map_err(|(key, _)| key)
}

#[test]
fn a_receiver_is_an_https_address_without_a_user_and_its_notices_are_signed() {
    for (address, host, port, path) in [
        ("https://hook.example/x?y=1", "hook.example", 443, "/x?y=1"),
        ("https://hook.example", "hook.example", 443, "/"),
        ("https://[::1]:8443/a", "::1", 8443, "/a"),
        ("https://10.0.0.7:1/", "10.0.0.7", 1, "/"),
    ] {
        let webhook = read(&config(address)).unwrap().webhook.unwrap();
        let found = (webhook.host.as_str(), webhook.port, webhook.path.as_str());
        assert_eq!(found, (host, port, path));
    }
    for bad in [
        "http://hook.example/",
        "https://me@hook.example/",
        "https://hook.example:0/",
        "https:///x",
        "https://hook.example/#x",
        "hook.example",
        "unix:/x",
    ] {
        assert_eq!(read(&config(bad)), Err("webhook.address"), "{bad}");
    }
    assert_eq!(read(&config("")).unwrap().webhook, None);
    let mut unsigned = config("https://hook.example/");
    unsigned.webhook.key = SecretRef::default();
    assert_eq!(read(&unsigned), Err("webhook.key"));
}

#[test]
fn what_was_told_is_kept_and_nothing_is_written_through_what_lies_in_its_place() {
    let state = tempfile::tempdir().unwrap();
    let kept = Kept {
        dir: state.path().join("notices"),
        name: "webhook",
    };
    assert!(kept.read().unwrap().is_empty());
    let ids = |ids: &[&str]| -> BTreeSet<ApprovalId> {
        ids.iter().map(|id| ApprovalId::new(id).unwrap()).collect()
    };
    kept.write(&ids(&["a", "b-1"])).unwrap();
    assert_eq!(kept.read().unwrap(), ids(&["a", "b-1"]));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&kept.dir), 0o700);
    assert_eq!(mode(&kept.dir.join("webhook")), 0o600);
    kept.write(&ids(&[])).unwrap();
    assert!(kept.read().unwrap().is_empty());
    // A link, here and for the folder: nothing behind it is touched or believed.
    let aside = state.path().join("aside");
    std::fs::write(&aside, "c\n").unwrap();
    std::fs::remove_file(kept.dir.join("webhook")).unwrap();
    std::os::unix::fs::symlink(&aside, kept.dir.join("webhook")).unwrap();
    assert!(kept.read().is_err());
    assert!(kept.write(&ids(&["d"])).is_err());
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), "c\n");
    std::fs::remove_dir_all(&kept.dir).unwrap();
    std::os::unix::fs::symlink(state.path(), &kept.dir).unwrap();
    assert!(kept.read().is_err() && kept.write(&ids(&["d"])).is_err());
    // No ids.
    std::fs::remove_file(&kept.dir).unwrap();
    kept.write(&ids(&[])).unwrap();
    std::fs::write(kept.dir.join("webhook"), "a b\n").unwrap();
    assert!(kept.read().is_err());
}
