//! What a gateway's process keeps in memory: no core file, no look at it by its own user, its root key out of swap.

use std::os::unix::fs::MetadataExt as _;

use crate::support::gateway::Gateway;

/// A line of `/proc/PID/status` or `limits`, without its name.
fn line(gateway: &Gateway, file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/{file}", gateway.pid())).unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_default().trim().to_owned()
}

#[test]
fn a_gateways_memory_is_in_no_core_file_and_its_own_user_may_not_look_at_it() {
    // One that is not root: what the kernel lets others see of it belongs to root then.
    let require = [("sandbox.require_cgroup", "false")];
    let mut gateway = Gateway::prepared(&require).run_by(65_532);
    gateway.launch();
    let core = line(&gateway, "limits", "Max core file size");
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "bytes"]
    );
    let uid = |file: &str| {
        let path = format!("/proc/{}/{file}", gateway.pid());
        std::fs::metadata(path).unwrap().uid()
    };
    assert_eq!((uid("mem"), uid("environ")), (0, 0));
    let owner = line(&gateway, "status", "Uid:");
    assert_eq!(owner.split_whitespace().next(), Some("65532"));
    let mut look = std::process::Command::new("/bin/cat");
    {
        use std::os::unix::process::CommandExt as _;
        look.uid(65_532).gid(65_532);
    }
    let seen = look
        .arg(format!("/proc/{}/environ", gateway.pid()))
        .output()
        .unwrap();
    assert!(!seen.status.success() && seen.stdout.is_empty());
}

#[test]
fn the_root_key_is_locked_in_memory_while_the_vault_is_open_and_gone_when_it_is_sealed() {
    let gateway = Gateway::start();
    gateway.vault_is_open();
    let locked = || {
        let text = line(&gateway, "status", "VmLck:");
        let kib = text.split_whitespace().next().unwrap_or_default();
        kib.parse::<u64>().unwrap()
    };
    assert!(locked() > 0);
    assert_eq!(gateway.json(&["vault", "status"])["isLockedInMemory"], true);
    gateway.json(&["vault", "seal"]);
    assert_eq!(locked(), 0);
    gateway.json(&["vault", "unlock"]);
    assert!(locked() > 0);
}
