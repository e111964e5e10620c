//! The gate before a command goes to a node: nobody's word but the kept approval's says that it was approved.
//!
//! The peer answers a changed command with the approved one, run silently. Here it is refused: who asked for something
//! else is told so.

use crate::approval::{Record, Status, Subject};
use crate::codes::{self, Code};
use crate::ids::{AgentId, DeviceId};
use crate::plan::Target;

/// Who asks for a run under an approval, and for what. All of it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim<'a> {
    /// On which node.
    pub node: &'a DeviceId,
    /// For which agent.
    pub agent: &'a AgentId,
    /// The arguments.
    pub argv: &'a [String],
    /// The folder, where one is named.
    pub cwd: Option<&'a str>,
    /// The variables.
    pub env: &'a [(String, String)],
    /// The asker's name.
    pub principal: &'a str,
    /// The asker's device, where there is one.
    pub device: Option<&'a str>,
    /// The asker's connection.
    pub connection: &'a str,
    /// Milliseconds it may run, where they are said.
    pub timeout_ms: Option<u64>,
}

/// What the caller says of an approval. Both are the caller's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The approval's id.
    pub run_id: Option<&'a str>,
    /// It says `approved: true` or names a decision.
    pub claims_approval: bool,
}

/// Why it is not forwarded: code and text of the wire (wire.md 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct GateRefusal {
    /// The code.
    pub code: &'static Code,
    /// The text.
    pub text: &'static str,
}

const fn refuse(code: &'static Code, text: &'static str) -> GateRefusal {
    GateRefusal { code, text }
}

/// Does this kept question stand for exactly this run, asked for by who asked then? `None`: no such question is kept.
///
/// # Errors
/// [`GateRefusal`].
pub fn admit_run(
    asked: Asked<'_>,
    record: Option<&Record>,
    claim: &Claim<'_>,
) -> Result<(), GateRefusal> {
    if !asked.claims_approval {
        return Err(refuse(codes::APPROVAL_REQUIRED, "approval required"));
    }
    if asked.run_id.is_none_or(str::is_empty) {
        return Err(refuse(
            codes::MISSING_RUN_ID,
            "approval override requires params.runId",
        ));
    }
    let unknown = refuse(codes::UNKNOWN_APPROVAL_ID, "unknown or expired approval id");
    let record = record.ok_or(unknown)?;
    let Subject::Exec(plan) = &record.subject else {
        return Err(unknown);
    };
    // Whose question it is comes first: to others its state is not told.
    let asker = &record.requester;
    match (asker.device.as_deref(), claim.device) {
        (Some(then), Some(now)) if then == now => {}
        (Some(_), _) => {
            return Err(refuse(
                codes::APPROVAL_DEVICE_MISMATCH,
                "approval id not valid for this device",
            ));
        }
        (None, _) if asker.connection == claim.connection => {}
        (None, _) => {
            return Err(refuse(
                codes::APPROVAL_CLIENT_MISMATCH,
                "approval id not valid for this client",
            ));
        }
    }
    if asker.name != claim.principal {
        return Err(refuse(
            codes::APPROVAL_CLIENT_MISMATCH,
            "approval id not valid for this client",
        ));
    }
    let Target::Node(node) = &plan.target else {
        return Err(refuse(
            codes::APPROVAL_NODE_BINDING_MISSING,
            "approval id missing node binding",
        ));
    };
    if node != claim.node.as_str() {
        return Err(refuse(
            codes::APPROVAL_NODE_MISMATCH,
            "approval id not valid for this node",
        ));
    }
    let env_is_same = plan.env.len() == claim.env.len()
        && claim.env.iter().all(|(name, value)| {
            matches!(plan.env.get(name), Some(crate::plan::EnvValue::Plain(kept)) if kept == value)
        });
    let is_same = plan.argv == claim.argv
        && plan.agent == *claim.agent
        && claim.cwd.is_none_or(|cwd| cwd == plan.cwd)
        && claim
            .timeout_ms
            .is_none_or(|ms| ms == plan.limits.timeout_ms)
        && env_is_same;
    if !is_same {
        return Err(refuse(
            codes::APPROVAL_REQUEST_MISMATCH,
            "approval id does not match request",
        ));
    }
    match record.status {
        Status::Allowed => Ok(()),
        Status::Pending => Err(unknown),
        Status::Expired => Err(refuse(codes::APPROVAL_EXPIRED, "approval expired")),
        Status::Denied | Status::Cancelled | Status::Used => {
            Err(refuse(codes::APPROVAL_REQUIRED, "approval required"))
        }
    }
}
