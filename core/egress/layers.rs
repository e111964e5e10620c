//! What a server wraps bytes in: base64 (RFC 4648, both alphabets, in lines or not), hexadecimal and lists of numbers; and once more the
//! escapes of queries, HTML and JSON, for what is escaped in two ways, one inside of the other.
//!
//! Bytes are read from any place of a text, as many as are asked for. In base64 a byte begins in one of three places of a character.

use super::spelled::{hex, units};

/// One way of wrapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// So many bits of the first character are another byte's.
    Base64(u8),
    /// With or without something between the bytes.
    Hex,
    /// As JSON writes a buffer, and as Go prints bytes.
    Numbers,
    /// In a query.
    Percent,
    /// In HTML.
    Entities,
    /// In a string of JSON.
    Json,
}

/// Each once.
pub const ALL: [Layer; 8] = [
    Layer::Base64(0),
    Layer::Base64(2),
    Layer::Base64(4),
    Layer::Hex,
    Layer::Numbers,
    Layer::Percent,
    Layer::Entities,
    Layer::Json,
];

/// No character of base64.
const NONE: u8 = 255;
/// What each character of base64 stands for, in either alphabet. A `+` in a query comes out of many readers as a space.
static SEXTETS: [u8; 256] = {
    let mut table = [NONE; 256];
    let all = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut at: u8 = 0;
    while at < 64 {
        table[all[at as usize] as usize] = at;
        at += 1;
    }
    table[b'-' as usize] = 62;
    table[b' ' as usize] = 62;
    table[b'_' as usize] = 63;
    table
};
/// Most bytes between two bytes: a line's end with the next line's indent, in any spelling.
const BETWEEN: usize = 24;

impl Layer {
    /// What its escapes begin with; 0: it has none.
    const fn mark(self) -> u8 {
        match self {
            Self::Percent => b'%',
            Self::Entities => b'&',
            Self::Json => b'\\',
            Self::Base64(_) | Self::Hex | Self::Numbers => 0,
        }
    }

    /// May a text say something else in it than it says as it stands?
    pub fn is_in(self, text: &[u8]) -> bool {
        self.mark() == 0 || text.contains(&self.mark())
    }

    /// One character of a text that is not empty, of those whose escapes begin with a mark: its bytes, how many, and how many it takes.
    pub fn unit(self, text: &[u8]) -> ([u8; 4], usize, usize) {
        // Of one escape of another the outer one alone: the inner one is looked for behind.
        let (mut unit, mut len, mut taken) = ([text[0], 0, 0, 0], 1, 1);
        if text[0] == self.mark() {
            units(text, &mut |its, more| {
                let is_less = taken == 1 || more < taken;
                if more > 1 && (is_less || more == taken && its.len() > len) {
                    unit[..its.len()].copy_from_slice(its);
                    (len, taken) = (its.len(), more);
                }
            });
        }
        (unit, len, taken)
    }

    /// Reads bytes as long as there are some, and adds to `ends` where each one ends.
    pub fn read(self, text: &[u8], bytes: &mut Vec<u8>, ends: &mut Vec<usize>) {
        bytes.clear();
        ends.clear();
        let mut push = |(byte, end)| {
            bytes.push(byte);
            ends.push(end);
            end
        };
        let mut at = 0;
        match self {
            Self::Base64(others) => {
                let Some((value, end)) = sextet(text, 0, true) else {
                    return;
                };
                let (mut held, mut have) = (u32::from(value), 6 - others);
                at = end;
                loop {
                    while have < 8 {
                        let Some((value, end)) = sextet(text, at, false) else {
                            return;
                        };
                        held = held << 6 | u32::from(value);
                        have += 6;
                        at = end;
                    }
                    have -= 8;
                    // What does not fit are bits of bytes before.
                    push(((held >> have & 0xFF) as u8, at));
                }
            }
            Self::Hex => {
                while let Some(read) = pair(text, at, at == 0) {
                    at = push(read);
                }
            }
            Self::Percent | Self::Entities | Self::Json => {
                while at < text.len() {
                    let (unit, len, taken) = self.unit(&text[at..]);
                    for byte in &unit[..len] {
                        push((*byte, at + taken));
                    }
                    at += taken;
                }
            }
            Self::Numbers => {
                while let Some(read) = number(text, at, at == 0) {
                    at = push(read);
                }
            }
        }
    }
}

/// The next character of base64, and where it ends.
pub fn sextet(text: &[u8], from: usize, is_first: bool) -> Option<(u8, usize)> {
    let value = SEXTETS[usize::from(*text.get(from)?)];
    if value != NONE {
        return Some((value, from + 1));
    }
    let (mut at, mut is_broken) = (from, false);
    while at - from <= BETWEEN {
        let byte = *text.get(at)?;
        let value = SEXTETS[usize::from(byte)];
        if matches!(byte, b'\r' | b'\n') || is_broken && matches!(byte, b' ' | b'\t') {
            is_broken = true;
            at += 1;
        } else if value != NONE {
            return Some((value, at + 1));
        } else {
            // In its longest spelling: these characters have no reason for two. A soft line break is one, too.
            let mut read: Option<(u8, usize)> = None;
            units(&text[at..], &mut |unit, taken| {
                let byte = match *unit {
                    [] => b'\n',
                    [byte] => byte,
                    _ => return,
                };
                let is_its = matches!(byte, b'\r' | b'\n') || SEXTETS[usize::from(byte)] != NONE;
                if is_its && taken > read.map_or(1, |(_, longest)| longest) {
                    read = Some((byte, taken));
                }
            });
            let (byte, taken) = read?;
            at += taken;
            if !matches!(byte, b'\r' | b'\n') {
                return Some((SEXTETS[usize::from(byte)], at));
            }
            is_broken = true;
        }
        if is_first {
            // What comes before it is not its.
            return None;
        }
    }
    None
}

/// Two digits, behind what may stand between bytes.
pub fn pair(text: &[u8], from: usize, is_first: bool) -> Option<(u8, usize)> {
    let mut at = from;
    if !is_first {
        let is_between =
            |byte: u8| matches!(byte, b' ' | b':' | b'-' | b',' | b'\r' | b'\n' | b'\t');
        at += between(text, at, is_between);
    }
    if text.get(at) == Some(&b'0') && matches!(text.get(at + 1), Some(b'x' | b'X')) {
        at += 2;
    }
    let byte = hex(text, at, 2)?;
    Some((u8::try_from(byte).ok()?, at + 2))
}

/// A number below 256, behind what stands between numbers: also quotes, the marks of a list of YAML's, and the next key of an object, for as
/// such JavaScript writes an array of bytes.
pub fn number(text: &[u8], from: usize, is_first: bool) -> Option<(u8, usize)> {
    let mut at = from;
    if !is_first {
        at += between(text, at, |byte| {
            matches!(
                byte,
                b' ' | b',' | b';' | b'\r' | b'\n' | b'\t' | b'"' | b'\'' | b'-'
            )
        });
        if at == from {
            return None;
        }
        let key = digits(text, at, 6);
        let behind = at + key + between(text, at + key, |byte| matches!(byte, b'"' | b'\''));
        if key > 0 && text.get(behind) == Some(&b':') {
            let value = behind + 1;
            let value = value + between(text, value, |byte| matches!(byte, b' ' | b'"' | b'\''));
            // A key only where a number follows: else it is the last one itself.
            if digits(text, value, 1) > 0 {
                at = value;
            }
        }
    }
    let count = digits(text, at, 4);
    let digits = text
        .get(at..at + count)
        .filter(|digits| (1..=3).contains(&digits.len()))?;
    let value = digits
        .iter()
        .fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some((u8::try_from(value).ok()?, at + count))
}

/// How many of such bytes stand there.
fn between(text: &[u8], at: usize, is_its: impl Fn(u8) -> bool) -> usize {
    let behind = text.get(at..).unwrap_or_default();
    let run = behind.iter().take(BETWEEN);
    run.take_while(|byte| is_its(**byte)).count()
}

fn digits(text: &[u8], at: usize, most: usize) -> usize {
    let behind = text.get(at..).unwrap_or_default();
    let run = behind.iter().take(most);
    run.take_while(|byte| byte.is_ascii_digit()).count()
}
