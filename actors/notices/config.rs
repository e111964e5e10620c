//! `[notices]` in the configuration.

use crate::audit::SecretRef;
use crate::plugins::Plugins;
use hyper::Uri;
use portcullis_core::auth::proxy::Network;
use portcullis_core::egress::Addresses;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The longest words that a program is given, all together.
const MOST_ARGUMENTS: usize = 16 * 1024;

/// Who is told of questions, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoticesConfig {
    /// The page's address as the receivers reach it; empty: as this machine does.
    pub page: String,
    /// Notices that may wait for one receiver.
    pub queue: usize,
    /// Tries for one notice.
    pub attempts: u32,
    /// Milliseconds between the first try and the second; each wait after it is twice as long, to a minute.
    pub retry_ms: u64,
    /// `[notices.webhook]`.
    pub webhook: WebhookConfig,
    /// `[notices.program]`.
    pub program: ProgramConfig,
}

impl Default for NoticesConfig {
    fn default() -> Self {
        Self {
            page: String::new(),
            queue: 256,
            attempts: 8,
            retry_ms: 1_000,
            webhook: WebhookConfig::default(),
            program: ProgramConfig::default(),
        }
    }
}

/// `[notices.webhook]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookConfig {
    /// Where to; empty: nowhere.
    pub address: String,
    /// SHA-256 of the receiver's public key, in hexadecimal; empty: its certificate is verified.
    pub pin: String,
    /// Authorities, PEM, that its certificate must come from; empty: those of this system.
    pub ca_file: PathBuf,
    /// Networks that the receiver may be in although they are private or this machine's own.
    pub networks: Vec<Network>,
    /// What each notice is signed with.
    pub key: SecretRef,
    /// Milliseconds for one try.
    pub timeout_ms: u64,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            pin: String::new(),
            ca_file: PathBuf::new(),
            networks: Vec::new(),
            key: SecretRef::default(),
            timeout_ms: 10_000,
        }
    }
}

/// `[notices.program]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProgramConfig {
    /// Its name in `[plugins]`; empty: none.
    pub plugin: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Milliseconds until it is ended.
    pub timeout_ms: u64,
}

impl Default for ProgramConfig {
    fn default() -> Self {
        Self {
            plugin: String::new(),
            arguments: Vec::new(),
            timeout_ms: 10_000,
        }
    }
}

/// `[notices]` as it is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Where the page is; empty: not said.
    pub page: String,
    /// The most that wait.
    pub queue: usize,
    /// Tries for each.
    pub attempts: u32,
    /// The first wait between two.
    pub retry: Duration,
    /// The webhook, where there is one.
    pub webhook: Option<Webhook>,
    /// The program, where there is one.
    pub program: Option<ProgramConfig>,
}

/// A receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// A name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Of its key.
    pub pin: String,
    /// Of its authorities.
    pub ca_file: PathBuf,
    /// Where it may be.
    pub addresses: Addresses,
    /// The name of the key in the vault.
    pub key: String,
    /// For one try.
    pub within: Duration,
}

/// What is wrong: the key, and why.
pub type Problem = (&'static str, String);

/// Reads the section.
///
/// # Errors
/// The key that is wrong, and why.
pub fn settings(config: &NoticesConfig, plugins: &Plugins) -> Result<Settings, Problem> {
    if config.queue == 0 || config.attempts == 0 || config.retry_ms == 0 {
        let zero = [
            ("queue", config.queue == 0),
            ("attempts", config.attempts == 0),
            ("retry_ms", config.retry_ms == 0),
        ];
        let key = zero
            .into_iter()
            .find(|(_, is)| *is)
            .map_or("", |(key, _)| key);
        return Err((key, "at least 1".to_owned()));
    }
    if !config.page.is_empty() && address(&config.page).is_none_or(|(_, uri)| uri.query().is_some())
    {
        return Err((
            "page",
            "\"https://HOST\" or \"https://HOST:PORT/\"".to_owned(),
        ));
    }
    Ok(Settings {
        page: config.page.clone(),
        queue: config.queue,
        attempts: config.attempts,
        retry: Duration::from_millis(config.retry_ms),
        webhook: webhook(&config.webhook)?,
        program: program(&config.program, plugins)?,
    })
}

fn webhook(config: &WebhookConfig) -> Result<Option<Webhook>, Problem> {
    if config.address.is_empty() {
        return Ok(None);
    }
    let wrong = || {
        let why = "\"https://HOST/PATH\", without a user: what is sent elsewise could be read and changed on the way";
        ("webhook.address", why.to_owned())
    };
    let (host, uri) = address(&config.address).ok_or_else(wrong)?;
    if config.key.vault.is_empty() {
        let why = "every notice is signed: `portcullis vault set NAME < file` and `portcullis vault bind NAME --host HOST`, then { vault = \"NAME\" }";
        return Err(("webhook.key", why.to_owned()));
    }
    if !config.pin.is_empty() && !config.ca_file.as_os_str().is_empty() {
        let why = "a receiver is known by its key's pin or by an authority, not by both";
        return Err(("webhook.pin", why.to_owned()));
    }
    if !config.ca_file.as_os_str().is_empty() && !config.ca_file.is_absolute() {
        return Err(("webhook.ca_file", "an absolute path".to_owned()));
    }
    if config.timeout_ms == 0 {
        return Err(("webhook.timeout_ms", "at least 1".to_owned()));
    }
    let addresses = Addresses::new(config.networks.clone());
    if let Some(network) = addresses.in_vain() {
        let why = format!("{network} is dialled by no setting");
        return Err(("webhook.networks", why));
    }
    Ok(Some(Webhook {
        host,
        port: uri.port_u16().unwrap_or(443),
        path: uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned(),
        pin: config.pin.clone(),
        ca_file: config.ca_file.clone(),
        addresses,
        key: config.key.vault.clone(),
        within: Duration::from_millis(config.timeout_ms),
    }))
}

/// Host without brackets, and all of it.
fn address(text: &str) -> Option<(String, Uri)> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?.as_str();
    let is_https = uri.scheme_str() == Some("https");
    if !is_https || authority.contains('@') || uri.port_u16() == Some(0) || text.contains('#') {
        return None;
    }
    let host = uri.host()?;
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    (!host.is_empty()).then_some((host, uri))
}

fn program(config: &ProgramConfig, plugins: &Plugins) -> Result<Option<ProgramConfig>, Problem> {
    if config.plugin.is_empty() {
        return Ok(None);
    }
    if plugins.get(&config.plugin).is_none() {
        let why = "no such name in [plugins], and no other program is started";
        return Err(("program.plugin", why.to_owned()));
    }
    let length: usize = config.arguments.iter().map(String::len).sum();
    if length > MOST_ARGUMENTS || config.arguments.iter().any(|word| word.contains('\0')) {
        let why = "words without NUL, 16 KiB of them";
        return Err(("program.arguments", why.to_owned()));
    }
    if config.timeout_ms == 0 {
        return Err(("program.timeout_ms", "at least 1".to_owned()));
    }
    Ok(Some(config.clone()))
}
