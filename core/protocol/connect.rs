//! The first frame of every connection, and every way it can be refused (wire.md sections 4 to 6).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::frame::ErrorBody;
use super::limits::{PROTOCOL, PROTOCOL_NODE_MIN};
use crate::auth::{Role, Scope, ScopeSet};

/// `connect`'s params. Unknown keys are passed over: newer clients send more.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectParams {
    /// Oldest protocol that the client speaks.
    pub min_protocol: u64,
    /// Newest protocol that the client speaks.
    pub max_protocol: u64,
    /// What the client says it is: shown and signed, never trusted.
    pub client: ClientInfo,
    /// Client capabilities.
    #[serde(default)]
    pub caps: Vec<String>,
    /// Commands that a node offers.
    #[serde(default)]
    pub commands: Vec<String>,
    /// A node's `PATH`: shown.
    #[serde(default)]
    pub path_env: Option<String>,
    /// A node's permissions.
    #[serde(default)]
    pub permissions: BTreeMap<String, Value>,
    /// `operator` when absent.
    #[serde(default)]
    pub role: Option<String>,
    /// Asked for, in the order sent (it is signed so).
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Proof of a device.
    #[serde(default)]
    pub device: Option<DeviceClaim>,
    /// Secrets.
    #[serde(default)]
    pub auth: Option<AuthClaim>,
    /// Asks that every frame after the hello be signed.
    #[serde(default)]
    pub frame_signing: Option<FrameSigning>,
}

/// See [`crate::signing::frame`].
#[derive(Debug, Clone, Deserialize)]
pub struct FrameSigning {
    /// Of the client: 32 random bytes, base64url.
    pub nonce: String,
}

/// See [`ConnectParams::client`]. Bounded by the frame before authentication (64 KiB).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "wire.md 4.1 names each")]
pub struct ClientInfo {
    pub id: String,
    #[serde(default)]
    pub display_name: Option<String>,
    pub version: String,
    pub platform: String,
    #[serde(default)]
    pub device_family: Option<String>,
    pub mode: String,
    #[serde(default)]
    pub instance_id: Option<String>,
}

/// A device's claim over this socket's challenge.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "wire.md 4.3 names each")]
pub struct DeviceClaim {
    pub id: String,
    pub public_key: String,
    pub signature: String,
    pub signed_at: u64,
    pub nonce: String,
}

/// Secrets sent with `connect`: wiped when dropped, never printed.
#[derive(Clone, Default, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "wire.md 4.1 names each")]
pub struct AuthClaim {
    pub token: Option<String>,
    pub device_token: Option<String>,
    pub bootstrap_token: Option<String>,
    pub password: Option<String>,
    /// Whose password it is (ours; the peer knows one password only).
    pub user: Option<String>,
}

impl std::fmt::Debug for AuthClaim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthClaim(..)")
    }
}

const CLIENT_IDS: &[&str] = &[
    "webchat-ui",
    "openclaw-control-ui",
    "openclaw-browser-copilot",
    "openclaw-tui",
    "webchat",
    "cli",
    "gateway-client",
    "openclaw-macos",
    "openclaw-linux",
    "openclaw-ios",
    "openclaw-watchos",
    "openclaw-android",
    "node-host",
    "openclaw-worker",
    "test",
    "fingerprint",
    "openclaw-probe",
    "portcullis-cli",
];
const CLIENT_MODES: &[&str] = &[
    "webchat", "cli", "ui", "backend", "node", "worker", "probe", "test",
];
const TEXT_MAX: usize = 256;
const LIST_MAX: usize = 256;

/// Why a connection does not come to be: the answer, and how the socket is closed.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectRefusal {
    /// Of the `res`.
    pub error: Box<ErrorBody>,
    /// WebSocket close code.
    pub close: u16,
    /// Close reason, before it is cut to 123 bytes.
    pub reason: String,
}

impl ConnectRefusal {
    /// `CONNECT_INVALID` and 1008 with the same text.
    pub fn invalid(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            error: Box::new(ErrorBody::of(
                crate::codes::CONNECT_INVALID,
                message.clone(),
            )),
            close: 1008,
            reason: message,
        }
    }

    /// The same with `details` (a JSON object); `details.next` is added by its code where it is not there.
    pub fn detailed(wire: &str, message: impl Into<String>, mut details: Value) -> Self {
        let message = message.into();
        if details.get("next").is_none() {
            let code = details["code"].as_str().unwrap_or_default();
            details["next"] = next_step(code).into();
        }
        let mut error = ErrorBody::bare(wire, message.clone());
        error.details = Some(details);
        Self {
            error: Box::new(error),
            close: 1008,
            reason: message,
        }
    }

    /// A wrong or missing secret (wire.md section 5).
    pub fn unauthorized(
        code: &str,
        reason: &str,
        text: &str,
        can_retry_with_device_token: bool,
    ) -> Self {
        Self::detailed(
            "INVALID_REQUEST",
            format!("unauthorized: {text}"),
            json!({
                "code": code, "authReason": reason,
                "canRetryWithDeviceToken": can_retry_with_device_token,
                "recommendedNextStep": if can_retry_with_device_token { "retry_with_device_token" } else { "update_auth_credentials" },
            }),
        )
    }

    /// Of who dials a control socket and is no operator.
    pub fn not_operator() -> Self {
        Self::unauthorized(
            "AUTH_UNAUTHORIZED",
            "not_operator",
            "this process is no operator's: see [gateway.local] operators",
            false,
        )
    }

    /// A room that auth needs does not serve now: the client may try again.
    pub fn unavailable(code: &'static crate::codes::Code, message: &str) -> Self {
        let mut error = ErrorBody::of(code, message);
        error.retryable = Some(true);
        error.retry_after_ms = Some(500);
        Self {
            error: Box::new(error),
            close: 1013,
            reason: message.to_owned(),
        }
    }
}

/// What to do about a code of the wire's own (wire.md section 3), which [`crate::codes`] does not list.
fn next_step(code: &str) -> &'static str {
    match code {
        "AUTH_TOKEN_MISSING" => {
            "send the token in auth.token, or pair this device with a code of `portcullis devices setup-code`"
        }
        "AUTH_TOKEN_MISMATCH" => {
            "send the token that is valid now; a person makes a new one with `portcullis auth token rotate`, for an agent with \
             `portcullis agents token NAME`"
        }
        "AUTH_PASSWORD_MISSING" => "send the password in auth.password",
        "AUTH_PASSWORD_MISMATCH" => {
            "send the right password; a person sets it with `portcullis password set`"
        }
        "AUTH_BOOTSTRAP_TOKEN_INVALID" => {
            "ask for a new code: a person makes it with `portcullis devices setup-code`"
        }
        "AUTH_DEVICE_TOKEN_MISMATCH" => {
            "connect with the device's key and no such token: it gets a new one, or a person is asked"
        }
        "AUTH_IDENTITY_HEADER_REQUIRED" => {
            "connect through the proxy of [gateway.auth.trusted_proxy], or as a paired device"
        }
        "AUTH_RATE_LIMITED" => "wait as long as retryAfterMs says, then try again",
        "CONTROL_UI_ORIGIN_NOT_ALLOWED" => {
            "in a browser, open the page: `portcullis dashboard`; other clients send no Origin"
        }
        "DEVICE_IDENTITY_REQUIRED" => {
            "sign the challenge with a device's key, in connect's `device`"
        }
        "PAIRING_REQUIRED" => {
            "a person sees it with `portcullis devices list` and approves it with `portcullis devices approve`"
        }
        "PROTOCOL_MISMATCH" => "use a client that speaks the protocol in expectedProtocol",
        _ => {
            "come as a user whom [gateway.local] operators names, with the gateway's token, or as a paired device"
        }
    }
}

/// `connect`, checked: what the later steps may rely on.
#[derive(Debug, Clone)]
pub struct Checked {
    /// As sent.
    pub params: ConnectParams,
    /// Parsed.
    pub role: Role,
    /// Asked for; unknown ones are left out, for they cannot be granted.
    pub asked: ScopeSet,
}

impl ConnectParams {
    /// Shape, closed lists, protocol, role (wire.md section 4).
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn check(self) -> Result<Checked, ConnectRefusal> {
        let bad =
            |path: &str| ConnectRefusal::invalid(format!("invalid connect params: at {path}"));
        if !CLIENT_IDS.contains(&self.client.id.as_str()) {
            return Err(bad("/client/id must be one of the known client ids"));
        }
        if !CLIENT_MODES.contains(&self.client.mode.as_str()) {
            return Err(bad("/client/mode must be one of the known client modes"));
        }
        if self.client.mode == "worker"
            || self.client.id == "openclaw-worker"
            || self.role.as_deref() == Some("worker")
        {
            return Err(ConnectRefusal::invalid("invalid-handshake"));
        }
        let texts = [
            ("/client/version", Some(&self.client.version)),
            ("/client/platform", Some(&self.client.platform)),
            ("/client/displayName", self.client.display_name.as_ref()),
            ("/client/deviceFamily", self.client.device_family.as_ref()),
            ("/client/instanceId", self.client.instance_id.as_ref()),
        ];
        for (path, text) in texts {
            if text.is_some_and(|t| t.len() > TEXT_MAX) {
                return Err(bad(&format!("{path} must be at most {TEXT_MAX} bytes")));
            }
        }
        for (path, list) in [
            ("/scopes", &self.scopes),
            ("/caps", &self.caps),
            ("/commands", &self.commands),
        ] {
            if list.len() > LIST_MAX || list.iter().any(|t| t.len() > TEXT_MAX) {
                return Err(bad(&format!(
                    "{path} must be at most {LIST_MAX} texts of {TEXT_MAX} bytes"
                )));
            }
        }
        if let Some(asked) = &self.frame_signing {
            if !crate::signing::frame::is_nonce(&asked.nonce) {
                return Err(bad("/frameSigning/nonce must be 32 bytes in base64url"));
            }
            if self.signed_token().is_empty() {
                return Err(bad("/frameSigning needs a token in /auth, which keys it"));
            }
        }
        let role = match self.role.as_deref() {
            None => Role::Operator,
            Some(text) => {
                Role::parse(text).ok_or_else(|| ConnectRefusal::invalid("invalid role"))?
            }
        };
        self.check_protocol(role)?;
        let asked = self.scopes.iter().filter_map(|s| Scope::parse(s)).collect();
        Ok(Checked {
            params: self,
            role,
            asked,
        })
    }

    fn check_protocol(&self, role: Role) -> Result<(), ConnectRefusal> {
        let (min, max) = (self.min_protocol, self.max_protocol);
        let speaks = min <= PROTOCOL && PROTOCOL <= max;
        let probe = self.client.mode == "probe" && max >= PROTOCOL_NODE_MIN && min <= PROTOCOL;
        let node = role == Role::Node
            && self.client.mode == "node"
            && max >= PROTOCOL_NODE_MIN
            && min <= PROTOCOL_NODE_MIN;
        if speaks || probe || node {
            return Ok(());
        }
        let mut refusal = ConnectRefusal::detailed(
            "INVALID_REQUEST",
            "protocol mismatch",
            json!({
                "code": "PROTOCOL_MISMATCH", "clientMinProtocol": min, "clientMaxProtocol": max,
                "expectedProtocol": PROTOCOL, "minimumProbeProtocol": PROTOCOL_NODE_MIN,
            }),
        );
        refusal.close = 1002;
        Err(refusal)
    }

    /// What signed frames are keyed by: the one token, if it is the only secret here. Of several, the one that let the
    /// client in could be another than the one that keys, which nobody has checked.
    pub fn frame_key(&self) -> Option<&str> {
        let auth = self.auth.as_ref()?;
        let tokens = [&auth.token, &auth.device_token, &auth.bootstrap_token];
        let mut given = tokens.into_iter().flatten();
        let first = given.next()?;
        let is_only = auth.password.is_none() && given.all(|other| other == first);
        is_only.then_some(first)
    }

    /// The token that a device signs: the first of the three secrets, never the password.
    pub fn signed_token(&self) -> &str {
        self.auth
            .as_ref()
            .and_then(|a| {
                a.token
                    .as_deref()
                    .or(a.device_token.as_deref())
                    .or(a.bootstrap_token.as_deref())
            })
            .unwrap_or_default()
    }
}

/// What `hello-ok` says (wire.md 4.2). Without host paths: the peer's tells them to everyone.
#[derive(Debug)]
pub struct Hello<'a> {
    /// Of this connection.
    pub conn_id: &'a str,
    /// Of this process.
    pub boot_id: &'a str,
    /// Ours.
    pub version: &'a str,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// `token`, `device-token`, `peer-uid` …
    pub method: &'a str,
    /// Effective.
    pub role: Role,
    /// Effective.
    pub scopes: &'a ScopeSet,
    /// Who is present, for who may read it; else empty.
    pub presence: Value,
    /// A device's token and when it was issued: with every hello of a paired device.
    pub device_token: Option<(&'a str, u64)>,
    /// Every frame from now on is signed.
    pub frame_signing: bool,
    /// How far the log is, for a node: what it is asked to run was begun later.
    pub log_at: Option<u64>,
    /// Id and text of a device's new key for signed requests, shown this once.
    pub signing_key: Option<(&'a str, &'a str)>,
}

impl Hello<'_> {
    /// As JSON.
    pub fn payload(&self) -> Value {
        let mut auth = Map::new();
        auth.insert("method".into(), self.method.into());
        auth.insert("role".into(), self.role.as_str().into());
        auth.insert(
            "scopes".into(),
            self.scopes
                .iter()
                .map(|s| Value::from(s.as_str()))
                .collect(),
        );
        if let Some((token, issued)) = self.device_token {
            auth.insert("deviceToken".into(), token.into());
            auth.insert("issuedAtMs".into(), issued.into());
        }
        if let Some((id, key)) = self.signing_key {
            auth.insert("signingKey".into(), json!({ "keyId": id, "key": key }));
        }
        let mut hello = json!({
            "type": "hello-ok",
            "protocol": PROTOCOL,
            "server": { "version": self.version, "connId": self.conn_id, "bootId": self.boot_id },
            "features": {
                "methods": super::method::names().collect::<Vec<_>>(),
                "events": super::method::EVENTS,
                "capabilities": [crate::signing::frame::CAPABILITY, crate::signing::http::CAPABILITY],
            },
            "snapshot": {
                "presence": self.presence,
                "health": {},
                "stateVersion": { "presence": 0, "health": 0 },
                "uptimeMs": self.uptime_ms,
            },
            "auth": auth,
            "policy": {
                "maxPayload": super::limits::frame_max(self.role, self.scopes),
                "maxBufferedBytes": super::limits::BUFFERED,
                "tickIntervalMs": super::limits::TICK_MS,
            },
        });
        if self.frame_signing {
            hello["frameSigning"] = json!({ "v": 1 });
        }
        if let Some(seq) = self.log_at {
            hello[crate::nodes::RUN_NUMBER] = seq.into();
        }
        hello
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> ConnectParams {
        serde_json::from_str(text).unwrap()
    }

    const CLI: &str = r#"{"minProtocol":4,"maxProtocol":4,"client":{"id":"cli","version":"2026.9.6","platform":"linux","deviceFamily":"Linux","mode":"cli","instanceId":"x"},"caps":[],"auth":{"token":"t"},"role":"operator","scopes":["operator.read"]}"#;

    /// The bug: with a junk `token` beside a good `deviceToken` the frames' key was the junk.
    #[test]
    fn frames_are_keyed_by_the_one_secret_that_is_checked() {
        let key = |auth: &str| {
            let text = CLI.replace(r#"{"token":"t"}"#, auth);
            params(&text).frame_key().map(str::to_owned)
        };
        assert_eq!(key(r#"{"token":"t"}"#).as_deref(), Some("t"));
        assert_eq!(key(r#"{"deviceToken":"d"}"#).as_deref(), Some("d"));
        let same = key(r#"{"token":"d","deviceToken":"d"}"#);
        assert_eq!(same.as_deref(), Some("d"));
        for none in [
            "{}",
            r#"{"token":"x","deviceToken":"d"}"#,
            r#"{"password":"p"}"#,
            r#"{"token":"x","password":"p"}"#,
        ] {
            assert_eq!(key(none), None, "{none}");
        }
    }

    #[test]
    fn the_recorded_cli_connect_is_taken() {
        let checked = params(CLI).check().unwrap();
        assert_eq!(checked.role, Role::Operator);
        assert!(checked.asked.allows(Scope::Read));
    }

    #[test]
    fn protocol_rule_of_the_wire() {
        let with = |min: u64, max: u64, role: &str, mode: &str| {
            let mut p = params(CLI);
            (p.min_protocol, p.max_protocol) = (min, max);
            p.role = Some(role.into());
            p.client.mode = mode.into();
            p.check().map(|_| ()).map_err(|r| r.close)
        };
        assert_eq!(with(3, 4, "operator", "cli"), Ok(()));
        assert_eq!(with(5, 6, "operator", "cli"), Err(1002));
        assert_eq!(with(3, 3, "operator", "cli"), Err(1002));
        assert_eq!(with(3, 3, "node", "node"), Ok(()));
        assert_eq!(with(3, 3, "operator", "probe"), Ok(()));
        assert_eq!(with(2, 2, "operator", "probe"), Err(1002));
    }

    #[test]
    fn closed_lists_and_lengths() {
        for (from, to) in [
            (r#""id":"cli""#, r#""id":"evil""#),
            (r#""mode":"cli""#, r#""mode":"operator""#),
            (r#""role":"operator""#, r#""role":"root""#),
            (r#""mode":"cli""#, r#""mode":"worker""#),
        ] {
            let refusal = params(&CLI.replacen(from, to, 1)).check().unwrap_err();
            assert_eq!(
                (refusal.close, refusal.error.code.as_str()),
                (1008, "INVALID_REQUEST")
            );
        }
        let mut p = params(CLI);
        p.client.version = "v".repeat(300);
        assert!(p.check().is_err());
    }

    #[test]
    fn secrets_do_not_print() {
        assert!(!format!("{:?}", params(CLI)).contains("\"t\""));
    }
}
