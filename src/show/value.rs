//! Fields of an answer: what is not there reads as empty.

use portcullis_core::codes;
use serde_json::Value;

use crate::cli::Failure;

/// The longest that is printed: a setup code with a long address in it.
const SECRET_MAX: usize = 4096;

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

/// A secret of an answer that is to be printed as it is: of the characters that tokens and codes have, and no others, since
/// whoever answers may be another's gateway, and this a terminal.
///
/// # Errors
/// `INVALID_FRAME`: something else, or nothing.
pub fn secret<'a>(value: &'a Value, key: &str) -> Result<&'a str, Failure> {
    let text = field(value, key);
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=SECRET_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
        return Ok(text);
    }
    Err(Failure::of(
        codes::INVALID_FRAME,
        format!("what the gateway answered as {key} is none, and is not shown"),
    )
    .hint("look whether that address is your gateway's; if it is, update the older of the two"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_is_no_secret() {
        let of = |text: &str| secret(&serde_json::json!({ "token": text }), "token").is_ok();
        assert!(of("pc_gw_abcXYZ019-_") && of("abcd.pc_set_x"));
        for bad in [
            "",
            "a\u{1b}[2J",
            "a\n",
            "a\r",
            "a b",
            "a\u{202e}",
            "a\u{9b}31m",
            "ä",
            "a;b",
        ] {
            assert!(!of(bad), "{bad:?}");
        }
        assert!(!of(&"a".repeat(SECRET_MAX + 1)));
        assert!(secret(&serde_json::json!({}), "token").is_err());
    }
}
