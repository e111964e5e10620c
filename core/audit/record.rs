//! One record: its owned form, its borrowed form as read from a file, and the bytes between them.

use super::codec::{Cut, Flaw, put_map, put_opt, put_str};
use super::entry::{Entry, EntryError, Outcome, OutcomeResult};
use super::epoch::{EpochMark, Signature};
use super::hash::{BootId, Hash32, PublicKey, Seq, leaf_hash};
use super::tag::{RecordKey, TAG};
use super::{Head, MAX_LEAF, MAX_MARK_OPEN};
use serde::{Deserialize, Serialize};

/// What every leaf begins with; the version follows.
pub(super) const DOMAIN: &[u8; 16] = b"portcullis-audit";
/// Versions of the format: without a tag at the end of the leaf, and with one.
const VERSIONS: [u8; 2] = [1, 2];
/// Offset of the version.
pub(super) const AT_VERSION: usize = DOMAIN.len();
/// Offset of the leaf length inside the leaf.
pub(super) const AT_LEN: usize = AT_VERSION + 1;
/// Offset of the sequence.
pub(super) const AT_SEQ: usize = AT_LEN + 4;
/// Offset of the previous leaf hash.
pub(super) const AT_PREV: usize = AT_SEQ + 8;
/// Offset of the body: every leaf is longer than this.
pub(super) const AT_BODY: usize = AT_PREV + 32 + 8 + 8 + 16 + 1;

/// Whether this is a version that is read here.
pub(super) const fn is_version(byte: u8) -> bool {
    byte == VERSIONS[0] || byte == VERSIONS[1]
}

/// When a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Unix time in milliseconds; may jump with the machine's clock.
    pub wall_ms: u64,
    /// Milliseconds since the daemon's start; never goes back within one boot.
    pub mono_ms: u64,
}

/// One record of the log, owned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// The leaf hash of the record before it.
    pub prev: Hash32,
    /// Its own leaf hash.
    pub hash: Hash32,
    /// When it was written.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// The daemon start that wrote it.
    pub boot: BootId,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// What a record says. Text in it is escaped ([`super::escape`]) and safe to print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// An act is about to happen.
    Intent(Entry),
    /// The act of that intent ended.
    Outcome {
        /// The intent.
        intent: Seq,
        /// How it ended.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Something happened that needs no outcome.
    Event(Entry),
    /// The log was opened for writing.
    Start {
        /// Within the same daemon start, by a restart of the audit room alone.
        reopened: bool,
        /// Intents still open, all of them of this boot; `None`: too many to list, look further back.
        open: Option<Vec<Seq>>,
        /// The program's version.
        version: String,
        /// How often the state had been changed by then, durably.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state_rev: Option<u64>,
        /// The epoch that begins here; none in logs of before there were epochs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<EpochMark>,
    },
    /// The log was closed in order.
    Stop,
    /// First of a new segment: the intents open there, so that a start need not read further back.
    Carry {
        /// As in `Start`.
        open: Option<Vec<Seq>>,
        /// As in `Start`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state_rev: Option<u64>,
        /// As in `Start`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<EpochMark>,
    },
    /// A torn end was cut off before this record; nothing in it had been acknowledged.
    Recovered {
        /// First sequence of the segment.
        segment: Seq,
        /// Where the cut was made, in bytes.
        offset: u64,
        /// How many bytes went.
        bytes: u64,
    },
    /// For a while nothing could be recorded (and everything that needed a record was refused).
    Gap {
        /// How many were refused.
        count: u64,
        /// The first, Unix milliseconds.
        first_ms: u64,
        /// The last, Unix milliseconds.
        last_ms: u64,
        /// Why.
        reason: String,
    },
}

impl Body {
    /// A checked intent.
    pub fn intent(entry: Entry) -> Result<Self, EntryError> {
        entry.clean().map(Self::Intent)
    }

    /// A checked event.
    pub fn event(entry: Entry) -> Result<Self, EntryError> {
        entry.clean().map(Self::Event)
    }

    /// A checked outcome.
    pub fn outcome(intent: Seq, outcome: Outcome) -> Result<Self, EntryError> {
        Ok(Self::Outcome {
            intent,
            outcome: outcome.clean()?,
        })
    }

    /// The word that names the kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Intent(_) => "intent",
            Self::Outcome { .. } => "outcome",
            Self::Event(_) => "event",
            Self::Start { .. } => "start",
            Self::Stop => "stop",
            Self::Carry { .. } => "carry",
            Self::Recovered { .. } => "recovered",
            Self::Gap { .. } => "gap",
        }
    }

    /// What it says of the epoch that begins behind it.
    pub const fn next_epoch(&self) -> Option<&EpochMark> {
        match self {
            Self::Start { epoch, .. } | Self::Carry { epoch, .. } => epoch.as_ref(),
            _ => None,
        }
    }

    const fn tag(&self) -> u8 {
        match self {
            Self::Intent(entry) if !entry.sealed.is_empty() => 16,
            Self::Event(entry) if !entry.sealed.is_empty() => 17,
            Self::Intent(entry) if has_more(entry) => 11,
            Self::Event(entry) if has_more(entry) => 12,
            Self::Intent(_) => 1,
            Self::Outcome { outcome, .. } if outcome.state_rev.is_some() => 13,
            Self::Outcome { .. } => 2,
            Self::Event(_) => 3,
            Self::Start { epoch: None, .. } => 4,
            Self::Stop => 5,
            Self::Carry { epoch: None, .. } => 6,
            Self::Recovered { .. } => 7,
            Self::Gap { .. } => 8,
            Self::Start {
                state_rev: None, ..
            } => 9,
            Self::Carry {
                state_rev: None, ..
            } => 10,
            Self::Start { .. } => 14,
            Self::Carry { .. } => 15,
        }
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Flaw> {
        match self {
            Self::Intent(entry) | Self::Event(entry) => put_entry(out, entry),
            Self::Outcome { intent, outcome } => {
                out.extend_from_slice(&intent.0.to_be_bytes());
                match &outcome.result {
                    OutcomeResult::Ok => out.push(0),
                    OutcomeResult::Refused { code } => {
                        out.push(1);
                        put_str(out, code)?;
                    }
                    OutcomeResult::Failed { code } => {
                        out.push(2);
                        put_str(out, code)?;
                    }
                    OutcomeResult::Unknown { boot } => {
                        out.push(3);
                        out.extend_from_slice(&boot.0);
                    }
                }
                put_map(out, &outcome.detail)?;
                put_rev(out, outcome.state_rev);
                Ok(())
            }
            Self::Start {
                reopened,
                open,
                version,
                state_rev,
                epoch,
            } => {
                out.push(u8::from(*reopened));
                put_open(out, open.as_deref())?;
                put_str(out, version)?;
                put_mark(out, epoch.as_ref());
                put_rev(out, state_rev.filter(|_| epoch.is_some()));
                Ok(())
            }
            Self::Stop => Ok(()),
            Self::Carry {
                open,
                state_rev,
                epoch,
            } => {
                put_open(out, open.as_deref())?;
                put_mark(out, epoch.as_ref());
                put_rev(out, state_rev.filter(|_| epoch.is_some()));
                Ok(())
            }
            Self::Recovered {
                segment,
                offset,
                bytes,
            } => {
                for n in [segment.0, *offset, *bytes] {
                    out.extend_from_slice(&n.to_be_bytes());
                }
                Ok(())
            }
            Self::Gap {
                count,
                first_ms,
                last_ms,
                reason,
            } => {
                for n in [count, first_ms, last_ms] {
                    out.extend_from_slice(&n.to_be_bytes());
                }
                put_str(out, reason)
            }
        }
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) -> Result<(), Flaw> {
    put_str(out, &entry.action)?;
    for field in [
        &entry.principal,
        &entry.act_as,
        &entry.door,
        &entry.object,
        &entry.decision,
        &entry.rule,
        &entry.approval_id,
        &entry.idempotency_key,
        &entry.request_id,
    ] {
        put_opt(out, field.as_deref())?;
    }
    out.push(u8::from(entry.plan_hash.is_some()));
    if let Some(hash) = entry.plan_hash {
        out.extend_from_slice(&hash.0);
    }
    put_map(out, &entry.detail)?;
    let sealed = entry.sealed.bytes();
    if !has_more(entry) && sealed.is_empty() {
        return Ok(());
    }
    out.push(u8::from(entry.policy_hash.is_some()));
    if let Some(hash) = entry.policy_hash {
        out.extend_from_slice(&hash.0);
    }
    out.push(u8::from(entry.proof.is_some()));
    if let Some(proof) = &entry.proof {
        for text in [&proof.by, &proof.how, &proof.decision] {
            put_str(out, text)?;
        }
        out.extend_from_slice(&proof.recorded.0.to_be_bytes());
    }
    if !sealed.is_empty() {
        let len = u16::try_from(sealed.len()).map_err(|_| "what is sealed is over 65,535 bytes")?;
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(sealed);
    }
    Ok(())
}

/// What came into the format later has kinds of its own, so that what was written before reads as it did.
const fn has_more(entry: &Entry) -> bool {
    entry.policy_hash.is_some() || entry.proof.is_some()
}

/// Whether there is one, the kind says.
fn put_mark(out: &mut Vec<u8>, mark: Option<&EpochMark>) {
    if let Some(mark) = mark {
        out.extend_from_slice(&mark.epoch.to_be_bytes());
        out.extend_from_slice(&mark.key.0);
        out.extend_from_slice(&mark.signature.0);
    }
}

/// As [`put_mark`].
fn put_rev(out: &mut Vec<u8>, rev: Option<u64>) {
    out.extend(rev.iter().flat_map(|rev| rev.to_be_bytes()));
}

fn put_open(out: &mut Vec<u8>, open: Option<&[Seq]>) -> Result<(), Flaw> {
    out.push(u8::from(open.is_some()));
    let Some(open) = open else { return Ok(()) };
    let count = u16::try_from(open.len())
        .ok()
        .filter(|n| usize::from(*n) <= MAX_MARK_OPEN)
        .ok_or("too many open intents for one mark")?;
    out.extend_from_slice(&count.to_be_bytes());
    for seq in open {
        out.extend_from_slice(&seq.0.to_be_bytes());
    }
    Ok(())
}

/// Appends the record that follows `head` to `out` in its file form (length, leaf, hash) and returns the new head.
/// `key`: tags it; without one it is as records were before they had tags, which no log goes on from unless a checkpoint
/// covers it. On an error `out` is as before.
pub fn encode_record(
    out: &mut Vec<u8>,
    head: Head,
    stamp: Stamp,
    boot: BootId,
    body: &Body,
    key: Option<&RecordKey>,
) -> Result<Head, EntryError> {
    let start = out.len();
    let written = put_record(out, head, stamp, boot, body, key);
    if written.is_err() {
        out.truncate(start);
    }
    written.map_err(EntryError::Format)
}

fn put_record(
    out: &mut Vec<u8>,
    head: Head,
    stamp: Stamp,
    boot: BootId,
    body: &Body,
    key: Option<&RecordKey>,
) -> Result<Head, Flaw> {
    let seq = head.next();
    out.extend_from_slice(&[0; 4]);
    let leaf_at = out.len();
    out.extend_from_slice(DOMAIN);
    out.push(VERSIONS[usize::from(key.is_some())]);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.0.to_be_bytes());
    out.extend_from_slice(&head.hash.0);
    out.extend_from_slice(&stamp.wall_ms.to_be_bytes());
    out.extend_from_slice(&stamp.mono_ms.to_be_bytes());
    out.extend_from_slice(&boot.0);
    out.push(body.tag());
    body.put(out)?;
    let len = out.len() - leaf_at + key.map_or(0, |_| TAG);
    let len = u32::try_from(len)
        .ok()
        .filter(|_| len <= MAX_LEAF)
        .ok_or("the record is longer than 64 KiB")?;
    out[leaf_at - 4..leaf_at].copy_from_slice(&len.to_be_bytes());
    out[leaf_at + AT_LEN..leaf_at + AT_SEQ].copy_from_slice(&len.to_be_bytes());
    if let Some(key) = key {
        let tag = key.tag(&out[leaf_at..]);
        out.extend_from_slice(&tag);
    }
    let hash = leaf_hash(&out[leaf_at..]);
    out.extend_from_slice(&hash.0);
    Ok(Head { seq, hash })
}

/// A record as it lies in a buffer: checked, nothing copied.
#[derive(Clone, Copy, Debug)]
pub struct LeafRef<'a> {
    /// Its number.
    pub seq: Seq,
    /// The leaf hash of the record before it.
    pub prev: Hash32,
    /// When it was written.
    pub stamp: Stamp,
    /// The daemon start that wrote it.
    pub boot: BootId,
    /// What it says.
    pub body: BodyRef<'a>,
    /// It ends with a tag, which [`RecordKey::has_tagged`] checks.
    pub is_tagged: bool,
    /// All of its bytes.
    pub raw: &'a [u8],
}

/// [`Body`], borrowed.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of `Body`")]
pub enum BodyRef<'a> {
    Intent(EntryRef<'a>),
    Outcome {
        intent: Seq,
        outcome: OutcomeRef<'a>,
    },
    Event(EntryRef<'a>),
    Start {
        reopened: bool,
        open: Option<OpenRef<'a>>,
        version: &'a str,
        state_rev: Option<u64>,
        epoch: Option<EpochMark>,
    },
    Stop,
    Carry {
        open: Option<OpenRef<'a>>,
        state_rev: Option<u64>,
        epoch: Option<EpochMark>,
    },
    Recovered {
        segment: Seq,
        offset: u64,
        bytes: u64,
    },
    Gap {
        count: u64,
        first_ms: u64,
        last_ms: u64,
        reason: &'a str,
    },
}

/// [`Entry`], borrowed.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of `Entry`")]
pub struct EntryRef<'a> {
    pub action: &'a str,
    pub principal: Option<&'a str>,
    pub act_as: Option<&'a str>,
    pub door: Option<&'a str>,
    pub object: Option<&'a str>,
    pub decision: Option<&'a str>,
    pub rule: Option<&'a str>,
    pub approval_id: Option<&'a str>,
    pub idempotency_key: Option<&'a str>,
    pub request_id: Option<&'a str>,
    pub plan_hash: Option<Hash32>,
    pub policy_hash: Option<Hash32>,
    pub proof: Option<ProofRef<'a>>,
    pub sealed: &'a [u8],
    pub(super) detail: &'a [u8],
}

/// [`Proof`], borrowed.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of `Proof`")]
pub struct ProofRef<'a> {
    pub by: &'a str,
    pub how: &'a str,
    pub decision: &'a str,
    pub recorded: Seq,
}

/// [`Outcome`], borrowed.
#[derive(Clone, Copy, Debug)]
pub struct OutcomeRef<'a> {
    /// The end itself.
    pub result: ResultRef<'a>,
    /// How often the state had been changed by then.
    pub state_rev: Option<u64>,
    pub(super) detail: &'a [u8],
}

/// [`OutcomeResult`], borrowed.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the variants are those of `OutcomeResult`")]
pub enum ResultRef<'a> {
    Ok,
    Refused { code: &'a str },
    Failed { code: &'a str },
    Unknown { boot: BootId },
}

/// A list of open intents, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct OpenRef<'a>(pub(super) &'a [u8]);

impl OpenRef<'_> {
    /// The sequences, rising.
    pub fn iter(&self) -> impl Iterator<Item = Seq> {
        self.0
            .as_chunks()
            .0
            .iter()
            .map(|bytes| Seq(u64::from_be_bytes(*bytes)))
    }
}

fn cut_open<'a>(cut: &mut Cut<'a>) -> Result<Option<OpenRef<'a>>, Flaw> {
    if !cut.flag()? {
        return Ok(None);
    }
    let count = usize::from(cut.u16()?);
    if count > MAX_MARK_OPEN {
        return Err("too many open intents in one mark");
    }
    let open = OpenRef(cut.bytes(count * 8)?);
    if open.iter().zip(open.iter().skip(1)).any(|(a, b)| a >= b) {
        return Err("the open intents of a mark do not rise");
    }
    Ok(Some(open))
}

fn cut_mark(cut: &mut Cut<'_>, kind: u8) -> Result<Option<EpochMark>, Flaw> {
    if kind < 9 {
        return Ok(None);
    }
    Ok(Some(EpochMark {
        epoch: cut.u64()?,
        key: PublicKey(cut.array()?),
        signature: Signature(cut.array()?),
    }))
}

/// The last kinds have it.
fn cut_rev(cut: &mut Cut<'_>, kind: u8) -> Result<Option<u64>, Flaw> {
    if kind < 13 {
        return Ok(None);
    }
    cut.u64().map(Some)
}

fn cut_outcome<'a>(cut: &mut Cut<'a>, kind: u8) -> Result<OutcomeRef<'a>, Flaw> {
    Ok(OutcomeRef {
        result: match cut.byte()? {
            0 => ResultRef::Ok,
            1 => ResultRef::Refused { code: cut.str()? },
            2 => ResultRef::Failed { code: cut.str()? },
            3 => ResultRef::Unknown {
                boot: BootId(cut.array()?),
            },
            _ => return Err("an outcome that this version does not know"),
        },
        detail: cut.map()?,
        state_rev: cut_rev(cut, kind)?,
    })
}

fn cut_entry<'a>(cut: &mut Cut<'a>, kind: u8) -> Result<EntryRef<'a>, Flaw> {
    let mut entry = EntryRef {
        action: cut.str()?,
        principal: cut.opt()?,
        act_as: cut.opt()?,
        door: cut.opt()?,
        object: cut.opt()?,
        decision: cut.opt()?,
        rule: cut.opt()?,
        approval_id: cut.opt()?,
        idempotency_key: cut.opt()?,
        request_id: cut.opt()?,
        plan_hash: if cut.flag()? {
            Some(Hash32(cut.array()?))
        } else {
            None
        },
        policy_hash: None,
        proof: None,
        sealed: &[],
        detail: cut.map()?,
    };
    if kind < 11 {
        return Ok(entry);
    }
    if cut.flag()? {
        entry.policy_hash = Some(Hash32(cut.array()?));
    }
    if cut.flag()? {
        entry.proof = Some(ProofRef {
            by: cut.str()?,
            how: cut.str()?,
            decision: cut.str()?,
            recorded: Seq(cut.u64()?),
        });
    }
    if kind > 15 {
        let len = usize::from(cut.u16()?);
        entry.sealed = cut.bytes(len)?;
    }
    let is_later = if kind > 15 {
        !entry.sealed.is_empty()
    } else {
        entry.policy_hash.is_some() || entry.proof.is_some()
    };
    if !is_later {
        return Err("a record of the later kind without what the kind is for");
    }
    Ok(entry)
}

/// Reads a leaf strictly: every byte has its meaning or it is an error (whose text names the flaw). The hash is the
/// caller's to check ([`super::Scanner`] does both).
pub fn decode_leaf(leaf: &[u8]) -> Result<LeafRef<'_>, &'static str> {
    let mut cut = Cut(leaf);
    if cut.array()? != *DOMAIN {
        return Err("not an audit record");
    }
    let version = cut.byte()?;
    if !is_version(version) {
        return Err("written by another version of the format");
    }
    let is_tagged = version == VERSIONS[1];
    if usize::try_from(u32::from_be_bytes(cut.array()?)) != Ok(leaf.len()) || leaf.len() > MAX_LEAF
    {
        return Err("the length inside the record is wrong");
    }
    let seq = Seq(cut.u64()?);
    let prev = Hash32(cut.array()?);
    let stamp = Stamp {
        wall_ms: cut.u64()?,
        mono_ms: cut.u64()?,
    };
    let boot = BootId(cut.array()?);
    let kind = cut.byte()?;
    let body = match kind {
        1 | 11 | 16 => BodyRef::Intent(cut_entry(&mut cut, kind)?),
        2 | 13 => BodyRef::Outcome {
            intent: Seq(cut.u64()?),
            outcome: cut_outcome(&mut cut, kind)?,
        },
        3 | 12 | 17 => BodyRef::Event(cut_entry(&mut cut, kind)?),
        4 | 9 | 14 => BodyRef::Start {
            reopened: cut.flag()?,
            open: cut_open(&mut cut)?,
            version: cut.str()?,
            epoch: cut_mark(&mut cut, kind)?,
            state_rev: cut_rev(&mut cut, kind)?,
        },
        5 => BodyRef::Stop,
        6 | 10 | 15 => BodyRef::Carry {
            open: cut_open(&mut cut)?,
            epoch: cut_mark(&mut cut, kind)?,
            state_rev: cut_rev(&mut cut, kind)?,
        },
        7 => BodyRef::Recovered {
            segment: Seq(cut.u64()?),
            offset: cut.u64()?,
            bytes: cut.u64()?,
        },
        8 => BodyRef::Gap {
            count: cut.u64()?,
            first_ms: cut.u64()?,
            last_ms: cut.u64()?,
            reason: cut.str()?,
        },
        _ => return Err("a kind of record that this version does not know"),
    };
    if is_tagged {
        cut.array::<TAG>()?;
    }
    cut.end()?;
    Ok(LeafRef {
        seq,
        prev,
        stamp,
        boot,
        body,
        is_tagged,
        raw: leaf,
    })
}
