//! What operators do: answer, revoke, change the document.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::machine::{Held, Machine, PolicySet, ended};
use super::{Grant, Narrowing, Put, Record, Refusal, Requester, Row, Status, Step, Subject};
use crate::auth::{Principal, Role, Scope};
use crate::ids::{AgentId, ApprovalId, Hash32};
use crate::plan::Target;
use crate::policy::{Diff, Document, Reason, Rules, Standing, diff, explain};
use crate::time::Millis;

const POLICY_DOMAIN: &[u8] = b"portcullis-policy-change-v1\0";

impl Machine {
    /// Standing grants, newest first.
    pub fn grants(&self) -> Vec<&Grant> {
        let mut grants: Vec<&Grant> = self.grants.values().collect();
        grants.sort_by_key(|g| std::cmp::Reverse(g.created));
        grants
    }

    /// Takes a grant back, and with it what it allowed and nobody used.
    ///
    /// # Errors
    /// No such grant, or not an operator's act.
    pub fn revoke_grant(&self, id: &str, by: &Principal, now: Millis) -> Result<Step, Refusal> {
        operator(by, Scope::Approvals)?;
        let grant = self.grants.get(id).ok_or(Refusal::GrantNotFound)?;
        let mut puts = vec![Put::DropGrant(id.to_owned())];
        let open = self
            .records
            .get(grant.approval_id.as_str())
            .filter(|r| r.status == Status::Allowed);
        puts.extend(open.map(|r| ended(r, Status::Cancelled, "revoked", now)));
        Ok(Step { puts })
    }

    /// The document as it stands: whether it was ever set, its hash, itself.
    pub fn policy(&self) -> Policy {
        let (exists, document) = match &self.document {
            Held::Absent => (false, closed()),
            Held::Valid(document) => (true, (**document).clone()),
            Held::Malformed => (true, closed()),
        };
        Policy {
            exists,
            readable: self.document != Held::Malformed,
            hash: document.hash(),
            document,
        }
    }

    /// SHA-256 of what decides on this agent's commands, as JSON without blanks and keys in this order:
    /// `{"document":"<hash of the approvals document, or absent or malformed>","elevated":"…","exec":"…","node_exec":{…},"nodes":"…"}`.
    pub fn policy_hash(&self, agent: &AgentId) -> Hash32 {
        let document = match &self.document {
            Held::Absent => "absent".to_owned(),
            Held::Valid(document) => document.hash().to_string(),
            Held::Malformed => "malformed".to_owned(),
        };
        let policy = self.agents.of(agent);
        let all = serde_json::json!({
            "document": document, "elevated": policy.elevated, "exec": policy.exec,
            "node_exec": self.agents.nodes, "nodes": policy.nodes,
        });
        Hash32(Sha256::digest(all.to_string()).into())
    }

    /// What holds for an agent's commands there, and which of its entries do not do what they look like.
    pub fn explain(&self, agent: &AgentId, target: &Target, now: Millis) -> Value {
        let rules = Rules {
            agent: self.agents.at(agent, target),
            document: self.document.standing(),
            now,
        };
        explain(&rules, agent.as_str(), target)
    }

    pub(super) fn document_hash(&self) -> Hash32 {
        self.policy().hash
    }

    /// A new document. What is stricter holds at once and ends what it forbids; what is freer anywhere becomes a
    /// question under `id`.
    ///
    /// # Errors
    /// [`Refusal`]: not an admin, malformed, or the document changed since it was read.
    pub fn set_policy(
        &self,
        document: Value,
        base: Option<&str>,
        by: &Principal,
        connection: &str,
        id: ApprovalId,
        now: Millis,
    ) -> Result<PolicySet, Refusal> {
        operator(by, Scope::Admin)?;
        let current = self.policy();
        match base {
            Some(base) if base != current.hash.to_string() => return Err(Refusal::Conflict),
            None if current.exists => return Err(Refusal::Conflict),
            _ => {}
        }
        let new = Document::parse(document)
            .map_err(|e| Refusal::Document(e.0))?
            .keeping(&current.document);
        if diff(&current.document, &new) != Diff::Loosens {
            return Ok(PolicySet::Apply(Step {
                puts: self.applied(&new, now, None),
            }));
        }
        self.check_room(None)?;
        let (old, new) = (current.document.to_json(), new.to_json());
        let said = json!([current.hash, new]).to_string();
        let subject_hash = Hash32::of(&[POLICY_DOMAIN, said.as_bytes()].concat());
        let plan_hash = Hash32::of(
            &[
                POLICY_DOMAIN,
                id.as_str().as_bytes(),
                b"\0",
                said.as_bytes(),
            ]
            .concat(),
        );
        let reason = Reason {
            id: "policy-loosens".to_owned(),
            text: "It lets commands run that the present document refuses or asks about."
                .to_owned(),
        };
        let subject = Subject::Policy {
            base: current.hash,
            old,
            new,
        };
        let record = Record {
            v: Row,
            id: id.clone(),
            status: Status::Pending,
            requester: Requester::new(by, connection),
            idempotency_key: None,
            quorum: self.deciding.demands.quorum(&subject),
            narrowing: Narrowing::default(),
            votes: vec![],
            subject,
            plan_hash,
            subject_hash,
            reasons: vec![reason],
            may_always: false,
            created: now,
            expires: now.plus(self.limits.timeout_ms),
            boot_end: None,
            resolution: None,
            used_by: None,
        };
        Ok(PolicySet::Ask(id, self.with_new(record)))
    }

    /// A document that holds from now on: it ends what it forbids, and every other proposal, which was made against
    /// another one.
    pub(super) fn applied(
        &self,
        document: &Document,
        now: Millis,
        but: Option<&ApprovalId>,
    ) -> Vec<Put> {
        let mut puts = vec![Put::Document(document.to_json())];
        puts.extend(self.forbidden(Standing::Valid(document), now));
        let proposals = self
            .records
            .values()
            .filter(|r| matches!(r.subject, Subject::Policy { .. }))
            .filter(|r| !r.status.is_final() && Some(&r.id) != but)
            .map(|r| ended(r, Status::Cancelled, "policy", now));
        puts.extend(proposals);
        puts
    }
}

/// The document for `exec.approvals.get`.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Was one ever set?
    pub exists: bool,
    /// Could it be read? If not, the shown one refuses everything, and so does the gate.
    pub readable: bool,
    /// Its hash, the base of the next change.
    pub hash: Hash32,
    /// Itself.
    pub document: Document,
}

impl Policy {
    /// The result of `exec.approvals.get` (wire.md 9).
    pub fn to_json(&self) -> Value {
        json!({
            "path": "state.db#exec_approvals",
            "exists": self.exists,
            "hash": self.hash,
            "file": self.document.to_json(),
            "resolvedDefaults": self.document.resolved_defaults(),
            "readable": self.readable,
        })
    }
}

/// What stands for a document that cannot be read.
fn closed() -> Document {
    let nothing = json!({"version": 1, "defaults": {"security": "deny"}});
    Document::parse(nothing).unwrap_or_else(|_| Document::empty())
}

pub(super) fn operator(by: &Principal, scope: Scope) -> Result<(), Refusal> {
    if by.role != Role::Operator || by.agent.is_some() {
        return Err(Refusal::WrongRole);
    }
    if !by.scopes.allows(scope) {
        return Err(Refusal::MissingScope(scope.as_str()));
    }
    Ok(())
}
