//! What the room is given, what it may be asked, and what each receiver tells of itself.

use super::config::{Settings, Webhook};
use crate::approval::ApprovalHandle;
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::exec::ProgramGround;
use crate::plugins::Plugins;
use crate::supervision::Reply;
use crate::vault::VaultHandle;
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::rustls::ClientConfig;

/// How a receiver is verified: asked for each try, so that a file of authorities may be exchanged.
pub type TlsBy = Arc<dyn Fn(&Webhook) -> io::Result<Arc<ClientConfig>> + Send + Sync>;

/// What the room is given at each start.
#[derive(Clone)]
pub struct NoticesWiring {
    /// Who is told, and how.
    pub settings: Settings,
    /// What may be started.
    pub plugins: Arc<Plugins>,
    /// What a program stands on.
    pub ground: ProgramGround,
    /// `STATE/notices`: what each was told to be open.
    pub dir: PathBuf,
    /// The page that a notice leads to.
    pub page: String,
    /// The questions.
    pub approval: ApprovalHandle,
    /// Where the key is; none: nothing is sent to a webhook.
    pub vault: Option<VaultHandle>,
    /// The log.
    pub audit: AuditHandle,
    /// The time.
    pub clock: Clock,
    /// For the webhook.
    pub tls: TlsBy,
    /// The program's version.
    pub version: String,
}

/// How a receiver stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelStatus {
    /// The webhook's host, or the program's name in `[plugins]`.
    pub to: String,
    /// Notices that were taken, since the start.
    pub told: u64,
    /// Notices that wait.
    pub waiting: usize,
    /// Notices that were given up, since the start.
    pub lost: u64,
    /// Why the last try failed.
    pub error: Option<String>,
}

/// How a program of `[plugins]` stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginStatus {
    /// Its path.
    pub path: String,
    /// `ok`, or the code of what is wrong with it.
    pub state: &'static str,
    /// What is wrong.
    pub error: Option<String>,
}

/// How all stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NoticesStatus {
    /// Who is told: `webhook`, `program`.
    pub channels: BTreeMap<&'static str, ChannelStatus>,
    /// By name.
    pub plugins: BTreeMap<String, PluginStatus>,
}

/// A request to the room.
pub enum NoticesMsg {
    /// How all stand.
    Status(Reply<NoticesStatus, Infallible>),
}
