//! What a container of ours is asked to be, and the comparison with what the engine says it made of that.
//!
//! The request names every limit; the comparison is an allow list: whatever the engine says that was neither asked nor is on
//! [`ENGINE_DEFAULTS`] is a difference, and a difference means that the container is removed before it has ever run.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use serde_json::Value;

use super::spec::{BoxSpec, CELL_INSIDE, HOST_NAME, RUN_INSIDE, WORKSPACE_INSIDE};

/// Label: the gateway that owns the box.
pub const OWNER_LABEL: &str = "portcullis.owner";
/// Label: the box's id.
pub const BOX_LABEL: &str = "portcullis.box";
/// Label: the start of the gateway which made the box.
pub const BOOT_LABEL: &str = "portcullis.boot";
/// Label: digest of the profile it was made with.
pub const PROFILE_LABEL: &str = "portcullis.profile";

/// Open files of each process in a box.
const OPEN_FILES: i64 = 1024;
/// `/dev/shm`, in bytes; counts as memory of the box.
const SHARED_MEMORY: i64 = 64 << 20;
/// The kernel ends a box before the gateway when memory of the whole machine runs out.
const OOM_SCORE: i64 = 500;
/// Files in `/tmp`: inodes cost kernel memory.
const TMP_INODES: u32 = 65_536;

/// What the facts of an engine decide about a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// The engine's version, for people.
    pub version: String,
    /// The runtime that is used when none is asked for.
    pub default_runtime: String,
    /// The engine confines containers with AppArmor.
    pub apparmor: bool,
}

/// The whole request for a box: made from `image` (an image id) and nothing else.
pub fn request(spec: &BoxSpec, image: &str) -> ContainerCreateBody {
    let labels = [
        (OWNER_LABEL, &spec.owner),
        (BOX_LABEL, &spec.id.as_str().to_owned()),
        (BOOT_LABEL, &spec.boot),
        (PROFILE_LABEL, &spec.profile_hash),
    ]
    .map(|(name, value)| (name.to_owned(), value.clone()));
    let env = BoxSpec::cell_env()
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"));
    ContainerCreateBody {
        hostname: Some(HOST_NAME.to_owned()),
        user: Some(format!("{}:{}", spec.uid, spec.gid)),
        env: Some(env.collect()),
        image: Some(image.to_owned()),
        working_dir: Some(WORKSPACE_INSIDE.to_owned()),
        entrypoint: Some(spec.cell_argv()),
        network_disabled: Some(true),
        labels: Some(HashMap::from(labels)),
        host_config: Some(host_config(spec)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &BoxSpec) -> HostConfig {
    let memory = clamped(spec.limits.memory_bytes);
    let limit = |name: &str, value| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    // Exec stays allowed in /tmp: /workspace has it anyway, and `go run`, `pip` and test runners start what they put there.
    let tmp = format!(
        "rw,exec,nosuid,nodev,mode=1777,size={},nr_inodes={TMP_INODES}",
        (memory / 4).max(1 << 20)
    );
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        memory: Some(memory),
        // Equal to memory: otherwise swap doubles it.
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(spec.limits.cpu_millis) * 1_000_000),
        pids_limit: Some(i64::from(spec.limits.pids)),
        ulimits: Some(vec![limit("nofile", OPEN_FILES), limit("core", 0)]),
        shm_size: Some(SHARED_MEMORY.min(memory)),
        oom_score_adj: Some(OOM_SCORE),
        // The cell is pid 1 and reaps by itself.
        init: Some(false),
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        // json-file fills the host's disk.
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp)])),
        mounts: Some(mounts(spec)),
        // masked_paths and readonly_paths stay unset: an empty list would unmask.
        ..HostConfig::default()
    }
}

/// Mounts, not the older `binds`: a missing source is an error instead of a new folder of root's, and a colon in a path means nothing.
fn mounts(spec: &BoxSpec) -> Vec<Mount> {
    [
        (&spec.workspace, WORKSPACE_INSIDE, false),
        (&spec.run_dir, RUN_INSIDE, true),
        (&spec.cell, CELL_INSIDE, true),
    ]
    .into_iter()
    .map(|(source, target, read_only)| Mount {
        target: Some(target.to_owned()),
        source: source.to_str().map(str::to_owned),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    })
    .collect()
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What of a host config the engine may say without having been asked.
const ENGINE_DEFAULTS: [&str; 4] = ["ConsoleSize", "MaskedPaths", "ReadonlyPaths", "Runtime"];

/// Every way in which the engine's container is not the one that was asked for. Empty: it is.
pub fn differences(
    asked: &ContainerCreateBody,
    said: &ContainerInspectResponse,
    facts: &EngineFacts,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |what: &str, asked: Value, said: Value| {
        if asked != said {
            found.push(format!("{what}: asked {asked}, the engine says {said}"));
        }
    };

    expect("image", json(&asked.image), json(&said.image));
    let config = said.config.clone().unwrap_or_default();
    // Config as a whole: the two types share their field names.
    let mut config_said = fields(&config);
    let mut config_asked = fields(asked);
    config_asked.remove("HostConfig");
    let mut labels_said = config_said.remove("Labels").map(object).unwrap_or_default();
    let labels_asked = config_asked
        .remove("Labels")
        .map(object)
        .unwrap_or_default();
    // The image's own label is merged in.
    labels_said.remove(super::image::ROOTFS_LABEL);
    expect(
        "labels",
        Value::Object(labels_asked),
        Value::Object(labels_said),
    );
    // Engines from API 1.44 on take the network from the host config alone.
    config_asked.remove("NetworkDisabled");
    config_said.remove("NetworkDisabled");
    for name in union(&config_asked, &config_said, &[]) {
        expect(&name, at(&config_asked, &name), at(&config_said, &name));
    }

    let host = said.host_config.clone().unwrap_or_default();
    let host_asked = asked.host_config.as_ref().map(fields).unwrap_or_default();
    let host_said = fields(&host);
    for name in union(&host_asked, &host_said, &ENGINE_DEFAULTS) {
        expect(&name, at(&host_asked, &name), at(&host_said, &name));
    }
    let runtime = host.runtime.unwrap_or_default();
    expect("Runtime", json(&facts.default_runtime), json(&runtime));

    let mut mounts_asked: Vec<_> = asked
        .host_config
        .iter()
        .flat_map(|h| h.mounts.iter().flatten())
        .map(asked_mount)
        .collect();
    let mut mounts_said: Vec<_> = said.mounts.iter().flatten().map(said_mount).collect();
    mounts_asked.sort();
    mounts_said.sort();
    expect("mounts", json(&mounts_asked), json(&mounts_said));

    for (what, list, must) in [
        ("MaskedPaths", host.masked_paths, "/proc/kcore"),
        ("ReadonlyPaths", host.readonly_paths, "/proc/sysrq-trigger"),
    ] {
        if !list.unwrap_or_default().iter().any(|path| path == must) {
            found.push(format!("{what}: {must} is not in it"));
        }
    }
    let profile = said.app_armor_profile.as_deref().unwrap_or_default();
    if facts.apparmor && matches!(profile, "" | "unconfined") {
        found.push(format!(
            "AppArmorProfile: {profile:?} although the engine has AppArmor"
        ));
    }
    found
}

type Fields = serde_json::Map<String, Value>;

fn asked_mount(mount: &Mount) -> (String, String, bool, String) {
    let propagation = mount
        .bind_options
        .as_ref()
        .and_then(|options| options.propagation);
    (
        mount.target.clone().unwrap_or_default(),
        mount.source.clone().unwrap_or_default(),
        !mount.read_only.unwrap_or_default(),
        propagation.map(|p| p.to_string()).unwrap_or_default(),
    )
}

fn said_mount(mount: &bollard::models::MountPoint) -> (String, String, bool, String) {
    (
        mount.destination.clone().unwrap_or_default(),
        mount.source.clone().unwrap_or_default(),
        mount.rw.unwrap_or(true),
        mount.propagation.clone().unwrap_or_default(),
    )
}

fn json(value: &impl serde::Serialize) -> Value {
    // A value that cannot be shown differs from everything.
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(error.to_string()))
}

fn fields(value: &impl serde::Serialize) -> Fields {
    significant(json(value)).map(object).unwrap_or_default()
}

fn object(value: Value) -> Fields {
    match value {
        Value::Object(map) => map,
        other => Fields::from_iter([("not an object".to_owned(), other)]),
    }
}

fn at(fields: &Fields, name: &str) -> Value {
    fields.get(name).cloned().unwrap_or(Value::Null)
}

fn union(left: &Fields, right: &Fields, without: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = left.keys().chain(right.keys()).cloned().collect();
    names.retain(|name| !without.contains(&name.as_str()));
    names.sort();
    names.dedup();
    names
}

/// A value without its neutral parts (null, false, 0, "", [], {}): engines say "nothing" in each of these ways. None: nothing is left.
pub fn significant(value: Value) -> Option<Value> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Number(number) if number.as_i64() == Some(0) => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(items) => {
            let items: Vec<Value> = items.into_iter().filter_map(significant).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        Value::Object(map) => {
            // A field's name starts with a capital; any other key (a path, a port, a sysctl) says something by being there.
            let says = |key: &str| !key.starts_with(|first: char| first.is_ascii_uppercase());
            let map: Fields = map
                .into_iter()
                .filter_map(|(key, value)| match significant(value) {
                    None if says(&key) => Some((key, Value::Null)),
                    value => Some((key, value?)),
                })
                .collect();
            (!map.is_empty()).then_some(Value::Object(map))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use bollard::models::{ContainerConfig, DeviceMapping, MountPoint};
    use portcullis_core::ids::{AgentId, BoxId};

    use super::super::spec::BoxLimits;
    use super::*;

    const IMAGE: &str = "sha256:0123";

    fn spec() -> BoxSpec {
        BoxSpec {
            id: BoxId::new("0123456789ab").unwrap(),
            agent: AgentId::new("demo").unwrap(),
            workspace: PathBuf::from("/srv/workspaces/demo"),
            run_dir: PathBuf::from("/srv/run/b/0123456789ab"),
            cell: PathBuf::from("/srv/run/cell"),
            limits: BoxLimits {
                memory_bytes: 64 << 20,
                cpu_millis: 1500,
                pids: 64,
            },
            uid: 1000,
            gid: 1001,
            owner: "gateway".to_owned(),
            boot: "boot".to_owned(),
            profile_hash: "profile".to_owned(),
            nonce: "ff".to_owned(),
            dead_man: Duration::from_secs(60),
        }
    }

    fn facts() -> EngineFacts {
        EngineFacts {
            version: "1".to_owned(),
            default_runtime: "runc".to_owned(),
            apparmor: true,
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
        host.runtime = Some("runc".to_owned());
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
        let asked = request(&spec(), IMAGE);
        let host = asked.host_config.unwrap();
        assert_eq!(asked.user.as_deref(), Some("1000:1001"));
        assert_eq!(asked.image.as_deref(), Some(IMAGE));
        assert_eq!(host.memory, Some(64 << 20));
        assert_eq!(host.memory_swap, host.memory);
        assert_eq!(host.nano_cpus, Some(1_500_000_000));
        assert_eq!(host.pids_limit, Some(64));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
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
        let asked = request(&spec(), IMAGE);
        assert_eq!(
            differences(&asked, &honest(&asked), &facts()),
            Vec::<String>::new()
        );
    }

    /// A change that an engine makes, and the name under which it must be reported.
    type Lie = (
        &'static str,
        fn(&mut ContainerInspectResponse, &mut HostConfig, &mut ContainerConfig),
    );

    const LIES: &[Lie] = &[
        ("image", |said, _, _| {
            said.image = Some("sha256:9".to_owned())
        }),
        ("mounts", |said, _, _| {
            said.mounts.as_mut().unwrap()[1].rw = Some(true)
        }),
        ("mounts", |said, _, _| {
            said.mounts.as_mut().unwrap()[0].source = Some("/".to_owned())
        }),
        ("mounts", |said, _, _| {
            said.mounts.as_mut().unwrap()[0].propagation = Some("rshared".to_owned())
        }),
        ("mounts", |said, _, _| {
            said.mounts.as_mut().unwrap().push(MountPoint::default())
        }),
        ("mounts", |said, _, _| said.mounts = None),
        ("AppArmorProfile", |said, _, _| {
            said.app_armor_profile = Some("unconfined".to_owned())
        }),
        ("AppArmorProfile", |said, _, _| {
            said.app_armor_profile = None
        }),
        ("Privileged", |_, host, _| host.privileged = Some(true)),
        ("CapAdd", |_, host, _| {
            host.cap_add = Some(vec!["SYS_ADMIN".to_owned()])
        }),
        ("CapDrop", |_, host, _| host.cap_drop = None),
        ("SecurityOpt", |_, host, _| host.security_opt = None),
        ("SecurityOpt", |_, host, _| {
            host.security_opt = Some(vec!["seccomp=unconfined".to_owned()])
        }),
        ("ReadonlyRootfs", |_, host, _| {
            host.readonly_rootfs = Some(false)
        }),
        ("NetworkMode", |_, host, _| {
            host.network_mode = Some("host".to_owned())
        }),
        ("IpcMode", |_, host, _| {
            host.ipc_mode = Some("host".to_owned())
        }),
        ("PidMode", |_, host, _| {
            host.pid_mode = Some("host".to_owned())
        }),
        ("UTSMode", |_, host, _| {
            host.uts_mode = Some("host".to_owned())
        }),
        ("UsernsMode", |_, host, _| {
            host.userns_mode = Some("host".to_owned())
        }),
        ("CgroupnsMode", |_, host, _| {
            host.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::HOST)
        }),
        ("CgroupParent", |_, host, _| {
            host.cgroup_parent = Some("/".to_owned())
        }),
        ("Memory", |_, host, _| host.memory = Some(0)),
        ("MemorySwap", |_, host, _| host.memory_swap = Some(-1)),
        ("NanoCpus", |_, host, _| host.nano_cpus = None),
        ("PidsLimit", |_, host, _| host.pids_limit = None),
        ("OomKillDisable", |_, host, _| {
            host.oom_kill_disable = Some(true)
        }),
        ("OomScoreAdj", |_, host, _| host.oom_score_adj = Some(-500)),
        ("Ulimits", |_, host, _| host.ulimits = None),
        ("Init", |_, host, _| host.init = Some(true)),
        ("Binds", |_, host, _| {
            host.binds = Some(vec!["/:/host".to_owned()])
        }),
        ("Mounts", |_, host, _| host.mounts = None),
        ("Tmpfs", |_, host, _| host.tmpfs = None),
        ("Devices", |_, host, _| {
            host.devices = Some(vec![DeviceMapping {
                path_on_host: Some("/dev/mem".to_owned()),
                ..DeviceMapping::default()
            }])
        }),
        ("VolumesFrom", |_, host, _| {
            host.volumes_from = Some(vec!["other".to_owned()])
        }),
        ("GroupAdd", |_, host, _| {
            host.group_add = Some(vec!["docker".to_owned()])
        }),
        ("LogConfig", |_, host, _| {
            host.log_config.as_mut().unwrap().typ = Some("json-file".to_owned())
        }),
        ("RestartPolicy", |_, host, _| {
            host.restart_policy.as_mut().unwrap().name = Some(RestartPolicyNameEnum::ALWAYS)
        }),
        ("Runtime", |_, host, _| {
            host.runtime = Some("other".to_owned())
        }),
        ("MaskedPaths", |_, host, _| host.masked_paths = None),
        ("ReadonlyPaths", |_, host, _| {
            host.readonly_paths = Some(Vec::new())
        }),
        ("Sysctls", |_, host, _| {
            host.sysctls = Some(HashMap::from([("kernel.x".to_owned(), "1".to_owned())]))
        }),
        ("ExtraHosts", |_, host, _| {
            host.extra_hosts = Some(vec!["a:1.2.3.4".to_owned()])
        }),
        ("User", |_, _, config| config.user = Some("0:0".to_owned())),
        ("User", |_, _, config| config.user = None),
        ("Env", |_, _, config| {
            config
                .env
                .as_mut()
                .unwrap()
                .push("LD_PRELOAD=/workspace/x".to_owned())
        }),
        ("Cmd", |_, _, config| {
            config.cmd = Some(vec!["sh".to_owned()])
        }),
        ("Entrypoint", |_, _, config| {
            config.entrypoint = Some(vec!["sh".to_owned()])
        }),
        ("Volumes", |_, _, config| {
            config.volumes = Some(vec!["/data".to_owned()])
        }),
        ("ExposedPorts", |_, _, config| {
            config.exposed_ports = Some(vec!["80/tcp".to_owned()])
        }),
        ("PortBindings", |_, host, _| {
            host.port_bindings = Some(HashMap::from([("80/tcp".to_owned(), None)]))
        }),
        ("WorkingDir", |_, _, config| config.working_dir = None),
        ("OpenStdin", |_, _, config| config.open_stdin = Some(true)),
        ("Hostname", |_, _, config| {
            config.hostname = Some("gateway".to_owned())
        }),
        ("labels", |_, _, config| config.labels = None),
        ("Image", |_, _, config| {
            config.image = Some("portcullis/base:latest".to_owned())
        }),
    ];

    #[test]
    fn every_single_difference_is_found_and_named() {
        let asked = request(&spec(), IMAGE);
        for (name, lie) in LIES {
            let mut said = honest(&asked);
            let mut host = said.host_config.take().unwrap();
            let mut config = said.config.take().unwrap();
            lie(&mut said, &mut host, &mut config);
            said.host_config = Some(host);
            said.config = Some(config);
            let found = differences(&asked, &said, &facts());
            assert!(
                found
                    .iter()
                    .any(|what| what.starts_with(&format!("{name}:"))),
                "{name} in {found:?}"
            );
        }
        assert!(!differences(&asked, &ContainerInspectResponse::default(), &facts()).is_empty());
    }
}
