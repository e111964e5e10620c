//! An engine that lies about one field at a time.

use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{ContainerConfig, DeviceMapping, MountPoint};
use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::{RuntimeName, SystemCalls};

use super::super::mounts::{BoxMount, Node};
use super::super::spec::BoxLimits;
use super::*;

const IMAGE: &str = "sha256:0123";

fn spec() -> BoxSpec {
    BoxSpec {
        id: BoxId::new("0123456789ab").unwrap(),
        whose: crate::sandbox_pool::holder::Whose::Probe,
        workspace: PathBuf::from("/srv/workspaces/demo"),
        access: Access::Rw,
        mounts: Vec::new(),
        runtime: None,
        seccomp: SystemCalls::Strict,
        image: None,
        run_dir: PathBuf::from("/srv/run/b/0123456789ab"),
        cell: PathBuf::from("/srv/run/cell"),
        limits: BoxLimits {
            memory_bytes: 64 << 20,
            cpu_millis: 1500,
            pids: 64,
            open_files: 2048,
        },
        uid: 1000,
        gid: 1001,
        owner: "gateway".to_owned(),
        boot: "boot".to_owned(),
        profile_hash: "profile".to_owned(),
        nonce: "ff".to_owned(),
        dead_man: Duration::from_mins(1),
        egress: false,
    }
}

fn facts() -> EngineFacts {
    EngineFacts {
        version: "1".to_owned(),
        default_runtime: "runc".to_owned(),
        runtimes: vec!["crun".to_owned(), "runc".to_owned()],
        apparmor: true,
        podman: false,
        keeps_id: false,
        cpus: 2,
    }
}

/// What an honest engine says of a request.
fn honest(asked: &ContainerCreateBody) -> ContainerInspectResponse {
    let mut config: ContainerConfig = serde_json::from_value(json(asked)).unwrap();
    let label = (
        super::super::image::ROOTFS_LABEL.to_owned(),
        "ab".to_owned(),
    );
    config.labels.get_or_insert_default().extend([label]);
    let mut host = asked.host_config.clone().unwrap();
    host.runtime.get_or_insert("runc".to_owned());
    host.masked_paths = Some(vec!["/proc/kcore".to_owned()]);
    host.readonly_paths = Some(vec!["/proc/sysrq-trigger".to_owned()]);
    host.console_size = Some(vec![0, 0]);
    host.restart_policy.as_mut().unwrap().maximum_retry_count = Some(0);
    host.binds = Some(Vec::new());
    host.memory_swappiness = None;
    host.blkio_weight = Some(0);
    let mounts = host.mounts.iter().flatten().map(|mount| MountPoint {
        source: mount.source.clone(),
        destination: mount.target.clone(),
        rw: Some(mount.read_only != Some(true)),
        propagation: Some("rprivate".to_owned()),
        ..MountPoint::default()
    });
    ContainerInspectResponse {
        image: Some(IMAGE.to_owned()),
        mounts: Some(mounts.collect()),
        app_armor_profile: Some("docker-default".to_owned()),
        config: Some(config),
        host_config: Some(host),
        ..ContainerInspectResponse::default()
    }
}

#[test]
fn the_request_names_every_ceiling_and_opens_nothing() {
    let asked = request(&spec(), IMAGE, &facts());
    let host = asked.host_config.unwrap();
    assert_eq!(asked.user.as_deref(), Some("1000:1001"));
    assert_eq!(asked.image.as_deref(), Some(IMAGE));
    assert_eq!(host.memory, Some(64 << 20));
    assert_eq!(host.memory_swap, host.memory);
    assert_eq!(host.nano_cpus, Some(1_500_000_000));
    assert_eq!(host.pids_limit, Some(64));
    assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
    assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(
        (host.masked_paths, host.readonly_paths),
        (None, None),
        "an empty list would unmask"
    );
    assert_eq!(host.binds, None);
    let writable: Vec<_> = host
        .mounts
        .iter()
        .flatten()
        .filter(|m| m.read_only != Some(true))
        .collect();
    assert_eq!(writable.len(), 1);
    assert_eq!(writable[0].target.as_deref(), Some("/workspace"));
}

#[test]
fn an_honest_engine_is_believed() {
    let asked = request(&spec(), IMAGE, &facts());
    assert_eq!(
        differences(&asked, &honest(&asked), &facts(), None),
        Vec::<String>::new()
    );
}

#[test]
fn a_runtime_and_mounts_are_asked_for_and_another_runtime_is_a_difference() {
    let mount = |name: &str, access| BoxMount {
        source: PathBuf::from("/srv/x").join(name),
        inside: PathBuf::from("/mnt").join(name),
        access,
        node: Node::default(),
    };
    let spec = BoxSpec {
        runtime: Some(RuntimeName::new("crun").unwrap()),
        seccomp: SystemCalls::Debug,
        mounts: vec![mount("a", Access::Ro), mount("b", Access::Rw)],
        ..spec()
    };
    let asked = request(&spec, IMAGE, &facts());
    let words = asked.entrypoint.clone().unwrap().join(" ");
    assert!(words.contains("--calls debug"), "{words}");
    let host = asked.host_config.clone().unwrap();
    let more: Vec<_> = host.mounts.iter().flatten().skip(1).take(2).collect();
    for (mount, (name, read_only)) in more.into_iter().zip([("a", true), ("b", false)]) {
        assert_eq!(mount.source, Some(format!("/srv/x/{name}")));
        assert_eq!(mount.target, Some(format!("/mnt/{name}")));
        assert_eq!(mount.read_only, Some(read_only));
        let options = mount.bind_options.as_ref().unwrap();
        assert_eq!(options.non_recursive, Some(true));
    }
    let mut said = honest(&asked);
    assert_eq!(
        differences(&asked, &said, &facts(), None),
        Vec::<String>::new()
    );
    said.host_config.as_mut().unwrap().runtime = Some("runc".to_owned());
    let found = differences(&asked, &said, &facts(), None);
    assert!(
        found.len() == 1 && found[0].starts_with("Runtime: "),
        "{found:?}"
    );
}

/// A change that an engine makes, and the name under which it must be reported.
type Lie = (
    &'static str,
    fn(&mut ContainerInspectResponse, &mut HostConfig, &mut ContainerConfig),
);

const LIES: &[Lie] = &[
    ("image", |said, _, _| {
        said.image = Some("sha256:9".to_owned());
    }),
    ("mounts", |said, _, _| {
        said.mounts.as_mut().unwrap()[1].rw = Some(true);
    }),
    ("mounts", |said, _, _| {
        said.mounts.as_mut().unwrap()[0].source = Some("/".to_owned());
    }),
    ("mounts", |said, _, _| {
        said.mounts.as_mut().unwrap()[0].propagation = Some("rshared".to_owned());
    }),
    ("mounts", |said, _, _| {
        said.mounts.as_mut().unwrap().push(MountPoint::default());
    }),
    ("mounts", |said, _, _| said.mounts = None),
    ("AppArmorProfile", |said, _, _| {
        said.app_armor_profile = Some("unconfined".to_owned());
    }),
    ("Privileged", |_, host, _| host.privileged = Some(true)),
    ("CapAdd", |_, host, _| {
        host.cap_add = Some(vec!["SYS_ADMIN".to_owned()]);
    }),
    ("CapDrop", |_, host, _| host.cap_drop = None),
    ("SecurityOpt", |_, host, _| host.security_opt = None),
    ("SecurityOpt", |_, host, _| {
        host.security_opt = Some(vec!["seccomp=unconfined".to_owned()]);
    }),
    ("ReadonlyRootfs", |_, host, _| {
        host.readonly_rootfs = Some(false);
    }),
    ("NetworkMode", |_, host, _| {
        host.network_mode = Some("host".to_owned());
    }),
    ("IpcMode", |_, host, _| {
        host.ipc_mode = Some("host".to_owned());
    }),
    ("PidMode", |_, host, _| {
        host.pid_mode = Some("host".to_owned());
    }),
    ("UTSMode", |_, host, _| {
        host.uts_mode = Some("host".to_owned());
    }),
    ("UsernsMode", |_, host, _| {
        host.userns_mode = Some("host".to_owned());
    }),
    ("CgroupnsMode", |_, host, _| {
        host.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::HOST);
    }),
    ("CgroupParent", |_, host, _| {
        host.cgroup_parent = Some("/".to_owned());
    }),
    ("Memory", |_, host, _| host.memory = Some(0)),
    ("MemorySwap", |_, host, _| host.memory_swap = Some(-1)),
    ("NanoCpus", |_, host, _| host.nano_cpus = None),
    ("PidsLimit", |_, host, _| host.pids_limit = None),
    ("OomKillDisable", |_, host, _| {
        host.oom_kill_disable = Some(true);
    }),
    ("OomScoreAdj", |_, host, _| host.oom_score_adj = Some(-500)),
    ("Ulimits", |_, host, _| host.ulimits = None),
    ("Init", |_, host, _| host.init = Some(true)),
    ("Binds", |_, host, _| {
        host.binds = Some(vec!["/:/host".to_owned()]);
    }),
    ("Mounts", |_, host, _| host.mounts = None),
    ("Tmpfs", |_, host, _| host.tmpfs = None),
    ("Devices", |_, host, _| {
        host.devices = Some(vec![DeviceMapping {
            path_on_host: Some("/dev/mem".to_owned()),
            ..DeviceMapping::default()
        }]);
    }),
    ("VolumesFrom", |_, host, _| {
        host.volumes_from = Some(vec!["other".to_owned()]);
    }),
    ("GroupAdd", |_, host, _| {
        host.group_add = Some(vec!["docker".to_owned()]);
    }),
    ("LogConfig", |_, host, _| {
        host.log_config.as_mut().unwrap().typ = Some("json-file".to_owned());
    }),
    ("RestartPolicy", |_, host, _| {
        host.restart_policy.as_mut().unwrap().name = Some(RestartPolicyNameEnum::ALWAYS);
    }),
    ("Runtime", |_, host, _| {
        host.runtime = Some("other".to_owned());
    }),
    ("MaskedPaths", |_, host, _| host.masked_paths = None),
    ("ReadonlyPaths", |_, host, _| {
        host.readonly_paths = Some(Vec::new());
    }),
    ("Sysctls", |_, host, _| {
        host.sysctls = Some(HashMap::from([("kernel.x".to_owned(), "1".to_owned())]));
    }),
    ("ExtraHosts", |_, host, _| {
        host.extra_hosts = Some(vec!["a:1.2.3.4".to_owned()]);
    }),
    ("User", |_, _, config| config.user = Some("0:0".to_owned())),
    ("User", |_, _, config| config.user = None),
    ("Env", |_, _, config| {
        config
            .env
            .as_mut()
            .unwrap()
            .push("LD_PRELOAD=/workspace/x".to_owned());
    }),
    ("Cmd", |_, _, config| {
        config.cmd = Some(vec!["sh".to_owned()]);
    }),
    ("Entrypoint", |_, _, config| {
        config.entrypoint = Some(vec!["sh".to_owned()]);
    }),
    ("Volumes", |_, _, config| {
        config.volumes = Some(vec!["/data".to_owned()]);
    }),
    ("ExposedPorts", |_, _, config| {
        config.exposed_ports = Some(vec!["80/tcp".to_owned()]);
    }),
    ("PortBindings", |_, host, _| {
        host.port_bindings = Some(HashMap::from([("80/tcp".to_owned(), None)]));
    }),
    ("WorkingDir", |_, _, config| config.working_dir = None),
    ("OpenStdin", |_, _, config| config.open_stdin = Some(true)),
    ("Hostname", |_, _, config| {
        config.hostname = Some("gateway".to_owned());
    }),
    ("labels", |_, _, config| config.labels = None),
    ("Image", |_, _, config| {
        config.image = Some("portcullis/base:latest".to_owned());
    }),
];

#[test]
fn every_single_difference_is_found_and_named() {
    let asked = request(&spec(), IMAGE, &facts());
    for (name, lie) in LIES {
        let mut said = honest(&asked);
        let mut host = said.host_config.take().unwrap();
        let mut config = said.config.take().unwrap();
        lie(&mut said, &mut host, &mut config);
        said.host_config = Some(host);
        said.config = Some(config);
        let found = differences(&asked, &said, &facts(), None);
        assert!(
            found
                .iter()
                .any(|what| what.starts_with(&format!("{name}:"))),
            "{name} in {found:?}"
        );
    }
    assert!(!differences(&asked, &ContainerInspectResponse::default(), &facts(), None).is_empty());
}

#[test]
fn of_podman_without_root_a_box_is_asked_for_that_keeps_the_gateways_user() {
    let podman = EngineFacts {
        podman: true,
        keeps_id: true,
        ..facts()
    };
    let asked = request(&spec(), IMAGE, &podman);
    assert_eq!(asked.user.as_deref(), Some("1000:1001"));
    let host = asked.host_config.as_ref().unwrap();
    assert_eq!(
        (host.userns_mode.as_deref(), &host.ulimits),
        (Some("keep-id"), &None)
    );
    // It says of the namespace only that it is the container's own, and below what its group is.
    let answer = |userns: &str, parent: &str| {
        let mut said = honest(&asked);
        let host = said.host_config.as_mut().unwrap();
        host.userns_mode = Some(userns.to_owned());
        host.cgroup_parent = Some(parent.to_owned());
        let said = super::super::podman::in_dockers_words(&asked, said, &podman);
        differences(&asked, &said, &podman, None)
    };
    assert_eq!(answer("private", "user.slice"), Vec::<String>::new());
    for (userns, parent, name) in [
        ("host", "user.slice", "UsernsMode"),
        ("", "user.slice", "UsernsMode"),
        ("keep-id:uid=0", "user.slice", "UsernsMode"),
        ("private", "/", "CgroupParent"),
        ("private", "system.slice", "CgroupParent"),
    ] {
        let found = answer(userns, parent);
        assert!(
            found.len() == 1 && found[0].starts_with(&format!("{name}:")),
            "{userns} {parent}: {found:?}"
        );
    }
    // With root neither is said of a box.
    let with_root = EngineFacts {
        keeps_id: false,
        ..podman
    };
    let asked = request(&spec(), IMAGE, &with_root);
    let mut said = honest(&asked);
    said.host_config.as_mut().unwrap().userns_mode = Some("private".to_owned());
    let said = super::super::podman::in_dockers_words(&asked, said, &with_root);
    assert_eq!(differences(&asked, &said, &with_root, None).len(), 1);
}
