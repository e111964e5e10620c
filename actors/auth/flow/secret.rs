//! The shared secret, and who comes in with nothing else.

use portcullis_core::auth::{Door, Principal, Proof, Role, ScopeSet};
use portcullis_core::protocol::ConnectRefusal;
use serde_json::json;

use super::super::actor::AuthWiring;
use super::super::messages::{Admitted, Arrival};

/// What the secrets of a `connect` came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proven {
    /// The shared secret was among them.
    pub shared: bool,
    /// There was one to compare.
    pub given: bool,
}

/// Either field is compared, both always: which one was wrong is told by nothing.
pub(super) fn shared(wiring: &AuthWiring, arrival: &Arrival) -> Proven {
    let Some(auth) = arrival.checked.params.auth.as_ref() else {
        return Proven {
            shared: false,
            given: false,
        };
    };
    let is_shared =
        |text: &Option<String>| text.as_deref().is_some_and(|t| wiring.token.matches(t));
    Proven {
        shared: is_shared(&auth.token) | is_shared(&auth.password),
        given: auth.token.is_some() || auth.password.is_some(),
    }
}

/// The secret without a device.
pub(super) fn alone(
    wiring: &AuthWiring,
    arrival: &Arrival,
    proven: Proven,
) -> Result<Admitted, ConnectRefusal> {
    let Arrival { checked, peer, .. } = arrival;
    if !proven.shared {
        return Err(no_secret(proven.given, false));
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
        wiring.shared_token_scopes.narrow(&checked.asked)
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

pub(super) fn no_secret(given: bool, has_device: bool) -> ConnectRefusal {
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
