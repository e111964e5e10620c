//! Owned copies of what was read.

use super::codec::pairs;
use super::entry::{Entry, Outcome, OutcomeResult, Proof, Sealed};
use super::hash::Hash32;
use super::record::{Body, BodyRef, EntryRef, LeafRef, OpenRef, OutcomeRef, Record, ResultRef};
use std::collections::BTreeMap;

impl LeafRef<'_> {
    /// An owned copy, with the leaf's hash.
    pub fn to_record(&self, hash: Hash32) -> Record {
        Record {
            seq: self.seq,
            prev: self.prev,
            hash,
            stamp: self.stamp,
            boot: self.boot,
            body: self.body.to_body(),
        }
    }
}

impl BodyRef<'_> {
    /// The entry of an intent or event.
    pub const fn entry(&self) -> Option<&EntryRef<'_>> {
        match self {
            Self::Intent(entry) | Self::Event(entry) => Some(entry),
            _ => None,
        }
    }

    /// An owned copy.
    pub fn to_body(&self) -> Body {
        let list = |open: &Option<OpenRef<'_>>| open.map(|open| open.iter().collect());
        match self {
            Self::Intent(entry) => Body::Intent(entry.to_entry()),
            Self::Event(entry) => Body::Event(entry.to_entry()),
            Self::Outcome { intent, outcome } => Body::Outcome {
                intent: *intent,
                outcome: outcome.to_outcome(),
            },
            Self::Start {
                reopened,
                open,
                version,
                state_rev,
                epoch,
            } => Body::Start {
                reopened: *reopened,
                open: list(open),
                version: (*version).to_owned(),
                state_rev: *state_rev,
                epoch: *epoch,
            },
            Self::Stop => Body::Stop,
            Self::Carry {
                open,
                state_rev,
                epoch,
            } => Body::Carry {
                open: list(open),
                state_rev: *state_rev,
                epoch: *epoch,
            },
            Self::Recovered {
                segment,
                offset,
                bytes,
            } => Body::Recovered {
                segment: *segment,
                offset: *offset,
                bytes: *bytes,
            },
            Self::Gap {
                count,
                first_ms,
                last_ms,
                reason,
            } => Body::Gap {
                count: *count,
                first_ms: *first_ms,
                last_ms: *last_ms,
                reason: (*reason).to_owned(),
            },
        }
    }
}

impl EntryRef<'_> {
    /// The details, by rising key.
    pub fn detail(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(self.detail)
    }

    /// An owned copy.
    pub fn to_entry(&self) -> Entry {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Entry {
            action: self.action.to_owned(),
            principal: own(self.principal),
            act_as: own(self.act_as),
            door: own(self.door),
            object: own(self.object),
            decision: own(self.decision),
            rule: own(self.rule),
            plan_hash: self.plan_hash,
            policy_hash: self.policy_hash,
            proof: self.proof.map(|proof| Proof {
                by: proof.by.to_owned(),
                how: proof.how.to_owned(),
                decision: proof.decision.to_owned(),
                recorded: proof.recorded,
            }),
            approval_id: own(self.approval_id),
            idempotency_key: own(self.idempotency_key),
            request_id: own(self.request_id),
            detail: own_map(self.detail),
            sealed: Sealed::new(self.sealed.to_vec()),
        }
    }
}

impl OutcomeRef<'_> {
    /// An owned copy.
    pub fn to_outcome(&self) -> Outcome {
        Outcome {
            result: self.result.to_result(),
            state_rev: self.state_rev,
            detail: own_map(self.detail),
        }
    }
}

impl ResultRef<'_> {
    /// An owned copy.
    pub fn to_result(&self) -> OutcomeResult {
        match *self {
            Self::Ok => OutcomeResult::Ok,
            Self::Refused { code } => OutcomeResult::Refused {
                code: code.to_owned(),
            },
            Self::Failed { code } => OutcomeResult::Failed {
                code: code.to_owned(),
            },
            Self::Unknown { boot } => OutcomeResult::Unknown { boot },
        }
    }
}

fn own_map(map: &[u8]) -> BTreeMap<String, String> {
    pairs(map)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
