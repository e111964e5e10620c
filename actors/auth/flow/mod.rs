//! The decision on one `connect`, in the order of the wire (wire.md sections 4.3, 4.4, 5).

mod agent;
mod device;
mod proxy;
mod secret;
mod setup;
mod uid;

use portcullis_core::auth::{Door, Proof, Role};
use portcullis_core::protocol::ConnectRefusal;
use serde_json::json;

use super::actor::Desk;
use super::messages::{Admitted, Arrival};
use secret::Shared;

pub(super) async fn connect(desk: &Desk, arrival: Arrival) -> Result<Admitted, ConnectRefusal> {
    match arrival.door {
        Door::Control => uid::by_uid(&desk.wiring, &arrival).await,
        Door::Tcp => over_tcp(desk, arrival).await,
        Door::AgentSock if arrival.checked.role == Role::Agent => {
            agent::by_token(&desk.credentials, &arrival)
        }
        // What the kernel says of the peer gives nothing there, an operator's uid neither.
        Door::AgentSock => Err(ConnectRefusal::invalid("invalid role")),
        Door::Page | Door::Http => Err(ConnectRefusal::invalid("unauthorized: closed door")),
    }
}

async fn over_tcp(desk: &Desk, arrival: Arrival) -> Result<Admitted, ConnectRefusal> {
    if arrival.peer.has_origin {
        return Err(ConnectRefusal::detailed(
            "INVALID_REQUEST",
            "origin not allowed (browsers use the page at /)",
            json!({ "code": "CONTROL_UI_ORIGIN_NOT_ALLOWED" }),
        ));
    }
    // Before any secret is looked at: a key that it has come by is of no use, nor is it told whether it is one.
    if arrival.peer.is_of_a_run && arrival.checked.role == Role::Operator {
        return Err(ConnectRefusal::unauthorized(
            "AUTH_UNAUTHORIZED",
            "of_a_run",
            "what the gateway runs is no operator, whatever token or key it has",
            false,
        ));
    }
    if arrival.checked.role == Role::Agent {
        return agent::by_token(&desk.credentials, &arrival);
    }
    if desk.wiring.modes.trusted_proxy
        && arrival.checked.role == Role::Operator
        && let Some(named) = &arrival.peer.named
    {
        return proxy::by_proxy(&desk.wiring, &arrival, named);
    }
    if let Some(code) = arrival.setup_code().filter(|_| {
        // A code is one device's: without a device it is nothing.
        arrival.checked.params.device.is_some()
    }) {
        match setup::by_code(desk, &arrival, code).await {
            // It goes before the shared secret, and its failure matters only where nothing else is brought (wire.md 5).
            Err(refusal) if !arrival.brings_more() => return Err(refusal),
            Err(_) => {}
            admitted => return admitted,
        }
    }
    let proven = secret::shared(desk, &arrival).await?;
    let words = |refusal| secret::in_words_of(desk.wiring.modes, &arrival, refusal);
    if arrival.checked.params.device.is_none() {
        return if desk.wiring.modes.trusted_proxy {
            Err(proxy::needed())
        } else {
            secret::alone(desk, &arrival, proven).map_err(words)
        };
    }
    let standing = proven
        .shared
        .as_ref()
        .map(|shared| shared.standing(&desk.credentials));
    let mut admitted = device::by_device(&desk.wiring, &arrival, standing.clone())
        .await
        .map_err(words)?;
    let principal = &mut admitted.principal;
    // One that came in by a token of its own owes the shared secret nothing.
    if let (Some(shared), Proof::SharedTokenAndDevice(device)) = (&proven.shared, &principal.proof)
    {
        principal.secret = standing;
        if let Shared::Password(name) = shared {
            principal.proof = Proof::PasswordAndDevice(name.clone(), device.clone());
        }
    }
    Ok(admitted)
}
