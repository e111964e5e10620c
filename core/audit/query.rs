//! Which records a reader wants.

use super::entry::escape;
use super::hash::Seq;
use super::record::{BodyRef, LeafRef, ResultRef};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A filter over intents, events and marks; outcomes are shown with their intent. All given conditions must hold. The
/// newest `limit` matches count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Query {
    /// The action begins so.
    pub action: Option<String>,
    /// The principal is this.
    pub principal: Option<String>,
    /// The object is this.
    pub object: Option<String>,
    /// The act ended so (intents only).
    pub outcome: Option<OutcomeFilter>,
    /// Not before this sequence.
    pub since_seq: Option<Seq>,
    /// Not after this sequence.
    pub until_seq: Option<Seq>,
    /// Not before this wall time, Unix milliseconds.
    pub since_ms: Option<u64>,
    /// Not after this wall time, Unix milliseconds.
    pub until_ms: Option<u64>,
    /// The most records; 0 stands for 100, the most is 1,000.
    pub limit: usize,
}

/// How an act ended, for a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeFilter {
    /// Done.
    Ok,
    /// Refused after the intent.
    Refused,
    /// Failed.
    Failed,
    /// Nobody knows.
    Unknown,
    /// No outcome yet.
    Open,
}

impl OutcomeFilter {
    /// The word of a recorded end.
    pub const fn of(result: &ResultRef<'_>) -> Self {
        match result {
            ResultRef::Ok => Self::Ok,
            ResultRef::Refused { .. } => Self::Refused,
            ResultRef::Failed { .. } => Self::Failed,
            ResultRef::Unknown { .. } => Self::Unknown,
        }
    }
}

impl Query {
    /// The number of records wanted, within the limit.
    pub fn limit(&self) -> usize {
        match self.limit {
            0 => 100,
            limit => limit.min(1_000),
        }
    }

    /// The same query in the form in which text is recorded (escaped). Call it once.
    #[must_use]
    pub fn clean(mut self) -> Self {
        for text in [&mut self.action, &mut self.principal, &mut self.object]
            .into_iter()
            .flatten()
        {
            if let Cow::Owned(escaped) = escape(text) {
                *text = escaped;
            }
        }
        self
    }

    /// Whether the record itself is wanted; how the act ended is for [`Self::ended_so`].
    pub fn matches(&self, leaf: &LeafRef<'_>) -> bool {
        let within = |value: u64, low: Option<u64>, high: Option<u64>| {
            low.is_none_or(|low| value >= low) && high.is_none_or(|high| value <= high)
        };
        let entry = leaf.body.entry();
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == found
        };
        !matches!(leaf.body, BodyRef::Outcome { .. })
            && (self.outcome.is_none() || matches!(leaf.body, BodyRef::Intent(_)))
            && within(
                leaf.seq.0,
                self.since_seq.map(|seq| seq.0),
                self.until_seq.map(|seq| seq.0),
            )
            && within(leaf.stamp.wall_ms, self.since_ms, self.until_ms)
            && self
                .action
                .as_deref()
                .is_none_or(|prefix| entry.is_some_and(|entry| entry.action.starts_with(prefix)))
            && is(&self.principal, entry.and_then(|entry| entry.principal))
            && is(&self.object, entry.and_then(|entry| entry.object))
    }

    /// Whether an intent with this end (`None`: open) is wanted.
    pub fn ended_so(&self, end: Option<OutcomeFilter>) -> bool {
        self.outcome
            .is_none_or(|wanted| wanted == end.unwrap_or(OutcomeFilter::Open))
    }
}
