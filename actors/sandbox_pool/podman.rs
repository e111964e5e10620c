//! Podman's answer in Docker's words. Its API is Docker's, but what it says of a container differs where nothing else does; each
//! difference that is passed here is either no difference, or is looked at in the kernel before anything runs in the box
//! ([`super::evidence`]): namespaces, capabilities, and what covers `/proc`. Seen with Podman 4.3.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, HostConfigCgroupnsModeEnum,
    ResourcesUlimits,
};

use super::engine::EngineFacts;

/// Set by Podman itself; none of them reaches a run.
const ENV: [&str; 2] = ["TERM=xterm", "container=podman"];
/// Writable file systems in memory that it adds to each read-only container. They are the box's memory, and Landlock keeps runs out of
/// the first.
const ADDED: [&str; 2] = ["/run", "/var/tmp"];
const ADDED_AS: &str = "rw,rprivate,nosuid,nodev,tmpcopyup";
/// What it adds to the words of a file system in memory: how it is mounted, and that an image's files at that place are copied in, with
/// their folder's owner and mode, unless it is told not to.
const PRIVATE: &str = ",rprivate";
const COPIED_UP: &str = ",tmpcopyup";
/// Without root: the engine's user is inside who it is outside. It says only that the namespace is the container's own.
pub const KEEP_ID: &str = "keep-id";
/// Without root, where systemd makes the groups: below the user's manager.
const SLICE: &str = "user.slice";
/// So that it does not.
pub const NOT_COPIED_UP: &str = ",notmpcopyup";
/// Instead of `ALL` it lists what it would otherwise have given.
const GIVEN: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What it says, where that means what was asked; anything else stays as it says it, and is found as a difference.
pub fn in_dockers_words(
    asked: &ContainerCreateBody,
    mut said: ContainerInspectResponse,
    facts: &EngineFacts,
) -> ContainerInspectResponse {
    if let Some(config) = &mut said.config {
        let own = asked
            .hostname
            .as_ref()
            .map(|name| format!("HOSTNAME={name}"));
        let wanted = asked.env.clone().unwrap_or_default();
        if let Some(env) = &mut config.env {
            env.retain(|one| !ENV.contains(&one.as_str()) && Some(one) != own.as_ref());
            // In no order of its own.
            env.sort_by_key(|one| wanted.iter().position(|asked| asked == one));
        }
        // The name beside the id, which is compared.
        if said.image.is_some() && said.image == asked.image {
            config.image.clone_from(&asked.image);
        }
        if config.stop_signal.as_deref() == Some("15") {
            config.stop_signal = None;
        }
    }
    if let (Some(host), Some(wanted)) = (&mut said.host_config, &asked.host_config) {
        host_in_dockers_words(wanted, host, facts);
    }
    said
}

fn host_in_dockers_words(wanted: &HostConfig, host: &mut HostConfig, facts: &EngineFacts) {
    // The mounts as they were made are compared beside these.
    let ours = |bind: &String| {
        let mut parts = bind.splitn(3, ':');
        let (source, target) = (parts.next(), parts.next());
        let mut mounts = wanted.mounts.iter().flatten();
        mounts.any(|mount| (mount.source.as_deref(), mount.target.as_deref()) == (source, target))
    };
    if host.binds.iter().flatten().all(ours) {
        host.binds = None;
    }
    if host.mounts.is_none() {
        host.mounts.clone_from(&wanted.mounts);
    }
    let mut dropped = host.cap_drop.clone().unwrap_or_default();
    dropped.sort();
    if dropped == GIVEN {
        host.cap_drop.clone_from(&wanted.cap_drop);
    }
    if matches!(
        host.cgroupns_mode,
        None | Some(HostConfigCgroupnsModeEnum::EMPTY)
    ) {
        host.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::PRIVATE);
    }
    // The same as nano_cpus, in two numbers.
    let quota = wanted.nano_cpus.map(|nano| nano / 10_000);
    if (host.cpu_period, host.cpu_quota) == (Some(100_000), quota) {
        (host.cpu_period, host.cpu_quota) = (None, None);
    }
    // Others could be told to join it, by who may tell the engine anything.
    if host.ipc_mode.as_deref() == Some("shareable") {
        host.ipc_mode.clone_from(&wanted.ipc_mode);
    }
    for mode in [&mut host.pid_mode, &mut host.uts_mode] {
        if mode.as_deref() == Some("private") {
            *mode = None;
        }
    }
    if facts.keeps_id {
        // Which users are in it is asked of the kernel, as is the group.
        if host.userns_mode.as_deref() == Some("private") {
            host.userns_mode.clone_from(&wanted.userns_mode);
        }
        if host.cgroup_parent.as_deref() == Some(SLICE) {
            host.cgroup_parent = None;
        }
    }
    if host.memory_swappiness == Some(-1) {
        host.memory_swappiness = None;
    }
    if host.runtime.as_deref() == Some("oci") {
        host.runtime = Some(facts.default_runtime.clone());
    }
    if let Some(tmpfs) = &mut host.tmpfs {
        let wanted = wanted.tmpfs.clone().unwrap_or_default();
        *tmpfs = tmpfs_in_dockers_words(tmpfs, &wanted);
    }
    if let Some(limits) = host.ulimits.take() {
        host.ulimits = Some(limits.into_iter().map(limit).collect());
    }
    // It says nothing of these.
    if host.masked_paths.is_none() && host.readonly_paths.is_none() {
        host.masked_paths = Some(vec!["/proc/kcore".to_owned()]);
        host.readonly_paths = Some(vec!["/proc/sysrq-trigger".to_owned()]);
    }
}

fn tmpfs_in_dockers_words(
    said: &HashMap<String, String>,
    wanted: &HashMap<String, String>,
) -> HashMap<String, String> {
    let one = |(at, options): (&String, &String)| {
        if ADDED.contains(&at.as_str()) && options == ADDED_AS {
            return None;
        }
        let (plain, is_copied_up) = match options.strip_suffix(COPIED_UP) {
            Some(plain) => (plain, true),
            None => (options.as_str(), false),
        };
        let plain = plain.strip_suffix(PRIVATE).unwrap_or(plain);
        let same = wanted.get(at).filter(|wanted| {
            wanted.replace(NOT_COPIED_UP, "") == plain
                && wanted.contains(NOT_COPIED_UP) != is_copied_up
        });
        Some((at.clone(), same.unwrap_or(options).clone()))
    };
    said.iter().filter_map(one).collect()
}

/// `RLIMIT_NOFILE` is `nofile`.
fn limit(limit: ResourcesUlimits) -> ResourcesUlimits {
    let name = limit.name.map(|name| {
        let short = name.strip_prefix("RLIMIT_").map(str::to_lowercase);
        short.unwrap_or(name)
    });
    ResourcesUlimits { name, ..limit }
}
