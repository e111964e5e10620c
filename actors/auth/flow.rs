//! The decision on one `connect`, in the order of the wire (wire.md sections 4.3, 4.4, 5).

use portcullis_core::auth::{Door, Principal, Proof, Role, ScopeSet};
use portcullis_core::codes;
use portcullis_core::device::{self, Claim};
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::{Client, ConnectFacts, PairingNeeded, Verdict};
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::protocol::connect::Checked;
use portcullis_core::token::TokenHash;
use serde_json::json;

use super::actor::AuthWiring;
use super::messages::{Admitted, Arrival};

pub(super) async fn connect(
    wiring: &AuthWiring,
    arrival: Arrival,
) -> Result<Admitted, ConnectRefusal> {
    match arrival.door {
        Door::Control => by_uid(wiring, &arrival),
        Door::Tcp => by_token_or_device(wiring, arrival).await,
        // Agents get their own credentials with their own door; the page has sessions.
        Door::AgentSock | Door::Page => Err(ConnectRefusal::invalid("unauthorized: closed door")),
    }
}

/// `control.sock`: the kernel names the uid, the configuration says whose operator it is.
fn by_uid(wiring: &AuthWiring, arrival: &Arrival) -> Result<Admitted, ConnectRefusal> {
    let uid = arrival.peer.uid.filter(|_| arrival.peer.is_operator);
    let Some(uid) = uid else {
        return Err(ConnectRefusal::unauthorized(
            "AUTH_UNAUTHORIZED",
            "not_operator",
            "this process is no operator's: see [gateway.local] operators",
            false,
        ));
    };
    if arrival.checked.role != Role::Operator {
        return Err(ConnectRefusal::invalid("invalid role"));
    }
    Ok(Admitted {
        principal: Principal {
            proof: Proof::PeerUid(uid),
            door: Door::Control,
            role: Role::Operator,
            scopes: wiring.local_scopes.meet(&arrival.checked.asked),
            agent: None,
            generation: 0,
        },
        device_token: None,
    })
}

async fn by_token_or_device(
    wiring: &AuthWiring,
    arrival: Arrival,
) -> Result<Admitted, ConnectRefusal> {
    let Arrival { checked, peer, .. } = &arrival;
    if checked.role == Role::Agent {
        return Err(ConnectRefusal::invalid("invalid role"));
    }
    if peer.has_origin {
        return Err(ConnectRefusal::detailed(
            "INVALID_REQUEST",
            "origin not allowed (browsers use the page at /)",
            json!({ "code": "CONTROL_UI_ORIGIN_NOT_ALLOWED" }),
        ));
    }
    let auth = checked.params.auth.as_ref();
    let given = auth.and_then(|a| a.token.as_deref().or(a.password.as_deref()));
    // Either field is compared, both always: which one was wrong is told by nothing.
    let shared = auth.is_some_and(|a| {
        let token = a.token.as_deref().is_some_and(|t| wiring.token.matches(t));
        let password = a
            .password
            .as_deref()
            .is_some_and(|p| wiring.token.matches(p));
        token | password
    });
    if checked.params.device.is_some() {
        return by_device(wiring, &arrival, shared).await;
    }
    if !shared {
        return Err(no_secret(given.is_some(), false));
    }
    if checked.role == Role::Node {
        return Err(ConnectRefusal::detailed(
            "NOT_PAIRED",
            "device identity required",
            json!({ "code": "DEVICE_IDENTITY_REQUIRED" }),
        ));
    }
    // The peer keeps scopes for certain client ids; what a client calls itself gives nothing here.
    let scopes = if peer.is_local && peer.is_operator {
        // A client that asks for admin where it needs less gets what the configuration gives.
        wiring.shared_token_scopes.meet(&checked.asked)
    } else {
        ScopeSet::empty()
    };
    Ok(Admitted {
        principal: Principal {
            proof: Proof::SharedToken,
            door: Door::Tcp,
            role: Role::Operator,
            scopes,
            agent: None,
            generation: 0,
        },
        device_token: None,
    })
}

async fn by_device(
    wiring: &AuthWiring,
    arrival: &Arrival,
    shared: bool,
) -> Result<Admitted, ConnectRefusal> {
    let Arrival {
        checked,
        nonce,
        peer,
        door,
    } = arrival;
    let (device_id, public_key) = verify(wiring, checked, nonce)?;
    let auth = checked.params.auth.as_ref();
    // An explicit device token, else the token field: a stored device token may travel in either (wire.md 5, 12).
    let explicit = auth.and_then(|a| a.device_token.as_deref());
    let presented = explicit.or_else(|| auth.and_then(|a| a.token.as_deref()));
    if !shared && presented.is_none() {
        return Err(no_secret(false, true));
    }
    let client = &checked.params.client;
    let facts = ConnectFacts {
        device_id: device_id.clone(),
        public_key,
        client: Client {
            id: client.id.clone(),
            mode: client.mode.clone(),
            display_name: client.display_name.clone(),
            platform: Some(client.platform.clone()),
            device_family: client.device_family.clone(),
            remote_ip: peer.ip,
            remote_uid: peer.uid,
        },
        role: checked.role,
        asked: checked.asked.clone(),
        authenticated: shared,
        device_token: presented.filter(|_| !shared).map(TokenHash::of),
        local_operator: wiring.local_trust && peer.is_local && peer.is_operator,
        local_scopes: wiring.local_scopes.clone(),
    };
    let verdict = wiring.pairing.decide(facts).await.map_err(|refusal| {
        let code = codes::find(refusal.code()).unwrap_or(codes::INTERNAL);
        let mut answer = ConnectRefusal::unavailable(code, &refusal.to_string());
        answer.error.retryable = code.retryable.then_some(true);
        answer
    })?;
    match verdict {
        Verdict::Paired {
            scopes,
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
            },
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

fn verify(
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
            json!({ "code": error.code(), "reason": error.reason() }),
        )
    })?;
    let id = DeviceId::new(&verified.id)
        .map_err(|_| ConnectRefusal::invalid("device identity mismatch"))?;
    Ok((id, verified.key.to_text()))
}

fn no_secret(given: bool, has_device: bool) -> ConnectRefusal {
    if given {
        ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISMATCH",
            "token_mismatch",
            "gateway token mismatch (use the token that the gateway printed at its first start)",
            has_device,
        )
    } else {
        ConnectRefusal::unauthorized(
            "AUTH_TOKEN_MISSING",
            "token_missing",
            "gateway token missing (send it in auth.token)",
            false,
        )
    }
}

/// wire.md section 6: clients read the request id out of the close reason.
fn pairing_required(needed: &PairingNeeded) -> ConnectRefusal {
    let requirement = needed.reason.requirement();
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
            "remediationHint": format!("a person approves it with: portcullis devices approve {}", needed.request_id),
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
