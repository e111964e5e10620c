//! Standard output for people and for machines, one way to each.

use std::io::Write as _;

use serde_json::Value;

use super::failure::Failure;
use crate::show::text::document;

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
            line(&document(value))
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
