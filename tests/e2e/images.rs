//! `portcullis sandbox image`: made on this machine, given to a real engine, used by boxes, and read back byte for byte.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::engine::Engine;
use crate::support::gateway::Gateway;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// With the engine of the gateway's settings, as the command line reads them.
fn image(gateway: &Gateway, words: &[&str]) -> Output {
    let words = [&["sandbox", "image"], words].concat();
    gateway.command(&words).output().unwrap()
}

fn docker_gateway(engine: &Engine) -> Gateway {
    let gateway = Gateway::prepared(&[("sandbox.driver", "docker")]);
    config(&gateway, engine, "");
    gateway
}

fn config(gateway: &Gateway, engine: &Engine, line: &str) {
    let file = gateway.state().join("config.toml");
    let host = engine.host();
    fs::write(&file, format!("[sandbox]\nengine = \"{host}\"\n{line}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn done(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, code: &str, exit: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.starts_with(&format!("error[{code}]: ")), "{said}");
    assert!(said.contains("\nnext: "), "{said}");
    said
}

fn left_over() -> Vec<PathBuf> {
    let entries = fs::read_dir("/var/tmp").unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| text(path.as_os_str().as_encoded_bytes()).contains("portcullis-image-"))
        .collect()
}

#[test]
fn an_image_of_debians_packages_is_built_listed_verified_and_what_a_box_is_made_of() {
    let engine = Engine::start();
    let mut gateway = docker_gateway(&engine);
    // The bug: the default image was taken to be any of the same layer, and a box of it had labels that nobody had asked for.
    for name in ["small-1", "small-2", "small-3"] {
        done(&image(&gateway, &["build", "--name", name, "--json"]));
    }
    gateway.launch();
    let run = gateway.cli(&["exec", "--agent", "demo", "--", "true"]);
    assert!(run.status.success(), "{run:?}");
    gateway.stop();
    let built = image(
        &gateway,
        &[
            "build",
            "--name",
            "tools",
            "--packages",
            "bash,git,python3-minimal",
            "--json",
        ],
    );
    let built = done(&built);
    // Another test may be making one just now.
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !left_over().is_empty() {
        assert!(std::time::Instant::now() < end, "{:?}", left_over());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let id = built["id"].as_str().unwrap().to_owned();
    assert!(
        id.starts_with("sha256:") && built["hasShell"] == true,
        "{built}"
    );
    for name in ["bash ", "git ", "python3-minimal "] {
        assert!(
            built["packages"].as_str().unwrap().contains(name),
            "{built}"
        );
    }
    let list = text(&image(&gateway, &["list"]).stdout);
    assert!(list.contains("tools") && list.contains(&id), "{list}");
    for name in ["tools", &id] {
        let verified = image(&gateway, &["verify", name]);
        assert!(verified.status.success(), "{verified:?}");
        assert!(
            text(&verified.stdout).contains("is what was imported"),
            "{verified:?}"
        );
    }

    config(&gateway, &engine, &format!("image = \"{id}\""));
    gateway.launch();
    let script = "git init -q r && cd r && git config user.email a@b && git config user.name c && \
                  echo x > f && git add f && git commit -qm one && git log --oneline | wc -l; \
                  python3 -c 'print(6 * 7)'; bash -c 'echo $((1 + 1))'; find / -xdev -perm /6000 -type f | wc -l";
    let run = gateway.cli(&[
        "exec", "--agent", "demo", "--json", "--", "bash", "-c", script,
    ]);
    assert!(run.status.success(), "{run:?}\n{}", gateway.log());
    let said = text(&run.stdout);
    assert!(
        said.contains(&id),
        "the box says of what it was made: {said}"
    );
    let run = gateway.cli(&["exec", "--agent", "demo", "--", "bash", "-c", script]);
    let lines: Vec<String> = text(&run.stdout).lines().map(str::to_owned).collect();
    assert_eq!(&lines[lines.len() - 3..], ["42", "2", "0"], "{run:?}");

    // Whoever writes on the engine's disk: into a file, beside it, in its rights, or in its place.
    gateway.stop();
    let layers = engine.folder().join("data/overlay2");
    let git = find(&layers, "diff/usr/bin/git").expect("the layer lies on the engine's disk");
    let beside = git.with_file_name("evil");
    let bytes = fs::read(&git).unwrap();
    let mode = |mode| fs::set_permissions(&git, fs::Permissions::from_mode(mode)).unwrap();
    let altered = |what: &str| {
        let verified = image(&gateway, &["verify", "tools"]);
        assert_eq!(verified.status.code(), Some(10), "{what}: {verified:?}");
        let said = refused(&verified, "IMAGE_ALTERED", 10);
        assert!(said.contains(&id), "{what}: {said}");
    };
    let mut other = bytes.clone();
    other[bytes.len() / 2] ^= 1;
    fs::write(&git, &other).unwrap();
    altered("a bit");
    fs::write(&git, &bytes).unwrap();
    fs::write(&beside, "#!/bin/sh\n").unwrap();
    altered("another file");
    fs::remove_file(&beside).unwrap();
    mode(0o4755);
    altered("rights");
    mode(0o755);
    fs::rename(&git, &beside).unwrap();
    std::os::unix::fs::symlink("evil", &git).unwrap();
    altered("a link in its place");
    fs::remove_file(&git).unwrap();
    fs::rename(&beside, &git).unwrap();
    let verified = image(&gateway, &["verify", "tools"]);
    assert!(verified.status.success(), "{verified:?}");
}

fn find(layers: &Path, below: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(layers).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path().join(below)))
        .find(|path| path.is_file())
}

#[test]
fn a_tar_is_imported_and_what_is_none_is_refused_by_name_and_leaves_nothing() {
    let engine = Engine::shared();
    let mut gateway = docker_gateway(&engine);
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "ls"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/mark"), "of this tar\n").unwrap();
    let tar = folder.path().join("root.tar");
    let made = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&tar)
        .arg(".")
        .status();
    assert!(made.unwrap().success());

    let file = fs::File::open(&tar).unwrap();
    let imported = gateway
        .command(&[
            "sandbox", "image", "import", "-", "--name", "mine", "--json",
        ])
        .stdin(Stdio::from(file))
        .output();
    let imported = done(&imported.unwrap());
    let again = image(
        &gateway,
        &["import", tar.to_str().unwrap(), "--name", "mine", "--json"],
    );
    assert_eq!(done(&again)["rootfs"], imported["rootfs"]);
    let id = imported["id"].as_str().unwrap();
    config(&gateway, &engine, &format!("image = \"{id}\""));
    gateway.launch();
    let run = gateway.cli(&["exec", "--agent", "demo", "--", "cat", "/etc/mark"]);
    assert_eq!(text(&run.stdout), "of this tar\n", "{run:?}");

    let packed = folder.path().join("root.tar.gz");
    fs::write(&packed, b"\x1f\x8b\x08\0\0\0\0\0").unwrap();
    let said = refused(
        &image(
            &gateway,
            &["import", packed.to_str().unwrap(), "--name", "x"],
        ),
        "IMAGE_BUILD",
        8,
    );
    assert!(said.contains("gzip -dc"), "{said}");
    let nowhere = image(&gateway, &["import", "/nowhere/x.tar", "--name", "x"]);
    refused(&nowhere, "IMAGE_BUILD", 8);
    for (words, code, exit) in [
        (&["build", "--name", "X"][..], "INVALID_PARAMS", 2),
        (
            &["build", "--name", "x", "--packages", "bash,--foreign"],
            "INVALID_PARAMS",
            2,
        ),
        (&["verify", "nobodys"], "IMAGE_UNUSABLE", 8),
    ] {
        refused(&image(&gateway, words), code, exit);
    }
    let list = text(&image(&gateway, &["list"]).stdout);
    assert!(!list.contains(" x ") && list.contains("mine"), "{list}");

    // Of the static busybox alone: the default image's very bytes under another name.
    let built = done(&image(&gateway, &["build", "--name", "small", "--json"]));
    let verified = image(&gateway, &["verify", "small"]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(list.contains("(the default)"), "{list}");
    let list = text(&image(&gateway, &["list", "--json"]).stdout);
    let rootfs = built["rootfs"].as_str().unwrap();
    assert_eq!(list.matches(rootfs).count(), 2, "{list}");
}

#[test]
fn without_an_engine_an_image_command_says_how_to_get_one() {
    let gateway = Gateway::prepared(&[]);
    let file = gateway.state().join("config.toml");
    fs::write(
        &file,
        "[sandbox]\nengine = \"unix:///nonexistent/docker.sock\"\n",
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let said = refused(&image(&gateway, &["list"]), "NO_DRIVER", 8);
    assert!(said.contains("apt-get install docker.io"), "{said}");
}
