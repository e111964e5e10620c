//! What a command writes, for a terminal: text, line ends and colours; nothing that steers the terminal.

use super::steers;

/// Longest colour sequence that is taken for one.
const LONGEST: usize = 64;
const ESCAPE: u8 = 0x1b;
const RESET: &[u8] = b"\x1b[0m";

/// Takes the bytes of one stream, piece by piece, and gives back what a terminal may get.
///
/// Passed: printable text, `\n`, `\r`, `\t`, and the colour sequences `ESC [ digits ; digits m` that do not conceal. Every
/// other control, also as C1, and every mark that turns the reading direction becomes a visible `\u{hex}`; bytes that are
/// no UTF-8 become U+FFFD.
#[derive(Debug, Default)]
pub struct Terminal {
    /// The beginning of what may become a character or a colour.
    held: Vec<u8>,
    coloured: bool,
}

impl Terminal {
    /// The next piece.
    pub fn push(&mut self, data: &[u8]) -> Vec<u8> {
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(data);
        let mut out = Vec::with_capacity(input.len());
        let mut rest = &input[..];
        while let Some((&first, after)) = rest.split_first() {
            if first != ESCAPE {
                let end = rest.iter().position(|b| *b == ESCAPE);
                let (text, next) = rest.split_at(end.unwrap_or(rest.len()));
                let left = write_text(text, &mut out);
                rest = next;
                if !left.is_empty() {
                    if rest.is_empty() {
                        self.held = left.to_vec();
                    } else {
                        write_char(char::REPLACEMENT_CHARACTER, &mut out);
                    }
                }
                continue;
            }
            match colour(after) {
                Colour::Whole(len) => {
                    self.coloured = true;
                    out.extend_from_slice(&rest[..=len]);
                    rest = &after[len..];
                }
                Colour::Open => {
                    self.held = rest.to_vec();
                    return out;
                }
                Colour::No => {
                    write_char('\u{1b}', &mut out);
                    rest = after;
                }
            }
        }
        out
    }

    /// The end of the stream: what was held back, and colours off.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for byte in std::mem::take(&mut self.held) {
            let c = if byte.is_ascii() {
                char::from(byte)
            } else {
                char::REPLACEMENT_CHARACTER
            };
            write_char(c, &mut out);
        }
        if std::mem::take(&mut self.coloured) {
            out.extend_from_slice(RESET);
        }
        out
    }
}

/// Writes what is whole; gives back an unfinished character at the end.
fn write_text<'a>(mut text: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    loop {
        match std::str::from_utf8(text) {
            Ok(good) => {
                good.chars().for_each(|c| write_char(c, out));
                return &[];
            }
            Err(error) => {
                let (good, bad) = text.split_at(error.valid_up_to());
                // Checked by the split; an empty text would lose nothing but it.
                let good = std::str::from_utf8(good).unwrap_or_default();
                good.chars().for_each(|c| write_char(c, out));
                let Some(len) = error.error_len() else {
                    return bad;
                };
                write_char(char::REPLACEMENT_CHARACTER, out);
                text = &bad[len..];
            }
        }
    }
}

fn write_char(c: char, out: &mut Vec<u8>) {
    if steers(c) && !matches!(c, '\n' | '\r' | '\t') {
        out.extend_from_slice(format!("\\u{{{:x}}}", u32::from(c)).as_bytes());
    } else {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

enum Colour {
    /// So many bytes after the escape are one.
    Whole(usize),
    /// It may become one.
    Open,
    No,
}

/// Is this, after an escape, a colour?
fn colour(after: &[u8]) -> Colour {
    let Some((&first, params)) = after.split_first() else {
        return Colour::Open;
    };
    if first != b'[' {
        return Colour::No;
    }
    let len = params
        .iter()
        .take_while(|b| b.is_ascii_digit() || **b == b';')
        .count();
    if len > LONGEST {
        return Colour::No;
    }
    match params.get(len) {
        None => Colour::Open,
        Some(b'm') if !conceals(&params[..len]) => Colour::Whole(len + 2),
        Some(_) => Colour::No,
    }
}

/// Does it hide text? 8 does, where it is no part of a colour's own numbers.
fn conceals(params: &[u8]) -> bool {
    let mut numbers = params.split(|b| *b == b';').map(|digits| {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse::<u16>().ok()
        }
    });
    while let Some(number) = numbers.next() {
        match number {
            None | Some(8) => return true,
            Some(38 | 48 | 58) => {
                let skipped = match numbers.next().flatten() {
                    Some(5) => 1,
                    Some(2) => 3,
                    _ => return true,
                };
                if numbers.by_ref().take(skipped).count() < skipped {
                    return true;
                }
            }
            Some(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(data: &[u8]) -> String {
        let mut terminal = Terminal::default();
        let mut out = terminal.push(data);
        out.extend(terminal.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_but_text_line_ends_and_colours_passes() {
        for (data, out) in [
            (&b"a\tb\r\nc"[..], "a\tb\r\nc"),
            (b"\x1b[1;31mred\x1b[m", "\x1b[1;31mred\x1b[m\x1b[0m"),
            (b"\x1b[38;5;8mgrey", "\x1b[38;5;8mgrey\x1b[0m"),
            (b"\x1b[38;2;8;8;8mrgb", "\x1b[38;2;8;8;8mrgb\x1b[0m"),
            (b"\x1b[8mhidden", "\\u{1b}[8mhidden"),
            (b"\x1b[0;08mhidden", "\\u{1b}[0;08mhidden"),
            (b"\x1b[38;5;1;8mhidden", "\\u{1b}[38;5;1;8mhidden"),
            (b"\x1b[38;8mhidden", "\\u{1b}[38;8mhidden"),
            (b"\x1b[99999mx", "\\u{1b}[99999mx"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            (b"\x1b[?1049h", "\\u{1b}[?1049h"),
            (b"\x1b[>4m", "\\u{1b}[>4m"),
            (b"\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            (b"\x1b]52;c;AAAA\x1b\\", "\\u{1b}]52;c;AAAA\\u{1b}\\"),
            (b"\x1bP1$r\x1b\\", "\\u{1b}P1$r\\u{1b}\\"),
            (b"\x1b\x1b[31m", "\\u{1b}\x1b[31m\x1b[0m"),
            (b"\x08\x7f\x00\x0b", "\\u{8}\\u{7f}\\u{0}\\u{b}"),
            (
                "\u{9b}2J\u{202e}x\u{2069}".as_bytes(),
                "\\u{9b}2J\\u{202e}x\\u{2069}",
            ),
            (b"\x9b2J\xff", "\u{fffd}2J\u{fffd}"),
            (b"\x1b[3", "\\u{1b}[3"),
            (b"\x1b", "\\u{1b}"),
            (b"\xe2\x82", "\u{fffd}\u{fffd}"),
            ("grüße ✔\u{fe0f} 日本".as_bytes(), "grüße ✔\u{fe0f} 日本"),
        ] {
            assert_eq!(shown(data), out, "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_no_bytes_steer(
            data in proptest::collection::vec(prop_oneof![Just(0x1b), Just(b'['), Just(b'm'), Just(b'8'), Just(b';'), any::<u8>()], 0..80),
            cut in 0..80usize,
        ) {
            let cut = cut.min(data.len());
            let mut terminal = Terminal::default();
            let mut out = terminal.push(&data[..cut]);
            out.extend(terminal.push(&data[cut..]));
            out.extend(terminal.finish());
            let whole = shown(&data);
            prop_assert_eq!(&String::from_utf8(out).unwrap(), &whole);
            // What is left of escapes is colours.
            for part in whole.split('\u{1b}').skip(1) {
                let rest = part.strip_prefix('[').unwrap();
                let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
                prop_assert!(digits.starts_with('m'), "{whole:?}");
            }
            prop_assert!(whole.chars().all(|c| c == '\u{1b}' || !steers(c) || "\n\r\t".contains(c)), "{whole:?}");
        }
    }
}
