//! What a terminal may be given: texts from elsewhere made visible, times, tables.

use std::fmt::Write as _;

use portcullis_actors::clock::Clock;
use portcullis_core::display::hides;
use serde_json::Value;

/// Unix milliseconds, for times shown to a person: nothing is decided by them.
pub fn now_ms() -> u64 {
    Clock::system().now().0
}

/// One line that cannot move the cursor, change colours, turn the reading direction or hide anything.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if hides(c) {
            for escaped in c.escape_default() {
                out.push(escaped);
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A JSON document of one line, for machines: what could steer or hide on a terminal stands as its escape, which says the same.
pub fn document(value: &Value) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if hides(c) {
            // Only within strings: serde_json puts nothing of the kind between them.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// At most so many characters, and a mark where there were more.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// What may stand in a command that a person is to type: an id, and nothing that a shell reads as more than a word. What
/// comes from elsewhere and is none is shown as `ID`.
pub fn typed(id: &str) -> &str {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    let is_id = (1..=128).contains(&id.len()) && id.bytes().all(is_plain) && !id.starts_with('-');
    if is_id { id } else { "ID" }
}

/// `2026-11-24T00:48:46Z`.
pub fn utc(ms: u64) -> String {
    let secs = ms / 1000;
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Howard Hinnant, chrono-compatible low-level date algorithms, civil_from_days; days are never negative here.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    )
}

/// `3 min`, `2 h`: how long, for a person.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..172_800 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86_400),
    }
}

/// `4:32`: time left until then; `3 h` when it is long.
pub fn left(until_ms: u64) -> String {
    let ms = until_ms.saturating_sub(now_ms());
    match ms / 1000 {
        s @ 0..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => span(ms),
    }
}

/// Hex in groups of four, so that a person can compare it.
pub fn fingerprint(hex: &str) -> String {
    let mut out = String::new();
    for (i, c) in clean(hex).chars().enumerate() {
        if i > 0 && i % 4 == 0 {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// Columns under headings; the texts are cleaned here.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    cleaned_table(heads, &rows)
}

/// Longest text in a column: a listing is looked over, and what one row holds must not push the others away.
const CELL_MAX: usize = 200;

/// Columns under headings, of texts that were cleaned before. What is long is cut, and the mark says so.
pub fn cleaned_table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let short = |row: &Vec<String>| row.iter().map(|cell| cut(cell, CELL_MAX)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(short).collect();
    let widths: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(i, head)| {
            rows.iter()
                .filter_map(|row| row.get(i))
                .map(|cell| cell.chars().count())
                .chain([head.len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    let heads = heads.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&heads).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bug: a column wider than a format's width ended the listing with a panic, for as long as the question waited.
    #[test]
    fn a_long_text_in_a_table_is_cut_and_ends_nothing() {
        let rows = [
            vec!["one".to_owned(), "\u{1b}".repeat(20_000)],
            vec!["two".to_owned(), "x".to_owned()],
        ];
        let out = table(&["ID", "COMMAND"], &rows);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with('…') && lines[1].chars().count() < 220);
        assert!(lines[2].starts_with("two"));
    }

    #[test]
    fn nothing_from_elsewhere_steers_the_terminal() {
        for bad in [
            "\u{1b}]52;c;AAAA\u{7}",
            "a\rb",
            "a\u{202e}b",
            "a\u{200b}b",
            "a\u{9b}2J",
            "a\u{a0}b",
            "a\u{2028}b",
            "a\u{e0041}b",
            "\u{feff}",
            "\u{3164}",
            "a\nb",
            "a\tb",
            "\u{7f}",
            "\u{fe0f}",
        ] {
            let shown = clean(bad);
            assert!(
                shown.bytes().all(|b| (0x20..0x7f).contains(&b)),
                "{bad:?} -> {shown:?}"
            );
        }
        assert_eq!(clean("नमस्ते, ünïcode ✓"), "नमस्ते, ünïcode ✓");
    }

    #[test]
    fn a_document_of_the_machines_steers_no_terminal_and_says_the_same() {
        let value = serde_json::json!({
            "a\u{9b}2J": ["a\u{202e}b", "\u{1b}]52;c;AAAA\u{7}", "\u{e0041}", "नमस्ते ✓", 1.5, null]
        });
        let text = document(&value);
        assert!(!text.chars().any(hides), "{text}");
        assert!(
            text.contains("नमस्ते ✓") && text.contains("\\udb40\\udc41"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_481_326_000), "2026-11-24T00:48:46Z");
    }

    #[test]
    fn a_table_lines_up() {
        let out = table(
            &["ID", "NAME"],
            &[
                vec!["1".into(), "x\u{1b}".into()],
                vec!["234".into(), "y".into()],
            ],
        );
        assert_eq!(out, "ID   NAME\n1    x\\u{1b}\n234  y\n");
    }
}
