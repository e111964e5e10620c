//! Every method, who may call it, and with which scope: the one table that all doors read.

use serde_json::json;

use super::frame::ErrorBody;
use crate::auth::{Principal, Role, Scope};
use crate::codes;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any authenticated socket.
    Anyone,
    /// Operators with this scope.
    Operator(Scope),
    /// Operators with any scope, and nodes: who is paired may hold the gateway to what it was.
    Holder,
    /// Nodes only.
    Node,
    /// Agents with the scope `exec`, and operators who may act for an agent.
    AgentOrActAs,
}

/// Name and access of each method, in the order of `hello-ok`.
pub const METHODS: &[(&str, Access)] = {
    use Access::{AgentOrActAs, Anyone, Holder, Node, Operator};
    use Scope::{Admin, Approvals, Auditor, Pairing, Read, Write};
    &[
        ("health", Anyone),
        ("status", Operator(Read)),
        ("system-presence", Operator(Read)),
        ("config.get", Operator(Read)),
        ("sandbox.explain", Operator(Read)),
        ("sandbox.list", Operator(Read)),
        ("sandbox.end", Operator(Admin)),
        ("device.pair.list", Operator(Pairing)),
        ("device.pair.approve", Operator(Pairing)),
        ("device.pair.reject", Operator(Pairing)),
        ("device.pair.remove", Operator(Pairing)),
        ("device.pair.rename", Operator(Pairing)),
        ("device.pair.setupCode", Operator(Admin)),
        ("device.pair.setupStatus", Operator(Admin)),
        ("device.token.rotate", Operator(Pairing)),
        ("device.token.revoke", Operator(Pairing)),
        ("node.pair.list", Operator(Pairing)),
        ("node.pair.approve", Operator(Pairing)),
        ("node.pair.reject", Operator(Pairing)),
        ("node.pair.remove", Operator(Pairing)),
        ("node.rename", Operator(Pairing)),
        ("exec.approvals.get", Operator(Admin)),
        ("exec.approvals.set", Operator(Admin)),
        // What is on a list, and what lies on this machine.
        ("exec.policy.test", Operator(Admin)),
        ("exec.policy.explain", Operator(Admin)),
        // What asks for a command needs what runs it needs.
        ("exec.approval.request", AgentOrActAs),
        ("exec.approval.list", Operator(Approvals)),
        ("exec.approval.get", Operator(Approvals)),
        ("exec.approval.resolve", Operator(Approvals)),
        ("exec.approval.waitDecision", Operator(Approvals)),
        ("exec.approval.grants.list", Operator(Approvals)),
        ("exec.approval.grants.revoke", Operator(Approvals)),
        ("approval.get", Operator(Approvals)),
        ("approval.resolve", Operator(Approvals)),
        ("approval.history", Operator(Approvals)),
        ("plugin.approval.list", Operator(Approvals)),
        ("openclaw.approval.list", Operator(Approvals)),
        ("exec.run", AgentOrActAs),
        ("exec.attach", AgentOrActAs),
        ("exec.cancel", AgentOrActAs),
        // Who began the run, and nobody else.
        ("exec.stdin", AgentOrActAs),
        ("exec.resize", AgentOrActAs),
        ("exec.signal", AgentOrActAs),
        ("node.list", Operator(Read)),
        ("node.describe", Operator(Read)),
        // A run needs what `exec.run` needs too.
        ("node.invoke", Operator(Write)),
        ("exec.approvals.node.get", Operator(Admin)),
        ("exec.approvals.node.set", Operator(Admin)),
        ("node.invoke.result", Node),
        ("node.invoke.progress", Node),
        ("node.event", Node),
        ("node.pluginTools.update", Node),
        ("node.skills.update", Node),
        ("node.runnerInventory.update", Node),
        ("skills.bins", Node),
        ("auth.token.rotate", Operator(Admin)),
        ("auth.password.set", Operator(Admin)),
        ("auth.password.remove", Operator(Admin)),
        ("auth.password.list", Operator(Admin)),
        ("agent.token.mint", Operator(Admin)),
        ("agent.token.list", Operator(Admin)),
        ("agent.token.revoke", Operator(Admin)),
        ("vault.status", Operator(Read)),
        ("vault.list", Operator(Admin)),
        ("vault.set", Operator(Admin)),
        ("vault.remove", Operator(Admin)),
        ("vault.bind", Operator(Admin)),
        ("vault.seal", Operator(Admin)),
        ("vault.unlock", Operator(Admin)),
        ("vault.rotate", Operator(Admin)),
        ("vault.rekey", Operator(Admin)),
        ("vault.init", Operator(Admin)),
        ("vault.export", Operator(Admin)),
        ("vault.import", Operator(Admin)),
        ("vault.unlockers.list", Operator(Admin)),
        ("vault.unlockers.add", Operator(Admin)),
        ("vault.unlockers.remove", Operator(Admin)),
        ("audit.tail", Operator(Auditor)),
        ("audit.query", Operator(Auditor)),
        ("audit.show", Operator(Auditor)),
        ("audit.export", Operator(Auditor)),
        ("audit.prove", Operator(Auditor)),
        ("audit.verify", Operator(Auditor)),
        // Hashes and sizes.
        ("audit.checkpoint", Holder),
        ("audit.consistency", Holder),
        ("dashboard.code", Operator(Admin)),
        ("tls.show", Operator(Admin)),
        ("tls.reload", Operator(Admin)),
    ]
};

/// Every event a client may hear.
pub const EVENTS: &[&str] = &[
    "connect.challenge",
    "tick",
    "shutdown",
    "device.pair.requested",
    "device.pair.resolved",
    "node.pair.requested",
    "node.pair.resolved",
    "exec.approval.requested",
    "exec.approval.resolved",
    "exec.begun",
    "exec.output",
    "node.invoke.progress",
    "node.invoke.request",
    "node.invoke.cancel",
];

/// Do its params hold a secret? Then no buffer keeps its frame.
pub fn brings_secret(method: &str) -> bool {
    matches!(
        method,
        "vault.set"
            | "vault.unlock"
            | "vault.rekey"
            | "vault.export"
            | "vault.import"
            | "vault.unlockers.add"
            | "auth.password.set"
    )
}

/// The scope that hearing an event needs; `None`: everyone (wire.md section 8).
pub fn event_scope(event: &str) -> Option<Scope> {
    match event {
        "device.pair.requested"
        | "device.pair.resolved"
        | "node.pair.requested"
        | "node.pair.resolved" => Some(Scope::Pairing),
        "exec.approval.requested" | "exec.approval.resolved" => Some(Scope::Approvals),
        _ => None,
    }
}

/// The names.
pub fn names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, _)| *name)
}

/// May this principal call this method? Role before scope before params. A method that does not exist is called so to
/// everybody who got in: `hello-ok` lists the others. Whether an *object* exists is told to those only who may read it.
///
/// # Errors
/// The error to answer with.
pub fn admit(principal: &Principal, method: &str) -> Result<(), ErrorBody> {
    let access = METHODS
        .iter()
        .find(|(name, _)| *name == method)
        .map(|(_, access)| *access);
    match access {
        Some(Access::Anyone) => Ok(()),
        Some(Access::AgentOrActAs) => match principal.role {
            Role::Agent => need(principal, Scope::Exec),
            Role::Operator => need(principal, Scope::ActAs),
            Role::Node => Err(wrong_role(principal.role)),
        },
        Some(Access::Holder) => match principal.role {
            Role::Node => Ok(()),
            Role::Operator if !principal.scopes.is_empty() => Ok(()),
            Role::Operator => need(principal, Scope::Read),
            Role::Agent => Err(wrong_role(principal.role)),
        },
        Some(Access::Node) => {
            if principal.role == Role::Node {
                Ok(())
            } else {
                Err(wrong_role(principal.role))
            }
        }
        Some(Access::Operator(scope)) => {
            if principal.role != Role::Operator {
                return Err(wrong_role(principal.role));
            }
            need(principal, scope)
        }
        None => Err(unknown(method)),
    }
}

/// The exact text: clients match on it to leave out what a gateway does not have.
pub fn unknown(method: &str) -> ErrorBody {
    ErrorBody::of(codes::UNKNOWN_METHOD, format!("unknown method: {method}"))
}

fn wrong_role(role: Role) -> ErrorBody {
    ErrorBody::of(codes::WRONG_ROLE, format!("unauthorized role: {role}"))
}

fn need(principal: &Principal, scope: Scope) -> Result<(), ErrorBody> {
    if principal.scopes.allows(scope) {
        return Ok(());
    }
    let mut details = serde_json::Map::new();
    details.insert("missingScope".into(), scope.as_str().into());
    details.insert("requiredScopes".into(), json!([scope.as_str()]));
    Err(ErrorBody::with(
        codes::MISSING_SCOPE,
        format!("missing scope: {scope}"),
        details,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Door, Proof, ScopeSet};

    fn principal(role: Role, scopes: &[Scope]) -> Principal {
        Principal {
            proof: Proof::SharedToken,
            door: Door::Tcp,
            role,
            scopes: scopes.iter().copied().collect::<ScopeSet>(),
            agent: None,
            generation: 0,
            secret: None,
        }
    }

    #[test]
    fn each_method_needs_its_role_and_scope_and_health_none() {
        for (name, access) in METHODS {
            let stranger = principal(Role::Operator, &[]);
            assert_eq!(
                admit(&stranger, name).is_ok(),
                *access == Access::Anyone,
                "{name}"
            );
            let node = principal(Role::Node, &[Scope::Admin, Scope::Exec]);
            assert_eq!(
                admit(&node, name).is_ok(),
                matches!(access, Access::Anyone | Access::Node | Access::Holder),
                "{name}"
            );
            let admin = principal(Role::Operator, &[Scope::Admin]);
            assert_eq!(
                admit(&admin, name).is_ok(),
                *access != Access::Node,
                "{name}"
            );
            let agent = principal(Role::Agent, &[Scope::Exec]);
            let for_agent = matches!(access, Access::Anyone | Access::AgentOrActAs);
            assert_eq!(admit(&agent, name).is_ok(), for_agent, "{name}");
        }
    }

    #[test]
    fn an_unknown_method_is_named_so_to_every_role_and_a_known_one_still_needs_its_scope() {
        for role in [Role::Operator, Role::Node, Role::Agent] {
            for scopes in [&[][..], &[Scope::Read], &[Scope::Admin]] {
                let error = admit(&principal(role, scopes), "no.such").unwrap_err();
                assert_eq!(
                    (error.code.as_str(), error.message.as_str()),
                    ("INVALID_REQUEST", "unknown method: no.such")
                );
            }
        }
        let error = admit(&principal(Role::Operator, &[Scope::Read]), "vault.list").unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("FORBIDDEN", "missing scope: operator.admin")
        );
    }
}
