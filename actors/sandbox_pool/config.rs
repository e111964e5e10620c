//! `[sandbox]` of the config.

use portcullis_core::egress::{Addresses, Rules, Terminations, terminations};
use portcullis_core::sandbox::{
    Access, DriverChoice, EnvNames, ImageName, Isolation, Layer, Mounts, Named, Overrides,
    RuntimeName, Scope, ShareName, SystemCalls, Unlisted, UserRange, count, hosts, mounts, names,
    size, word,
};
use serde::Deserialize;

/// Where agents' commands run, and within what.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Section")]
pub struct SandboxPoolConfig {
    /// The Docker engine, `unix:///path`; without it DOCKER_HOST, else /var/run/docker.sock.
    pub engine: Option<String>,
    /// Most boxes at once.
    pub max_boxes: usize,
    /// Most boxes of sessions of one agent at once.
    pub sessions_per_agent: usize,
    /// Boxes that are kept ready for fresh sessions of each agent whose scope that is, at least.
    pub warm_min: usize,
    /// Most boxes that are kept ready, of all agents together; never more than half of `max_boxes`.
    pub warm_max: usize,
    /// False: run the native driver also where it can set no ceilings (memory, processor, processes). Weaker, and shown as such.
    pub require_cgroup: bool,
    /// Users of the host for agents, where the gateway is root.
    pub uids: UserRange,
    /// Networks that names of any `egress` may stand for although they are not the world's.
    pub egress_to_networks: Addresses,
    /// What it says of every box.
    pub says: Overrides,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    #[serde(deserialize_with = "word")]
    driver: Option<DriverChoice>,
    /// The config names every key, so "none" is written as an empty text.
    engine: String,
    max_boxes: usize,
    sessions_per_agent: usize,
    warm_min: usize,
    warm_max: usize,
    require_cgroup: bool,
    egress_to_networks: Addresses,
    uids: UserRange,
    #[serde(deserialize_with = "word")]
    profile: Option<Named>,
    #[serde(deserialize_with = "word")]
    min_isolation: Option<Isolation>,
    #[serde(deserialize_with = "word")]
    image: Option<ImageName>,
    #[serde(deserialize_with = "word")]
    runtime: Option<RuntimeName>,
    #[serde(deserialize_with = "word")]
    seccomp: Option<SystemCalls>,
    #[serde(deserialize_with = "word")]
    scope: Option<Scope>,
    #[serde(deserialize_with = "word")]
    share: Option<ShareName>,
    #[serde(deserialize_with = "word")]
    workspace: Option<Access>,
    #[serde(deserialize_with = "size")]
    workspace_bytes: Option<u64>,
    #[serde(deserialize_with = "size")]
    workspace_files: Option<u64>,
    #[serde(deserialize_with = "mounts")]
    mounts: Option<Mounts>,
    #[serde(deserialize_with = "hosts")]
    egress: Option<Rules>,
    #[serde(deserialize_with = "word")]
    egress_unlisted: Option<Unlisted>,
    #[serde(deserialize_with = "terminations")]
    terminate: Option<Terminations>,
    #[serde(deserialize_with = "names")]
    env: Option<EnvNames>,
    #[serde(deserialize_with = "size")]
    memory_bytes: Option<u64>,
    #[serde(deserialize_with = "count")]
    cpu_millis: Option<u32>,
    #[serde(deserialize_with = "count")]
    pids: Option<u32>,
    #[serde(deserialize_with = "count")]
    open_files: Option<u32>,
    #[serde(deserialize_with = "size")]
    file_bytes: Option<u64>,
    #[serde(deserialize_with = "size")]
    output_cap_bytes: Option<u64>,
    #[serde(deserialize_with = "size")]
    timeout_ms: Option<u64>,
    #[serde(deserialize_with = "size")]
    max_timeout_ms: Option<u64>,
    #[serde(deserialize_with = "size")]
    idle_secs: Option<u64>,
    #[serde(deserialize_with = "size")]
    max_age_secs: Option<u64>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            driver: None,
            engine: String::new(),
            max_boxes: 32,
            sessions_per_agent: 8,
            warm_min: 1,
            warm_max: 8,
            require_cgroup: true,
            egress_to_networks: Addresses::default(),
            uids: UserRange::default(),
            profile: Some(Named::Restricted),
            min_isolation: None,
            image: None,
            runtime: None,
            seccomp: None,
            scope: None,
            share: None,
            workspace: None,
            workspace_bytes: None,
            workspace_files: None,
            mounts: None,
            egress: None,
            egress_unlisted: None,
            terminate: None,
            env: None,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
            open_files: None,
            file_bytes: None,
            output_cap_bytes: None,
            timeout_ms: None,
            max_timeout_ms: None,
            idle_secs: None,
            max_age_secs: None,
        }
    }
}

impl From<Section> for SandboxPoolConfig {
    fn from(section: Section) -> Self {
        Self {
            engine: (!section.engine.is_empty()).then_some(section.engine),
            max_boxes: section.max_boxes,
            sessions_per_agent: section.sessions_per_agent,
            warm_min: section.warm_min,
            warm_max: section.warm_max,
            require_cgroup: section.require_cgroup,
            uids: section.uids,
            egress_to_networks: section.egress_to_networks,
            says: Overrides {
                profile: section.profile,
                driver: section.driver,
                min_isolation: section.min_isolation,
                image: section.image,
                runtime: section.runtime,
                seccomp: section.seccomp,
                scope: section.scope,
                share: section.share,
                workspace: section.workspace,
                workspace_bytes: section.workspace_bytes,
                workspace_files: section.workspace_files,
                mounts: section.mounts,
                egress: section.egress,
                egress_unlisted: section.egress_unlisted,
                terminate: section.terminate,
                env: section.env,
                memory_bytes: section.memory_bytes,
                cpu_millis: section.cpu_millis,
                pids: section.pids,
                open_files: section.open_files,
                file_bytes: section.file_bytes,
                output_cap_bytes: section.output_cap_bytes,
                timeout_ms: section.timeout_ms,
                max_timeout_ms: section.max_timeout_ms,
                idle_secs: section.idle_secs,
                max_age_secs: section.max_age_secs,
            },
        }
    }
}

impl Default for SandboxPoolConfig {
    fn default() -> Self {
        Section::default().into()
    }
}

impl SandboxPoolConfig {
    /// Every value that cannot be served, in words.
    pub fn problems(&self) -> Vec<String> {
        let said = self.says.problems().into_iter().map(|(_, text)| text);
        let rules = [
            (self.max_boxes == 0, "max_boxes must be at least 1"),
            (
                self.sessions_per_agent == 0,
                "sessions_per_agent must be at least 1",
            ),
            (
                self.egress_to_networks.in_vain().is_some(),
                "egress_to_networks must not name link-local, multicast or metadata addresses: they are never dialled",
            ),
        ];
        let own = rules.into_iter().filter(|(wrong, _)| *wrong);
        said.chain(own.map(|(_, text)| text.to_owned()))
            .map(|text| format!("[sandbox] {text}"))
            .collect()
    }

    /// The layer of every agent.
    pub fn layer(&self) -> Layer {
        let mut says = self.says.clone();
        if !self.require_cgroup {
            // Who switches the requirement off has said that weaker will do; a layer that asks for more is asked for more.
            says.min_isolation = says.min_isolation.or(Some(Isolation::Unbounded));
        }
        Layer {
            name: "[sandbox]".to_owned(),
            says,
        }
    }
}
