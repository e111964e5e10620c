//! What stays of segments that retention has removed, in one file beside the log: where each ended, and the records that
//! name keys. With it and the tiles, what came later still verifies, and proofs about what is gone still hold.
//!
//! ```text
//! per segment: first seq u64 | last seq u64 | last leaf hash (32) | count u16 | records (length, leaf, hash) | hash of all that (32)
//! ```

use super::Head;
use super::codec::Cut;
use super::hash::{Hash32, Seq, leaf_hash};
use super::record::decode_leaf;
use sha2::{Digest, Sha256};

const DOMAIN: &[u8] = b"portcullis-audit-retired-v1\0";
/// The action of the record that says so before anything is removed; its detail [`UNTIL`] names the last record.
pub const RETIRE: &str = "audit.retire";
/// See [`RETIRE`].
pub const UNTIL: &str = "until";

/// A segment that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its first record.
    pub first: Seq,
    /// Its last record.
    pub last: Head,
    /// Leaves of those of its records that name a key.
    pub marks: Vec<Vec<u8>>,
}

impl Gone {
    /// For the file.
    ///
    /// # Errors
    /// More marks than a segment can have.
    pub fn encode(&self) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.first.0.to_be_bytes());
        out.extend_from_slice(&self.last.seq.0.to_be_bytes());
        out.extend_from_slice(&self.last.hash.0);
        let count = u16::try_from(self.marks.len()).map_err(|_| "too many marks")?;
        out.extend_from_slice(&count.to_be_bytes());
        for leaf in &self.marks {
            let len = u32::try_from(leaf.len()).map_err(|_| "a mark is too long")?;
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(leaf);
        }
        let hash = seal(&out);
        out.extend_from_slice(&hash);
        Ok(out)
    }
}

fn seal(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(bytes);
    hasher.finalize().into()
}

/// Reads the file: the segments that are gone, each from where the one before ended.
///
/// # Errors
/// The record from which on it is not right, and why.
pub fn read(bytes: &[u8]) -> Result<Vec<Gone>, (Seq, &'static str)> {
    let mut all: Vec<Gone> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let head = all.last().map_or(Head::EMPTY, |gone| gone.last);
        let at = head.next();
        let gone = one(&mut rest).map_err(|why| (at, why))?;
        if gone.first != at || gone.last.seq < gone.first {
            return Err((at, "the segments that are gone do not follow each other"));
        }
        all.push(gone);
    }
    Ok(all)
}

fn one(rest: &mut &[u8]) -> Result<Gone, &'static str> {
    let whole = *rest;
    let mut cut = Cut(whole);
    let first = Seq(cut.u64()?);
    let last = Head {
        seq: Seq(cut.u64()?),
        hash: Hash32(cut.array()?),
    };
    let mut marks: Vec<Vec<u8>> = Vec::new();
    let mut before = first.0.saturating_sub(1);
    for _ in 0..cut.u16()? {
        let len = usize::try_from(u32::from_be_bytes(cut.array()?)).unwrap_or(usize::MAX);
        let leaf = cut.bytes(len)?;
        let seq = decode_leaf(leaf)?.seq.0;
        if seq <= before || seq > last.seq.0 {
            return Err("a record that names a key is not of its segment");
        }
        before = seq;
        marks.push(leaf.to_vec());
    }
    let body = &whole[..whole.len() - cut.0.len()];
    if cut.array::<32>()? != seal(body) {
        return Err("what stays of a segment that is gone does not match its hash");
    }
    *rest = cut.0;
    Ok(Gone { first, last, marks })
}

/// The leaf hash of a mark.
pub fn hash_of(mark: &[u8]) -> Hash32 {
    leaf_hash(mark)
}

#[cfg(test)]
mod tests {
    use super::super::{Body, BootId, Stamp, encode_record};
    use super::*;

    fn mark(head: Head) -> (Vec<u8>, Head) {
        let stamp = Stamp {
            wall_ms: 1,
            mono_ms: 2,
        };
        let body = Body::Carry {
            open: None,
            state_rev: None,
            epoch: None,
        };
        let mut out = Vec::new();
        let head = encode_record(&mut out, head, stamp, BootId([1; 16]), &body, None).unwrap();
        (out[4..out.len() - 32].to_vec(), head)
    }

    #[test]
    fn what_stays_comes_back_and_any_change_of_it_is_found() {
        let (first, head) = mark(Head::EMPTY);
        let (second, next) = mark(head);
        let all = [
            Gone {
                first: Seq(1),
                last: head,
                marks: vec![first],
            },
            Gone {
                first: Seq(2),
                last: Head {
                    seq: Seq(9),
                    hash: next.hash,
                },
                marks: vec![second],
            },
        ];
        let bytes: Vec<u8> = all.iter().flat_map(|gone| gone.encode().unwrap()).collect();
        assert_eq!(read(&bytes).unwrap(), all);
        assert_eq!(read(&[]).unwrap(), []);
        let border = all[0].encode().unwrap().len();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {at}");
            assert_eq!(read(&bytes[..at]).is_ok(), at == 0 || at == border, "{at}");
        }
        let turned = [&bytes[border..], &bytes[..border]].concat();
        assert!(read(&turned).is_err());
    }
}
