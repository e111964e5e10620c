//! `control.sock`: who comes in by the kernel's word.

use portcullis_core::auth::{Door, Principal, Proof, Role};
use portcullis_core::protocol::ConnectRefusal;

use super::super::actor::AuthWiring;
use super::super::messages::{Admitted, Arrival};
use super::device;

/// `control.sock`: the kernel names the uid, the configuration says whose operator it is.
///
/// A device that comes along proves its key, and local trust pairs it: it signs decisions. Who is there is still the uid.
pub(super) async fn by_uid(
    wiring: &AuthWiring,
    arrival: &Arrival,
) -> Result<Admitted, ConnectRefusal> {
    let uid = arrival.peer.uid.filter(|_| arrival.peer.is_operator);
    let Some(uid) = uid else {
        return Err(ConnectRefusal::not_operator());
    };
    if arrival.checked.role != Role::Operator {
        return Err(ConnectRefusal::invalid("invalid role"));
    }
    if arrival.checked.params.device.is_some() {
        device::beside_uid(wiring, arrival).await?;
    }
    Ok(Admitted {
        principal: Principal {
            proof: Proof::PeerUid(uid),
            door: Door::Control,
            role: Role::Operator,
            scopes: wiring.local_scopes.meet(&arrival.checked.asked),
            agent: None,
            generation: 0,
            secret: None,
        },
        own_scopes: None,
        device_token: None,
    })
}
