//! The same suite behind Podman that runs without root, as the gateway's own ordinary user does; and why Docker without root is refused.
//! Where they are (`cargo xtask long cgroup2`); elsewhere nothing is tried.

#[path = "../../../tests/support/rootless.rs"]
#[allow(dead_code)]
mod service;

use std::path::Path;
use std::sync::Arc;

use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, ExecConfig, HostConfig, Mount, MountType};
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use futures_util::StreamExt as _;

use super::harness::{Live, State, below};
use crate::sandbox_pool::containers::Containers;
use crate::sandbox_pool::driver::{Driver, DriverError};
use crate::sandbox_pool::link::Listener;
use crate::sandbox_pool::spec::{CELL_INSIDE, RUN_INSIDE};
use crate::sandbox_pool::{Docker, EngineConfig, image, mapped, probe};
use service::{Kind, Rootless};

async fn connect(engine: &Rootless, state: &State) -> Result<Docker, DriverError> {
    let config = EngineConfig {
        engine: Some(engine.host()),
        ..EngineConfig::default()
    };
    Docker::connect(&state.context, &config).await
}

async fn held(state: &State) -> (Arc<Rootless>, Driver) {
    let engine = Rootless::shared(Kind::Podman);
    let docker = connect(&engine, state).await.unwrap();
    (engine, Driver::Docker(Containers::Here(docker)))
}

promises!(held, service::is_wanted);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_proves_walls() {
    if !service::is_wanted() {
        return;
    }
    let state = State::new();
    let engine = Rootless::shared(Kind::Podman);
    let docker = connect(&engine, &state).await.unwrap();
    let said = docker.describe();
    assert!(
        said.starts_with("Podman ") && said.contains(" without root at "),
        "{said}"
    );
    assert!(docker.seen().facts.keeps_id);
    let driver = Driver::Docker(Containers::Here(docker));
    probe::prove(&driver, &state.context, true).await.unwrap();
}

/// Whoever a process in such a box could become, it is nobody of this machine but the gateway's user; and what a box must not have is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_of_podman_without_root_has_the_gateways_user_and_none_of_the_machines() {
    if !service::is_wanted() {
        return;
    }
    let state = State::new();
    let (_engine, driver) = held(&state).await;
    let mut live = Live::start(&driver, state.spec("maps")).await;
    let (uid, gid) = (state.context.uid, state.context.gid);
    assert_ne!(uid, 0);
    let said = live.run("id -u; id -g").await.out;
    assert_eq!(said, format!("{uid}\n{gid}\n"));
    let init = live.started.init_pid;
    for pid in below(init).into_iter().chain([init]) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        for (name, id) in [("Uid:\t", uid), ("Gid:\t", gid)] {
            if let Some(ids) = status.lines().find_map(|line| line.strip_prefix(name)) {
                assert_eq!(ids, format!("{id}\t{id}\t{id}\t{id}"));
            }
        }
    }
    assert_eq!(mapped::users(init, [uid, gid], true), Ok(()));
    // The same box is none of an engine with root, nor another gateway's.
    for (own, keeps_id) in [([uid, gid], false), ([uid + 1, gid], true)] {
        let refused = mapped::users(init, own, keeps_id).unwrap_err();
        assert!(refused.contains("uid_map is not as asked"), "{refused}");
    }
    // Nobody else can be become, nor made an owner.
    for script in [
        "touch f && chown 0:0 f",
        "touch f && chown 1:1 f",
        "unshare -U true",
        "unshare -r true",
        "mknod n c 1 3",
        "setpriv --reuid 0 true",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "mkdir /sys/fs/cgroup/more",
        "echo max > /sys/fs/cgroup/memory.max",
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /",
        "echo x > /dev/x",
        "ls /proc/1/fd",
    ] {
        let ended = live.run(script).await;
        assert_ne!(ended.exit().code, Some(0), "{script}: {ended:?}");
    }
    live.stop().await;
}

/// The one thing that a box of Docker's without root would not hold, seen in such a container with all its walls: its user is the root of its
/// namespace, and to that belongs what the kernel keeps from others of a process that is not dumpable, as the cell is (proc(5)).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_without_root_is_refused_for_its_boxes_user_may_list_the_descriptors_of_their_supervisors()
 {
    if !service::is_wanted() {
        return;
    }
    let state = State::new();
    let engine = Rootless::shared(Kind::Docker);
    let refused = connect(&engine, &state).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("NO_DRIVER") && refused.contains("list the descriptors"),
        "{refused}"
    );
    let version = bollard::API_DEFAULT_VERSION;
    let raw = bollard::Docker::connect_with_unix(&engine.host(), 60, version).unwrap();
    let raw = raw.negotiate_version().await.unwrap();
    let config = EngineConfig::default();
    let image = image::ensure(&raw, &config.busybox).await.unwrap();
    // The cell ends where nobody listens at its first call.
    let spec = state.spec("listed");
    let _listener = Listener::bind(&spec.run_dir, spec.gid).unwrap();
    let mount = |source: &Path, target: &str| Mount {
        target: Some(target.to_owned()),
        source: source.to_str().map(str::to_owned),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Mount::default()
    };
    let asked = ContainerCreateBody {
        image: Some(image.id),
        user: Some("0:0".to_owned()),
        entrypoint: Some(
            [CELL_INSIDE, "box", "--nonce", "00", "--dead-man", "3600"]
                .map(str::to_owned)
                .to_vec(),
        ),
        host_config: Some(HostConfig {
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            readonly_rootfs: Some(true),
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![
                mount(&spec.cell, CELL_INSIDE),
                mount(&spec.run_dir, RUN_INSIDE),
            ]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let id = raw.create_container(None, asked).await.unwrap().id;
    raw.start_container(&id, None).await.unwrap();
    let run = async |script: &str| {
        let config = ExecConfig {
            cmd: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
            user: Some("0:0".to_owned()),
            attach_stdout: Some(true),
            ..ExecConfig::default()
        };
        let exec = raw.create_exec(&id, config).await.unwrap().id;
        let started = raw.start_exec(&exec, None::<StartExecOptions>);
        let StartExecResults::Attached { mut output, .. } = started.await.unwrap() else {
            panic!("not attached");
        };
        let mut said = String::new();
        while let Some(part) = output.next().await {
            said.push_str(&part.unwrap().to_string());
        }
        said
    };
    // Until the cell has made itself so.
    let mut status = String::new();
    for _ in 0..50 {
        status = run("cat /proc/1/environ > /dev/null 2>&1 || echo closed").await;
        if status == "closed\n" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(status, "closed\n");
    let caps = run("grep -E '^(CapBnd|NoNewPrivs):' /proc/self/status").await;
    assert!(
        caps.contains("0000000000000000") && caps.contains("NoNewPrivs:\t1"),
        "{caps}"
    );
    let listed = run("ls /proc/1/fd").await;
    assert!(
        listed.contains('0') && !listed.contains("denied"),
        "{listed}"
    );
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    raw.remove_container(&id, Some(options)).await.unwrap();
}
