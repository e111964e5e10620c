//! A secret that comes back is replaced before a box sees it: in each form in which servers commonly write what they were sent.
//!
//! As it stands, in hexadecimal, percent-encoded, as JSON writes it, and in base64 wherever it begins in what was encoded. Letters count as
//! equal in either case. What a server does otherwise with it (compresses, reverses, splits it over two answers) is not found.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::seal::Secret;

/// What stands in its place.
pub const MARK: &[u8] = b"[secret]";
/// Shortest form that is looked for, in bytes: any text has shorter ones.
const SHORTEST: usize = 6;

/// Replaces secrets in a stream, wherever it is cut.
pub struct Scrubber {
    /// Longest first.
    forms: Vec<Secret>,
    /// Does a form begin with this byte?
    begins: [bool; 256],
    /// The end of what came: shorter than the longest form, whatever it says.
    held: Secret,
    /// How many were replaced.
    count: u64,
}

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scrubber({} forms)", self.forms.len())
    }
}

impl Scrubber {
    /// For these secrets.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            forms.extend(forms_of(secret.expose()));
            // `user:password` of Basic: servers show one of the two.
            let parts = secret
                .expose()
                .split(|byte| *byte == b':')
                .filter(|part| part.len() >= super::terminate::SHORTEST);
            for part in parts.filter(|part| part.len() < secret.len()) {
                forms.extend(forms_of(part));
            }
        }
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        let mut begins = [false; 256];
        for first in forms.iter().filter_map(|form| form.expose().first()) {
            begins[usize::from(first.to_ascii_lowercase())] = true;
            begins[usize::from(first.to_ascii_uppercase())] = true;
        }
        Self {
            forms,
            begins,
            held: Secret::new(Vec::new()),
            count: 0,
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

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, is_all: bool) {
        let mut text = Vec::with_capacity(self.held.len() + bytes.len());
        text.extend_from_slice(self.held.expose());
        text.extend_from_slice(bytes);
        let text = Secret::new(text);
        let all = text.expose();
        let (mut at, mut plain) = (0, 0);
        // What is held back is as long whatever it says: else the length of what goes on would tell, byte by byte, how far an agent's
        // guess is right.
        while at < all.len() && (is_all || all.len() - at >= self.longest()) {
            match self.form_at(&all[at..]) {
                None => at += 1,
                Some(len) => {
                    out.extend_from_slice(&all[plain..at]);
                    out.extend_from_slice(MARK);
                    self.count += 1;
                    at += len;
                    plain = at;
                }
            }
        }
        out.extend_from_slice(&all[plain..at]);
        self.held = Secret::new(all[at..].to_vec());
    }

    /// Of the forms, in bytes.
    fn longest(&self) -> usize {
        self.forms.first().map_or(0, Secret::len)
    }

    /// How long the form is that stands there whole.
    fn form_at(&self, rest: &[u8]) -> Option<usize> {
        if !self.begins[usize::from(*rest.first()?)] {
            return None;
        }
        let mut forms = self.forms.iter().map(Secret::expose);
        let is_there = |form: &&[u8]| {
            let there = rest.get(..form.len());
            there.is_some_and(|there| there.eq_ignore_ascii_case(form))
        };
        forms.find(is_there).map(<[u8]>::len)
    }
}

/// Every form of these bytes, each once.
fn forms_of(value: &[u8]) -> Vec<Secret> {
    let each = |one: &dyn Fn(u8, &mut Vec<u8>)| {
        // No form has more than six bytes for one: it never grows.
        let mut text = Vec::with_capacity(value.len() * 6);
        for byte in value {
            one(*byte, &mut text);
        }
        Secret::new(text)
    };
    let hex = |byte: u8| {
        [
            b"0123456789abcdef"[usize::from(byte >> 4)],
            b"0123456789abcdef"[usize::from(byte & 15)],
        ]
    };
    let percent = |byte: u8, text: &mut Vec<u8>| {
        text.push(b'%');
        text.extend(hex(byte));
    };
    let some = |kept: &'static [u8], space: &'static [u8]| {
        each(&move |byte, text| {
            if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
                text.push(byte);
            } else if byte == b' ' && !space.is_empty() {
                text.extend(space);
            } else {
                percent(byte, text);
            }
        })
    };
    let mut forms = vec![
        each(&|byte, text| text.push(byte)),
        each(&|byte, text| text.extend(hex(byte))),
        each(&percent),
        some(b"-._~", b""),
        some(b"-._~!$&'()*+,;=:@/?", b""),
        some(b"-._*", b"+"),
        each(&|byte, text| {
            text.extend(b"\\u00");
            text.extend(hex(byte));
        }),
        each(&|byte, text| {
            if matches!(byte, b'"' | b'\\') {
                text.push(b'\\');
            }
            text.push(byte);
        }),
        each(&|byte, text| {
            if matches!(byte, b'"' | b'\\' | b'/') {
                text.push(b'\\');
            }
            text.push(byte);
        }),
        each(&|byte, text| match byte {
            b'&' => text.extend(b"&amp;"),
            b'<' => text.extend(b"&lt;"),
            b'>' => text.extend(b"&gt;"),
            b'"' => text.extend(b"&#34;"),
            b'\'' => text.extend(b"&#39;"),
            _ => text.push(byte),
        }),
    ];
    // Three alignments, each without the characters that the bytes before and behind have a part in.
    for before in 0..3_usize {
        let mut bytes = vec![0; before];
        bytes.reserve_exact(value.len());
        bytes.extend_from_slice(value);
        let bytes = Secret::new(bytes);
        let from = before.div_ceil(3) + before;
        let shared = usize::from(!bytes.len().is_multiple_of(3));
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let mut text = vec![0; bytes.len().div_ceil(3) * 4];
            let Ok(len) = engine.encode_slice(bytes.expose(), &mut text) else {
                continue;
            };
            let text = Secret::new(text);
            forms.push(Secret::new(text.expose()[from..len - shared].to_vec()));
        }
    }
    let mut kept: Vec<Secret> = Vec::new();
    for (at, form) in forms.into_iter().enumerate() {
        let is_known = kept
            .iter()
            .any(|known| known.expose().eq_ignore_ascii_case(form.expose()));
        if !is_known && !form.is_empty() && (at == 0 || form.len() >= SHORTEST) {
            kept.push(form);
        }
    }
    kept
}
