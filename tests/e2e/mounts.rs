//! What a profile gives a box besides its limits, by real gateways on both drivers: mounts, system calls, a runtime.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

/// Exit code and the last word on a run of an agent's.
fn run(gateway: &Gateway, agent: &str, script: &str) -> (i32, Value) {
    let args = ["exec", "--json", "--agent", agent, "--", "sh", "-c", script];
    let output = gateway.cli(&args);
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    let said = serde_json::from_str(last).unwrap_or_else(|_| panic!("{text} {:?}", output.stderr));
    (output.status.code().unwrap(), said)
}

fn refused(gateway: &Gateway, agent: &str, code: &str) -> String {
    let (exit, said) = run(gateway, agent, "true");
    assert_eq!(
        (exit, &said["error"]["code"]),
        (125, &json!(code)),
        "{said}"
    );
    assert!(
        !said["error"]["hint"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
    );
    let explained = gateway.json(&["sandbox", "explain", "--agent", agent]);
    assert_eq!(explained["refused"]["code"], code);
    said["error"]["message"].as_str().unwrap().to_owned()
}

/// Below `/srv`, whose parents are root's alone: nothing below a folder that everybody may change is mounted.
fn host_folder() -> tempfile::TempDir {
    fs::create_dir_all("/srv").unwrap();
    let folder = tempfile::Builder::new()
        .prefix("portcullis-test-")
        .tempdir_in("/srv")
        .unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn mounts_hold(gateway: &mut Gateway, at: &Path) {
    let (data, out) = (at.join("data"), at.join("out"));
    for folder in [&data, &out] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(data.join("f"), "from the host").unwrap();
    let entry = |path: &Path, rest: &str| format!("\"{}:{rest}\"", path.display());
    let mounts = [
        entry(&data, "data"),
        entry(&data.join("f"), "file"),
        entry(&out, "out:rw"),
    ];
    gateway.set(
        "agents.demo.sandbox.mounts",
        &format!("[{}]", mounts.join(",")),
    );
    let bad = format!("[{}]", entry(Path::new("/etc/ssl"), "ssl"));
    gateway.set("agents.bold.sandbox.mounts", &bad);
    gateway.launch();
    let explained = gateway.json(&["sandbox", "explain", "--agent", "demo"]);
    let lines = explained["lines"].as_array().unwrap();
    let line = |key: &str| lines.iter().find(|line| line["key"] == key).unwrap();
    assert_eq!(line("mounts")["from"], "[agents.demo.sandbox]");
    assert_eq!(line("mounts")["value"].as_array().unwrap().len(), 3);
    // Root's own is not given to be written.
    let said = refused(gateway, "demo", "MOUNT_REFUSED");
    let uid = said.split("chown -R ").nth(1).unwrap_or_default();
    let uid: u32 = uid.split(':').next().unwrap().parse().expect(&said);
    assert!(
        uid != 0 && said.contains(&format!("chown -R {uid}:{uid} ")),
        "{said}"
    );
    chown(&out, Some(uid), Some(uid)).unwrap();
    let script = "test \"$(cat /mnt/data/f)\" = 'from the host' && test \"$(cat /mnt/file)\" = 'from the host' && \
        ! (echo x > /mnt/data/g) 2>/dev/null && ! (echo x > /mnt/file) 2>/dev/null && ! (echo x > /mnt/new) 2>/dev/null && \
        echo from the box > /mnt/out/h && test \"$(ls /mnt | tr '\\n' ' ')\" = 'data file out '";
    let (code, said) = run(gateway, "demo", script);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read_to_string(out.join("h")).unwrap(), "from the box\n");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    let (code, said) = run(gateway, "other", "test ! -e /mnt/data");
    assert_eq!(code, 0, "what one agent is given is not another's: {said}");
    assert!(refused(gateway, "bold", "MOUNT_REFUSED").contains("/etc"));
    // What was put in its place since is not what an operator named.
    fs::rename(&data, at.join("moved")).unwrap();
    symlink("/etc", &data).unwrap();
    assert!(refused(gateway, "demo", "MOUNT_REFUSED").contains("link"));
    fs::remove_file(&data).unwrap();
    fs::rename(at.join("moved"), &data).unwrap();
    assert_eq!(run(gateway, "demo", script).0, 0);
}

#[test]
fn a_native_box_sees_of_the_host_what_its_profile_mounts() {
    let folder = host_folder();
    let mut gateway = Gateway::prepared(&[]);
    mounts_hold(&mut gateway, folder.path());
    assert!(refused_runtime(&mut gateway).contains("native driver has no runtimes"));
}

#[test]
fn a_container_sees_of_the_host_what_its_profile_mounts() {
    let folder = host_folder();
    let engine = Engine::start_with_second_runtime();
    let host = engine.host();
    let mut gateway = Gateway::prepared(&[("sandbox.driver", "docker"), ("sandbox.engine", &host)]);
    mounts_hold(&mut gateway, folder.path());
    assert!(refused_runtime(&mut gateway).contains("second"));
    gateway.set("agents.demo.sandbox.mounts", "[]");
    gateway.set("agents.demo.sandbox.runtime", "second");
    gateway.stop();
    gateway.launch();
    let (code, said) = run(&gateway, "demo", "echo x > /workspace/y");
    assert_eq!(code, 0, "{said}");
    let id = said["provenance"]["box"].as_str().unwrap();
    let asked = std::process::Command::new("docker")
        .args([
            "--host",
            &host,
            "inspect",
            "--format",
            "{{.HostConfig.Runtime}}",
        ])
        .arg(format!("portcullis-{id}"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&asked.stdout).trim(),
        "second",
        "{asked:?}"
    );
}

fn refused_runtime(gateway: &mut Gateway) -> String {
    gateway.set("agents.odd.sandbox.runtime", "none-of-that-name");
    gateway.stop();
    gateway.launch();
    refused(gateway, "odd", "RUNTIME_UNUSABLE")
}

#[test]
fn a_debugger_looks_into_its_own_run_only_where_the_profile_says_so() {
    let gateway = Gateway::with(&[("agents.dev.sandbox.seccomp", "debug")]);
    let trace = "strace -f -o /tmp/t sh -c 'sleep 0' 2>/tmp/e; code=$?; cat /tmp/e; exit $code";
    let (code, said) = run(&gateway, "dev", trace);
    assert_eq!(code, 0, "{said}");
    let (code, said) = run(&gateway, "demo", trace);
    assert_ne!(code, 0, "{said}");
    // Another run in the same box is out of reach, and so is what holds the box.
    let beside = gateway.cli(&["exec", "--agent", "dev", "--detach", "--", "sleep", "600"]);
    assert!(beside.status.success(), "{beside:?}");
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^sleep 600' && other=${p#/proc/}; done; \
        test -n \"$other\" || exit 9; \
        timeout 5 strace -o /tmp/t -p $other 2>&1 | grep -q 'Operation not permitted' || exit 8; \
        timeout 5 strace -o /tmp/t -p 1 2>&1 | grep -q 'Operation not permitted' || exit 7; \
        sleep 300 & own=$!; timeout 1 strace -o /tmp/t -p $own; test -s /tmp/t || exit 6; kill $own";
    let (code, said) = run(&gateway, "dev", script);
    assert_eq!(code, 0, "{said}");
}
