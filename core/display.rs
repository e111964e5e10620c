//! What a person sees of text that somebody else wrote: one sanitiser for every field.
//!
//! Hidden, steering and look-alike-blank characters become visible escapes; nothing is cut off (a cut tail hides what
//! runs), and different texts stay different, since `\` is escaped too.

use std::borrow::Cow;
use std::fmt::Write as _;

mod terminal;

pub use terminal::Terminal;

/// Marks in a row on one letter that real scripts use; more is a way to paint over neighbours.
const MARKS: usize = 3;

/// The text with everything that hides, reorders or forges made visible as `\u{hex}`, `\n`, `\t`, `\r` or `\0`.
///
/// Escaped: controls, formats (bidirectional and zero-width marks, tags), private and unassigned code points, line and
/// paragraph separators, every space but U+0020, default-ignorable letters and selectors, blank-looking letters, a
/// fourth combining mark in a row, a leading or trailing space and each further space of a run.
pub fn visible(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| matches!(b, b'!'..=b'~') && b != b'\\';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut marks = 0;
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        marks = if is_mark(c) { marks + 1 } else { 0 };
        match c {
            '\\' => out.push_str("\\\\"),
            ' ' if before == ' ' || rest.peek().is_none() => out.push_str("\\u{20}"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0' => out.push_str("\\0"),
            c if hides(c) || marks > MARKS || (marks > 0 && before == ' ') => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
        before = c;
    }
    Cow::Owned(out)
}

/// Does the text hold characters that a reader would not see, or not see in their place?
pub fn has_hidden(text: &str) -> bool {
    text.chars().any(|c| c != '\\' && hides(c))
}

/// Does it hold letters beyond ASCII, which may look like others?
pub fn has_foreign(text: &str) -> bool {
    text.chars().any(|c| !c.is_ascii() && !hides(c))
}

/// One argument as a person reads it: bare where that is unambiguous, else in double quotes.
pub fn quoted(text: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !text.is_empty() && text.bytes().all(bare) {
        return text.to_owned();
    }
    format!("\"{}\"", visible(text).replace('"', "\\\""))
}

/// The arguments on one line, each [`quoted`], so that their borders are seen.
pub fn command_line<S: AsRef<str>>(argv: &[S]) -> String {
    let parts: Vec<String> = argv.iter().map(|a| quoted(a.as_ref())).collect();
    parts.join(" ")
}

/// As [`command_line`], with what looks like a secret masked: for logs and records, never for the one who decides.
pub fn redacted_line<S: AsRef<str>>(argv: &[S]) -> String {
    let mut after_secret_flag = false;
    let parts: Vec<String> = argv
        .iter()
        .map(|arg| {
            let arg = arg.as_ref();
            let masked = if after_secret_flag {
                MASK.to_owned()
            } else {
                mask(arg)
            };
            after_secret_flag = is_secret_flag(arg);
            quoted(&masked)
        })
        .collect();
    parts.join(" ")
}

/// What stands for a secret.
pub const MASK: &str = "***";

const SECRET_WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "auth",
    "credential",
    "private-key",
    "private_key",
    "access-key",
    "access_key",
    "bearer",
    "cookie",
];

/// How well-known kinds of keys begin.
const SECRET_STARTS: &[&str] = &[
    "sk-",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "AKIA",
    "ASIA",
    "AIza",
    "eyJ",
    "hf_",
    "npm_",
    "pypi-",
];

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

fn is_secret_flag(arg: &str) -> bool {
    arg == "-u"
        || arg == "--user"
        || (arg.starts_with('-') && !arg.contains('=') && names_secret(arg))
}

/// Masks what looks like a secret inside one text, word by word (a shell's script is one argument).
fn mask(text: &str) -> String {
    if text.contains("PRIVATE KEY-----") {
        return MASK.to_owned();
    }
    let border = |c: char| c.is_whitespace() || "'\"`;&|()<>".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut hide_next = false;
    for piece in text.split_inclusive(border) {
        let word = piece.trim_end_matches(border);
        let tail = &piece[word.len()..];
        if word.is_empty() {
            out.push_str(tail);
            continue;
        }
        if hide_next {
            out.push_str(MASK);
            // `Authorization: Bearer x`: the scheme is no secret's end.
            hide_next = ["bearer", "basic", "token"].contains(&word.to_ascii_lowercase().as_str());
        } else {
            out.push_str(&mask_word(word));
            hide_next = is_secret_flag(word)
                || word.strip_suffix(':').is_some_and(names_secret)
                || word.eq_ignore_ascii_case("bearer")
                || word.strip_suffix('=').is_some_and(names_secret);
        }
        out.push_str(tail);
    }
    out
}

fn mask_word(word: &str) -> String {
    if let Some((name, value)) = word.split_once('=')
        && !value.is_empty()
        && (names_secret(name) || looks_secret(value))
    {
        return format!("{name}={MASK}");
    }
    if let Some((scheme, rest)) = word.split_once("://") {
        let end = rest.find('/').unwrap_or(rest.len());
        if let Some(at) = rest[..end].rfind('@') {
            return format!("{scheme}://{MASK}{}", &rest[at..]);
        }
    }
    if let Some((name, value)) = word.split_once(':')
        && !value.is_empty()
        && names_secret(name)
    {
        return format!("{name}:{MASK}");
    }
    if looks_secret(word) {
        return MASK.to_owned();
    }
    word.to_owned()
}

fn looks_secret(word: &str) -> bool {
    word.len() >= 12 && SECRET_STARTS.iter().any(|start| word.starts_with(start))
}

/// A combining mark: escaped when it stands alone, not after a letter (the standard library's own distinction).
fn is_mark(c: char) -> bool {
    !c.is_ascii() && is_escape(c.escape_debug()) && !unprintable(c)
}

/// Controls, formats, private, unassigned, separators: what the standard library's Unicode tables hold for unprintable.
fn unprintable(c: char) -> bool {
    let mut buffer = [0; 8];
    let head = 'a'.len_utf8();
    'a'.encode_utf8(&mut buffer);
    let len = c.encode_utf8(&mut buffer[head..]).len();
    std::str::from_utf8(&buffer[..head + len])
        .is_ok_and(|pair| is_escape(pair.escape_debug().skip(1)))
}

fn is_escape(mut shown: impl Iterator<Item = char>) -> bool {
    shown.next() == Some('\\') && shown.next() == Some('u')
}

const fn ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Does it move a cursor, or turn the reading direction?
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Is it invisible, steering, or like a plain space without being one? The one list, also for what is cleaned elsewhere.
pub fn hides(c: char) -> bool {
    match c {
        ' '..='~' => false,
        c => ignorable(c) || c.is_control() || (c.is_whitespace() && c != ' ') || unprintable(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_of_the_spoofing_corpus_stays_hidden() {
        for bad in [
            "\u{202e}gpj.exe",
            "a\u{200b}b",
            "a\u{feff}b",
            "\u{1b}[2Kecho ok",
            "ok\nrm -rf /",
            "ok\r      ",
            "x\u{2066}y\u{2069}",
            "a\u{3164}b",
            "a\u{2800}b",
            "a\u{e0041}b",
            "a\u{fe0f}b",
            "a\u{a0}b",
            "a\u{2028}b",
            "a\u{e000}b",
            "a\u{fdd0}b",
            "a\u{ffff}b",
            "a\u{9b}2Jb",
            "a\u{7f}b",
            "a\u{ad}b",
            "a\0b",
            "a\u{10ffff}b",
            "a\u{378}b",
        ] {
            assert!(has_hidden(bad), "{bad:?}");
            let shown = visible(bad);
            assert!(!has_hidden(&shown), "{shown:?}");
            assert!(shown.contains('\\'), "{shown:?}");
        }
        assert_eq!(visible("a  b "), "a \\u{20}b\\u{20}");
        assert_eq!(visible(" a"), "\\u{20}a");
        assert_eq!(visible("\\u{20}"), "\\\\u{20}");
        assert_eq!(
            visible("e\u{301}\u{301}\u{301}\u{301}"),
            "e\u{301}\u{301}\u{301}\\u{301}"
        );
        assert_eq!(visible("\u{301}"), "\\u{301}");
        // Readable text of people stays readable.
        for good in ["grüße", "हिन्दी में", "日本語", "ls -la /tmp"] {
            assert_eq!(visible(good), good);
            assert!(!has_hidden(good));
        }
    }

    #[test]
    fn a_long_argument_is_shown_to_its_end() {
        let long = format!("{}\u{202e}; rm -rf /", "a".repeat(64 << 10));
        let shown = quoted(&long);
        assert!(shown.ends_with("\\u{202e}; rm -rf /\""));
        assert!(shown.len() > 64 << 10);
    }

    #[test]
    fn borders_of_arguments_are_seen() {
        assert_eq!(
            command_line(&["a", "b c", "", "d\"e"]),
            r#"a "b c" "" "d\"e""#
        );
        assert_ne!(command_line(&["a b"]), command_line(&["a", "b"]));
    }

    #[test]
    fn what_looks_like_a_secret_is_masked_in_records() {
        for (argv, secret) in [
            (
                &["curl", "-u", "me:hunter2hunter2", "x"] as &[&str],
                "hunter2",
            ),
            (&["x", "--password=hunter2"], "hunter2"),
            (&["x", "--token", "hunter2"], "hunter2"),
            (&["env", "API_KEY=hunter2", "x"], "hunter2"),
            (&["git", "clone", "https://me:hunter2@host/x"], "hunter2"),
            (&["curl", "-H", "Authorization: Bearer hunter2"], "hunter2"),
            (&["sh", "-c", "PASSWORD='hunter2' x"], "hunter2"),
            (&["sh", "-c", "curl --token hunter2; ls"], "hunter2"),
            (&["x", "ghp_hunter2hunter2"], "hunter2"),
            (&["x", "-----BEGIN PRIVATE KEY-----\nhunter2"], "hunter2"),
        ] {
            let line = redacted_line(argv);
            assert!(!line.contains(secret), "{line}");
        }
        assert_eq!(redacted_line(&["ls", "-la", "/etc"]), "ls -la /etc");
    }

    proptest! {
        #[test]
        fn what_is_shown_hides_nothing_and_keeps_texts_apart(a in ".*", b in ".*") {
            prop_assert!(!has_hidden(&visible(&a)));
            prop_assert!(!quoted(&a).contains('\n'));
            if a != b {
                prop_assert_ne!(visible(&a), visible(&b));
                prop_assert_ne!(quoted(&a), quoted(&b));
            }
        }
    }
}
