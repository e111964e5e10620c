//! What a room hands over to be recorded, its limits, and the escaping that keeps one record one line.

use super::hash::{BootId, Hash32, Seq};
use crate::encoding::{base64url, from_base64url, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Longest action name in bytes.
const ACTION: usize = 64;
/// Longest detail value in bytes after escaping; longer ones are cut and say so.
const VALUE: usize = 1_024;
/// Room for the mark of a cut with any length.
const MARK: usize = 128;
/// Longest detail key in bytes.
const KEY: usize = 64;
/// The detail of an outcome that says how long the act took, in milliseconds from its intent on.
const TOOK: &str = "took_ms";
/// The most detail keys of one entry.
const KEYS: usize = 32;

/// One act or event, as a room describes it. Secrets never come here; `detail` is short and already redacted.
///
/// Every field but `action` may be absent. Limits in bytes after escaping: `action` 64 of `[a-z0-9_.-]`, `door` 32,
/// `decision` 64, `approval_id` 128, `principal`, `act_as`, `rule`, `idempotency_key`, `request_id` 256 each, `object`
/// 4,096, `detail` 32 keys of 64 with values of 1,024. Identity is never cut: over the limit is an error. Detail values
/// are cut, with a mark that says how much is gone and has the SHA-256 of the whole, as it was handed over. `sealed` 16 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Entry {
    /// What was done, as `noun.verb`: `exec.run`, `pairing.approve`.
    pub action: String,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// For whom, where an operator acts as an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_as: Option<String>,
    /// Through which door: `ws`, `http`, `control`, `agent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub door: Option<String>,
    /// To what: a device id, a run id, a secret's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What policy said: `allow`, `ask`, `deny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// The rule that said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The hash of the frozen plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<Hash32>,
    /// The approval under which it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_id: Option<String>,
    /// The policy that it was decided by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_hash: Option<Hash32>,
    /// Who allowed it, and how that was proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// The caller's key against running twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The request, for correlation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Short redacted facts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
    /// What is kept with it and may not be read by whoever reads the log: a plan, or a part of one.
    #[serde(skip_serializing_if = "Sealed::is_empty")]
    pub sealed: Sealed,
}

/// Sealed bytes, at most [`Sealed::MOST`]; in JSON as base64url.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// The most of one record.
    pub const MOST: usize = 16 * 1024;

    /// Of a part of it, as many bytes as one record takes.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Is nothing kept?
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        base64url(&sealed.0)
    }
}

impl TryFrom<String> for Sealed {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        from_base64url(&text)
            .map(Self)
            .ok_or("what is sealed is no base64url")
    }
}

/// What an approval rests on. Limits in bytes after escaping: `by` and `how` 256, `decision` 64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The principal who said so.
    pub by: String,
    /// With what he had come in.
    pub how: String,
    /// What he said: `allow-once`, `allow-always`.
    pub decision: String,
    /// The record under which his word was kept.
    pub recorded: Seq,
}

/// Why an entry cannot be recorded as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The action is empty, too long or holds other characters than `[a-z0-9_.-]`.
    #[error("AUDIT_ENTRY_INVALID: the action is not 1 to {ACTION} characters of [a-z0-9_.-]")]
    Action,
    /// A field is over its limit.
    #[error("AUDIT_ENTRY_INVALID: {field} is longer than {limit} bytes; shorten it")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its limit in bytes, after escaping.
        limit: usize,
    },
    /// Too many detail keys.
    #[error("AUDIT_ENTRY_INVALID: detail has more than {KEYS} keys")]
    TooManyKeys,
    /// The record broke a rule of the format.
    #[error("AUDIT_ENTRY_INVALID: {0}")]
    Format(&'static str),
}

impl EntryError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        "AUDIT_ENTRY_INVALID"
    }
}

impl Entry {
    /// An entry with nothing but its action.
    pub fn new(action: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            ..Self::default()
        }
    }

    /// Adds one detail.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.detail.insert(key.into(), value.into());
        self
    }

    /// Adds a list, as JSON: whatever its words hold, no two read as three. One that will be cut has its count beside it.
    #[must_use]
    pub fn with_list<'a>(self, key: &str, words: impl IntoIterator<Item = &'a str>) -> Self {
        let words: Vec<&str> = words.into_iter().collect();
        let whole = serde_json::json!(words).to_string();
        let entry = if escape(&whole).len() > VALUE {
            self.with(format!("{key}_count"), words.len().to_string())
        } else {
            self
        };
        entry.with(key, whole)
    }

    /// Escapes every field and holds it to its limit. Call it once: it would escape the escapes.
    pub fn clean(mut self) -> Result<Self, EntryError> {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
        if self.action.is_empty() || self.action.len() > ACTION || !self.action.bytes().all(plain) {
            return Err(EntryError::Action);
        }
        for (field, limit, value) in [
            ("principal", 256, &mut self.principal),
            ("act_as", 256, &mut self.act_as),
            ("door", 32, &mut self.door),
            ("object", 4_096, &mut self.object),
            ("decision", 64, &mut self.decision),
            ("rule", 256, &mut self.rule),
            ("approval_id", 128, &mut self.approval_id),
            ("idempotency_key", 256, &mut self.idempotency_key),
            ("request_id", 256, &mut self.request_id),
        ] {
            if let Some(text) = value {
                clean_in_place(text);
                if text.len() > limit {
                    return Err(EntryError::TooLong { field, limit });
                }
            }
        }
        if let Some(proof) = &mut self.proof {
            for (field, limit, text) in [
                ("proof by", 256, &mut proof.by),
                ("proof how", 256, &mut proof.how),
                ("proof decision", 64, &mut proof.decision),
            ] {
                clean_in_place(text);
                if text.len() > limit {
                    return Err(EntryError::TooLong { field, limit });
                }
            }
        }
        if self.sealed.0.len() > Sealed::MOST {
            return Err(EntryError::TooLong {
                field: "sealed",
                limit: Sealed::MOST,
            });
        }
        self.detail = clean_detail(self.detail)?;
        Ok(self)
    }
}

/// How an act ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The end itself.
    #[serde(flatten)]
    pub result: OutcomeResult,
    /// How often the state had been changed by then, durably; where the log has not said so before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_rev: Option<u64>,
    /// Short redacted facts: exit code, duration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
}

/// The four ends of an act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum OutcomeResult {
    /// Done.
    Ok,
    /// Not done, because we said no after the intent.
    Refused {
        /// The stable code.
        code: String,
    },
    /// Begun and failed.
    Failed {
        /// The stable code.
        code: String,
    },
    /// Nobody knows: the daemon that wrote the intent ended before the outcome.
    Unknown {
        /// The boot in which the intent was written.
        #[serde(rename = "lost_boot")]
        boot: BootId,
    },
}

impl Outcome {
    /// Done.
    pub const fn ok() -> Self {
        Self::of(OutcomeResult::Ok)
    }

    /// Refused after the intent, with the stable code.
    pub fn refused(code: impl Into<String>) -> Self {
        Self::of(OutcomeResult::Refused { code: code.into() })
    }

    /// Failed, with the stable code.
    pub fn failed(code: impl Into<String>) -> Self {
        Self::of(OutcomeResult::Failed { code: code.into() })
    }

    /// Unknown since the given boot ended.
    pub const fn unknown(boot: BootId) -> Self {
        Self::of(OutcomeResult::Unknown { boot })
    }

    const fn of(result: OutcomeResult) -> Self {
        Self {
            result,
            state_rev: None,
            detail: BTreeMap::new(),
        }
    }

    /// Adds one detail.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.detail.insert(key.into(), value.into());
        self
    }

    /// Adds how long the act took, where there is room and nobody has said so.
    pub fn took(&mut self, ms: u64) {
        if self.detail.len() < KEYS {
            let took = || ms.to_string();
            self.detail.entry(TOOK.to_owned()).or_insert_with(took);
        }
    }

    /// Escapes and bounds, as [`Entry::clean`].
    pub fn clean(mut self) -> Result<Self, EntryError> {
        if let OutcomeResult::Refused { code } | OutcomeResult::Failed { code } = &mut self.result {
            clean_in_place(code);
            if code.len() > 64 {
                return Err(EntryError::TooLong {
                    field: "code",
                    limit: 64,
                });
            }
        }
        self.detail = clean_detail(self.detail)?;
        Ok(self)
    }
}

fn clean_detail(detail: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, EntryError> {
    if detail.len() > KEYS {
        return Err(EntryError::TooManyKeys);
    }
    detail
        .into_iter()
        .map(|(mut key, value)| {
            clean_in_place(&mut key);
            if key.len() > KEY {
                return Err(EntryError::TooLong {
                    field: "detail key",
                    limit: KEY,
                });
            }
            Ok((key, bounded(value)))
        })
        .collect()
}

/// Escaped, and where it is too long cut: what is gone is still bound by the digest of the whole.
fn bounded(whole: String) -> String {
    let mut value = match escape(&whole) {
        Cow::Borrowed(_) if whole.len() <= VALUE => return whole,
        escaped => escaped.into_owned(),
    };
    if value.len() > VALUE {
        let mut cut = VALUE - MARK;
        while !value.is_char_boundary(cut) {
            cut -= 1;
        }
        let gone = value.len() - cut;
        value.truncate(cut);
        let digest = hex(&Sha256::digest(&whole));
        // Writing to a String cannot fail.
        let _ = write!(value, "[{gone} bytes cut, sha256 {digest}]");
    }
    value
}

fn clean_in_place(text: &mut String) {
    if let Cow::Owned(escaped) = escape(text) {
        *text = escaped;
    }
}

/// Replaces each character that could forge or hide a line (controls, line and paragraph separators, bidirectional and
/// zero-width marks, tags) by `\u{hex}`, and `\` by `\\`, so that different texts stay different.
pub fn escape(text: &str) -> Cow<'_, str> {
    if text
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\')
        || (!text.contains('\\') && is_clean(text))
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if forges(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// True when the text holds no character that [`escape`] would replace (a backslash may be an escape already).
pub(super) fn is_clean(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !text.chars().any(forges)
}

const fn forges(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}
