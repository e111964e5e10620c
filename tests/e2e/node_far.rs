//! A gateway and our own node host on two machines: two network namespaces with a wire between them, and TLS over it.

use super::node_host::{Host, let_in, node};
use super::node_local::{document, signed_run};
use super::remote_cli::token_file;
use crate::support::gateway::Gateway;
use crate::support::net::{NEAR, far};

#[test]
fn our_node_host_on_another_machine_pairs_runs_what_is_allowed_comes_back_and_keeps_its_own_word() {
    let whole = "e2e::node_far::our_node_host_on_another_machine_pairs_runs_what_is_allowed_comes_back_and_keeps_its_own_word";
    let Some(far) = far(whole) else { return };
    let mut gateway = Gateway::with(&[
        ("gateway.bind", "0.0.0.0"),
        ("gateway.tls.enabled", "true"),
        // What asks where it should be refused ends by itself.
        ("approval.timeout_seconds", "60"),
    ]);
    let pin = gateway.json(&["status"])["portcullis"]["tls"]["spkiSha256"].clone();
    let pin = format!("sha256:{}", pin.as_str().unwrap());
    let (url, token) = (
        format!("wss://{NEAR}:{}", gateway.port()),
        token_file(&gateway),
    );
    let words = [
        "node",
        "run",
        "--url",
        &url,
        "--pin",
        &pin,
        "--token-file",
        &token,
        "--name",
        "far",
    ];
    let host = Host::spawned(far.moved(&gateway.command(&words)));

    // It comes from elsewhere: a person lets it in, and another word lets it be asked.
    let log = host.says("portcullis devices approve ");
    let request = log.split("portcullis devices approve ").nth(1).unwrap();
    let request = request.split('`').next().unwrap();
    let pending = gateway.json(&["devices", "list"]);
    assert_eq!(
        pending["pending"][0]["remoteIp"],
        crate::support::net::FAR[0],
        "{pending}"
    );
    gateway.json(&["devices", "approve", request]);
    let id = let_in(&gateway);

    // The wire is the only one that it has: what runs there is not on this machine's network.
    assert_eq!(signed_run(&gateway, &id, &["echo", "far"]), "far\n");
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let there = signed_run(&gateway, &id, &["readlink", "/proc/self/ns/net"]);
    assert!(
        there.starts_with("net:") && there.trim_end() != here.to_str().unwrap(),
        "{there}"
    );

    // The gateway goes and comes.
    assert_eq!(gateway.stop(), 0);
    gateway.keep_port();
    gateway.launch();
    node(&gateway, |n| {
        n["nodeId"] == id.as_str() && n["connected"] == true
    });
    assert_eq!(signed_run(&gateway, &id, &["echo", "again"]), "again\n");

    // And the word of that machine is the last one.
    document(&gateway, "version = 1\n[defaults]\nmode = \"deny\"\n");
    let refused = gateway.cli(&[
        "exec",
        "--agent",
        "demo",
        "--node",
        &id[..12],
        "--",
        "echo",
        "x",
    ]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        said.contains("this node's own document refuses it"),
        "{said}"
    );
}
