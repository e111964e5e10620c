//! Standard output for people and for machines, one way to each.

use std::io::Write as _;

use serde_json::Value;

use super::failure::Failure;

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// JSON was asked for.
    pub json: bool,
}

impl Out {
    /// The machine's document, or the person's text (made only when it is needed).
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn both(self, value: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json {
            line(&value.to_string())
        } else {
            write(&text())
        }
    }
}

/// One line on stdout.
///
/// # Errors
/// As [`Out::both`].
pub fn line(text: &str) -> Result<(), Failure> {
    write(&format!("{text}\n"))
}

/// As it is on stdout; what comes from elsewhere was cleaned before.
///
/// # Errors
/// As [`Out::both`].
pub fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::output(&e))
}

/// A message to the person, on stderr; nothing is lost for others when nobody reads it.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A text field of an answer.
pub fn field<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A number field of an answer.
pub fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key).and_then(Value::as_u64)
}

/// A list field of an answer.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A list of texts, joined.
pub fn joined(value: &Value, key: &str) -> String {
    list(value, key)
        .iter()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}
