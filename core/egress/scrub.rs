//! A secret that comes back is replaced before a box sees it: in each form in which servers commonly write what they were sent.
//!
//! Each of its characters may be written in another way ([`super::spelled`]), and all of that wrapped once more ([`super::layers`]). Letters
//! count as equal in either case. Rejected: a list of whole forms, one for each encoder (each encoder escapes other characters, so that
//! there are as many as there are subsets), and automata of all forms (one for each request, larger than most answers). What a server does
//! otherwise with a secret (compresses, enciphers, reverses it, splits it over two answers) is not found.

use zeroize::Zeroizing;

use super::search::{Start, Table};
use super::spelled::Walk;
use crate::seal::Secret;

/// What stands in its place.
pub const MARK: &[u8] = b"[secret]";
/// So many bytes are looked at for each of a secret: every character as an entity, or base64 of every character as `\u0000`, in lines.
const WIDTH: usize = 10;

/// Replaces secrets in a stream, wherever it is cut.
pub struct Scrubber {
    /// Longest first.
    secrets: Vec<Secret>,
    /// Where they begin.
    table: Table,
    /// Longest form that is found.
    window: usize,
    /// The end of what came: shorter than the window, whatever it says.
    held: Secret,
    /// So many bytes of it belong to what was replaced.
    covered: usize,
    /// How many were replaced.
    count: u64,
    /// How many places were searched.
    looked: u64,
    /// How many spellings were looked at.
    steps: u64,
    walk: Walk,
    /// What a layer has in it, and where each byte of that ends in the text.
    opened: Zeroizing<Vec<u8>>,
    ends: Vec<usize>,
}

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scrubber({} secrets)", self.secrets.len())
    }
}

impl Scrubber {
    /// For these secrets.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut all: Vec<Secret> = Vec::new();
        let mut add = |bytes: &[u8], least: usize| {
            let is_known = |known: &Secret| known.expose().eq_ignore_ascii_case(bytes);
            if bytes.len() >= least.max(1) && !all.iter().any(is_known) {
                all.push(Secret::new(bytes.to_vec()));
            }
        };
        for secret in secrets {
            let bytes = secret.expose();
            add(bytes, 1);
            let shortest = super::terminate::SHORTEST;
            // Without the line's end that a file has.
            add(bytes.trim_ascii(), shortest);
            // `user:password` of Basic: servers show one of the two. The first colon parts them (RFC 7617, section 2).
            if let Some(colon) = bytes.iter().position(|byte| *byte == b':') {
                add(bytes[..colon].trim_ascii(), shortest);
                add(bytes[colon + 1..].trim_ascii(), shortest);
            }
        }
        all.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let longest = all.first().map_or(0, Secret::len);
        Self {
            table: Table::new(&all),
            secrets: all,
            window: longest * WIDTH,
            held: Secret::new(Vec::new()),
            covered: 0,
            count: 0,
            looked: 0,
            steps: 0,
            walk: Walk::default(),
            // As long as it can be: no copy is left behind by growing.
            opened: Zeroizing::new(Vec::with_capacity(longest * WIDTH)),
            ends: Vec::new(),
        }
    }

    /// More came: what is certain goes into `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.take(bytes, out, false);
    }

    /// Nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.take(&[], out, true);
    }

    /// A text that is whole.
    pub fn whole(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        self.take(bytes, &mut out, true);
        out
    }

    /// How many were replaced.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// What was searched, in places of a text and a secret of usual length. How long what came is and in which pieces it came sets that, and
    /// not what it says.
    pub const fn looked(&self) -> u64 {
        self.looked
    }

    /// How many spellings were looked at, for who measures that.
    #[cfg(test)]
    pub(super) const fn steps(&self) -> u64 {
        self.steps + self.walk.steps
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, is_all: bool) {
        let mut text = Vec::with_capacity(self.held.len() + bytes.len());
        text.extend_from_slice(self.held.expose());
        text.extend_from_slice(bytes);
        let text = Secret::new(text);
        let all = text.expose();
        // What is held back is as long whatever it says: else the length of what goes on would tell, byte by byte, how far an agent's
        // guess is right.
        let decided = if is_all || self.secrets.is_empty() {
            all.len()
        } else {
            (all.len() + 1).saturating_sub(self.window)
        };
        let mut starts = Vec::new();
        if decided > 0 && !self.secrets.is_empty() {
            starts = self.table.starts(all, &mut self.steps);
            self.looked += all.len() as u64 * self.table.weight();
        }
        // Where what is replaced ends: everything before it goes on in no other way.
        let mut until = self.covered;
        let mut plain = until;
        for here in starts.chunk_by(|one, other| one.at == other.at) {
            let at = here[0].at;
            if at >= decided {
                break;
            }
            let seen = &all[at..all.len().min(at + self.window)];
            if let Some(len) = self.found(here, seen) {
                // One that begins within another, and ends behind it, is another: its first bytes were the other's last.
                if at >= until {
                    out.extend_from_slice(&all[plain..at]);
                    out.extend_from_slice(MARK);
                    self.count += 1;
                }
                until = until.max(at + len);
                plain = until;
            }
        }
        if plain < decided {
            out.extend_from_slice(&all[plain..decided]);
        }
        self.covered = until.saturating_sub(decided);
        self.held = Secret::new(all[decided..].to_vec());
    }

    /// How long the longest form is of what begins there. Nothing else is followed: that would tell how far the rest of a secret was guessed
    /// of which a part is known.
    fn found(&mut self, here: &[Start], text: &[u8]) -> Option<usize> {
        let mut found = None;
        for Start { layer, secret, .. } in here {
            let secret = self.secrets[*secret].expose();
            let end = match layer {
                None => self.walk.follow(text, secret),
                // What says it as it stands says it in a layer, too, whose escapes may come later.
                Some(layer) if !layer.is_in(text) => None,
                Some(layer) => {
                    layer.read(text, &mut self.opened, &mut self.ends);
                    let end = self.walk.follow(&self.opened, secret);
                    let end = end.and_then(|end| self.ends.get(end.wrapping_sub(1)));
                    end.copied()
                }
            };
            found = found.max(end);
        }
        found.filter(|len| *len > 0)
    }
}
