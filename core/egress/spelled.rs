//! One character of a text in every way in which servers write it, and whether a text says the same as a secret, each of whose characters
//! may be written in another one of them.
//!
//! As it stands, percent-encoded (RFC 3986, section 2.1, and twice), as JSON and programs' sources write it (RFC 8259, section 7, also JSON in
//! JSON), as HTML does, as quoted-printable (RFC 2045, section 6.7), in UTF-16 and UTF-32. Nothing here depends on how a text goes on behind
//! what was looked at, and what one byte costs is bounded by the secret's length, not by the text's.

/// Most backslashes before an escape: JSON in JSON in JSON has four.
const SLASHES: usize = 8;
/// How often what begins an escape may itself be escaped.
const NESTED: usize = 3;
/// Longest of one character, in bytes: two surrogates behind eight backslashes each.
pub const LONGEST: usize = 2 * (SLASHES + 5);
/// The same of what begins with no escape: UTF-32, and ASCII in it.
const WIDEST: usize = 4;

/// Of ASCII, those that encoders of HTML write; longer names of the same are nobody's choice.
const NAMES: [(&str, u8); 33] = [
    ("amp", b'&'),
    ("lt", b'<'),
    ("gt", b'>'),
    ("quot", b'"'),
    ("apos", b'\''),
    ("tab", b'\t'),
    ("newline", b'\n'),
    ("excl", b'!'),
    ("num", b'#'),
    ("dollar", b'$'),
    ("percnt", b'%'),
    ("lpar", b'('),
    ("rpar", b')'),
    ("ast", b'*'),
    ("plus", b'+'),
    ("comma", b','),
    ("period", b'.'),
    ("sol", b'/'),
    ("colon", b':'),
    ("semi", b';'),
    ("equals", b'='),
    ("quest", b'?'),
    ("commat", b'@'),
    ("lsqb", b'['),
    ("lbrack", b'['),
    ("bsol", b'\\'),
    ("rsqb", b']'),
    ("rbrack", b']'),
    ("hat", b'^'),
    ("lowbar", b'_'),
    ("grave", b'`'),
    ("lcub", b'{'),
    ("rcub", b'}'),
];
/// Two more, that have a second name which encoders do write.
const MORE: [(&str, u8); 4] = [
    ("lbrace", b'{'),
    ("rbrace", b'}'),
    ("vert", b'|'),
    ("verbar", b'|'),
];

/// Does another spelling than the character itself begin with this byte?
pub const fn is_escape(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'&' | b'=' | 0)
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
        let named = |name: &str| {
            let there = rest.get(..name.len());
            there.is_some_and(|there| there.eq_ignore_ascii_case(name.as_bytes()))
        };
        let mut is_amp = false;
        for (name, byte) in NAMES.iter().chain(&MORE) {
            if !named(name) {
                continue;
            }
            let is_ended = rest.get(name.len()) == Some(&b';');
            // The first five are read without their end, too.
            if is_ended || matches!(byte, b'&' | b'<' | b'>' | b'"') {
                each(&[*byte], at + name.len() + usize::from(is_ended));
            }
            is_amp |= is_ended && *byte == b'&';
        }
        if !is_amp {
            return;
        }
        at += 4;
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

/// How a character beyond ASCII, or one byte of it, may stand there in another encoding than the secret's own.
fn wide(text: &[u8], secret: &[u8], each: &mut impl FnMut(usize, usize)) {
    let Some(&byte) = secret.first() else { return };
    // A byte that was read as Latin-1 and is written as UTF-8.
    if text.starts_with(char::from(byte).encode_utf8(&mut [0; 4]).as_bytes()) {
        each(1, 2);
    }
    let whole = (2..=4).find_map(|len| std::str::from_utf8(secret.get(..len)?).ok());
    let Some(character) = whole.and_then(|whole| whole.chars().next()) else {
        return;
    };
    let len = character.len_utf8();
    let value = u32::from(character);
    if text.first().map(|there| u32::from(*there)) == Some(value) {
        each(len, 1);
    }
    let mut two = [0; 2];
    let two = character.encode_utf16(&mut two);
    let mut bytes = [0; 4];
    for ends in [u16::to_le_bytes, u16::to_be_bytes] {
        for (unit, place) in two.iter().zip(bytes.chunks_exact_mut(2)) {
            place.copy_from_slice(&ends(*unit));
        }
        if text.starts_with(&bytes[..two.len() * 2]) {
            each(len, two.len() * 2);
        }
    }
    if text.starts_with(&value.to_le_bytes()) || text.starts_with(&value.to_be_bytes()) {
        each(len, 4);
    }
}

/// Where a text was followed to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// How many of its bytes say the secret: the most, where there are several ways.
    pub end: Option<usize>,
    /// Whether more of the text could have said more.
    pub is_cut: bool,
}

/// Follows every reading of a text for as long as it agrees with the secret.
#[derive(Debug, Default)]
pub struct Walk {
    /// Places in the text and in the secret that one reading has come to.
    open: Vec<(usize, usize)>,
    /// How many places were looked at, ever.
    pub steps: u64,
}

impl Walk {
    /// Does the secret begin where the text does? Letters count as equal in either case.
    pub fn follow(&mut self, text: &[u8], secret: &[u8]) -> Followed {
        let mut followed = Followed::default();
        let open = &mut self.open;
        open.clear();
        open.push((0, 0));
        // The one that is behind goes on first, so that no place is looked at twice.
        while let Some(first) = (0..open.len()).min_by_key(|at| open[*at]) {
            let (at, known) = open.swap_remove(first);
            self.steps += 1;
            let left = &secret[known..];
            if left.is_empty() {
                followed.end = followed.end.max(Some(at));
                continue;
            }
            let text = &text[at..];
            let is_short = text.first().is_none_or(|first| is_escape(*first));
            followed.is_cut |= text.len() < if is_short { LONGEST } else { WIDEST };
            let mut go = |place: (usize, usize)| {
                if !open.contains(&place) {
                    open.push(place);
                }
            };
            units(text, &mut |unit, taken| {
                let there = left.get(..unit.len());
                let is_same = there.is_some_and(|there| there.eq_ignore_ascii_case(unit));
                if is_same && (known > 0 || !unit.is_empty()) {
                    go((at + taken, known + unit.len()));
                }
            });
            if left[0] >= 0x80 {
                wide(text, left, &mut |said, taken| {
                    go((at + taken, known + said));
                });
            }
        }
        followed
    }
}
