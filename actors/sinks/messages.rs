//! What the room is given, what it may be asked, and what a sink tells of itself.

use super::config::Settings;
use crate::audit::AuditHandle;
use crate::supervision::Reply;
use crate::vault::VaultHandle;
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::rustls::ClientConfig;

/// How a receiver is verified: by the pin of its key, or where that is empty by its certificate.
pub type TlsFor = Arc<dyn Fn(&str) -> io::Result<Arc<ClientConfig>> + Send + Sync>;

/// What the room is given at each start.
#[derive(Clone)]
pub struct SinksWiring {
    /// By name.
    pub sinks: BTreeMap<String, Settings>,
    /// `STATE/sinks`: how far each has come.
    pub dir: PathBuf,
    /// The log.
    pub audit: AuditHandle,
    /// Where tokens are; none: a sink with a token does not send.
    pub vault: Option<VaultHandle>,
    /// For receivers behind TLS.
    pub tls: TlsFor,
    /// The gateway's machine, as syslog names it.
    pub host: String,
    /// The program's version.
    pub version: String,
}

/// How a sink stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// `file`, `syslog` or `http`.
    pub kind: &'static str,
    /// The last record that the receiver has taken.
    pub taken: u64,
    /// Records that it has not taken, as far as the sink knows the log.
    pub lag: u64,
    /// Records that retention removed before it took them, since the start.
    pub lost: u64,
    /// Why it does not go on.
    pub error: Option<String>,
}

/// A request to the room.
pub enum SinksMsg {
    /// How each stands.
    Status(Reply<BTreeMap<String, SinkStatus>, Infallible>),
    /// From its own timer: start this sink again.
    Again(u64),
}
