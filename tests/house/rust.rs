//! Just enough reading of Rust for the rules: what is code and not comment, string or test; which paths it names.

/// The text with comments blanked, and strings too unless `keep_strings`. Newlines stay, so that lines keep their numbers.
fn blank(text: &str, keep_strings: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let wipe = |out: &mut Vec<u8>, from: usize, to: usize| {
        for byte in &mut out[from..to.min(bytes.len())] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let after_word = at > 0 && is_word(bytes[at - 1]);
        let end = if rest.starts_with(b"//") {
            at + rest
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + block_comment(rest)
        } else if let Some(length) = string(rest, after_word) {
            if keep_strings {
                at += length;
                continue;
            }
            at + length
        } else {
            at += 1;
            continue;
        };
        wipe(&mut out, at, end);
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of the string or character literal that begins here.
fn string(rest: &[u8], after_word: bool) -> Option<usize> {
    let prefix = rest
        .iter()
        .take(2)
        .take_while(|byte| matches!(byte, b'r' | b'b' | b'c'))
        .count();
    if prefix > 0 && after_word {
        return None;
    }
    let raw = rest[..prefix].contains(&b'r');
    let body = &rest[prefix..];
    let hashes = body.iter().take_while(|byte| **byte == b'#').count();
    if raw && body.get(hashes) == Some(&b'"') {
        let mut close = vec![b'"'];
        close.resize(hashes + 1, b'#');
        let inner = &body[hashes + 1..];
        let end = inner
            .windows(close.len())
            .position(|part| part == close)
            .unwrap_or(inner.len());
        return Some(prefix + hashes + 1 + end + close.len());
    }
    match body.first()? {
        b'"' if !raw => Some(prefix + quoted(body, b'"')),
        // A lifetime has no closing quote: 'a, 'static.
        b'\'' if !raw => {
            let inner = body.get(1..)?;
            let width = match inner.first()? {
                b'\\' => return Some(prefix + quoted(body, b'\'')),
                first if *first < 0x80 => 1,
                first if *first < 0xE0 => 2,
                first if *first < 0xF0 => 3,
                _ => 4,
            };
            (inner.get(width) == Some(&b'\'')).then_some(prefix + width + 2)
        }
        _ => None,
    }
}

fn quoted(body: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < body.len() && body[at] != quote {
        at += if body[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Code only: no comments, no strings.
pub fn code(text: &str) -> String {
    blank(text, false)
}

/// Code and strings, no comments.
pub fn code_and_strings(text: &str) -> String {
    blank(text, true)
}

/// Code only, without the items under `#[cfg(test)]`.
pub fn shipped(text: &str) -> String {
    let mut code = code(text);
    while let Some(at) = code.find("#[cfg(test)]") {
        let open = code[at..]
            .find(['{', ';'])
            .map_or(code.len(), |found| at + found);
        let end = if code[open..].starts_with('{') {
            open + braces(&code[open..])
        } else {
            open + 1
        };
        let blanked: String = code[at..end.min(code.len())]
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        code.replace_range(at..end.min(code.len()), &blanked);
    }
    code
}

fn braces(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The words of some code, with the offset of each.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = code.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_word(bytes[at]) {
            at += 1;
        }
        let from = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        (from < at).then(|| (from, &code[from..at]))
    })
}

/// Whether the code has that very word.
pub fn has_word(code: &str, word: &str) -> bool {
    words(code).any(|(_, found)| found == word)
}

/// The line, from 1, of an offset.
pub fn line(code: &str, offset: usize) -> usize {
    code[..offset].matches('\n').count() + 1
}

/// Every path in the code that begins with one of `roots` and a `::`, groups spelled out, as (offset, segments).
/// `use crate::{audit::{AuditHandle, messages as m}, vault::*}` names three.
pub fn paths<'a>(code: &'a str, roots: &[&str]) -> Vec<(usize, Vec<&'a str>)> {
    let mut found = vec![];
    for (at, word) in words(code) {
        let before = code[..at].trim_end();
        // `a::crate` is no root, and neither is `$crate`'s tail.
        if roots.contains(&word)
            && !before.ends_with("::")
            && code[at + word.len()..].trim_start().starts_with("::")
        {
            let mut rest = code[at + word.len()..].trim_start();
            tree(&mut rest, &[word], &mut |path| found.push((at, path)));
        }
    }
    found
}

/// Reads `::a::{b, c::d}` and gives each leaf with its prefix.
fn tree<'a>(rest: &mut &'a str, prefix: &[&'a str], leaf: &mut dyn FnMut(Vec<&'a str>)) {
    let mut path = prefix.to_vec();
    while let Some(after) = rest.trim_start().strip_prefix("::") {
        let after = after.trim_start();
        if let Some(group) = after.strip_prefix('{') {
            *rest = group;
            loop {
                let trimmed = rest.trim_start();
                if let Some(closed) = trimmed.strip_prefix('}') {
                    *rest = closed;
                    return;
                }
                let Some((_, word)) = words(trimmed).next().filter(|(at, _)| *at == 0) else {
                    // A comma, a star, or something that is no path: step over one character.
                    let mut characters = trimmed.chars();
                    let Some(first) = characters.next() else {
                        *rest = "";
                        return;
                    };
                    if first == '*' {
                        leaf([&path[..], &["*"]].concat());
                    }
                    *rest = characters.as_str();
                    continue;
                };
                *rest = &trimmed[word.len()..];
                tree(rest, &[&path[..], &[word]].concat(), leaf);
                if let Some(renamed) = rest.trim_start().strip_prefix("as ") {
                    let name = words(renamed)
                        .next()
                        .map_or(0, |(at, word)| at + word.len());
                    *rest = &renamed[name..];
                }
            }
        }
        if let Some(star) = after.strip_prefix('*') {
            path.push("*");
            *rest = star;
            break;
        }
        let Some((_, word)) = words(after).next().filter(|(at, _)| *at == 0) else {
            break; // a turbofish
        };
        path.push(word);
        *rest = &after[word.len()..];
    }
    leaf(path);
}

#[test]
fn comments_strings_and_lifetimes_are_told_from_code() {
    let text = "a // Mutex\n/* static /* b */ c */ \"Mutex \\\" d\" r#\"e \" f\"# 'g' '\\'' b'h' &'static i r j\"k\"";
    let found: Vec<_> = words(&code(text))
        .map(|(_, word)| word.to_owned())
        .collect();
    assert_eq!(found, ["a", "static", "i", "r", "j"]);
    assert!(code_and_strings(text).contains("e \" f"));
    assert_eq!(line(&code(text), code(text).find('i').unwrap()), 2);
}

#[test]
fn what_is_under_cfg_test_is_not_shipped() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { \"}\"; } }\n#[cfg(test)]\nmod more;\nfn c() {}";
    let code = shipped(text);
    assert!(has_word(&code, "a") && has_word(&code, "c"));
    assert!(!has_word(&code, "b") && !has_word(&code, "more"));
}

#[test]
fn a_path_is_read_through_its_groups() {
    let code = "use crate::{audit::{AuditHandle, messages as m, actor::Audit}, vault::*, self};\nfn f() { crate::auth::x::<u8>(1); super::y }";
    let found: Vec<String> = paths(code, &["crate", "super"])
        .into_iter()
        .map(|(_, path)| path.join("::"))
        .collect();
    assert_eq!(
        found,
        [
            "crate::audit::AuditHandle",
            "crate::audit::messages",
            "crate::audit::actor::Audit",
            "crate::vault::*",
            "crate::self",
            "crate::auth::x",
            "super::y"
        ]
    );
}
