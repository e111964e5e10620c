//! Who comes in with a device: its signature over this socket's challenge, and pairing's word on it.

use portcullis_core::auth::{Principal, Proof, SecretStanding};
use portcullis_core::codes;
use portcullis_core::device::{self, Claim};
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::{Client, ConnectFacts, PairingNeeded, Verdict};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::protocol::connect::Checked;
use portcullis_core::token::TokenHash;
use serde_json::json;

use super::super::actor::AuthWiring;
use super::super::messages::{Admitted, Arrival};
use super::secret::no_secret;

pub(super) async fn by_device(
    wiring: &AuthWiring,
    arrival: &Arrival,
    secret: Option<SecretStanding>,
) -> Result<Admitted, ConnectRefusal> {
    let Arrival {
        checked,
        nonce,
        door,
        ..
    } = arrival;
    let (device_id, public_key) = verify(wiring, checked, nonce)?;
    let auth = checked.params.auth.as_ref();
    // An explicit device token, else the token field: a stored device token may travel in either (wire.md 5, 12).
    let explicit = auth.and_then(|a| a.device_token.as_deref());
    let shared = secret.is_some();
    let presented = explicit.or_else(|| auth.and_then(|a| a.token.as_deref()));
    if !shared && presented.is_none() {
        return Err(no_secret(false, true));
    }
    let facts = ConnectFacts {
        authenticated: shared,
        secret,
        device_token: presented.filter(|_| !shared).map(TokenHash::of),
        ..facts(wiring, arrival, device_id.clone(), public_key)
    };
    match decide(wiring, facts).await? {
        Verdict::Paired {
            scopes,
            own,
            token,
            generation,
            by_device_token,
        } => Ok(Admitted {
            principal: Principal {
                proof: if by_device_token {
                    Proof::DeviceToken(device_id)
                } else {
                    Proof::SharedTokenAndDevice(device_id)
                },
                door: *door,
                role: checked.role,
                scopes,
                agent: None,
                generation,
                secret: None,
            },
            own_scopes: Some(own),
            device_token: token.map(|t| (t.token, t.issued_at_ms.0)),
        }),
        Verdict::Pending(needed) => Err(pairing_required(&needed)),
        Verdict::TokenRefused(_) if explicit.is_some() => Err(ConnectRefusal::unauthorized(
            "AUTH_DEVICE_TOKEN_MISMATCH",
            "device_token_mismatch",
            "device token mismatch (rotate/reissue device token)",
            false,
        )),
        Verdict::TokenRefused(_) => Err(no_secret(true, true)),
    }
}

async fn decide(wiring: &AuthWiring, facts: ConnectFacts) -> Result<Verdict, ConnectRefusal> {
    wiring.pairing.decide(facts).await.map_err(|refusal| {
        let code = codes::find(refusal.code()).unwrap_or(codes::INTERNAL);
        let mut answer = ConnectRefusal::unavailable(code, &refusal.to_string());
        answer.error.retryable = code.retryable.then_some(true);
        answer
    })
}

/// A key that comes in beside an operator's uid, by the kernel's word: paired, or a person is asked. The token that it could
/// come in with elsewhere is told to nobody.
pub(super) async fn beside_uid(
    wiring: &AuthWiring,
    arrival: &Arrival,
) -> Result<(), ConnectRefusal> {
    let (device_id, public_key) = verify(wiring, &arrival.checked, &arrival.nonce)?;
    let facts = ConnectFacts {
        authenticated: true,
        ..facts(wiring, arrival, device_id, public_key)
    };
    match decide(wiring, facts).await? {
        Verdict::Paired { .. } => Ok(()),
        Verdict::Pending(needed) => Err(pairing_required(&needed)),
        Verdict::TokenRefused(_) => Err(no_secret(true, true)),
    }
}

/// What is known of a device that has signed; nothing else is proven yet.
pub(super) fn facts(
    wiring: &AuthWiring,
    arrival: &Arrival,
    device_id: DeviceId,
    public_key: String,
) -> ConnectFacts {
    let Arrival { checked, peer, .. } = arrival;
    let client = &checked.params.client;
    ConnectFacts {
        device_id,
        public_key,
        client: Client {
            id: client.id.clone(),
            mode: client.mode.clone(),
            display_name: client.display_name.clone(),
            platform: Some(client.platform.clone()),
            device_family: client.device_family.clone(),
            remote_ip: peer.ip,
            remote_uid: peer.account,
        },
        role: checked.role,
        asked: checked.asked.clone(),
        authenticated: false,
        secret: None,
        device_token: None,
        local_operator: wiring.local_trust && peer.is_local && peer.is_operator,
        local_scopes: wiring.local_scopes.clone(),
    }
}

pub(super) fn verify(
    wiring: &AuthWiring,
    checked: &Checked,
    nonce: &str,
) -> Result<(DeviceId, String), ConnectRefusal> {
    let params = &checked.params;
    let Some(device) = &params.device else {
        return Err(ConnectRefusal::invalid("device identity required"));
    };
    let claim = Claim {
        device_id: &device.id,
        public_key: &device.public_key,
        signature: &device.signature,
        signed_at_ms: device.signed_at,
        nonce: &device.nonce,
        client_id: &params.client.id,
        client_mode: &params.client.mode,
        role: checked.role.as_str(),
        scopes: &params.scopes,
        token: params.signed_token(),
        platform: &params.client.platform,
        device_family: params.client.device_family.as_deref().unwrap_or_default(),
    };
    let verified = device::verify(&claim, nonce, wiring.clock.now().0).map_err(|error| {
        ConnectRefusal::detailed(
            "INVALID_REQUEST",
            error.to_string(),
            json!({ "code": error.code(), "reason": error.reason(), "next": error.next() }),
        )
    })?;
    let id = DeviceId::new(&verified.id)
        .map_err(|_| ConnectRefusal::invalid("device identity mismatch"))?;
    Ok((id, verified.key.to_text()))
}

/// wire.md section 6: clients read the request id out of the close reason.
fn pairing_required(needed: &PairingNeeded) -> ConnectRefusal {
    let requirement = needed.reason.requirement();
    let next = format!(
        "a person approves it with: portcullis devices approve {}",
        needed.request_id
    );
    let mut refusal = ConnectRefusal::detailed(
        "NOT_PAIRED",
        format!("pairing required: {requirement}"),
        json!({
            "code": "PAIRING_REQUIRED",
            "reason": needed.reason.as_str(),
            "requestId": needed.request_id,
            "deviceId": needed.device_id,
            "requestedRole": needed.requested_role,
            "requestedScopes": needed.requested_scopes,
            "approvedRoles": needed.approved_roles,
            "approvedScopes": needed.approved_scopes,
            "remediationHint": next,
            "next": next,
            "recommendedNextStep": "wait_then_retry",
            "retryable": true,
            "pauseReconnect": false,
        }),
    );
    refusal.reason = format!(
        "pairing required: {requirement} (requestId: {})",
        needed.request_id
    );
    refusal
}
