//! What is refused, and what it says.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use portcullis_actors::sandbox_pool::EngineConfig;
use portcullis_actors::sandbox_pool::docker::Docker;
use portcullis_actors::sandbox_pool::driver::DriverError;
use portcullis_actors::sandbox_pool::spec::BoxSpec;

use super::GID;
use super::STAYS;
use super::Scene;
use super::UID;

#[tokio::test]
async fn a_box_whose_cell_does_not_run_fails_and_leaves_nothing() {
    for cell in [
        "#!/bin/sh\nexit 9\n",
        "#!/no/such/interpreter\n",
        "not a program",
    ] {
        let mut scene = Scene::new("stillborn", cell);
        let driver = scene.driver().await;
        let spec = scene.spec();
        let refused = driver.start(&spec).await.unwrap_err();
        assert_eq!(refused.code(), "BOX_START_FAILED", "{refused}");
        assert!(
            !refused.to_string().contains("not seen on this machine"),
            "{refused}"
        );
        assert_eq!(driver.list("stillborn").await.unwrap(), [], "{cell:?}");
    }
}

#[tokio::test]
async fn what_no_box_may_be_is_refused_before_the_engine_is_asked() {
    let mut scene = Scene::new("refused", STAYS);
    let driver = scene.driver().await;
    let good = scene.spec();
    let link = scene.context.workspaces.join("link");
    symlink(&good.workspace, &link).unwrap();
    let root = scene.folder.path().canonicalize().unwrap();
    let changed = |change: &dyn Fn(&mut BoxSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    let cases: Vec<(&str, BoxSpec)> = vec![
        ("root", changed(&|s| s.uid = 0)),
        ("root's group", changed(&|s| s.gid = 0)),
        (
            "another owner",
            changed(&|s| s.owner = "somebody".to_owned()),
        ),
        ("no memory limit", changed(&|s| s.limits.memory_bytes = 0)),
        ("no pids limit", changed(&|s| s.limits.pids = 0)),
        ("no processor limit", changed(&|s| s.limits.cpu_millis = 0)),
        ("a link", changed(&|s| s.workspace = link.clone())),
        (
            "dots",
            changed(&|s| s.workspace = good.workspace.join("../../run")),
        ),
        ("missing", changed(&|s| s.workspace = root.join("no"))),
        (
            "the whole machine",
            changed(&|s| s.workspace = PathBuf::from("/")),
        ),
        (
            "the machine's settings",
            changed(&|s| s.workspace = PathBuf::from("/etc")),
        ),
        ("a file", changed(&|s| s.workspace = s.cell.clone())),
        (
            "the gateway's state",
            changed(&|s| s.workspace = root.clone()),
        ),
        ("no cell", changed(&|s| s.cell = root.join("no"))),
    ];
    for (what, spec) in cases {
        let refused = driver.start(&spec).await.expect_err(what);
        assert_eq!(refused.code(), "BOX_START_FAILED", "{what}: {refused}");
    }
    assert_eq!(driver.list("refused").await.unwrap(), []);
    // The state directory of a gateway that runs as the box's own user is no workspace either.
    chown(&root, Some(UID), Some(GID)).unwrap();
    let refused = driver
        .start(&changed(&|s| s.workspace = root.clone()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("own files"), "{refused}");
}

#[tokio::test]
async fn an_engine_that_cannot_be_used_is_refused_with_what_to_do() {
    let scene = Scene::new("unusable", STAYS);
    let folder = scene.folder.path().display().to_string();
    let dynamic = scene.folder.path().join("dynamic");
    fs::copy("/bin/ls", &dynamic).unwrap();
    let file = scene.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let engine = |engine: &str| EngineConfig {
        engine: Some(engine.to_owned()),
        ..EngineConfig::default()
    };
    let env = |host: &str| EngineConfig {
        docker_host: Some(host.to_owned()),
        ..EngineConfig::default()
    };
    let busybox = |path: PathBuf| EngineConfig {
        busybox: path,
        ..scene.config()
    };
    for (config, says) in [
        (
            engine(&format!("unix://{folder}/none")),
            "apt-get install docker.io",
        ),
        (
            engine(&format!("unix://{}", file.display())),
            "systemctl start docker",
        ),
        (
            engine("tcp://127.0.0.1:2375"),
            "only an engine on this machine",
        ),
        (env("ssh://root@host"), "unset DOCKER_HOST"),
        (env("http://h"), "only an engine on this machine"),
        (
            engine("npipe:////./pipe/docker_engine"),
            "only an engine on this machine",
        ),
        (
            busybox(scene.folder.path().join("none")),
            "apt-get install busybox-static",
        ),
        (busybox(dynamic), "apt-get install busybox-static"),
    ] {
        let refused: DriverError = Docker::connect(&scene.context, &config).await.unwrap_err();
        assert_eq!(refused.code(), "NO_DRIVER");
        assert!(refused.to_string().contains(says), "{refused}");
    }
    // The config was written for this program: it wins over the environment.
    let both = EngineConfig {
        docker_host: Some("tcp://10.0.0.1:2375".to_owned()),
        ..scene.config()
    };
    Docker::connect(&scene.context, &both).await.unwrap();
}
