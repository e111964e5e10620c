//! What operators and clients see: the JSON of wire.md sections 6, 9 and 15. No token and no hash is ever in it.

use super::decide::PairingNeeded;
use super::machine::{News, Pairing};
use super::manage::{Caller, Rotated};
use super::records::{Client, Device, Pending};
use super::surface::{PendingSurface, Surface};
use crate::auth::Role;
use crate::display::visible;
use crate::ids::DeviceId;
use crate::time::Millis;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

impl Pairing {
    /// `device.pair.list`. `connected`: the devices that are here now. A device token's holder without admin sees
    /// itself alone.
    pub fn list(&self, caller: &Caller, connected: &BTreeSet<DeviceId>, now: Millis) -> Value {
        let pending = self
            .pending
            .values()
            .filter(|pending| self.is_live(pending, now) && caller.may_touch(&pending.device_id));
        let paired = self
            .devices
            .values()
            .filter(|device| caller.may_touch(&device.device_id));
        json!({
            "pending": pending.map(Pending::to_wire).collect::<Vec<_>>(),
            "paired": paired.map(|device| device.to_wire(Some(connected.contains(&device.device_id)))).collect::<Vec<_>>(),
        })
    }

    /// `node.pair.list`: surfaces that wait, and nodes whose surface was approved.
    pub fn list_nodes(&self, caller: &Caller) -> Value {
        let nodes = || {
            self.devices.values().filter(|device| {
                device.held(Role::Node).is_some() && caller.may_touch(&device.device_id)
            })
        };
        json!({
            "pending": nodes().filter_map(Device::pending_node_to_wire).collect::<Vec<_>>(),
            "paired": nodes().filter_map(Device::node_to_wire).collect::<Vec<_>>(),
        })
    }

    /// One request or device by its id, for `portcullis devices show`; `None` when the caller may not see it.
    pub fn show(&self, id: &str, caller: &Caller, now: Millis) -> Option<Value> {
        if let Some(pending) = self
            .pending
            .get(id)
            .filter(|pending| self.is_live(pending, now))
        {
            return caller
                .may_touch(&pending.device_id)
                .then(|| pending.to_wire());
        }
        let device = self.devices.get(&DeviceId::new(id).ok()?)?;
        caller
            .may_touch(&device.device_id)
            .then(|| device.to_wire(None))
    }
}

impl Pending {
    /// As in `device.pair.list` and the event `device.pair.requested`.
    pub fn to_wire(&self) -> Value {
        let mut out = common(&self.device_id, &self.public_key, &self.client);
        out.insert("requestId".into(), self.request_id.clone().into());
        // One word for clients that know one role; the list for the others.
        out.insert(
            "role".into(),
            self.roles.iter().next().map(|role| role.as_str()).into(),
        );
        out.insert("roles".into(), json!(self.roles));
        out.insert("scopes".into(), json!(self.scopes));
        if self.is_repair {
            out.insert("isRepair".into(), true.into());
        }
        out.insert("ts".into(), self.created_at_ms.0.into());
        out.insert("refreshedAtMs".into(), self.refreshed_at_ms.0.into());
        Value::Object(out)
    }
}

impl Device {
    /// As in `device.pair.list` (with `connected`) and `device.pair.approve`.
    pub fn to_wire(&self, connected: Option<bool>) -> Value {
        let roles: Vec<_> = self
            .grants
            .keys()
            .copied()
            .filter(|role| self.held(*role).is_some())
            .collect();
        let scopes: BTreeSet<_> = roles
            .iter()
            .filter_map(|role| self.held(*role))
            .flat_map(|grant| grant.scopes.iter())
            .collect();
        let tokens: Vec<_> = self
            .grants
            .iter()
            .map(|(role, grant)| {
                let mut token = Map::new();
                token.insert("role".into(), role.as_str().into());
                token.insert("scopes".into(), json!(grant.token_scopes));
                let created = grant
                    .token
                    .as_ref()
                    .map_or(self.approved_at_ms, |token| token.created_at_ms);
                token.insert("createdAtMs".into(), created.0.into());
                if let Some(at) = grant.rotated_at_ms {
                    token.insert("rotatedAtMs".into(), at.0.into());
                }
                if let Some(at) = grant.revoked_at_ms {
                    token.insert("revokedAtMs".into(), at.0.into());
                }
                Value::Object(token)
            })
            .collect();
        let mut out = common(&self.device_id, &self.public_key, &self.client);
        if let Some(label) = &self.label {
            out.insert("operatorLabel".into(), visible(label).into());
        }
        out.insert(
            "role".into(),
            roles.first().map(|role| role.as_str()).into(),
        );
        out.insert("roles".into(), json!(roles));
        out.insert("scopes".into(), json!(scopes));
        out.insert("approvedVia".into(), json!(self.approved_via));
        out.insert("createdAtMs".into(), self.created_at_ms.0.into());
        out.insert("approvedAtMs".into(), self.approved_at_ms.0.into());
        if let Some(at) = self.last_seen_at_ms {
            out.insert("lastSeenAtMs".into(), at.0.into());
            out.insert("lastSeenReason".into(), "connect".into());
        }
        if let Some(connected) = connected {
            out.insert("connected".into(), connected.into());
        }
        out.insert("tokens".into(), tokens.into());
        if let Some(approved) = &self.node_surface {
            let mut surface = Map::new();
            put_surface(&mut surface, &approved.surface, approved.version.as_ref());
            surface.insert("createdAtMs".into(), approved.created_at_ms.0.into());
            surface.insert("approvedAtMs".into(), approved.approved_at_ms.0.into());
            out.insert("nodeSurface".into(), surface.into());
        }
        if let Some(pending) = &self.pending_surface {
            out.insert(
                "pendingNodeSurface".into(),
                self.surface_to_wire(pending).into(),
            );
        }
        Value::Object(out)
    }

    /// As in `node.pair.list` and the event `node.pair.requested`, while a surface waits.
    pub fn pending_node_to_wire(&self) -> Option<Value> {
        let pending = self.pending_surface.as_ref()?;
        Some(self.surface_to_wire(pending).into())
    }

    fn surface_to_wire(&self, pending: &PendingSurface) -> Map<String, Value> {
        let mut out = node(&self.device_id, &self.client, self.label.as_ref());
        out.insert("requestId".into(), pending.request_id.clone().into());
        put_surface(&mut out, &pending.surface, pending.version.as_ref());
        out.insert(
            "requiredApproveScopes".into(),
            json!(pending.surface.approve_scopes()),
        );
        out.insert("ts".into(), pending.created_at_ms.0.into());
        out
    }

    /// As in `node.pair.list` and `node.pair.approve`, once a surface was approved.
    pub fn node_to_wire(&self) -> Option<Value> {
        let approved = self.node_surface.as_ref()?;
        let mut out = node(&self.device_id, &self.client, self.label.as_ref());
        put_surface(&mut out, &approved.surface, approved.version.as_ref());
        out.insert("createdAtMs".into(), approved.created_at_ms.0.into());
        out.insert("approvedAtMs".into(), approved.approved_at_ms.0.into());
        if let Some(at) = self.last_seen_at_ms {
            out.insert("lastSeenAtMs".into(), at.0.into());
            out.insert("lastSeenReason".into(), "connect".into());
        }
        Some(out.into())
    }
}

fn put_surface(out: &mut Map<String, Value>, surface: &Surface, version: Option<&String>) {
    if let Some(version) = version {
        out.insert("version".into(), version.clone().into());
    }
    out.insert("caps".into(), json!(surface.caps));
    out.insert("commands".into(), json!(surface.commands));
    if !surface.permissions.is_empty() {
        out.insert("permissions".into(), json!(surface.permissions));
    }
}

/// A node of wire.md 9: the same facts under its own names. The operator's label wins over what it calls itself.
fn node(device_id: &DeviceId, client: &Client, label: Option<&String>) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("nodeId".into(), device_id.as_str().into());
    put_client(&mut out, client);
    if let Some(label) = label {
        out.insert("displayName".into(), visible(label).into());
    }
    out
}

fn common(device_id: &DeviceId, public_key: &str, client: &Client) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("deviceId".into(), device_id.as_str().into());
    out.insert("publicKey".into(), public_key.into());
    put_client(&mut out, client);
    out
}

fn put_client(out: &mut Map<String, Value>, client: &Client) {
    let texts = [
        ("displayName", &client.display_name),
        ("platform", &client.platform),
        ("deviceFamily", &client.device_family),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            // Its own words, before who decides on it: they make no line of their own, and push nothing aside.
            out.insert(key.into(), visible(text).into());
        }
    }
    out.insert("clientId".into(), client.id.clone().into());
    out.insert("clientMode".into(), client.mode.clone().into());
    if let Some(ip) = client.remote_ip {
        out.insert("remoteIp".into(), ip.to_canonical().to_string().into());
    }
}

impl Rotated {
    /// Result of `device.token.rotate`. Holds the token when it is the device's own: to be sent and dropped.
    pub fn to_wire(&self, device_id: &DeviceId) -> Value {
        let mut out = json!({
            "deviceId": device_id, "role": self.role, "scopes": self.scopes, "rotatedAtMs": self.rotated_at_ms.0,
            "tokenDelivery": if self.token.is_some() { "in-band" } else { "withheld-cross-device" },
        });
        if let Some(issued) = &self.token {
            out["token"] = issued.token.expose().into();
        }
        out
    }
}

impl PairingNeeded {
    /// `error.message`.
    pub fn message(&self) -> String {
        format!("pairing required: {}", self.reason.requirement())
    }

    /// Close reason (1008).
    pub fn close_reason(&self) -> String {
        format!(
            "pairing required: {} (requestId: {})",
            self.reason.requirement(),
            self.request_id
        )
    }

    /// `error.details`; `error.code` is `NOT_PAIRED`. Says `wait_then_retry`: without it the clients stop asking.
    pub fn details(&self) -> Value {
        let mut out = json!({
            "code": "PAIRING_REQUIRED",
            "reason": self.reason.as_str(),
            "requestId": self.request_id,
            "remediationHint": format!("approve it on the gateway: portcullis devices approve {}", self.request_id),
            "deviceId": self.device_id,
            "requestedRole": self.requested_role,
            "requestedScopes": self.requested_scopes,
            "recommendedNextStep": "wait_then_retry",
            "retryable": true,
            "pauseReconnect": false,
        });
        if !self.approved_roles.is_empty() {
            out["approvedRoles"] = json!(self.approved_roles);
            out["approvedScopes"] = json!(self.approved_scopes);
        }
        out
    }
}

impl News {
    /// The event to broadcast to those with `operator.pairing`: name and payload. `None`: not for clients.
    pub fn to_wire(&self) -> Option<(&'static str, Value)> {
        match self {
            Self::Requested(pending) => Some(("device.pair.requested", pending.to_wire())),
            Self::Resolved {
                request_id,
                device_id,
                decision,
                at_ms,
            } => Some((
                "device.pair.resolved",
                json!({ "requestId": request_id, "deviceId": device_id, "decision": decision.as_str(), "ts": at_ms.0 }),
            )),
            Self::SurfaceRequested(device) => {
                Some(("node.pair.requested", device.pending_node_to_wire()?))
            }
            Self::SurfaceResolved {
                request_id,
                device_id,
                decision,
                at_ms,
            } => Some((
                "node.pair.resolved",
                json!({ "requestId": request_id, "nodeId": device_id, "decision": decision.as_str(), "ts": at_ms.0 }),
            )),
            Self::Invalidated { .. } => None,
        }
    }
}
