//! What a container of ours is asked to be, and the comparison with what the engine says it made of that.
//!
//! The request names every limit; the comparison is an allow list: whatever the engine says that was neither asked nor is on
//! [`ENGINE_DEFAULTS`] is a difference, and a difference means that the container is removed before it has ever run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, ImageConfig, Mount, MountBindOptions, MountBindOptionsPropagationEnum,
    MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use portcullis_core::sandbox::Access;
use serde_json::Value;

use super::engine::EngineFacts;
use super::podman::{KEEP_ID, NOT_COPIED_UP};
use super::spec::{BoxSpec, CELL_INSIDE, HOST_NAME, RUN_INSIDE, WORKSPACE_INSIDE};

/// Label: the gateway that owns the box.
pub const OWNER_LABEL: &str = "portcullis.owner";
/// Label: the box's id.
pub const BOX_LABEL: &str = "portcullis.box";
/// Label: the start of the gateway which made the box.
pub const BOOT_LABEL: &str = "portcullis.boot";
/// Label: digest of the profile it was made with.
pub const PROFILE_LABEL: &str = "portcullis.profile";

/// Open files of each process in a box, where runs are given fewer: the cell has more to hold.
const OPEN_FILES: u32 = 1024;
/// Processes of one uid in all of its boxes, where an engine must be told.
const PROCESSES_OF_A_USER: i64 = 16_384;
/// `/dev/shm`, in bytes; counts as memory of the box.
const SHARED_MEMORY: i64 = 64 << 20;
/// The kernel ends a box before the gateway when memory of the whole machine runs out.
const OOM_SCORE: i64 = 500;

/// The whole request for a box: made from `image` (an image id) and nothing else.
pub fn request(spec: &BoxSpec, image: &str, facts: &EngineFacts) -> ContainerCreateBody {
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
        // The box still gets a network namespace of its own, from the runtime; the engine's own set-up of it, which takes longer than all
        // the rest of a start, is left out. `evidence` looks at what came of it.
        network_disabled: Some(true),
        labels: Some(HashMap::from(labels)),
        host_config: Some(host_config(spec, facts)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &BoxSpec, facts: &EngineFacts) -> HostConfig {
    let memory = clamped(spec.limits.memory_bytes);
    let limit = |name: &str, value| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    let files = i64::from(spec.limits.open_files.max(OPEN_FILES));
    let mut ulimits = vec![limit("nofile", files), limit("core", 0)];
    if facts.podman {
        // Its own default is more than an engine without CAP_SYS_RESOURCE can give. The pids limit is the box's.
        ulimits.push(limit("nproc", PROCESSES_OF_A_USER));
    }
    // Exec stays allowed in /tmp: /workspace has it anyway, and `go run`, `pip` and test runners start what they put there.
    let (size, inodes) = (spec.limits.scratch(), spec.limits.inodes());
    // Podman takes no limit on files.
    let inodes = if facts.podman {
        String::new()
    } else {
        format!(",nr_inodes={inodes}")
    };
    let limits = format!("size={size}{inodes}");
    let shared = spec.limits.shared();
    let mut tmpfs = HashMap::from([
        (
            "/tmp".to_owned(),
            format!("rw,exec,nosuid,nodev,mode=1777,{limits}"),
        ),
        // The engine's own has no limit on files: their inodes can take all of the box's memory.
        (
            "/dev/shm".to_owned(),
            format!("rw,noexec,nosuid,nodev,mode=1777,size={shared}{inodes}"),
        ),
    ]);
    if spec.access == Access::None {
        let (uid, gid) = (spec.uid, spec.gid);
        // Podman's have no owner but root, so everybody may write: there is nobody else in the box.
        let owner = if facts.podman {
            format!("mode=1777{NOT_COPIED_UP}")
        } else {
            format!("mode=0700,uid={uid},gid={gid}")
        };
        let options = format!("rw,exec,nosuid,nodev,{owner},{limits}");
        tmpfs.insert(WORKSPACE_INSIDE.to_owned(), options);
    }
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        network_mode: Some("none".to_owned()),
        runtime: spec.runtime.as_ref().map(|name| name.as_str().to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        memory: Some(memory),
        // Equal to memory: otherwise swap doubles it.
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(spec.limits.cpu_millis) * 1_000_000),
        pids_limit: Some(i64::from(spec.limits.pids)),
        // Podman without root takes none, and its service's own hold: the kernel is asked whether they do (`evidence`).
        ulimits: (!facts.keeps_id).then_some(ulimits),
        userns_mode: facts.keeps_id.then(|| KEEP_ID.to_owned()),
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
        tmpfs: Some(tmpfs),
        mounts: Some(mounts(spec)),
        // masked_paths and readonly_paths stay unset: an empty list would unmask.
        ..HostConfig::default()
    }
}

/// Mounts, not the older `binds`: a missing source is an error instead of a new folder of root's, and a colon in a path means nothing.
fn mounts(spec: &BoxSpec) -> Vec<Mount> {
    let bind = |source: &Path, target: &str, read_only| Mount {
        target: Some(target.to_owned()),
        source: source.to_str().map(str::to_owned),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    };
    // What is mounted below it would stay writable where this is read-only, and was not looked at: it is not brought along.
    let alone = |mut mount: Mount| {
        let options = mount.bind_options.get_or_insert_default();
        options.non_recursive = Some(true);
        mount
    };
    let workspace = match spec.access {
        Access::None => None,
        Access::Ro => Some(alone(bind(&spec.workspace, WORKSPACE_INSIDE, true))),
        Access::Rw => Some(bind(&spec.workspace, WORKSPACE_INSIDE, false)),
    };
    let more = spec.mounts.iter().map(|mount| {
        alone(bind(
            &mount.source,
            &mount.inside.to_string_lossy(),
            mount.access != Access::Rw,
        ))
    });
    let ours = [
        bind(&spec.run_dir, RUN_INSIDE, true),
        bind(&spec.cell, CELL_INSIDE, true),
        bind(&hosts_file(spec), "/etc/hosts", true),
    ];
    workspace.into_iter().chain(more).chain(ours).collect()
}

/// The box's `/etc/hosts`. The engine empties the image's, and fills one of its own only where it sets a network up.
pub const HOSTS: &str = "127.0.0.1 localhost box\n::1 localhost\n";

/// Its name in a box's control folder.
pub const HOSTS_FILE: &str = "hosts";

/// Where [`HOSTS`] must lie before a box is made.
pub fn hosts_file(spec: &BoxSpec) -> PathBuf {
    spec.run_dir.join(HOSTS_FILE)
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What of a host config the engine may say without having been asked.
const ENGINE_DEFAULTS: [&str; 3] = ["ConsoleSize", "MaskedPaths", "ReadonlyPaths"];

/// What an engine takes from an image's config where the request says nothing. None of it reaches a run: the cell gives each its own
/// environment. A volume and a health check are not among them: such an image is refused.
const FROM_IMAGE: [&str; 5] = [
    "ArgsEscaped",
    "ExposedPorts",
    "OnBuild",
    "Shell",
    "StopSignal",
];

/// The request as the engine fills it up from an image of the operator's.
fn filled(mut asked: Fields, image: &ImageConfig) -> Fields {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    if let Some(Value::Array(env)) = asked.get_mut("Env") {
        let own: Vec<String> = env.iter().filter_map(Value::as_str).map(name).collect();
        let more = image.env.iter().flatten();
        let more = more.filter(|variable| !own.contains(&name(variable)));
        env.extend(more.map(|variable| Value::String(variable.clone())));
    }
    let image = fields(image);
    for name in FROM_IMAGE {
        if let (None, Some(value)) = (asked.get(name), image.get(name)) {
            asked.insert(name.to_owned(), value.clone());
        }
    }
    let labels = image.get("Labels").cloned().map(object).unwrap_or_default();
    let mut all = asked.remove("Labels").map(object).unwrap_or_default();
    for (name, value) in labels {
        all.entry(name).or_insert(value);
    }
    asked.insert("Labels".to_owned(), Value::Object(all));
    asked
}

/// Every way in which the engine's container is not the one that was asked for. Empty: it is. `image` is the config of an operator's
/// image; the default one has none.
pub fn differences(
    asked: &ContainerCreateBody,
    said: &ContainerInspectResponse,
    facts: &EngineFacts,
    image: Option<&ImageConfig>,
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
    if let Some(image) = image {
        config_asked = filled(config_asked, image);
    }
    let mut labels_said = config_said.remove("Labels").map(object).unwrap_or_default();
    let mut labels_asked = config_asked
        .remove("Labels")
        .map(object)
        .unwrap_or_default();
    // The image's own label is merged in.
    labels_said.remove(super::image::ROOTFS_LABEL);
    labels_asked.remove(super::image::ROOTFS_LABEL);
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
    let mut host_asked = asked.host_config.as_ref().map(fields).unwrap_or_default();
    // Who names no runtime is given the default one, and told which that is.
    host_asked
        .entry("Runtime")
        .or_insert_with(|| json(&facts.default_runtime));
    let host_said = fields(&host);
    for name in union(&host_asked, &host_said, &ENGINE_DEFAULTS) {
        expect(&name, at(&host_asked, &name), at(&host_said, &name));
    }
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
    // Docker names the profile only once the box has started; the kernel is asked then.
    if facts.apparmor && said.app_armor_profile.as_deref() == Some("unconfined") {
        found.push("AppArmorProfile: \"unconfined\" although the engine has AppArmor".to_owned());
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
#[path = "hardening_tests.rs"]
mod tests;
