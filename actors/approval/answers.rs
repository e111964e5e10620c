//! What operators do: answer, take a grant back, change the document.

use super::actor::{Approval, about, answer, expiry};
use super::messages::{ApprovalRefusal, By, PolicyChange, Resolved, Told};
use crate::act::entry_of;
use crate::supervision::{Crash, Reply};
use portcullis_core::approval::{
    Credential, Key, PolicySet, Put, Refusal, Said, Signed, Signer, Speaker, Step, Vote, Word,
};
use portcullis_core::audit::Entry;
use portcullis_core::auth::{Principal, Role};
use portcullis_core::device::DeviceKey;
use portcullis_core::ids::{DeviceId, Hash32};
use serde_json::Value;
use std::collections::BTreeSet;

impl Approval {
    /// With the policy under which somebody decides, and the document that his word sets. Of a change of the document itself
    /// that policy is the document before.
    pub(super) fn judged(&self, mut entry: Entry, step: &Step) -> Entry {
        let document = step.puts.iter().find_map(|put| match put {
            Put::Document(document) => Some(document),
            _ => None,
        });
        let plan = step.puts.iter().find_map(|put| match put {
            Put::Record(record) => record.plan(),
            _ => None,
        });
        let policy = match (document, plan) {
            (None, Some(plan)) => self.policy_hash(&plan.agent),
            _ => portcullis_core::audit::Hash32(self.machine.policy().hash.0),
        };
        if let Some(document) = document {
            let digest = Hash32::of(document.to_string().as_bytes());
            entry = entry.with("document", digest.to_string());
        }
        entry.policy_hash = Some(policy);
        entry
    }

    pub(super) async fn resolve(
        &mut self,
        by: By,
        id: &str,
        told: Told,
        reply: Reply<Resolved, ApprovalRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let result = self.take(&by, id, told).await;
        answer(reply, result)
    }

    async fn take(&mut self, by: &By, id: &str, told: Told) -> Result<Resolved, ApprovalRefusal> {
        let signed = self.signed(&by.principal, told.signed).await?;
        // By whatever of it, or by what a notice calls it.
        let id = &self.machine.get(id)?.id.to_string();
        self.check_votes(id).await?;
        self.check_kin(&by.principal, signed.as_ref(), id, told.word)
            .await?;
        let said = Said {
            word: told.word,
            scope: told.scope,
            expires: told.expires,
            similar: told.similar,
            signed,
        };
        let step = self
            .machine
            .decide(id, &said, &by.principal, &by.connection, self.now())?;
        let applied = step.is_some();
        if let Some(mut step) = step {
            for put in &mut step.puts {
                if let Put::Record(record) = put
                    && record.id.as_str().starts_with(id)
                    && let Some(resolution) = &mut record.resolution
                {
                    resolution.note.clone_from(&told.note);
                }
            }
            let entry = Entry {
                action: "approval.resolve".to_owned(),
                decision: Some(told.word.as_str().to_owned()),
                ..entry_of(&by.principal)
            };
            let entry = voted(self.judged(about(entry, &step), &step), &step);
            self.make(entry, step).await?;
        }
        let record = self.machine.get(id)?.clone();
        Ok(Resolved { record, applied })
    }

    /// Whose signature it is: of a device that is paired as an operator now, and of the caller's own where it has one.
    async fn signed(
        &self,
        by: &Principal,
        signed: Option<(String, String)>,
    ) -> Result<Option<Signed>, ApprovalRefusal> {
        let Some((key, signature)) = signed else {
            return Ok(None);
        };
        let invalid = |why| ApprovalRefusal::Rule(Refusal::ProofInvalid(why));
        let key = DeviceKey::parse(&key).map_err(|_| invalid("its key is none"))?;
        let device = DeviceId::new(&key.id()).map_err(|_| invalid("its key is none"))?;
        if by.device().is_some_and(|own| *own != device) {
            return Err(invalid(
                "its key is another device's than the one connected",
            ));
        }
        let _waiting = self.ctx.waiting();
        let known = self.wiring.pairing.operator_key(&device).await;
        let known = known.map_err(|_| down())?;
        let known = known.filter(|known| known.public_key == key.to_text());
        let known =
            known.ok_or_else(|| invalid("its key is of no device paired as an operator"))?;
        Ok(Some(Signed {
            key: known.public_key,
            signature,
            signer: Signer {
                credential: Credential {
                    device,
                    role: Role::Operator,
                    generation: known.generation,
                },
                scopes: known.scopes,
                user: known.user,
            },
        }))
    }

    /// Who answers with a device, or on a page that one opened, or has one sign, answers nothing of who let it in; nor is
    /// its word a second one beside theirs.
    async fn check_kin(
        &self,
        by: &Principal,
        signed: Option<&Signed>,
        id: &str,
        word: Word,
    ) -> Result<(), ApprovalRefusal> {
        let name = by.name();
        let named = name.strip_prefix("device:");
        let named = named.and_then(|id| DeviceId::new(id).ok());
        let signer = signed.map(|signed| signed.signer.credential.device.clone());
        let devices: BTreeSet<DeviceId> = named.into_iter().chain(signer).collect();
        let keys = self.keys(devices).await?;
        for (device, came) in &keys {
            if let Some(came) = came {
                self.machine.may_answer_through(id, device.as_str(), came)?;
            }
        }
        let voted = self.machine.get(id)?.votes.iter();
        let voted = voted.filter_map(Vote::device);
        let voted = voted.filter_map(|id| DeviceId::new(&id).ok());
        let voted = self.keys(voted.collect()).await?;
        let who = Speaker {
            by,
            signer: signed.map(|signed| &signed.signer),
            keys: &keys,
        };
        self.machine.counts(id, word, who, &voted)?;
        Ok(())
    }

    /// How each came in. Where pairing does not say, nothing is decided.
    async fn keys(&self, devices: BTreeSet<DeviceId>) -> Result<Vec<Key>, ApprovalRefusal> {
        let _waiting = self.ctx.waiting();
        let mut keys = vec![];
        for device in devices {
            let came = self.wiring.pairing.let_in(&device).await;
            keys.push((device, came.map_err(|_| down())?));
        }
        Ok(keys)
    }

    /// A word that waits for another's counts only while who gave it is who it was.
    async fn check_votes(&mut self, id: &str) -> Result<(), ApprovalRefusal> {
        let under: BTreeSet<_> = self.machine.get(id)?.voted_on().collect();
        for basis in self.dead(under).await? {
            self.void(Some(&basis.holder())).await?;
        }
        Ok(())
    }

    pub(super) async fn revoke(
        &mut self,
        by: By,
        id: &str,
        reply: Reply<(), ApprovalRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let result = match self.machine.revoke(id, &by.principal, self.now()) {
            Ok(step) => {
                let is_policy = step.puts.iter().any(|put| matches!(put, Put::Document(_)));
                let (action, object) = if is_policy {
                    ("approval.policy.set", id.to_owned())
                } else {
                    ("approval.grant.revoke", format!("grant:{id}"))
                };
                let mut entry = Entry {
                    action: action.to_owned(),
                    object: Some(object),
                    ..entry_of(&by.principal)
                };
                if is_policy {
                    entry = self.judged(entry, &step);
                }
                let made = self.make(entry, step.clone()).await;
                if made.is_ok() {
                    self.tell_revoked(&step);
                }
                made
            }
            Err(refusal) => Err(refusal.into()),
        };
        answer(reply, result)
    }

    pub(super) async fn set_policy(
        &mut self,
        by: By,
        document: Value,
        base: Option<&str>,
        reply: Reply<PolicyChange, ApprovalRefusal>,
    ) -> Result<(), Crash> {
        if !reply.is_wanted() {
            return Ok(());
        }
        let (id, now) = (self.free_id()?, self.now());
        let set = self
            .machine
            .set_policy(document, base, &by.principal, &by.connection, id, now);
        let entry = entry_of(&by.principal);
        let result = match set {
            Ok(PolicySet::Apply(step)) => {
                let entry = Entry {
                    action: "approval.policy.set".to_owned(),
                    ..entry
                };
                let entry = self.judged(about(entry, &step), &step);
                let made = self.make(entry, step).await;
                made.map(|()| PolicyChange::Applied(self.machine.policy()))
            }
            Ok(PolicySet::Ask(id, step)) => {
                let expires_at = expiry(&step);
                let entry = Entry {
                    action: "approval.requested".to_owned(),
                    ..entry
                };
                let entry = self.judged(about(entry, &step), &step);
                let made = self.make_event(entry, step).await;
                made.map(|()| PolicyChange::Pending { id, expires_at })
            }
            Err(refusal) => Err(refusal.into()),
        };
        answer(reply, result)
    }
}

/// What a decision's record says of the word and of what shows it: with this record alone it is checked again.
fn voted(mut entry: Entry, step: &Step) -> Entry {
    let record = step.puts.iter().find_map(|put| match put {
        Put::Record(record) => Some(record),
        _ => None,
    });
    let Some((record, vote)) = record.and_then(|record| Some((record, record.votes.last()?)))
    else {
        return entry;
    };
    entry = entry.with("proof", serde_json::json!(vote.proof).to_string());
    if let Some(similar) = &vote.similar {
        entry = entry.with("similar", serde_json::json!(similar).to_string());
    }
    if vote.self_opened {
        entry = entry.with("self_opened", "true");
    }
    if record.quorum > 1 {
        let said = format!("{} of {}", record.votes.len(), record.quorum);
        entry = entry.with("quorum", said);
    }
    entry
}

/// Whether it still counts is not known: nothing is decided on it.
const fn down() -> ApprovalRefusal {
    ApprovalRefusal::Down {
        may_have_run: false,
    }
}
