//! `device.*` and `node.pair.*`: from their params to pairing and back.

use std::future::Future;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_core::auth::{Holder, Principal, Role, Scope, ScopeSet, Whose};
use portcullis_core::codes;
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::{Caller, Invalidation, Refusal};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::answer::Params;
use super::messages::EndSessions;
use super::methods::{About, Answer, Methods, Nothing, refused};
use crate::exec::{ExecRefusal, Spared};
use crate::pairing::PairingRefusal;

impl Methods {
    pub(super) async fn devices(
        &self,
        about: About<'_>,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        let (pairing, by) = (&self.pairing, about.principal);
        let done = match method {
            "device.pair.list" => {
                params.read::<Nothing>(method)?;
                pairing.list(by, self.connected.get()).await
            }
            "device.pair.approve" => {
                let p: Approve = params.read(method)?;
                let done = pairing.approve(by, &p.request_id, p.narrow).await;
                let answer = done.map_err(pairing_refusal)?;
                // One that was paired before gets a new generation: what it had under the old one is over.
                let device = answer["device"]["deviceId"].as_str().unwrap_or_default();
                return match DeviceId::new(device) {
                    Ok(device) => {
                        let why = Invalidation::Reapproved;
                        self.end_of(about, &device, (why, None), answer).await
                    }
                    Err(_) => Ok(answer),
                };
            }
            "device.pair.reject" => {
                let p: Request = params.read(method)?;
                pairing.reject(by, &p.request_id).await
            }
            "device.pair.remove" => {
                let p: Device = params.read(method)?;
                let act = pairing.remove(by, &p.device_id);
                let (id, why) = (&p.device_id, Invalidation::Removed);
                return self.ending(about, id, p.keep_running, why, act).await;
            }
            "device.pair.rename" => {
                let p: Rename = params.read(method)?;
                pairing.rename(by, &p.device_id, &p.label).await
            }
            "device.pair.setupCode" => return self.setup_code(by, params).await,
            "device.pair.setupStatus" => {
                let p: SetupId = params.read(method)?;
                pairing.code_status(&p.setup_id).await
            }
            "device.token.rotate" => {
                let p: Rotate = params.read(method)?;
                let act = pairing.rotate(by, &p.device_id, p.role, p.scopes);
                let (id, why) = (&p.device_id, Invalidation::TokenRotated);
                return self.ending(about, id, p.keep_running, why, act).await;
            }
            "device.token.revoke" => {
                let p: Revoke = params.read(method)?;
                let act = pairing.revoke(by, &p.device_id, p.role);
                let (id, why) = (&p.device_id, Invalidation::TokenRevoked);
                return self.ending(about, id, p.keep_running, why, act).await;
            }
            _ => return unknown(method),
        };
        done.map_err(pairing_refusal)
    }

    async fn setup_code(&self, by: &Principal, params: &Params<'_>) -> Answer {
        let p: SetupCode = params.read("device.pair.setupCode")?;
        let bad = |what: &str| {
            let text = format!("invalid device.pair.setupCode params: {what}");
            ErrorBody::of(codes::INVALID_PARAMS, text)
        };
        let profile = match (p.bootstrap_profile.as_deref(), p.role) {
            (None, role) => role.unwrap_or(Role::Operator),
            (Some("limited"), None) => Role::Operator,
            (Some("node"), None) => Role::Node,
            _ => {
                return Err(bad(
                    "bootstrapProfile is \"limited\" or \"node\", and stands instead of a role",
                ));
            }
        };
        // The least that is something, unless more is said.
        let least = match profile {
            Role::Operator => [Scope::Read].into_iter().collect(),
            _ => ScopeSet::empty(),
        };
        let (url, source) = match p.public_url {
            Some(url) if is_gateway_url(&url) => (url, "publicUrl"),
            Some(_) => {
                return Err(bad(
                    "publicUrl is ws:// or wss:// and a host, 256 characters at most",
                ));
            }
            None => match self.listeners.first() {
                Some(url) if !is_everywhere(url) => (url.clone(), "listener"),
                // Nobody can dial "every address".
                _ => {
                    return Err(bad(
                        "publicUrl is needed: this gateway listens on every address, and only you know the one to dial",
                    ));
                }
            },
        };
        let made = self
            .pairing
            .make_code(by, profile, p.scopes.unwrap_or(least));
        let made = made.await.map_err(pairing_refusal)?;
        let token = Zeroizing::new(format!("{}.{}", made.id, made.token.expose()));
        let payload = json!({ "url": url, "bootstrapToken": &*token }).to_string();
        Ok(json!({
            "setupId": made.id,
            "setupCode": URL_SAFE_NO_PAD.encode(&*Zeroizing::new(payload)),
            "gatewayUrl": url,
            "urlSource": source,
            "auth": "token",
            "expiresAtMs": made.expires_at,
        }))
    }

    pub(super) async fn node_pairing(
        &self,
        about: About<'_>,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        let (pairing, by) = (&self.pairing, about.principal);
        let done = match method {
            "node.pair.list" => {
                params.read::<Nothing>(method)?;
                pairing.nodes(by).await
            }
            "node.pair.approve" => {
                let p: Request = params.read(method)?;
                pairing.approve_surface(by, &p.request_id).await
            }
            "node.pair.reject" => {
                let p: Request = params.read(method)?;
                pairing.reject_surface(by, &p.request_id).await
            }
            "node.pair.remove" => {
                let p: Node = params.read(method)?;
                let act = pairing.remove_node(by, &p.node_id);
                let (id, why) = (&p.node_id, Invalidation::Removed);
                return self.ending(about, id, false, why, act).await;
            }
            "node.rename" => {
                let p: RenameNode = params.read(method)?;
                pairing.rename_node(by, &p.node_id, &p.display_name).await
            }
            _ => return unknown(method),
        };
        done.map_err(pairing_refusal)
    }

    /// Makes a change that ends a generation of a device, and answers when all of it is over.
    async fn ending(
        &self,
        about: About<'_>,
        device: &DeviceId,
        keep_running: bool,
        why: Invalidation,
        act: impl Future<Output = Result<Value, PairingRefusal>>,
    ) -> Answer {
        // Before its connections end, and with them what they run.
        let spares = keep_running && Caller::of(about.principal).may_touch(device);
        let spared = if spares {
            Some(self.exec.spare(device).await.map_err(run_refusal)?)
        } else {
            None
        };
        match act.await {
            Ok(answer) => self.end_of(about, device, (why, spared), answer).await,
            Err(refusal) => {
                if let Some(spared) = spared {
                    self.exec.spare_not(spared).await;
                }
                Err(pairing_refusal(refusal))
            }
        }
    }

    /// After a durable change: every connection of an older generation is closed, what it asked, answered and granted
    /// is void, and what it runs ends. Each of these also happens by itself, from pairing's news and by each room's own
    /// look at the generation; here it is waited for.
    async fn end_of(
        &self,
        about: About<'_>,
        device: &DeviceId,
        (why, spared): (Invalidation, Option<Spared>),
        answer: Value,
    ) -> Answer {
        let lives = self.pairing.lives(device).await.map_err(pairing_refusal)?;
        let whose = Whose {
            holder: Holder::Device(device.clone()),
            lives,
        };
        let reason = why.close_reason();
        self.over_but(about, whose, (reason, spared), answer).await
    }

    /// See [`Self::end_of`]: for a device's pairing, and for a secret.
    pub(super) async fn over(
        &self,
        about: About<'_>,
        whose: Whose,
        reason: &'static str,
        answer: Value,
    ) -> Answer {
        self.over_but(about, whose, (reason, None), answer).await
    }

    async fn over_but(
        &self,
        about: About<'_>,
        whose: Whose,
        (reason, spared): (&'static str, Option<Spared>),
        answer: Value,
    ) -> Answer {
        let closed = match self.sessions.get() {
            Some(sessions) => {
                let order = EndSessions {
                    whose: whose.clone(),
                    reason,
                    but: about.connection.to_owned(),
                };
                sessions.end(order).await
            }
            None => true,
        };
        let approvals = self.approval.end_of(&whose.holder).await;
        let runs = self.exec.end_of(&whose, spared).await;
        match (closed, approvals, runs) {
            (true, Ok(_), Ok(_)) => Ok(answer),
            (closed, approvals, runs) => {
                tracing::error!(holder = %whose.holder, closed, ?approvals, ?runs, "not all that has ended was seen to end");
                let mut details = Map::new();
                details.insert("execution".into(), "may_have_executed".into());
                Err(ErrorBody::with(
                    codes::DEADLINE,
                    "the change is made and the old credential is void, but not all of its connections, approvals and runs were seen to end: `portcullis status` shows what is slow",
                    details,
                ))
            }
        }
    }
}

/// A WebSocket address that a QR code may carry.
fn is_gateway_url(url: &str) -> bool {
    let rest = url
        .strip_prefix("wss://")
        .or_else(|| url.strip_prefix("ws://"));
    url.len() <= 256
        && rest.is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() && b != b'@')
        })
}

/// An address that is listened on and cannot be dialled.
fn is_everywhere(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    host.starts_with("0.0.0.0") || host.starts_with("[::]")
}

pub(super) fn run_refusal(refusal: ExecRefusal) -> ErrorBody {
    ErrorBody::of(refusal.code, refusal.message)
}

fn unknown(method: &str) -> Answer {
    Err(ErrorBody::of(
        codes::UNKNOWN_METHOD,
        format!("unknown method: {method}"),
    ))
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn pairing_refusal(refusal: PairingRefusal) -> ErrorBody {
    let mut error = refused(refusal.code(), &refusal);
    if let (PairingRefusal::Rule(Refusal::MissingScope(scope)), Some(details)) =
        (&refusal, error.details.as_mut())
    {
        details["missingScope"] = scope.as_str().into();
        details["requiredScopes"] = json!([scope]);
    }
    error
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Request {
    request_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Approve {
    request_id: String,
    /// Give what the approver holds of what is asked, instead of refusing.
    #[serde(default)]
    narrow: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Device {
    device_id: DeviceId,
    /// Spare what runs for it now.
    #[serde(default)]
    keep_running: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SetupId {
    setup_id: String,
}

/// The wire's own, and `role` and `scopes`, which are ours. Who shows the code draws it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SetupCode {
    #[serde(default)]
    public_url: Option<String>,
    #[serde(default)]
    bootstrap_profile: Option<String>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    scopes: Option<ScopeSet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rename {
    device_id: DeviceId,
    label: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rotate {
    device_id: DeviceId,
    role: Role,
    #[serde(default)]
    scopes: Option<ScopeSet>,
    #[serde(default)]
    keep_running: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Revoke {
    device_id: DeviceId,
    role: Role,
    #[serde(default)]
    keep_running: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Node {
    node_id: DeviceId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RenameNode {
    node_id: DeviceId,
    display_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nobody_can_dial_is_in_no_setup_code() {
        for url in ["wss://0.0.0.0:18789", "ws://[::]:1"] {
            assert!(is_everywhere(url), "{url}");
        }
        for url in ["ws://127.0.0.1:18789", "wss://[::1]:1", "wss://10.0.0.0:1"] {
            assert!(!is_everywhere(url), "{url}");
        }
    }
}
