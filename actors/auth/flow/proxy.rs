//! People whom a trusted proxy names. What it named was decided with the upgrade (core/auth/proxy.rs), by the socket's
//! address and the headers of that one request.

use portcullis_core::auth::proxy::{Named, NotNamed};
use portcullis_core::auth::{Principal, Proof, Role, SecretName, SecretStanding};
use portcullis_core::protocol::ConnectRefusal;

use super::super::actor::AuthWiring;
use super::super::messages::{Admitted, Arrival};
use super::device;

/// The user is the proxy's; a device that came along must have signed, and gets no token: its session is the user's.
pub(super) fn by_proxy(
    wiring: &AuthWiring,
    arrival: &Arrival,
    named: &Result<Named, NotNamed>,
) -> Result<Admitted, ConnectRefusal> {
    let named = named
        .as_ref()
        .map_err(|why| refused(why.word(), &why.to_string()))?;
    if arrival.checked.params.device.is_some() {
        device::verify(wiring, &arrival.checked, &arrival.nonce)?;
    }
    Ok(Admitted {
        principal: Principal {
            proof: Proof::ProxyUser(named.user.clone()),
            door: arrival.door,
            role: Role::Operator,
            scopes: named.scopes.meet(&arrival.checked.asked),
            agent: None,
            generation: 0,
            // Who leaves the list of users takes along what rests on this.
            secret: Some(SecretStanding {
                secret: SecretName::ProxyUser(named.user.clone()),
                generation: 0,
            }),
        },
        own_scopes: None,
        device_token: None,
    })
}

/// Nobody comes in here without the proxy or a device of their own.
pub(super) fn needed() -> ConnectRefusal {
    refused(
        "AUTH_IDENTITY_HEADER_REQUIRED",
        "people come in through the proxy of [gateway.auth.trusted_proxy] only",
    )
}

fn refused(code: &str, why: &str) -> ConnectRefusal {
    ConnectRefusal::unauthorized(code, "trusted_proxy", why, false)
}
