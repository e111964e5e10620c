//! A secret that comes back is replaced before a box sees it: in each form in which servers commonly write what they were sent.
//!
//! Each of its characters may be written in another way ([`super::spelled`]), and all of that wrapped once more ([`super::layers`]). Letters
//! count as equal in either case. Rejected: a list of whole forms, one for each encoder (each encoder escapes other characters, so that
//! there are as many as there are subsets), and automata of all forms (one for each request, larger than most answers). What a server does
//! otherwise with a secret (compresses, enciphers, reverses it, splits it over two answers) is not found.

use zeroize::Zeroizing;

use super::layers::{self, Layer};
use super::spelled::{self, Walk};
use crate::seal::Secret;

/// What stands in its place.
pub const MARK: &[u8] = b"[secret]";
/// So many bytes are looked at for each of a secret: every character as an entity, or base64 of every character as `\u0000`, in lines.
const WIDTH: usize = 10;
/// So much of a layer is opened at first, and so many times more where that says nothing yet.
const TASTE: usize = 8;

/// Replaces secrets in a stream, wherever it is cut.
pub struct Scrubber {
    /// Longest first.
    secrets: Vec<Secret>,
    /// May a secret begin with this byte, in whichever spelling?
    begins: [bool; 256],
    /// Longest form that is found.
    window: usize,
    /// The end of what came: shorter than the window, whatever it says.
    held: Secret,
    /// So many bytes of it belong to what was replaced.
    covered: usize,
    /// How many were replaced.
    count: u64,
    /// How many bytes were looked at.
    looked: u64,
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
            // `user:password` of Basic: servers show one of the two, and a password may have colons.
            let mut rest = bytes;
            while let Some(colon) = rest.iter().position(|byte| *byte == b':') {
                add(rest[..colon].trim_ascii(), shortest);
                rest = &rest[colon + 1..];
                add(rest.trim_ascii(), shortest);
            }
        }
        all.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let mut begins = [false; 256];
        for first in all.iter().filter_map(|secret| secret.expose().first()) {
            for byte in 0..=u8::MAX {
                begins[usize::from(byte)] |= byte.eq_ignore_ascii_case(first)
                    || spelled::is_escape(byte)
                    || *first == b' ' && byte == b'+'
                    // In UTF-16 any byte may be the first one of it.
                    || *first >= 0x80;
            }
        }
        let longest = all.first().map_or(0, Secret::len);
        Self {
            secrets: all,
            begins,
            window: longest * WIDTH,
            held: Secret::new(Vec::new()),
            covered: 0,
            count: 0,
            looked: 0,
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

    /// How many bytes were looked at, each once: of what came, and not of what it says.
    pub const fn looked(&self) -> u64 {
        self.looked
    }

    /// How many places of texts were compared, for who measures that.
    #[cfg(test)]
    pub(super) const fn steps(&self) -> u64 {
        self.walk.steps
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, is_all: bool) {
        let mut text = Vec::with_capacity(self.held.len() + bytes.len());
        text.extend_from_slice(self.held.expose());
        text.extend_from_slice(bytes);
        let text = Secret::new(text);
        let all = text.expose();
        // Where what is replaced ends: everything before it goes on in no other way.
        let (mut at, mut until) = (0, self.covered);
        let mut plain = until;
        // What is held back is as long whatever it says: else the length of what goes on would tell, byte by byte, how far an agent's
        // guess is right.
        while at < all.len() && (is_all || all.len() - at >= self.window) {
            let seen = &all[at..all.len().min(at + self.window)];
            if let Some(len) = self.found(seen) {
                // One that begins within another, and ends behind it, is another: its first bytes were the other's last.
                if at >= until {
                    out.extend_from_slice(&all[plain..at]);
                    out.extend_from_slice(MARK);
                    self.count += 1;
                }
                until = until.max(at + len);
                plain = until;
            }
            at += 1;
        }
        self.looked += at as u64;
        if plain < at {
            out.extend_from_slice(&all[plain..at]);
        }
        self.covered = until.saturating_sub(at);
        self.held = Secret::new(all[at..].to_vec());
    }

    /// How long the form is that begins there, if one does: the longest of several.
    fn found(&mut self, text: &[u8]) -> Option<usize> {
        let mut found = None;
        if text
            .first()
            .is_some_and(|first| self.begins[usize::from(*first)])
        {
            for secret in &self.secrets {
                found = found.max(self.walk.follow(text, secret.expose()).end);
            }
        }
        let likely = layers::likely(text, &self.begins);
        if likely != 0 {
            for (bit, layer) in layers::ALL.into_iter().enumerate() {
                if likely >> bit & 1 == 1 {
                    found = found.max(self.found_in(layer, text));
                }
            }
        }
        found.filter(|len| *len > 0)
    }

    fn found_in(&mut self, layer: Layer, text: &[u8]) -> Option<usize> {
        let mut most = TASTE.min(text.len());
        loop {
            layer.read(text, most, &mut self.opened, &mut self.ends);
            // A unit may be of several bytes.
            let is_part = self.ends.len() >= most && most < text.len();
            let (mut is_cut, mut found) = (false, None);
            for secret in &self.secrets {
                let followed = self.walk.follow(&self.opened, secret.expose());
                let end = followed
                    .end
                    .and_then(|end| self.ends.get(end.wrapping_sub(1)));
                found = found.max(end.copied());
                is_cut |= followed.is_cut;
            }
            if !is_part || !is_cut {
                return found;
            }
            most = (most * TASTE).min(text.len());
        }
    }
}
