//! What an agent writes into its workspace configures nothing, wherever the gateway and its command line are started; and no
//! setting opens a box.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::gateway::Gateway;

/// In the agent's folder: every name under which others look for settings, with one of ours that would be seen.
const PLANT: &str = r"
set -e
cat > .env <<'END'
PORTCULLIS__EXEC__RUNS_PER_AGENT=3
PORTCULLIS_STATE_DIR=/workspace/state
PORTCULLIS_IDENTITY_FILE=/workspace/key
PORTCULLIS_GATEWAY_TOKEN=planted-by-an-agent-0123456789abcdef
PORTCULLIS_SOCKET=/workspace/s
STATE_DIRECTORY=/workspace/state
XDG_CONFIG_HOME=/workspace
DOCKER_HOST=unix:///workspace/s
RUST_LOG=trace
PATH=/workspace
LD_PRELOAD=/workspace/x.so
END
cp .env .env.local
cp .env .envrc
mkdir -p .config/portcullis .portcullis config state
for name in config.toml portcullis.toml .portcullis.toml default.toml config/default.toml \
    .config/portcullis/config.toml .portcullis/config.toml state/config.toml; do
    printf '[exec]\nruns_per_agent = 3\n' > $name
    chmod 600 $name
done
printf '#!/bin/sh\nexit 0\n' > bwrap
chmod 755 bwrap
";

fn runs_per_agent(shown: &Value) -> &Value {
    &shown["config"]["exec"]["runs_per_agent"]
}

#[test]
fn nothing_in_a_workspace_configures_the_gateway_or_its_command_line() {
    let mut gateway = Gateway::start();
    let planted = gateway.cli(&["exec", "--agent", "demo", "--", "sh", "-c", PLANT]);
    assert!(planted.status.success(), "{planted:?}");
    let workspace = gateway.state().join("workspaces/demo");
    assert!(workspace.join("state/config.toml").exists());
    let before = gateway.json(&["config", "show"]);
    assert_eq!(*runs_per_agent(&before), 16, "{before}");
    assert_eq!(gateway.stop(), 0);
    // Both in that very folder.
    let mut daemon = gateway.daemon();
    daemon.current_dir(&workspace);
    gateway.launch_as(daemon).unwrap();
    let mut show = gateway.command(&["config", "show", "--json"]);
    let shown = show.current_dir(&workspace).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown, before);
    // And boxes are still boxes.
    let exec = ["exec", "--agent", "demo", "--", "cat", "/proc/self/status"];
    let run = gateway.command(&exec).current_dir(&workspace).output();
    let run = String::from_utf8(run.unwrap().stdout).unwrap();
    assert!(run.contains("CapEff:\t0000000000000000\n"), "{run}");
    assert!(!workspace.join("state/state.db").exists());
    // That these lines would count: as variables of whoever starts it they do.
    gateway.stop();
    gateway.set("exec.runs_per_agent", "3");
    gateway.launch();
    assert_eq!(*runs_per_agent(&gateway.json(&["config", "show"])), 3);
}

/// What was configured elsewhere, and what let a box out.
const OPENS: [&str; 18] = [
    "network = \"host\"",
    "network = \"bridge\"",
    "network = \"container:gateway\"",
    "binds = [\"/:/host\"]",
    "binds = [\"/var/run/docker.sock:/s\"]",
    "mounts = [\"/etc\"]",
    "volumes_from = [\"gateway\"]",
    "privileged = true",
    "cap_add = [\"SYS_ADMIN\"]",
    "devices = [\"/dev/mem\"]",
    "seccomp_profile = \"unconfined\"",
    "apparmor_profile = \"unconfined\"",
    "security_opt = [\"seccomp=unconfined\"]",
    "pid = \"host\"",
    "ipc = \"host\"",
    "userns = \"host\"",
    "read_only_root = false",
    "uid = 0",
];

#[test]
fn no_setting_opens_a_box() {
    let gateway = Gateway::prepared(&[]);
    let path = gateway.state().join("config.toml");
    for section in ["[sandbox]", "[agents.demo.sandbox]"] {
        for line in OPENS {
            std::fs::write(&path, format!("{section}\n{line}\n")).unwrap();
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, private).unwrap();
            let (code, said) = gateway.refused();
            assert_ne!(code, 0, "{section} {line}");
            assert!(said.contains("CONFIG_INVALID"), "{section} {line}: {said}");
        }
    }
}
