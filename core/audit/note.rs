//! Checkpoints: what the log was at a size, as a note signed by the epoch's key (C2SP signed-note, tlog-checkpoint).
//!
//! ```text
//! portcullis-audit/<16 hex digits of the SHA-256 of the log's first public key>
//! <size>
//! <root, base64>
//!
//! — <the same name> <base64 of the key's id (4) and the Ed25519 signature (64)>
//! ```

use super::epoch::PublicKey;
use super::hash::Hash32;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Ed25519, in the names of keys of signed notes.
const ALGORITHM: u8 = 1;
/// Longest note that is read.
const MAX_NOTE: usize = 8 * 1024;
/// Most signatures: ours and those of witnesses.
const MAX_SIGNATURES: usize = 16;
/// Lines of a checkpoint that only its log has signed.
const LINES: usize = 5;

/// Why a text is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint: {0}")]
pub struct NoteError(pub &'static str);

/// What a log was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Records.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash32,
}

/// A checkpoint and who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What is signed.
    pub checkpoint: Checkpoint,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

/// The name of the log whose first key this is.
pub fn origin(first: &PublicKey) -> String {
    let hash = Hash32(Sha256::digest(first.0).into()).to_string();
    format!("portcullis-audit/{}", &hash[..16])
}

fn key_id(name: &str, key: &PublicKey) -> [u8; 4] {
    let mut hasher = Sha256::new();
    hasher.update(name);
    hasher.update([b'\n', ALGORITHM]);
    hasher.update(key.0);
    let hash: [u8; 32] = hasher.finalize().into();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// The key in the form that tools for signed notes take: `name+id+base64`.
pub fn verifier_key(name: &str, key: &PublicKey) -> String {
    let id = key_id(name, key).map(|byte| format!("{byte:02x}")).concat();
    let bytes = [&[ALGORITHM][..], &key.0].concat();
    format!("{name}+{id}+{}", STANDARD.encode(bytes))
}

/// Reads a first public key: the form of [`verifier_key`], whose name must be that key's, or 64 hexadecimal digits.
pub fn parse_first_key(text: &str) -> Option<PublicKey> {
    if let Ok(key) = text.parse() {
        return Some(key);
    }
    // The base64 may have pluses of its own.
    let bytes = STANDARD.decode(text.splitn(3, '+').nth(2)?).ok()?;
    let key = PublicKey(bytes.strip_prefix(&[ALGORITHM])?.try_into().ok()?);
    (verifier_key(&origin(&key), &key) == text).then_some(key)
}

impl Checkpoint {
    /// What is signed.
    pub fn text(&self) -> String {
        let root = STANDARD.encode(self.root.0);
        format!("{}\n{}\n{root}\n", self.origin, self.size)
    }

    fn parse(text: &str) -> Result<Self, NoteError> {
        let mut lines = text.split('\n');
        let (Some(origin), Some(size), Some(root), Some(""), None) = (
            lines.next(),
            lines.next(),
            lines.next(),
            lines.next(),
            lines.next(),
        ) else {
            return Err(NoteError("its text is not three lines"));
        };
        let number = size
            .parse()
            .map_err(|_| NoteError("its size is no number"))?;
        let root = STANDARD.decode(root).ok();
        let root = root.and_then(|root| root.try_into().ok());
        let found = Self {
            origin: origin.to_owned(),
            size: number,
            root: Hash32(root.ok_or(NoteError("its root is no hash"))?),
        };
        if !is_name(origin) || found.text() != text {
            return Err(NoteError("its text has another form"));
        }
        Ok(found)
    }
}

/// As signed notes want it; the log's own names have no other characters either.
fn is_name(name: &str) -> bool {
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
    (1..=256).contains(&name.len()) && name.chars().all(fits)
}

impl Signature {
    fn line(&self) -> String {
        let bytes = STANDARD.encode([&self.id[..], &self.bytes].concat());
        format!("\u{2014} {} {bytes}\n", self.name)
    }

    fn parse(line: &str) -> Option<Self> {
        let (name, text) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let bytes = STANDARD.decode(text).ok()?;
        let (id, bytes) = bytes.split_first_chunk::<4>()?;
        let found = Self {
            name: name.to_owned(),
            id: *id,
            bytes: bytes.to_vec(),
        };
        let is_one = is_name(name) && !bytes.is_empty() && found.line().trim_end() == line;
        is_one.then_some(found)
    }
}

impl SignedCheckpoint {
    /// A checkpoint with its log's signature.
    pub fn new(checkpoint: Checkpoint, key: &PublicKey, signature: [u8; 64]) -> Self {
        let signature = Signature {
            name: checkpoint.origin.clone(),
            id: key_id(&checkpoint.origin, key),
            bytes: signature.to_vec(),
        };
        Self {
            checkpoint,
            signatures: vec![signature],
        }
    }

    /// The note. [`Self::parse`] reads it back, and no other text as the same.
    pub fn to_text(&self) -> String {
        let mut text = self.checkpoint.text();
        text.push('\n');
        for signature in &self.signatures {
            text.push_str(&signature.line());
        }
        text
    }

    /// Reads a note. Its signatures are [`Self::is_by`]'s to check.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        if text.len() > MAX_NOTE {
            return Err(NoteError("it is too long"));
        }
        let (body, signatures) = text
            .rsplit_once("\n\n")
            .ok_or(NoteError("no signature follows"))?;
        let checkpoint = Checkpoint::parse(&format!("{body}\n"))?;
        let signatures = signatures
            .strip_suffix('\n')
            .ok_or(NoteError("it is cut short"))?;
        let signatures: Option<Vec<_>> = signatures.split('\n').map(Signature::parse).collect();
        let signatures = signatures.ok_or(NoteError("a signature has another form"))?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(NoteError("it has too many signatures"));
        }
        Ok(Self {
            checkpoint,
            signatures,
        })
    }

    /// Whether the log's key has signed it.
    pub fn is_by(&self, key: &PublicKey) -> bool {
        let origin = &self.checkpoint.origin;
        let id = key_id(origin, key);
        let text = self.checkpoint.text();
        let mut own = self
            .signatures
            .iter()
            .filter(|signature| signature.name == *origin && signature.id == id);
        own.any(|signature| key.has_signed(text.as_bytes(), &signature.bytes))
    }
}

/// That the leaf `index` is in the log of this checkpoint: a file that anybody can check who has the record (C2SP
/// tlog-proof).
pub fn proof_text(index: u64, path: &[Hash32], note: &SignedCheckpoint) -> String {
    let mut text = format!("c2sp.org/tlog-proof@v1\nindex {index}\n");
    for hash in path {
        text.push_str(&STANDARD.encode(hash.0));
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&note.to_text());
    text
}

/// What a file of checkpoints holds, each behind the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Notes {
    /// The checkpoints in order, each larger than the one before.
    pub all: Vec<SignedCheckpoint>,
    /// Bytes of them. What lies behind is a checkpoint that was being written, or [`Self::flaw`].
    pub whole: usize,
    /// Why what lies behind is neither a checkpoint nor the front of one.
    pub flaw: Option<NoteError>,
}

impl Notes {
    /// Reads a file.
    pub fn read(bytes: &[u8]) -> Self {
        let mut notes = Self {
            all: Vec::new(),
            whole: 0,
            flaw: None,
        };
        while notes.whole < bytes.len() {
            let rest = &bytes[notes.whole..];
            let mut ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let Some((end, _)) = ends.nth(LINES - 1) else {
                // A crash leaves the front of one, or zeros in its place.
                let front = rest.len() < MAX_NOTE && looks_cut(rest);
                notes.flaw = (!front).then_some(NoteError("it is not where one should be"));
                break;
            };
            let text = std::str::from_utf8(&rest[..=end]);
            let note = text.map_err(|_| NoteError("it is no text"));
            let before = notes
                .all
                .last()
                .map_or(0, |note: &SignedCheckpoint| note.checkpoint.size);
            match note.and_then(SignedCheckpoint::parse) {
                Ok(note) if note.checkpoint.size > before => notes.all.push(note),
                Ok(_) => {
                    notes.flaw = Some(NoteError("it is no larger than the one before"));
                    break;
                }
                Err(flaw) => {
                    notes.flaw = Some(flaw);
                    break;
                }
            }
            notes.whole += end + 1;
        }
        notes
    }
}

/// Only zeros, or a text that goes over into zeros.
fn looks_cut(rest: &[u8]) -> bool {
    let zeros = rest.iter().rev().take_while(|byte| **byte == 0).count();
    let front = &rest[..rest.len() - zeros];
    match std::str::from_utf8(front) {
        Ok(text) => !text.chars().any(|c| c.is_control() && c != '\n'),
        // The dash of a signature, cut in two.
        Err(error) => error.error_len().is_none(),
    }
}
