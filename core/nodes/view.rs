//! What operators see of a node (wire.md 9 and 15). Every text that the node wrote goes through the one sanitiser.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Connected;
use crate::display::visible;
use crate::time::Millis;

/// What pairing knows of a node's surface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// `approved`, `pending-approval`, `pending-reapproval` or `unapproved`.
    pub state: &'static str,
    /// The request that waits for a person; only for callers who may decide on it.
    pub request_id: Option<String>,
    /// What of its commands.
    pub approved: BTreeSet<String>,
    /// When it was approved.
    pub approved_at: Option<Millis>,
}

/// One element of `node.list`.
pub fn node_json(node: &Connected, standing: &Standing) -> Value {
    let declared = &node.declared;
    let shown = |text: &str| visible(text).into_owned();
    let commands = node.commands(&standing.approved);
    let approved = !commands.is_empty() || standing.state == "approved";
    let mut value = json!({
        "nodeId": node.node,
        "displayName": shown(declared.display_name.as_deref().unwrap_or(node.node.as_str())),
        "version": shown(&declared.version),
        "clientId": shown(&declared.client_id),
        "clientMode": shown(&declared.client_mode),
        "caps": if approved { declared.caps.iter().map(|c| shown(c)).collect() } else { Vec::new() },
        "commands": commands,
        "sessionHost": false,
        "nodePluginTools": [],
        "approvalState": standing.state,
        "connectedAtMs": node.since,
        "lastConnectedAtMs": node.since,
        "lastSeenAtMs": node.since,
        "lastSeenReason": "connect",
        "paired": true,
        "connected": true,
    });
    let mut set = |key: &str, field: Option<Value>| {
        if let Some(field) = field {
            value[key] = field;
        }
    };
    set(
        "platform",
        declared.platform.as_deref().map(|t| shown(t).into()),
    );
    set(
        "deviceFamily",
        declared.device_family.as_deref().map(|t| shown(t).into()),
    );
    set(
        "pathEnv",
        declared.path_env.as_deref().map(|t| shown(t).into()),
    );
    set("approvedAtMs", standing.approved_at.map(|at| json!(at)));
    set("hostStats", node.stats.as_ref().map(|s| json!(s)));
    set(
        "workerHost",
        node.worker_host
            .map(|enabled| json!({ "enabled": enabled })),
    );
    if let Some(request) = &standing.request_id {
        set("pendingRequestId", Some(request.as_str().into()));
        set("pendingDeclaredCaps", Some(json!(declared.caps)));
        set("pendingDeclaredCommands", Some(json!(declared.commands)));
    }
    value
}
