//! One character of a text in every way in which servers write it, and whether a text says the same as a secret, each of whose characters
//! may be written in another one of them.
//!
//! As it stands, percent-encoded (RFC 3986, section 2.1, and twice), as JSON and programs' sources write it (RFC 8259, section 7, also JSON in
//! JSON), as HTML does, as quoted-printable (RFC 2045, section 6.7), in UTF-16 and UTF-32. Nothing here depends on how a text goes on behind
//! what was looked at.

/// Most backslashes before an escape: JSON in JSON in JSON has four.
const SLASHES: usize = 8;
/// How often what begins an escape may itself be escaped.
const NESTED: usize = 3;
/// Longest of one character, in bytes: two surrogates behind eight backslashes each.
pub const LONGEST: usize = 2 * (SLASHES + 5);
/// The same of what begins with no escape: UTF-32, and ASCII in it.
pub const WIDEST: usize = 4;

/// Longest name of an entity.
const NAME: usize = 7;

/// Of ASCII, those that encoders of HTML write; longer names of the same are nobody's choice. By how long they are and what they are, so that
/// it takes no comparing with each.
const fn named(name: &[u8]) -> Option<u8> {
    Some(match name {
        b"amp" => b'&',
        b"lt" => b'<',
        b"gt" => b'>',
        b"quot" => b'"',
        b"apos" => b'\'',
        b"tab" => b'\t',
        b"newline" => b'\n',
        b"excl" => b'!',
        b"num" => b'#',
        b"dollar" => b'$',
        b"percnt" => b'%',
        b"lpar" => b'(',
        b"rpar" => b')',
        b"ast" => b'*',
        b"plus" => b'+',
        b"comma" => b',',
        b"period" => b'.',
        b"sol" => b'/',
        b"colon" => b':',
        b"semi" => b';',
        b"equals" => b'=',
        b"quest" => b'?',
        b"commat" => b'@',
        b"lsqb" | b"lbrack" => b'[',
        b"bsol" => b'\\',
        b"rsqb" | b"rbrack" => b']',
        b"hat" => b'^',
        b"lowbar" => b'_',
        b"grave" => b'`',
        b"lcub" | b"lbrace" => b'{',
        b"rcub" | b"rbrace" => b'}',
        b"vert" | b"verbar" => b'|',
        _ => return None,
    })
}

/// Does another spelling than the character itself begin with this byte?
pub const fn is_escape(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'&' | b'=' | b'"' | b'\'' | 0)
}

/// What the beginning of a text may stand for, and how many of its bytes that takes. Nothing stands for a soft line break.
pub fn units(text: &[u8], each: &mut impl FnMut(&[u8], usize)) {
    let Some(&first) = text.first() else { return };
    each(&[first], 1);
    match first {
        b'+' => each(b" ", 1),
        b'%' => percent(text, each),
        b'\\' => slashes(text, each),
        b'&' => entity(text, each),
        b'"' | b'\'' => quote(text, each),
        b'=' => {
            if let Some(byte) = hex(text, 1, 2) {
                code(byte, 3, each);
            }
            if text.starts_with(b"=\r\n") {
                each(&[], 3);
            } else if text.starts_with(b"=\n") {
                each(&[], 2);
            }
        }
        _ => {}
    }
    // UTF-16 and UTF-32 of ASCII, either end first.
    match *text {
        [0, 0, 0, byte @ 1..=255, ..] => each(&[byte], 4),
        [0, byte @ 1..=255, ..] => each(&[byte], 2),
        [byte @ 1..=255, 0, ref rest @ ..] => {
            each(&[byte], 2);
            if rest.starts_with(&[0, 0]) {
                each(&[byte], 4);
            }
        }
        _ => {}
    }
}

/// The number that so many hexadecimal digits there are.
pub fn hex(text: &[u8], at: usize, digits: usize) -> Option<u32> {
    let digits = text.get(at..at + digits)?;
    digits.iter().try_fold(0, |value, digit| {
        Some(value << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// A number that stands for a character, or for one byte of it.
fn code(value: u32, taken: usize, each: &mut impl FnMut(&[u8], usize)) {
    if let Ok(byte) = u8::try_from(value) {
        each(&[byte], taken);
    }
    if value >= 0x80
        && let Some(character) = char::from_u32(value)
    {
        each(character.encode_utf8(&mut [0; 4]).as_bytes(), taken);
    }
}

fn percent(text: &[u8], each: &mut impl FnMut(&[u8], usize)) {
    let mut at = 1;
    for _ in 0..NESTED {
        if let Some(byte) = hex(text, at, 2) {
            // Bytes, never characters: %C3%BC is one of two.
            if let Ok(byte) = u8::try_from(byte) {
                each(&[byte], at + 2);
            }
        }
        if !text[at..].starts_with(b"25") {
            break;
        }
        at += 2;
    }
    // JavaScript's escape().
    if matches!(text.get(1), Some(b'u' | b'U'))
        && let Some(value) = hex(text, 2, 4)
    {
        code(value, 6, each);
    }
}

fn slashes(text: &[u8], each: &mut impl FnMut(&[u8], usize)) {
    let run = text.iter().take(SLASHES + 1);
    let run = run.take_while(|byte| **byte == b'\\').count();
    // Behind one, or behind three or seven of what was written again: JSON escapes the one and the character. A slash, which needs none,
    // is behind two or four. Letters and digits are behind none.
    for before in [1, 2, 3, 4, 7] {
        if let Some(byte) = text.get(before).filter(|_| before <= run)
            && !byte.is_ascii_alphanumeric()
            && (before % 2 == 1 || *byte == b'/')
        {
            each(&[*byte], before + 1);
        }
    }
    if run > SLASHES {
        return;
    }
    let Some(letter) = text.get(run) else { return };
    let at = run + 1;
    match letter {
        b'u' | b'x' if text.get(at) == Some(&b'{') => {
            let digits = text[at + 1..]
                .iter()
                .take(7)
                .take_while(|byte| byte.is_ascii_hexdigit())
                .count();
            if let Some(value) = hex(text, at + 1, digits).filter(|_| digits > 0)
                && text.get(at + 1 + digits) == Some(&b'}')
            {
                code(value, at + digits + 2, each);
            }
        }
        b'u' => {
            let Some(value) = hex(text, at, 4) else {
                return;
            };
            let second = at + 4;
            let is_pair = text.get(second..second + run) == Some(&text[..run])
                && text.get(second + run) == Some(&b'u');
            let low = hex(text, second + run + 1, 4).filter(|_| is_pair);
            match (value, low) {
                (0xD800..=0xDBFF, Some(low @ 0xDC00..=0xDFFF)) => {
                    let value = 0x1_0000 + ((value - 0xD800) << 10) + (low - 0xDC00);
                    code(value, 2 * second, each);
                }
                _ => code(value, second, each),
            }
        }
        b'U' => {
            if let Some(value) = hex(text, at, 8) {
                code(value, at + 8, each);
            }
        }
        b'x' => {
            if let Some(value) = hex(text, at, 2) {
                code(value, at + 2, each);
            }
        }
        b'0'..=b'7' => {
            let mut value = 0_u32;
            for (n, byte) in text[run..].iter().take(3).enumerate() {
                let Some(digit) = char::from(*byte).to_digit(8) else {
                    break;
                };
                value = value * 8 + digit;
                code(value, at + n, each);
            }
        }
        _ => {}
    }
    let control = match letter {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        b'v' => 11,
        b'a' => 7,
        b'e' => 27,
        _ => return,
    };
    each(&[control], at);
}

fn entity(text: &[u8], each: &mut impl FnMut(&[u8], usize)) {
    let mut at = 1;
    for _ in 0..NESTED {
        let rest = &text[at..];
        if rest.first() == Some(&b'#') {
            number(rest, at, each);
            return;
        }
        let mut name = [0; NAME];
        let letters = rest.iter().take(NAME);
        let len = letters
            .take_while(|byte| byte.is_ascii_alphabetic())
            .count();
        for (to, letter) in name.iter_mut().zip(&rest[..len]) {
            *to = letter.to_ascii_lowercase();
        }
        let ended = named(&name[..len]).filter(|_| rest.get(len) == Some(&b';'));
        if let Some(byte) = ended {
            each(&[byte], at + len + 1);
        }
        // These are read without their end, too.
        let known = [&b"amp"[..], b"lt", b"gt", b"quot"];
        for known in known.iter().filter(|known| name.starts_with(known)) {
            if let Some(byte) = named(known).filter(|_| ended.is_none() || len > known.len()) {
                each(&[byte], at + known.len());
            }
        }
        let is_amp = ended == Some(b'&');
        if !is_amp {
            return;
        }
        at += 4;
    }
}

/// Twice, as CSV, SQL and YAML write one within two of them; and as a shell's quoting of one quote within two.
fn quote(text: &[u8], each: &mut impl FnMut(&[u8], usize)) {
    if text.get(1) == text.first() {
        each(&text[..1], 2);
    }
    for shell in [&b"'\"'\"'"[..], b"'\\''"] {
        if text.starts_with(shell) {
            each(b"'", shell.len());
        }
    }
}

/// `#38;`, `#x26;`, both with zeros before and without an end.
fn number(rest: &[u8], at: usize, each: &mut impl FnMut(&[u8], usize)) {
    let is_hex = matches!(rest.get(1), Some(b'x' | b'X'));
    let (from, base) = if is_hex { (2, 16) } else { (1, 10) };
    let mut value = 0_u32;
    let mut len = from;
    for byte in rest.iter().skip(from).take(8) {
        let Some(digit) = char::from(*byte).to_digit(base) else {
            break;
        };
        value = value.saturating_mul(base).saturating_add(digit);
        len += 1;
    }
    if len > from {
        let is_ended = rest.get(len) == Some(&b';');
        code(value, at + len + usize::from(is_ended), each);
    }
}

/// What the beginning of a text may stand for in another encoding, beyond ASCII: the same as [`units`].
pub fn wide(text: &[u8], each: &mut impl FnMut(&[u8], usize)) {
    // A byte that was read as Latin-1 and is written as UTF-8.
    if let [first @ 0xC2..=0xC3, second @ 0x80..=0xBF, ..] = *text {
        each(&[first << 6 | second & 0x3F], 2);
    }
    let mut character = |value: u32, taken: usize| {
        if value >= 0x80
            && let Some(character) = char::from_u32(value)
        {
            each(character.encode_utf8(&mut [0; 4]).as_bytes(), taken);
        }
    };
    if let Some(&first) = text.first() {
        character(u32::from(first), 1);
    }
    let ends: [fn([u8; 2]) -> u16; 2] = [u16::from_le_bytes, u16::from_be_bytes];
    for end in ends {
        let unit = |at: usize| match text.get(at..at + 2) {
            Some(&[one, two]) => u32::from(end([one, two])),
            _ => 0,
        };
        match (unit(0), unit(2)) {
            (high @ 0xD800..=0xDBFF, low @ 0xDC00..=0xDFFF) => {
                character(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00), 4);
            }
            (one, _) => character(one, 2),
        }
    }
    if let Some(&[one, two, three, four]) = text.get(..4) {
        let bytes = [one, two, three, four];
        character(u32::from_le_bytes(bytes), 4);
        character(u32::from_be_bytes(bytes), 4);
    }
}

/// Follows every reading of a text for as long as it agrees with the secret. What that takes tells how far it does, so it is for texts that
/// are known to say all of it ([`super::search`]).
#[derive(Debug, Default)]
pub struct Walk {
    /// Places in the text and in the secret that one reading has come to.
    open: Vec<(usize, usize)>,
    /// How many places were looked at, ever.
    pub steps: u64,
}

impl Walk {
    /// How many bytes say the secret, if it begins where the text does: the most, where there are several ways. Letters count as equal in
    /// either case.
    pub fn follow(&mut self, text: &[u8], secret: &[u8]) -> Option<usize> {
        let mut end = None;
        let open = &mut self.open;
        open.clear();
        open.push((0, 0));
        // The one that is behind goes on first, so that no place is looked at twice.
        while let Some(first) = (0..open.len()).min_by_key(|at| open[*at]) {
            let (at, known) = open.swap_remove(first);
            self.steps += 1;
            let left = &secret[known..];
            if left.is_empty() {
                end = end.max(Some(at));
                continue;
            }
            let text = &text[at..];
            let mut each = |unit: &[u8], taken: usize| {
                let there = left.get(..unit.len());
                let is_same = there.is_some_and(|there| there.eq_ignore_ascii_case(unit));
                let place = (at + taken, known + unit.len());
                if is_same && (known > 0 || !unit.is_empty()) && !open.contains(&place) {
                    open.push(place);
                }
            };
            units(text, &mut each);
            if left[0] >= 0x80 {
                wide(text, &mut each);
            }
        }
        end
    }
}
