//! The sections that no room owns: the gateway's doors and the agents.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use portcullis_actors::auth::Modes;
use portcullis_core::auth::proxy::Network;
use portcullis_core::auth::{Scope, ScopeSet};
use portcullis_core::ids::AgentId;
pub use portcullis_core::policy::{Elevated, ExecMode};
use portcullis_core::sandbox::{Layer, Overrides, Profiles};
use serde::{Deserialize, Serialize};

/// `[gateway]`: where it listens, and who is who there.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// The address of the TCP door.
    pub bind: IpAddr,
    /// Its port; 0 is a free one.
    pub port: u16,
    /// Names besides loopback ones and the address dialled under which it may be asked for.
    pub hosts: Vec<String>,
    /// `[gateway.tls]`.
    pub tls: Tls,
    /// `[gateway.auth]`.
    pub auth: GatewayAuth,
    /// `[gateway.local]`.
    pub local: Local,
    /// `[gateway.limits]`.
    pub limits: Limits,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 18789,
            hosts: Vec::new(),
            tls: Tls::default(),
            auth: GatewayAuth::default(),
            local: Local::default(),
            limits: Limits::default(),
        }
    }
}

/// `[gateway.tls]`: TLS 1.3 on the TCP door.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Spoken, and plain only to loopback peers.
    pub enabled: bool,
    /// PEM chain, our certificate first; empty: one is made.
    pub cert_file: PathBuf,
    /// Its private key, PEM, 0600.
    pub key_file: PathBuf,
    /// Authorities that clients' certificates must come from; empty: none is asked for.
    pub client_ca_file: PathBuf,
}

/// `[gateway.auth]`: the shared secrets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayAuth {
    /// Which shared secrets are taken.
    pub mode: Modes,
    /// The cost of new bcrypt hashes.
    pub bcrypt_cost: u32,
    /// Empty: made at first start, or from the environment.
    pub token_file: PathBuf,
    /// The ceiling of a connection with the token and without a device, where the kernel knows its uid for an operator's.
    pub shared_token_scopes: ScopeSet,
    /// `[gateway.auth.trusted_proxy]`.
    pub trusted_proxy: TrustedProxy,
}

impl Default for GatewayAuth {
    fn default() -> Self {
        Self {
            mode: Modes::default(),
            bcrypt_cost: 12,
            token_file: PathBuf::new(),
            shared_token_scopes: [Scope::Read, Scope::Write, Scope::Approvals, Scope::Pairing]
                .into_iter()
                .collect(),
            trusted_proxy: TrustedProxy::default(),
        }
    }
}

/// `[gateway.auth.trusted_proxy]`: proxies before the gateway, and the users whom they name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustedProxy {
    /// Whose `Forwarded` and `X-Forwarded-For` count.
    pub addresses: Vec<Network>,
    /// Users that a proxy on this machine runs as; empty: none is on this machine.
    pub loopback_uids: Vec<u32>,
    /// SHA-256 of the public keys of its client certificates; empty: none is asked for.
    pub certificates: Vec<String>,
    /// The header with the user.
    pub user_header: String,
    /// Headers that must be there besides.
    pub required_headers: Vec<String>,
    /// Who is let in; `*`: everybody whom the proxy names.
    pub allow_users: Vec<String>,
    /// The header that may narrow what a request gets; empty: none may.
    pub scopes_header: String,
    /// The most that a user gets.
    pub scopes: ScopeSet,
    /// The key set of signed assertions; empty: none is asked for.
    pub jwks_file: PathBuf,
    /// The header with the assertion.
    pub assertion_header: String,
    /// Its `iss`.
    pub issuer: String,
    /// Its `aud`.
    pub audience: String,
    /// The claim with the user.
    pub user_claim: String,
    /// What may sign it.
    pub algorithms: Vec<String>,
}

impl Default for TrustedProxy {
    fn default() -> Self {
        Self {
            addresses: vec![],
            loopback_uids: vec![],
            certificates: vec![],
            user_header: String::new(),
            required_headers: vec![],
            allow_users: vec![],
            scopes_header: "x-openclaw-scopes".to_owned(),
            scopes: [Scope::Read, Scope::Write, Scope::Approvals]
                .into_iter()
                .collect(),
            jwks_file: PathBuf::new(),
            assertion_header: String::new(),
            issuer: String::new(),
            audience: String::new(),
            user_claim: "sub".to_owned(),
            algorithms: ["ES256", "EdDSA", "RS256"].map(str::to_owned).to_vec(),
        }
    }
}

/// `[gateway.local]`: who on this machine is an operator.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Local {
    /// Empty: nobody.
    pub operators: Vec<Operator>,
    /// Loopback devices of operators are paired without a question.
    pub local_trust: bool,
    /// The most that they get.
    pub local_scopes: ScopeSet,
    /// A second control socket, which every user may dial; empty: none.
    pub socket: PathBuf,
    /// Ranges of sub-uids, as in subuid(5); empty: none.
    pub subuid_file: PathBuf,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            operators: vec![Operator::Myself],
            local_trust: true,
            local_scopes: [Scope::Admin, Scope::Approvals, Scope::Pairing, Scope::ActAs]
                .into_iter()
                .collect(),
            socket: PathBuf::new(),
            subuid_file: PathBuf::from("/etc/subuid"),
        }
    }
}

impl Local {
    /// Somebody is an operator who cannot open a file of the gateway's own user.
    pub fn has_others(&self, own: u32) -> bool {
        self.uids(own).iter().any(|uid| *uid != own) || !self.gids().is_empty()
    }

    /// Whether a process of that uid and those groups is an operator's; `own` is the gateway's uid.
    pub fn is_operator(&self, uid: u32, groups: &[u32], own: u32) -> bool {
        self.operators.iter().any(|operator| match operator {
            Operator::Myself => uid == own,
            Operator::Uid(known) => uid == *known,
            Operator::Gid(known) => groups.contains(known),
        })
    }
}

impl Local {
    /// The uids that are operators; `own` is the gateway's.
    pub fn uids(&self, own: u32) -> Vec<u32> {
        let uids = self.operators.iter().filter_map(|operator| match operator {
            Operator::Myself => Some(own),
            Operator::Uid(uid) => Some(*uid),
            Operator::Gid(_) => None,
        });
        uids.collect()
    }

    /// The groups that are operators.
    pub fn gids(&self) -> Vec<u32> {
        let gids = self.operators.iter().filter_map(|operator| match operator {
            Operator::Gid(gid) => Some(*gid),
            _ => None,
        });
        gids.collect()
    }
}

/// One entry of `operators`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Operator {
    /// The uid that the gateway runs as.
    Myself,
    /// A user.
    Uid(u32),
    /// A group.
    Gid(u32),
}

impl TryFrom<String> for Operator {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |digits: &str| {
            digits
                .parse()
                .ok()
                .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
        };
        match text.split_once(':') {
            None if text == "self" => Some(Self::Myself),
            Some(("uid", digits)) => number(digits).map(Self::Uid),
            Some(("gid", digits)) => number(digits).map(Self::Gid),
            _ => None,
        }
        .ok_or_else(|| format!("{text:?} is not \"self\", \"uid:NUMBER\" or \"gid:NUMBER\""))
    }
}

/// `[gateway.limits]`: what strangers may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Unauthenticated sockets of one address.
    pub unauthenticated_per_address: u32,
    /// Of all addresses.
    pub unauthenticated_total: u32,
    /// Of the Unix sockets.
    pub unauthenticated_unix: u32,
    /// Milliseconds to authenticate.
    pub handshake_ms: u64,
    /// Milliseconds to send an HTTP header.
    pub header_ms: u64,
    /// Sockets in all.
    pub sockets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unauthenticated_per_address: 32,
            unauthenticated_total: 1024,
            unauthenticated_unix: 64,
            handshake_ms: 15_000,
            header_ms: 10_000,
            sockets: 20_000,
        }
    }
}

/// `[agents]`: one entry a name, and `*` for all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Agents(BTreeMap<String, Agent>);

impl Agents {
    /// What holds for an agent: its own section over the template.
    pub fn of(&self, agent: &AgentId) -> Agent {
        self.0
            .get(agent.as_str())
            .or_else(|| self.0.get("*"))
            .cloned()
            .unwrap_or_default()
    }

    /// What holds for agents without a section.
    pub fn every(&self) -> Agent {
        self.0.get("*").cloned().unwrap_or_default()
    }

    /// The layers of the boxes' profiles: `sandbox` holds for all, and an agent's own are over it.
    pub fn profiles(&self, sandbox: Layer) -> Profiles {
        let every = self.every();
        let time = |name: &str, agent: &Agent| {
            (agent.timeout_ms > 0).then(|| Layer {
                name: format!("[agents.{name}]"),
                says: Overrides {
                    timeout_ms: Some(agent.timeout_ms),
                    ..Overrides::default()
                },
            })
        };
        let layers = |name: &str, agent: &Agent| {
            let own = Layer {
                name: format!("[agents.{name}.sandbox]"),
                says: agent.sandbox.clone(),
            };
            // What it says of the sandbox is nearer than what it says of its runs anywhere.
            let time = time(name, agent).filter(|_| agent.timeout_ms != every.timeout_ms);
            time.into_iter().chain([own]).collect()
        };
        let named = self.named();
        Profiles {
            every: std::iter::once(sandbox)
                .chain(time("\"*\"", &every))
                .collect(),
            agents: named
                .filter_map(|(name, agent)| Some((AgentId::new(name).ok()?, layers(name, agent))))
                .collect(),
        }
    }

    /// The agents that have a section of their own.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Agent)> {
        self.0
            .iter()
            .filter(|(name, _)| *name != "*")
            .map(|(name, agent)| (name.as_str(), agent))
    }
}

/// `[agents.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// In the sandbox.
    pub exec: ExecMode,
    /// On the host.
    pub elevated: Elevated,
    /// On node hosts.
    pub nodes: ExecMode,
    /// How many people decide on each of its questions; 0: as in `[approval.quorum]`.
    pub quorum: u8,
    /// Of a run that asks for no time, milliseconds; 0: as in `[sandbox]` and `[exec.host]`.
    pub timeout_ms: u64,
    /// `[agents.NAME.sandbox]`: what its boxes have otherwise than those of others.
    pub sandbox: Overrides,
    /// Variables of each of its runs in the sandbox, and the secret of the vault that each gets.
    pub secrets: BTreeMap<String, VaultRef>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            exec: ExecMode::default(),
            elevated: Elevated::default(),
            nodes: ExecMode::Deny,
            quorum: 0,
            timeout_ms: 0,
            sandbox: Overrides::default(),
            secrets: BTreeMap::new(),
        }
    }
}

/// `{ vault = "NAME" }`: stands where a secret is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultRef {
    /// The secret's name.
    pub vault: SecretName,
}

/// A name as the vault takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl TryFrom<String> for SecretName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        // The text is not repeated: it may be what was to be named.
        portcullis_core::vault::check_name(&name).map_err(|error| error.to_string())?;
        Ok(Self(name))
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl Agent {
    /// The default time-out, where the agent has its own.
    pub fn timeout(&self) -> Option<Duration> {
        (self.timeout_ms > 0).then(|| Duration::from_millis(self.timeout_ms))
    }
}
