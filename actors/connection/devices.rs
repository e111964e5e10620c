//! `device.*` and `node.pair.*`: from their params to pairing and back.

use portcullis_core::auth::{Principal, Role, ScopeSet};
use portcullis_core::codes;
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::Refusal;
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::json;

use super::answer::Params;
use super::methods::{Answer, Methods, Nothing, refused};
use crate::pairing::PairingRefusal;

impl Methods {
    pub(super) async fn devices(
        &self,
        by: &Principal,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        let pairing = &self.pairing;
        let done = match method {
            "device.pair.list" => {
                params.read::<Nothing>(method)?;
                pairing.list(by, self.connected.get()).await
            }
            "device.pair.approve" => {
                let p: Approve = params.read(method)?;
                pairing.approve(by, &p.request_id, p.narrow).await
            }
            "device.pair.reject" => {
                let p: Request = params.read(method)?;
                pairing.reject(by, &p.request_id).await
            }
            "device.pair.remove" => {
                let p: Device = params.read(method)?;
                pairing.remove(by, &p.device_id).await
            }
            "device.pair.rename" => {
                let p: Rename = params.read(method)?;
                pairing.rename(by, &p.device_id, &p.label).await
            }
            "device.token.rotate" => {
                let p: Rotate = params.read(method)?;
                pairing.rotate(by, &p.device_id, p.role, p.scopes).await
            }
            "device.token.revoke" => {
                let p: Revoke = params.read(method)?;
                pairing.revoke(by, &p.device_id, p.role).await
            }
            _ => return unknown(method),
        };
        done.map_err(pairing_refusal)
    }

    pub(super) async fn node_pairing(
        &self,
        by: &Principal,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        let pairing = &self.pairing;
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
                pairing.remove_node(by, &p.node_id).await
            }
            "node.rename" => {
                let p: RenameNode = params.read(method)?;
                pairing.rename_node(by, &p.node_id, &p.display_name).await
            }
            _ => return unknown(method),
        };
        done.map_err(pairing_refusal)
    }
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Revoke {
    device_id: DeviceId,
    role: Role,
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
