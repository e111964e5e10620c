//! A person's decision: who may make it, with what proof, and what it becomes.

use super::machine::Machine;
use super::proof::{DecisionProof, Extent, ProofError, Statement, verify_proof};
use super::similar::Similar;
use super::vote::{Act, Said, Signed, Signer, Vote, signed_plan};
use super::{
    Credential, Grant, Put, Record, Refusal, Requester, Resolution, Row, Status, Step, Subject,
    Word,
};
use crate::auth::{Principal, Role, Scope, SecretName, SecretStanding, is_console};
use crate::ids::DeviceId;
use crate::pairing::LetIn;
use crate::policy::Document;
use crate::time::Millis;

/// How far a clock may be ahead of ours that names when its word ends.
const SKEW_MS: u64 = 120_000;

impl Machine {
    /// May a device that came in so answer? To be asked before [`Self::resolve`] of whoever comes with a device, or on a page
    /// that a device opened, or has one sign for him.
    ///
    /// # Errors
    /// [`Refusal::SelfThroughAnother`].
    pub fn may_answer_through(&self, id: &str, device: &str, came: &LetIn) -> Result<(), Refusal> {
        let record = self.get(id)?;
        // Who opened it may answer by himself, and is told so there.
        if record.requester.device.as_deref() != Some(device) {
            may_answer_through(&record.requester, came, record.created)?;
        }
        Ok(())
    }

    /// A person's word, with no device's signature.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn resolve(
        &self,
        id: &str,
        word: Word,
        by: &Principal,
        connection: &str,
        now: Millis,
    ) -> Result<Option<Step>, Refusal> {
        self.decide(id, &word.into(), by, connection, now)
    }

    /// A person's decision. `None`: it was made so before, nothing is to be written. First answer wins; where several
    /// must let it happen, the question stays until enough have, and one no ends it.
    ///
    /// # Errors
    /// [`Refusal`]: who decides may not, or not so, or too late, or otherwise decided.
    pub fn decide(
        &self,
        id: &str,
        said: &Said,
        by: &Principal,
        connection: &str,
        now: Millis,
    ) -> Result<Option<Step>, Refusal> {
        let record = self.get(id)?;
        let word = said.word;
        let signer = said.signed.as_ref().map(|signed| &signed.signer);
        let self_opened = may_answer(record, by, signer, connection)?;
        let needed = match record.subject {
            Subject::Exec(_) | Subject::Egress { .. } => Scope::Approvals,
            Subject::Policy { .. } => Scope::Admin,
        };
        let may = by.scopes.allows(needed) && signer.is_none_or(|s| s.scopes.allows(needed));
        if !may {
            return Err(Refusal::MissingScope(needed.as_str()));
        }
        match record.status {
            Status::Pending if record.is_due(now) || self.is_over(record.boot_end.as_ref()) => {
                return Err(Refusal::Expired);
            }
            Status::Pending => {}
            Status::Expired => return Err(Refusal::Expired),
            Status::Cancelled => return Err(Refusal::NotFound),
            Status::Allowed | Status::Denied | Status::Used => {
                let said = record.resolution.as_ref().and_then(|r| r.word);
                return if said == Some(word) {
                    Ok(None)
                } else {
                    Err(Refusal::AlreadyResolved)
                };
            }
        }
        if word == Word::AllowAlways && !record.may_always {
            return Err(Refusal::AlwaysUnavailable);
        }
        if let Some(similar) = &said.similar {
            is_proposed(record, word, similar)?;
        }
        let device = signer.map(|signer| &signer.credential.device);
        let device = device.or(by.device()).map(DeviceId::as_str);
        record.narrowing.allows(word, device)?;
        let proof = self.proof(record, said, by, connection, now)?;
        let vote = Vote {
            word,
            by: by.name(),
            at: now,
            credential: Credential::of(by),
            signer: signer
                .map(|signer| signer.credential.clone())
                .filter(|signer| by.device() != Some(&signer.device)),
            user: signer.and_then(|signer| signer.user),
            secret: by.secret.clone(),
            self_opened,
            similar: said.similar.clone(),
            proof,
        };
        if word != Word::Deny && self.deciding.demands.needed(record) > 1 {
            // What counts is keys.
            if vote.device().is_none() {
                return Err(Refusal::ProofNeeded("quorum"));
            }
            let mut before = record.votes.iter().filter(|v| v.is_same_person(&vote));
            if let Some(before) = before.next() {
                return if before.word == word && before.device() == vote.device() {
                    Ok(None)
                } else {
                    Err(Refusal::SameVoter)
                };
            }
        }
        let mut voted = record.clone();
        voted.votes.push(vote);
        self.counted(voted, now).map(Some)
    }

    /// What a question with one more vote becomes.
    fn counted(&self, mut voted: Record, now: Millis) -> Result<Step, Refusal> {
        let is_no = voted.votes.iter().any(|vote| vote.word == Word::Deny);
        let enough = usize::from(self.deciding.demands.needed(&voted));
        if !is_no && voted.votes.len() < enough {
            return Ok(Step {
                puts: vec![Put::Record(Box::new(voted))],
            });
        }
        // Of several the narrowest holds.
        let once = voted.votes.iter().any(|vote| vote.word == Word::AllowOnce);
        let word = match (is_no, once) {
            (true, _) => Word::Deny,
            (false, true) => Word::AllowOnce,
            (false, false) => Word::AllowAlways,
        };
        let last = voted.votes.last().cloned().ok_or(Refusal::StillPending)?;
        let until = voted.votes.iter().map(|vote| vote.proof.reach().1).min();
        let until = until.unwrap_or(now);
        let mut step = Step::default();
        voted.resolution = Some(Resolution {
            word: Some(word),
            by: last.by,
            why: "user".to_owned(),
            note: None,
            credential: last.credential,
            secret: last.secret,
            at: now,
        });
        voted.status = match word {
            Word::Deny => Status::Denied,
            _ => Status::Allowed,
        };
        voted.expires = now.plus(self.limits.timeout_ms).min(until);
        match (&voted.subject, word) {
            (_, Word::Deny) | (Subject::Exec(_), Word::AllowOnce) => {}
            // The answer itself is what holds.
            (Subject::Egress { .. }, Word::AllowOnce) => voted.status = Status::Used,
            (Subject::Egress { .. }, Word::AllowAlways) => {
                step.puts.push(self.grant(&voted, until, now)?);
                voted.status = Status::Used;
            }
            (Subject::Exec(_), Word::AllowAlways) => {
                step.puts.push(self.grant(&voted, until, now)?);
            }
            (Subject::Policy { base, new, .. }, _) => {
                let document = Document::parse(new.clone()).map_err(|e| Refusal::Document(e.0))?;
                if self.document_hash() != *base {
                    return Err(Refusal::Conflict);
                }
                step.puts
                    .extend(self.applied(&document, now, Some(&voted.id)));
                voted.status = Status::Used;
            }
        }
        step.puts.insert(0, Put::Record(Box::new(voted)));
        Ok(step)
    }

    /// The lasting word that a question's votes have given.
    fn grant(&self, voted: &Record, until: Millis, now: Millis) -> Result<Put, Refusal> {
        if self.grants.len() >= self.limits.grants {
            return Err(Refusal::TooManyGrants);
        }
        let reaches = || voted.votes.iter().map(|vote| vote.proof.reach().0);
        let scope = [Extent::Session, Extent::Until]
            .into_iter()
            .find(|narrow| reaches().any(|scope| scope == *narrow))
            .unwrap_or(Extent::Always);
        let (agent, target, command, cwd, session) = match &voted.subject {
            Subject::Exec(plan) => (
                &plan.agent,
                plan.target.word(),
                plan.command_line(),
                plan.cwd.clone(),
                Some(plan.session.clone()),
            ),
            Subject::Egress { agent, host, .. } => (
                agent,
                super::egress::TARGET.to_owned(),
                format!("reach {host}"),
                host.clone(),
                None,
            ),
            Subject::Policy { .. } => return Err(Refusal::AlwaysUnavailable),
        };
        // Of several the narrowest holds: the very same command, unless all have said the same rule.
        let mut rules = voted.votes.iter().map(|vote| vote.similar.as_ref());
        let rule = rules.next().flatten();
        let similar = rule.filter(|rule| rules.all(|other| other == Some(*rule)));
        let command = similar.map_or(command, Similar::text);
        let last = voted.votes.last().ok_or(Refusal::StillPending)?;
        let others = voted.votes.iter().rev().skip(1);
        let signers = voted.votes.iter().filter_map(|vote| vote.signer.clone());
        let came_with = others.clone().filter_map(|vote| vote.credential.clone());
        Ok(Put::Grant(Box::new(Grant {
            v: Row,
            id: Grant::id_of(&voted.id),
            agent: agent.clone(),
            target,
            subject_hash: voted.subject_hash,
            similar: similar.cloned(),
            command,
            cwd,
            approval_id: voted.id.clone(),
            by: last.by.clone(),
            credential: last.credential.clone(),
            secret: last.secret.clone(),
            signers: signers.chain(came_with).collect(),
            secrets: others.filter_map(|vote| vote.secret.clone()).collect(),
            scope,
            session: session.filter(|_| scope == Extent::Session),
            voters: u8::try_from(voted.votes.len()).unwrap_or(u8::MAX),
            signed: voted.votes.iter().all(Vote::is_signed),
            created: now,
            expires: now.plus(self.limits.grant_ms).min(until),
            boot_end: None,
            uses: 0,
            last_used: None,
        })))
    }

    /// What shows this decision: the device's signature, checked, or ours over the session.
    fn proof(
        &self,
        record: &Record,
        said: &Said,
        by: &Principal,
        connection: &str,
        now: Millis,
    ) -> Result<DecisionProof, Refusal> {
        let word = said.word;
        let scope = said.scope.unwrap_or(Extent::of(word));
        let is_session_of_none = scope == Extent::Session && record.plan().is_none();
        if !scope.fits(word) || is_session_of_none {
            return Err(Refusal::Extent);
        }
        let longest = now.plus(match scope {
            Extent::Once => self.limits.timeout_ms,
            _ => self.limits.grant_ms,
        });
        // Who signs says until when, and so does who says "until".
        let must_say = scope == Extent::Until || said.signed.is_some();
        let expires = match said.expires {
            Some(expires) if expires <= now || expires > longest.plus(SKEW_MS) => {
                return Err(Refusal::Extent);
            }
            Some(expires) => expires,
            None if must_say => return Err(Refusal::Extent),
            None => longest,
        };
        let key = &self.deciding.key;
        let statement = Statement {
            gateway: key.gateway(),
            approval: record.id.as_str(),
            plan: signed_plan(said.similar.as_ref(), record.plan_hash),
            word,
            scope,
            expires,
        };
        let Some(Signed { key, signature, .. }) = &said.signed else {
            let act = self.deciding.demands.signature_for(record);
            return match act {
                // A no frees nothing.
                Some(act) if word != Word::Deny => Err(Refusal::ProofNeeded(act.as_str())),
                _ => Ok(key.session(&statement, &by.name(), connection)),
            };
        };
        let proof = DecisionProof::Device {
            gateway: statement.gateway,
            scope,
            expires_at_ms: expires,
            key: key.clone(),
            signature: signature.clone(),
        };
        verify_proof(&proof, record.id.as_str(), statement.plan, word).map_err(invalid)?;
        Ok(proof)
    }

    /// Do the proofs of an allowed question still show what was said of it? A row that was made without a person has none.
    pub(super) fn is_shown(&self, record: &Record) -> Result<(), Refusal> {
        let needs_device = self.deciding.demands.signature_for(record);
        let enough = usize::from(self.deciding.demands.needed(record));
        // A question of before had no votes, and needed one.
        let is_old = record.votes.is_empty() && enough == 1 && needs_device.is_none();
        if is_old {
            return Ok(());
        }
        if record.votes.len() < enough {
            let act = needs_device.unwrap_or(Act::Quorum);
            return Err(Refusal::ProofNeeded(act.as_str()));
        }
        for vote in &record.votes {
            if let Some(act) = needs_device
                && !vote.is_signed()
            {
                return Err(Refusal::ProofNeeded(act.as_str()));
            }
            let plan = vote.signed_plan(record.plan_hash);
            verify_proof(&vote.proof, record.id.as_str(), plan, vote.word).map_err(invalid)?;
            if vote.proof.gateway() != self.deciding.key.gateway() {
                return Err(Refusal::ProofInvalid("it was made for another gateway"));
            }
        }
        Ok(())
    }
}

/// A rule is granted as it is proposed here, and as it was shown: no other.
fn is_proposed(record: &Record, word: Word, similar: &Similar) -> Result<(), Refusal> {
    if word != Word::AllowAlways {
        return Err(Refusal::Extent);
    }
    let plan = record.plan().ok_or(Refusal::AlwaysUnavailable)?;
    let proposed = Similar::of(plan).map_err(Refusal::NotSimilar)?;
    if proposed != *similar {
        return Err(Refusal::NotSimilar("this is not the rule that is proposed"));
    }
    Ok(())
}

fn invalid(error: ProofError) -> Refusal {
    Refusal::ProofInvalid(match error {
        ProofError::Key => "its key is none",
        ProofError::Gateway => "its gateway's id is not that of its key",
        ProofError::Scope => "its scope does not fit the decision",
        ProofError::Signature => {
            "its signature is not over this gateway, approval, plan, decision, scope and expiry"
        }
    })
}

/// May a device that came in so answer that request? Not where who asked let it in, or let in who did; nor where it came
/// when the question was there already, whoever let it in, but for a process that the kernel calls an operator's. Whoever
/// asks for an agent's sake is told by name; an agent lets nobody in.
pub(super) fn may_answer_through(
    requester: &Requester,
    came: &LetIn,
    asked: Millis,
) -> Result<(), Refusal> {
    if requester.role == Role::Agent {
        return Ok(());
    }
    let own = Some(requester.name.clone()).filter(|name| !is_console(name));
    let device = requester.device.as_ref().map(|id| format!("device:{id}"));
    let secret = requester.secret.as_ref();
    let person = secret.and_then(|standing| standing.secret.person());
    let names: Vec<String> = own.into_iter().chain(device).chain(person).collect();
    if names.iter().any(|name| came.by.contains(name)) {
        return Err(Refusal::SelfThroughAnother);
    }
    if !names.is_empty() && !came.is_local && came.at >= asked {
        return Err(Refusal::SelfThroughAnother);
    }
    Ok(())
}

fn password(standing: Option<&SecretStanding>) -> Option<&str> {
    match &standing?.secret {
        SecretName::Password(name) => Some(name),
        _ => None,
    }
}

/// May this principal decide that question, by this key? Never an agent, nor a device, token or user on its own behalf. Who
/// opened a plan for an agent as an operator may, and `true` says that it is he; so may who is at this machine's console (a
/// uid, by the kernel's word) on what he asked himself, on another connection.
pub(super) fn may_answer(
    record: &Record,
    by: &Principal,
    signer: Option<&Signer>,
    connection: &str,
) -> Result<bool, Refusal> {
    let requester = &record.requester;
    if by.role == Role::Agent || by.agent.is_some() {
        return Err(Refusal::SelfApproval);
    }
    if by.role != Role::Operator {
        return Err(Refusal::WrongRole);
    }
    if connection.is_empty() {
        return Err(Refusal::SelfApproval);
    }
    let devices = [by.device(), signer.map(|s| &s.credential.device)];
    let same_device = devices
        .into_iter()
        .flatten()
        .any(|d| requester.device.as_deref() == Some(d.as_str()));
    // By name: a page is opened by the code of a device or a user, too.
    let name = by.name();
    // A password is one person's, with a device and without.
    let same_password = password(by.secret.as_ref())
        .is_some_and(|own| password(requester.secret.as_ref()) == Some(own));
    if !same_device && !same_password && name != requester.name {
        return Ok(false);
    }
    let for_an_agent =
        record.plan().is_some() && requester.role == Role::Operator && requester.agent.is_none();
    // The shared token is no person at this machine: it comes over TCP from wherever it was copied to.
    let at_console = name.starts_with("uid:") && connection != requester.connection;
    if for_an_agent || (at_console && requester.role == Role::Operator) {
        return Ok(true);
    }
    Err(Refusal::SelfApproval)
}
