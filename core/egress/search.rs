//! Where in a text a secret begins, in whichever spelling and layer, by work that the text alone sets.
//!
//! A box has its guesses sent to it, so what a text costs must not tell how far it agrees with a secret: not by the time, nor by the load of
//! the machine. So there is no comparing that ends where it fails. From the end of a text backwards each place knows, by one bit for each byte
//! of each secret, whether the text from here on says that secret from that byte on: the bits behind each spelling that may stand here, shifted
//! by one, and those of the bytes that it stands for. That is done for every place, spelling and layer alike, whatever the bits are. (The
//! bit-parallel automaton of Baeza-Yates and Gonnet, backwards and over all readings at once.)
//!
//! Only where a whole secret begins more is done: that is replaced, so that everybody sees it.

use zeroize::Zeroizing;

use super::layers::{self, Layer};
use super::spelled::{LONGEST, WIDEST, is_escape, units, wide};
use crate::seal::Secret;

/// So far ahead of a place is looked: a power of two.
const AHEAD: usize = 256;
/// The text as it stands, then each of [`layers::ALL`]; and the second to fourth byte of one escape, of those that have some.
const KINDS: usize = 1 + layers::ALL.len() + 3 * INNER;
/// Further bytes of one escape: UTF-8 has four in all.
const INNER: usize = 3;
const PLAIN: usize = 0;
const BASE64: usize = 1;
const HEX: usize = 4;
const NUMBERS: usize = 5;
const ESCAPES: usize = 6;
const FURTHER: usize = 9;
/// Nothing can be read there.
const NONE: usize = usize::MAX;

/// A whole secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Where it begins.
    pub at: usize,
    /// In which layer; none: as the text stands.
    pub layer: Option<Layer>,
    /// Which it is.
    pub secret: usize,
}

/// What secrets are looked for, by bits: one for each byte of each.
pub struct Table {
    /// Of 64 bits, for all.
    words: usize,
    /// For each byte which of the secrets' it is, in either case.
    masks: Zeroizing<Vec<u64>>,
    firsts: Vec<u64>,
    lasts: Vec<u64>,
    /// The bit of each one's first byte.
    begins: Vec<usize>,
    /// One of them is beyond ASCII.
    is_wide: bool,
}

impl Table {
    /// For these.
    pub fn new(secrets: &[Secret]) -> Self {
        let words = secrets.iter().map(Secret::len).sum::<usize>().div_ceil(64);
        let words = if words == 3 { 4 } else { words };
        let mut masks = Zeroizing::new(vec![0; 256 * words]);
        let (mut firsts, mut lasts) = (vec![0; words], vec![0; words]);
        let (mut at, mut is_wide) = (0, false);
        let mut begins = Vec::with_capacity(secrets.len());
        for secret in secrets {
            let bytes = secret.expose();
            begins.push(at);
            for (n, byte) in bytes.iter().enumerate() {
                let (word, bit) = (at / 64, 1 << (at % 64));
                for one in [byte.to_ascii_lowercase(), byte.to_ascii_uppercase()] {
                    masks[usize::from(one) * words + word] |= bit;
                }
                if n == 0 {
                    firsts[word] |= bit;
                }
                if n + 1 == bytes.len() {
                    lasts[word] |= bit;
                }
                is_wide |= !byte.is_ascii();
                at += 1;
            }
        }
        Self {
            words,
            masks,
            firsts,
            lasts,
            begins,
            is_wide,
        }
    }

    /// What one place costs, in those of a secret of usual length.
    pub const fn weight(&self) -> u64 {
        // Up to 512 bytes in all: what is done besides is more.
        1 + self.words as u64 / 8
    }

    /// Which secrets begin where in a text, by their places. `steps`: how many spellings were looked at.
    pub fn starts(&self, text: &[u8], steps: &mut u64) -> Vec<Start> {
        match self.words {
            1 => Pass::<1>::new(self, text).all(steps),
            2 => Pass::<2>::new(self, text).all(steps),
            4 => Pass::<4>::new(self, text).all(steps),
            _ => Pass::<0>::new(self, text).all(steps),
        }
    }
}

/// One way through a text, with so many words for each place; 0: as many as the table says. (Usual secrets have few, and what is known when
/// this is compiled takes a third of the time.)
struct Pass<'a, const WORDS: usize> {
    table: &'a Table,
    text: &'a [u8],
    /// Places that are kept, less one: a power of two of them.
    kept: usize,
    /// For each place that is kept, and each kind.
    bits: Zeroizing<Vec<u64>>,
    /// What byte stands there in that layer.
    bytes: Zeroizing<Vec<u8>>,
    /// Where the next one does: place and kind.
    nexts: Vec<(usize, usize)>,
    /// The character of base64 there, and where it ends.
    sextets: Zeroizing<Vec<(u8, usize)>>,
    /// What is being made.
    now: Zeroizing<Vec<u64>>,
    part: Zeroizing<Vec<u64>>,
    steps: u64,
}

impl<'a, const WORDS: usize> Pass<'a, WORDS> {
    fn new(table: &'a Table, text: &'a [u8]) -> Self {
        let places = (text.len() + 1).next_power_of_two().min(AHEAD);
        let slots = places * KINDS;
        Self {
            table,
            text,
            kept: places - 1,
            bits: Zeroizing::new(vec![0; slots * table.words]),
            bytes: Zeroizing::new(vec![0; slots]),
            nexts: vec![(NONE, 0); slots],
            sextets: Zeroizing::new(vec![(0, NONE); places]),
            now: Zeroizing::new(vec![0; table.words]),
            part: Zeroizing::new(vec![0; table.words]),
            steps: 0,
        }
    }

    /// From the end to the beginning.
    fn all(mut self, steps: &mut u64) -> Vec<Start> {
        let mut starts = Vec::new();
        for at in (0..self.text.len()).rev() {
            self.visit(at, &mut starts);
        }
        *steps += self.steps;
        starts.reverse();
        starts
    }

    const fn words(&self) -> usize {
        if WORDS > 0 { WORDS } else { self.table.words }
    }

    const fn slot(&self, at: usize, kind: usize) -> usize {
        (at & self.kept) * KINDS + kind
    }

    /// All of one place.
    fn visit(&mut self, at: usize, starts: &mut Vec<Start>) {
        let text = self.text;
        let view = &text[at..text.len().min(at + AHEAD - 1)];
        let slot = self.slot(at, 0);
        self.nexts[slot..slot + KINDS].fill((NONE, 0));
        self.step(at, PLAIN, view, |taken| (at + taken, PLAIN));
        self.base64(at, view);
        if let Some((byte, taken)) = layers::pair(view, 0, false) {
            self.link((at, HEX), byte, (at + taken, HEX));
        }
        let is_begun = view[0].is_ascii_digit();
        if let Some((byte, taken)) = layers::number(view, 0, is_begun) {
            self.link((at, NUMBERS), byte, (at + taken, NUMBERS));
        }
        for (n, layer) in [Layer::Percent, Layer::Entities, Layer::Json]
            .into_iter()
            .enumerate()
        {
            let (unit, len, taken) = layer.unit(view);
            let inner = |byte: usize| match byte {
                0 => ESCAPES + n,
                more => FURTHER + n * INNER + more - 1,
            };
            for (byte, value) in unit[..len].iter().enumerate() {
                let next = if byte + 1 < len {
                    (at, inner(byte + 1))
                } else {
                    (at + taken, ESCAPES + n)
                };
                self.link((at, inner(byte)), *value, next);
            }
        }
        // The further bytes of an escape before its first, for that one is read with them.
        for kind in (BASE64..KINDS).rev() {
            self.layered(at, kind);
        }
        for kind in PLAIN..FURTHER {
            let first = self.slot(at, kind) * self.words();
            let bits = &self.bits[first..][..self.words()];
            let begun = bits.iter().zip(&self.table.firsts);
            if begun
                .clone()
                .fold(0, |all, (bits, first)| all | bits & first)
                == 0
            {
                continue;
            }
            // Nobody can have only guessed it.
            for (word, (bits, firsts)) in begun.enumerate() {
                let begun = (0..64).filter(|bit| bits & firsts & (1 << bit) != 0);
                let begun = begun
                    .filter_map(|bit| self.table.begins.binary_search(&(word * 64 + bit)).ok());
                starts.extend(begun.map(|secret| Start {
                    at,
                    layer: kind.checked_sub(1).map(|layer| layers::ALL[layer]),
                    secret,
                }));
            }
        }
    }

    fn link(&mut self, (at, kind): (usize, usize), byte: u8, next: (usize, usize)) {
        let slot = self.slot(at, kind);
        self.bytes[slot] = byte;
        self.nexts[slot] = next;
    }

    /// In base64 a byte begins in one of three places of a character.
    fn base64(&mut self, at: usize, view: &[u8]) {
        let first = layers::sextet(view, 0, false);
        let first = first.map_or((0, NONE), |(value, taken)| (value, at + taken));
        self.sextets[at & self.kept] = first;
        let (one, end) = first;
        if end >= self.text.len() {
            return;
        }
        let (two, behind) = self.sextets[end & self.kept];
        if behind == NONE || behind - at >= AHEAD {
            return;
        }
        self.link((at, BASE64), one << 2 | two >> 4, (end, BASE64 + 1));
        self.link((at, BASE64 + 1), one << 4 | two >> 2, (end, BASE64 + 2));
        self.link((at, BASE64 + 2), one << 6 | two, (behind, BASE64));
    }

    /// What a layer says from there on, as far as one character of it needs.
    fn layered(&mut self, at: usize, kind: usize) {
        let slot = self.slot(at, kind);
        let mut next = self.nexts[slot];
        if next.0 == NONE {
            let words = self.words();
            self.bits[slot * words..][..words].fill(0);
            return;
        }
        let (mut bytes, mut behind) = ([0; LONGEST], [(0, 0); LONGEST]);
        (bytes[0], behind[0]) = (self.bytes[slot], next);
        let needed = if is_escape(bytes[0]) { LONGEST } else { WIDEST };
        let mut len = 1;
        while len < needed && next.0 < self.text.len() {
            let slot = self.slot(next.0, next.1);
            let byte = self.bytes[slot];
            next = self.nexts[slot];
            if next.0 == NONE || next.0 - at >= AHEAD {
                break;
            }
            (bytes[len], behind[len]) = (byte, next);
            len += 1;
        }
        self.step(at, kind, &bytes[..len], |taken| behind[taken - 1]);
    }

    /// What can be read there: by each spelling of the first character, what can be read behind it.
    fn step(
        &mut self,
        at: usize,
        kind: usize,
        said: &[u8],
        behind: impl Fn(usize) -> (usize, usize),
    ) {
        let (words, kept) = (self.words(), self.kept);
        let Self {
            table,
            bits,
            now,
            part,
            steps,
            ..
        } = self;
        let (now, part) = (&mut now[..words], &mut part[..words]);
        let (firsts, lasts) = (&table.firsts[..words], &table.lasts[..words]);
        now.fill(0);
        let mut each = |unit: &[u8], taken: usize| {
            let (place, kind) = behind(taken);
            let from = ((place & kept) * KINDS + kind) * words;
            let there = &bits[from..][..words];
            *steps += 1;
            let Some((last, before)) = unit.split_last() else {
                // A soft line break: nothing begins with one.
                for (now, (there, firsts)) in now.iter_mut().zip(there.iter().zip(firsts)) {
                    *now |= there & !firsts;
                }
                return;
            };
            let masks = |byte: u8| &table.masks[usize::from(byte) * words..][..words];
            if before.is_empty() {
                for (n, mask) in masks(*last).iter().enumerate() {
                    let more = there.get(n + 1).map_or(0, |more| more << 63);
                    now[n] |= (there[n] >> 1 | more | lasts[n]) & mask;
                }
                return;
            }
            for (n, mask) in masks(*last).iter().enumerate() {
                let more = there.get(n + 1).map_or(0, |more| more << 63);
                part[n] = (there[n] >> 1 | more | lasts[n]) & mask;
            }
            for byte in before.iter().rev() {
                for (n, mask) in masks(*byte).iter().enumerate() {
                    let more = part.get(n + 1).map_or(0, |more| more << 63);
                    // A character that a secret ends within is none of it.
                    part[n] = (part[n] >> 1 | more) & !lasts[n] & mask;
                }
            }
            for (now, part) in now.iter_mut().zip(part.iter()) {
                *now |= part;
            }
        };
        units(said, &mut each);
        if table.is_wide {
            wide(said, &mut each);
        }
        let to = ((at & kept) * KINDS + kind) * words;
        bits[to..][..words].copy_from_slice(now);
    }
}
