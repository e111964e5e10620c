//! Decisions as they come over the wire, and with what they are proven.

use portcullis_core::approval::{
    Act, DecisionProof, Extent, Record, Similar, Slot, Statement, Status, Word, verify_proof,
};
use portcullis_core::audit::Entry;
use portcullis_core::auth::{Principal, Scope};
use portcullis_core::codes;
use portcullis_core::device::DeviceKey;
use portcullis_core::display::command_line;
use portcullis_core::ids::DeviceId;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::time::Millis;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::methods::{About, Methods, refused};
use crate::act::entry_of;
use crate::approval::Told;

/// How long a signature for an act that is no question may be good.
const ACT_MS: u64 = 300_000;

/// The most days that the wire lets a grant last, and how long one is.
const MOST_DAYS: u64 = 3_650;
const DAY_MS: u64 = 86_400_000;
/// Of so many commands that ran last it is shown which a rule would have matched.
const LOOKED: usize = 200;

/// A device's signature, as it comes.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Given {
    /// Over what ARCHITECTURE.md says.
    Device {
        #[serde(rename = "publicKey")]
        public_key: String,
        signature: String,
    },
}

/// What both methods that decide have beside the decision.
#[derive(Default)]
pub(super) struct Reach {
    pub scope: Option<Extent>,
    pub expires_at_ms: Option<u64>,
    pub proof: Option<Given>,
    pub similar: Option<Similar>,
}

impl Reach {
    /// With `grantExpiresInDays`, which is for a lasting word alone.
    pub fn for_days(
        mut self,
        method: &str,
        (decision, days): (&str, Option<u64>),
        now: Millis,
    ) -> Result<Self, ErrorBody> {
        let Some(days) = days else {
            return Ok(self);
        };
        let invalid = |why: &str| {
            let text = format!("invalid {method} params: {why}");
            ErrorBody::of(codes::INVALID_PARAMS, text)
        };
        if decision != Word::AllowAlways.as_str() || self.expires_at_ms.is_some() {
            return Err(invalid(
                "grantExpiresInDays is for allow-always, without expiresAtMs",
            ));
        }
        if !(1..=MOST_DAYS).contains(&days) {
            return Err(invalid("grantExpiresInDays is 1 to 3650"));
        }
        self.scope.get_or_insert(Extent::Until);
        self.expires_at_ms = Some(now.plus(days * DAY_MS).0);
        Ok(self)
    }
}

/// A decision in the room's words.
pub(super) fn told(method: &str, decision: &str, reach: Reach) -> Result<Told, ErrorBody> {
    let word = Word::parse(decision).ok_or_else(|| {
        ErrorBody::of(
            codes::INVALID_PARAMS,
            format!("invalid {method} params: decision is allow-once, allow-always or deny"),
        )
    })?;
    let signed = reach.proof.map(
        |Given::Device {
             public_key,
             signature,
         }| (public_key, signature),
    );
    Ok(Told {
        scope: reach.scope,
        expires: reach.expires_at_ms.map(Millis),
        similar: reach.similar,
        signed,
        ..word.into()
    })
}

/// The result of `exec.approval.resolve`: of one word of several, that others are waited for.
pub(super) fn decided(record: &Record) -> Value {
    if record.status != Status::Pending {
        return json!({ "ok": true });
    }
    json!({
        "ok": true,
        "status": record.status,
        "votes": record.votes.len(),
        "quorum": record.quorum,
    })
}

/// What would be allowed as similar, and what it would have matched of the commands that ran last.
pub(super) async fn proposal(
    methods: &Methods,
    by: &Principal,
    record: &Record,
) -> Result<Value, ErrorBody> {
    let no = |why: &str| json!({ "available": false, "why": why });
    let Some(plan) = record.plan().filter(|_| record.may_always) else {
        return Ok(no("no lasting word is offered for it"));
    };
    let rule = match Similar::of(plan) {
        Ok(rule) => rule,
        Err(why) => return Ok(no(why)),
    };
    let ran = super::audits::last_plans(methods, LOOKED).await;
    let ran = ran.map_err(|error| refused(error.code(), &error))?;
    let matched: Vec<Value> = ran
        .iter()
        .filter(|(_, ran)| rule.covers(ran, record.subject_hash))
        .map(|(at, ran)| json!({ "atMs": at, "command": command_line(&ran.argv) }))
        .collect();
    // What ran is of the log, and who reads that is on record.
    let entry = Entry {
        action: "approval.proposed".to_owned(),
        approval_id: Some(record.id.to_string()),
        ..entry_of(by)
    };
    let entry = entry
        .with("similar", rule.text())
        .with("looked_at", ran.len().to_string())
        .with("matched", matched.len().to_string());
    let recorded = methods.audit.event(entry).await;
    recorded.map_err(|error| refused(error.code(), &error))?;
    let words: Vec<String> = rule.words().iter().map(Slot::text).collect();
    Ok(json!({
        "available": true,
        "rule": rule,
        "text": rule.text(),
        "words": words,
        "planHash": rule.hash(record.plan_hash),
        "lookedAt": ran.len(),
        "matched": matched,
    }))
}

impl Methods {
    /// Where `[approval] require_proof` names it, a device's signature over this very export.
    pub(super) async fn check_export(
        &self,
        about: About<'_>,
        proof: Option<Given>,
        expires: Option<u64>,
    ) -> Result<Option<DecisionProof>, ErrorBody> {
        let gateway = self.approval.gateway();
        let now = self.clock.now();
        let Some(Given::Device {
            public_key,
            signature,
        }) = proof
        else {
            if !self.approval.needs_proof(Act::VaultExport) {
                return Ok(None);
            }
            let mut details = Map::new();
            details.insert("gateway".into(), json!(gateway));
            details.insert("untilMs".into(), json!(now.plus(ACT_MS)));
            return Err(ErrorBody::with(
                codes::APPROVAL_PROOF_REQUIRED,
                "this act (vault-export) needs the signature of a paired device's key, and none came with it",
                details,
            ));
        };
        let invalid = |why: &str| {
            ErrorBody::of(
                codes::APPROVAL_PROOF_INVALID,
                format!("the act's proof does not hold: {why}"),
            )
        };
        let expires = expires.map(Millis);
        let expires = expires.filter(|end| *end > now && *end <= now.plus(2 * ACT_MS));
        let expires = expires.ok_or_else(|| invalid("it has ended, or ends too late"))?;
        let key = DeviceKey::parse(&public_key).map_err(|_| invalid("its key is none"))?;
        let device = DeviceId::new(&key.id()).map_err(|_| invalid("its key is none"))?;
        let own = about.principal.device();
        if own.is_some_and(|own| *own != device) {
            return Err(invalid(
                "its key is another device's than the one connected",
            ));
        }
        let known = self.pairing.operator_key(&device).await;
        let known = known.map_err(|error| refused(error.code(), &error))?;
        let known = known.filter(|known| known.public_key == key.to_text());
        let known =
            known.ok_or_else(|| invalid("its key is of no device paired as an operator"))?;
        if !known.scopes.allows(Scope::Admin) {
            return Err(invalid("its device may not do this"));
        }
        let said = Statement::of_export(gateway, about.connection, expires);
        let proof = DecisionProof::Device {
            gateway,
            scope: Extent::Once,
            expires_at_ms: expires,
            key: known.public_key,
            signature,
        };
        verify_proof(&proof, about.connection, said.plan, Word::AllowOnce)
            .map_err(|error| invalid(&error.to_string()))?;
        // Good once, before the act: the next one's end is later.
        let mut is_first = false;
        let proven = about.proven;
        let proven = proven.ok_or_else(|| invalid("it is for a socket, and this is none"))?;
        proven.update(|last| {
            is_first = expires > *last;
            *last = expires.max(*last);
        });
        if !is_first {
            return Err(invalid("it was used already, or one that ends later was"));
        }
        Ok(Some(proof))
    }
}
