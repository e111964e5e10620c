//! The configuration: default.toml < STATE/config.toml < environment < flags.
//!
//! Read once at start and handed down as values. Every error is told at once ([`ConfigErrors`], code `CONFIG_INVALID`),
//! each with its place, the line, what was expected and the nearest valid key; then nothing is started. A key that
//! default.toml does not have does not exist.

mod file;
mod layers;
mod problem;
mod proxies;
#[cfg(test)]
mod sandbox_tests;
mod sections;
#[cfg(test)]
mod tests;
mod view;

use portcullis_core::auth::password::{COST_CEILING, COST_FLOOR};
use std::path::Path;

pub use file::{FileError, write_first};
pub use layers::{Flag, PREFIX};
pub use problem::{ConfigErrors, Place, Problem};
pub use sections::{
    Agent, Agents, Elevated, ExecMode, Gateway, GatewayAuth, Limits, Local, Operator, SecretName,
    Tls, TrustedProxy, VaultRef,
};
pub use view::Leaf;

use layers::Layers;
use portcullis_actors::approval::ApprovalConfig;
use portcullis_actors::audit::AuditConfig;
use portcullis_actors::auth::AuthConfig;
use portcullis_actors::connection::ConnectionConfig;
use portcullis_actors::dashboard::DashboardConfig;
use portcullis_actors::exec::ExecConfig;
use portcullis_actors::nodes::NodesConfig;
use portcullis_actors::notices::NoticesConfig;
use portcullis_actors::pairing::PairingConfig;
use portcullis_actors::plugins::Plugins;
use portcullis_actors::sandbox_pool::SandboxPoolConfig;
use portcullis_actors::signing::SigningConfig;
use portcullis_actors::supervision::Intensity;
use portcullis_actors::vault::VaultConfig;
use portcullis_core::codes::{self, Code};
use portcullis_core::ids::DeviceId;

use crate::telemetry::TelemetryConfig;

/// Every key with its default and its comment.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The one list of sections: the name in the file, and the type that reads it.
macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// All settings, as each room wants them.
        #[derive(Debug, Clone)]
        pub struct Config {
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl Config {
            fn from_layers(layers: &mut Layers) -> Self {
                Self { $($name: layers.section(stringify!($name)),)* }
            }
        }

        /// Does one thing to every section's type.
        #[cfg(test)]
        fn each_section(visitor: &mut impl tests::SectionVisitor) {
            $(visitor.visit::<$kind>(stringify!($name));)*
        }
    };
}

sections! {
    /// Doors and who is who there.
    gateway: Gateway,
    /// The log.
    audit: AuditConfig,
    /// Secrets.
    vault: VaultConfig,
    /// Devices that ask to connect.
    pairing: PairingConfig,
    /// Signed requests.
    signing: SigningConfig,
    /// Who is let in.
    auth: AuthConfig,
    /// One socket.
    connection: ConnectionConfig,
    /// The boxes.
    sandbox: SandboxPoolConfig,
    /// Node hosts.
    nodes: NodesConfig,
    /// How crashing rooms are treated.
    supervision: Intensity,
    /// Questions to people.
    approval: ApprovalConfig,
    /// Programs that the gateway itself may start.
    plugins: Plugins,
    /// Runs.
    exec: ExecConfig,
    /// Who is told of questions.
    notices: NoticesConfig,
    /// Logs and spans.
    telemetry: TelemetryConfig,
    /// The page.
    dashboard: DashboardConfig,
    /// What each agent may.
    agents: Agents,
}

/// The settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// As values.
    pub config: Config,
    /// As text, redacted, with origins.
    pub leaves: Vec<Leaf>,
    /// The bytes of the file; none where there is no file.
    pub file: Option<Vec<u8>>,
}

impl Loaded {
    /// `config.get`: the settings as one tree, redacted. Without the peer's host paths, and without provenance.
    pub fn for_clients(&self) -> serde_json::Value {
        let mut tree = serde_json::Map::new();
        for leaf in &self.leaves {
            let names: Vec<&str> = leaf.key.split('.').collect();
            put(&mut tree, &names, &leaf.value);
        }
        // The peer's clients look for an agent among `agents.entries`.
        if let Some(agents) = tree.get_mut("agents").and_then(|a| a.as_object_mut()) {
            let named = agents.iter().filter(|(name, _)| *name != "*");
            let entries: serde_json::Map<_, _> = named
                .map(|(name, agent)| (name.clone(), agent.clone()))
                .collect();
            agents.insert("entries".into(), entries.into());
        }
        let config = serde_json::Value::from(tree);
        let hash = portcullis_core::ids::Hash32::of(config.to_string().as_bytes()).to_string();
        serde_json::json!({
            "path": "config.toml", "includedPaths": [], "includeProvenance": [], "agentRosterIncludeOwned": false,
            "bindingsIncludeOwned": false, "exists": true, "valid": true, "raw": null, "parsed": config,
            "sourceConfig": config, "resolved": config, "runtimeConfig": config, "config": config, "hash": hash,
            "configRevisionHash": hash, "appliedConfigHash": hash, "issues": [], "warnings": [], "legacyIssues": [],
        })
    }
}

fn put(
    tree: &mut serde_json::Map<String, serde_json::Value>,
    names: &[&str],
    value: &serde_json::Value,
) {
    match names {
        [] => {}
        [last] => {
            tree.insert((*last).to_owned(), value.clone());
        }
        [first, rest @ ..] => {
            let inner = tree
                .entry(*first)
                .or_insert_with(|| serde_json::Map::new().into());
            if let Some(object) = inner.as_object_mut() {
                put(object, rest, value);
            }
        }
    }
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not ours alone, or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it says is wrong.
    #[error(transparent)]
    Invalid(#[from] ConfigErrors),
}

impl LoadError {
    /// The stable code: `STATE_MODE`, `SECRET_IN_CONFIG` or `CONFIG_INVALID`.
    pub fn code(&self) -> &'static Code {
        match self {
            Self::File(error) => error.code(),
            Self::Invalid(errors) if errors.has_secret() => codes::SECRET_IN_CONFIG,
            Self::Invalid(_) => codes::CONFIG_INVALID,
        }
    }
}

/// Reads all layers. No file is no error: then the defaults hold.
///
/// # Errors
/// [`LoadError`]: nothing may be started.
pub fn load(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[Flag],
) -> Result<Loaded, LoadError> {
    let file = file::read(path)?;
    let name = path.display().to_string();
    let bytes = file.as_deref().map(|bytes| (name.as_str(), bytes));
    let loaded = merge(bytes, environment, flags)?;
    Ok(Loaded { file, ..loaded })
}

/// The process's own variables, those that are not UTF-8 with their bad bytes replaced (no setting accepts such a value).
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            value.to_string_lossy().into_owned(),
        )
    })
}

/// The layers without the disk.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn merge(
    file: Option<(&str, &[u8])>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[Flag],
) -> Result<Loaded, ConfigErrors> {
    let mut layers = Layers::new(DEFAULTS);
    if let Some((name, bytes)) = file {
        layers.file(name, bytes);
    }
    layers.environment(environment);
    layers.flags(flags);
    let config = Config::from_layers(&mut layers);
    rules(&config, &mut layers);
    let (merged, places) = layers.finish()?;
    Ok(Loaded {
        config,
        leaves: view::leaves(&merged, &places),
        file: None,
    })
}

/// The commented file of a first run: one agent that may ask to leave the sandbox, to try it with; and users for agents, where this
/// machine needs others than the default ones.
pub fn first_run(uids: Option<portcullis_core::sandbox::UserRange>) -> String {
    let uids = uids.map(|range| {
        format!("# Users for agents' boxes: the default ones are somebody's on this machine.\nuids = \"{range}\"")
    });
    let demo = (
        "agents.demo",
        "# To try it with: this agent may ask to run a command on this machine, and on node hosts, and a person decides each time.\nelevated = \"ask\"\nnodes = \"ask\"",
    );
    let uids = uids.as_deref().map(|lines| ("sandbox", lines));
    let active: Vec<_> = uids.into_iter().chain([demo]).collect();
    file::first_run(DEFAULTS, &active)
}

/// The key of a rule's sentence: "[sandbox] uid must not be 0" is about `sandbox.uid`.
fn key_of(problem: &str) -> String {
    let mut words = problem.split(' ');
    let section = words.next().unwrap_or_default();
    let key = words.next().unwrap_or_default();
    format!(
        "{}.{}",
        section.trim_matches(['[', ']']),
        key.trim_end_matches(':')
    )
}

/// What a `Host` header may say and a certificate can be made for.
fn is_host(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.parse::<std::net::Ipv4Addr>().is_ok() || rustls::pki_types::DnsName::try_from(name).is_ok()
}

/// What no single key can say.
fn rules(config: &Config, layers: &mut Layers) {
    let gateway = &config.gateway;
    if !gateway.bind.is_loopback() && !gateway.tls.enabled {
        layers.reject(
            "gateway.bind",
            "beyond loopback everything would be readable on the way; set gateway.tls.enabled = true, or stay on loopback and use a tunnel",
        );
    }
    proxies::rules(gateway, layers);
    let tls = &gateway.tls;
    if tls.cert_file.as_os_str().is_empty() != tls.key_file.as_os_str().is_empty() {
        layers.reject(
            "gateway.tls.key_file",
            "a certificate of your own is cert_file and key_file, both; neither: one is made",
        );
    }
    for host in gateway.hosts.iter().filter(|host| !is_host(host)) {
        layers.reject(
            "gateway.hosts",
            &format!("{host:?} is neither a DNS name (one beyond ASCII in its xn-- form), nor an IPv4 address, nor an IPv6 address in brackets; a port does not belong to it"),
        );
    }
    let socket = &gateway.local.socket;
    if !socket.as_os_str().is_empty() && !socket.is_absolute() {
        layers.reject(
            "gateway.local.socket",
            "an absolute path, such as \"/run/portcullis/control.sock\"",
        );
    }
    let file = &gateway.local.subuid_file;
    if !file.as_os_str().is_empty() && !file.is_absolute() {
        layers.reject(
            "gateway.local.subuid_file",
            "an absolute path, such as \"/etc/subuid\"",
        );
    }
    if !(COST_FLOOR..=COST_CEILING).contains(&gateway.auth.bcrypt_cost) {
        layers.reject("gateway.auth.bcrypt_cost", "the cost is 10 to 14");
    }
    if config.audit.segment_bytes < 65_536 {
        layers.reject("audit.segment_bytes", "a segment has at least 65536 bytes");
    }
    for (name, sink) in config.audit.named_sinks() {
        if let Err((key, why)) = portcullis_actors::sinks::settings(sink) {
            layers.reject(&format!("audit.sinks.{name}.{key}"), &why);
        }
        if !sink.pin.is_empty() && sink.pin.parse::<crate::tls::Pin>().is_err() {
            let why = "SHA-256 of a public key, 64 hexadecimal digits";
            layers.reject(&format!("audit.sinks.{name}.pin"), why);
        }
    }
    for (key, why) in config.plugins.problems() {
        layers.reject(&key, why);
    }
    if let Err((key, why)) = portcullis_actors::notices::settings(&config.notices, &config.plugins)
    {
        layers.reject(&format!("notices.{key}"), &why);
    }
    let pin = &config.notices.webhook.pin;
    if !pin.is_empty() && pin.parse::<crate::tls::Pin>().is_err() {
        let why = "SHA-256 of a public key, 64 hexadecimal digits";
        layers.reject("notices.webhook.pin", why);
    }
    if config.agents.every().elevated != Elevated::Off {
        layers.reject("agents.*.elevated", "elevated mode is switched on for one agent at a time: [agents.NAME] elevated = \"ask\"");
    }
    if config.agents.every().nodes != ExecMode::Deny {
        layers.reject(
            "agents.*.nodes",
            "nodes are opened to one agent at a time: [agents.NAME] nodes = \"ask\"",
        );
    }
    for node in config.nodes.exec.keys() {
        if DeviceId::new(node).is_err() {
            layers.reject(
                &format!("nodes.exec.{node}"),
                "a node is named by its whole id here, as `portcullis nodes show` has it: 64 hexadecimal digits",
            );
        }
    }
    if let Some(key) = layers.set_below(&["agents", "*", "sandbox"]) {
        layers.reject(
            &key,
            "what every agent's boxes have stands in [sandbox]: write it there, or in [agents.NAME.sandbox] for one agent",
        );
    }
    for (name, agent) in config.agents.named() {
        for (key, problem) in agent.sandbox.problems() {
            layers.reject(&format!("agents.{name}.sandbox.{key}"), &problem);
        }
    }
    let profiles = config.agents.profiles(config.sandbox.layer());
    for (key, problem) in profiles.problems() {
        layers.reject(&format!("sandbox.{key}"), &problem);
    }
    for problem in config
        .sandbox
        .problems()
        .iter()
        .chain(&config.exec.problems())
    {
        layers.reject(&key_of(problem), problem);
    }
    let limits = &gateway.limits;
    for (key, zero) in [
        (
            "gateway.limits.unauthenticated_per_address",
            limits.unauthenticated_per_address == 0,
        ),
        (
            "gateway.limits.unauthenticated_total",
            limits.unauthenticated_total == 0,
        ),
        (
            "gateway.limits.unauthenticated_unix",
            limits.unauthenticated_unix == 0,
        ),
        ("gateway.limits.handshake_ms", limits.handshake_ms == 0),
        ("gateway.limits.header_ms", limits.header_ms == 0),
        ("gateway.limits.sockets", limits.sockets == 0),
        ("supervision.ping_secs", config.supervision.ping_secs == 0),
        (
            "supervision.window_secs",
            config.supervision.window_secs == 0,
        ),
        ("audit.once_hours", config.audit.once_hours == 0),
        ("vault.max_records", config.vault.max_records == 0),
        (
            "pairing.pending_ttl_seconds",
            config.pairing.pending_ttl_seconds == 0,
        ),
        ("pairing.pending_max", config.pairing.pending_max == 0),
        ("pairing.devices_max", config.pairing.devices_max == 0),
        ("signing.nonces_per_key", config.signing.nonces_per_key == 0),
        (
            "pairing.pending_per_address",
            config.pairing.pending_per_address == 0,
        ),
        (
            "approval.timeout_seconds",
            config.approval.timeout_seconds == 0,
        ),
        (
            "approval.pending_per_agent",
            config.approval.pending_per_agent == 0,
        ),
        ("approval.pending_max", config.approval.pending_max == 0),
        (
            "approval.quorum.elevation",
            config.approval.quorum.elevation == 0,
        ),
        ("approval.quorum.egress", config.approval.quorum.egress == 0),
        (
            "approval.quorum.loosening",
            config.approval.quorum.loosening == 0,
        ),
        ("audit.once_keys", config.audit.once_keys == 0),
        ("auth.concurrent", config.auth.concurrent == 0),
        ("connection.in_flight", config.connection.in_flight == 0),
        (
            "connection.write_timeout_ms",
            config.connection.write_timeout_ms == 0,
        ),
        ("nodes.max", config.nodes.max == 0),
        ("nodes.in_flight", config.nodes.in_flight == 0),
        ("nodes.timeout_ms", config.nodes.timeout_ms == 0),
        ("dashboard.code_seconds", config.dashboard.code_seconds == 0),
        ("dashboard.idle_minutes", config.dashboard.idle_minutes == 0),
        ("telemetry.otlp.queue", config.telemetry.otlp.queue == 0),
    ] {
        if zero {
            layers.reject(
                key,
                "0 would let nobody in, or nothing happen: use 1 or more",
            );
        }
    }
    let otlp = &config.telemetry.otlp;
    if !(0.0..=1.0).contains(&otlp.ratio) {
        layers.reject("telemetry.otlp.ratio", "a share is between 0.0 and 1.0");
    }
    if crate::telemetry::endpoint_is_secure(&otlp.endpoint).is_none() {
        layers.reject(
            "telemetry.otlp.endpoint",
            "it must be https://HOST:PORT/v1/traces without a user; plain http:// is for 127.0.0.1, [::1] and localhost only",
        );
    }
}
