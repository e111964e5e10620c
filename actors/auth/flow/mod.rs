//! The decision on one `connect`, in the order of the wire (wire.md sections 4.3, 4.4, 5).

mod device;
mod secret;
mod uid;

use portcullis_core::auth::{Door, Role};
use portcullis_core::protocol::ConnectRefusal;
use serde_json::json;

use super::actor::AuthWiring;
use super::messages::{Admitted, Arrival};

pub(super) async fn connect(
    wiring: &AuthWiring,
    arrival: Arrival,
) -> Result<Admitted, ConnectRefusal> {
    match arrival.door {
        Door::Control => uid::by_uid(wiring, &arrival),
        Door::Tcp => over_tcp(wiring, arrival).await,
        // Agents get their own credentials with their own door; the page has sessions.
        Door::AgentSock | Door::Page | Door::Http => {
            Err(ConnectRefusal::invalid("unauthorized: closed door"))
        }
    }
}

async fn over_tcp(wiring: &AuthWiring, arrival: Arrival) -> Result<Admitted, ConnectRefusal> {
    if arrival.checked.role == Role::Agent {
        return Err(ConnectRefusal::invalid("invalid role"));
    }
    if arrival.peer.has_origin {
        return Err(ConnectRefusal::detailed(
            "INVALID_REQUEST",
            "origin not allowed (browsers use the page at /)",
            json!({ "code": "CONTROL_UI_ORIGIN_NOT_ALLOWED" }),
        ));
    }
    let proven = secret::shared(wiring, &arrival);
    if arrival.checked.params.device.is_some() {
        return device::by_device(wiring, &arrival, proven.shared).await;
    }
    secret::alone(wiring, &arrival, proven)
}
