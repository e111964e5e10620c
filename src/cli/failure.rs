//! How a command fails: a stable code, a sentence, a next step, and one exit code per code.

use std::io;

use portcullis_core::codes::{self, Code};
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::{Value, json};

use crate::show::text::clean;

/// Why a command did not do what was asked.
#[derive(Debug, Clone)]
pub struct Failure {
    /// As in the registry, or as the gateway sent it.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// May it be tried again as it is?
    pub retryable: bool,
    /// Of the process.
    pub exit: u8,
    /// Lines to add somewhere, where the gateway knows them.
    pub fix: Option<String>,
    /// Of what a person must decide first.
    pub request_id: Option<Box<str>>,
    /// Nobody reads any more: end without a word.
    pub silent: bool,
}

impl Failure {
    /// With one of our codes.
    pub fn of(code: &'static Code, message: impl Into<String>) -> Self {
        Self {
            code: code.name.to_owned(),
            message: message.into(),
            hint: code.next.to_owned(),
            retryable: code.retryable,
            exit: code.exit,
            fix: None,
            request_id: None,
            silent: false,
        }
    }

    /// What a file did not let us do; a full disk is told as that, whatever else `code` would say.
    pub fn io(code: &'static Code, what: impl std::fmt::Display, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => codes::DISK_FULL,
            _ => code,
        };
        Self::of(code, format!("{what}: {error}"))
    }

    /// With another next step than the registry's.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The gateway's own words.
    pub fn from_wire(error: &ErrorBody) -> Self {
        let name = error.stable_code();
        let known = codes::find(name);
        let detail = |key: &str| {
            error
                .details
                .as_ref()
                .and_then(|d| d.get(key))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let exit = known.map_or_else(
            || match error.code.as_str() {
                "NOT_PAIRED" | "FORBIDDEN" => 4,
                "APPROVAL_NOT_FOUND" => 3,
                _ => 1,
            },
            |code| code.exit,
        );
        Self {
            code: name.to_owned(),
            message: error.message.clone(),
            hint: detail("next")
                .or_else(|| known.map(|code| code.next.to_owned()))
                .or_else(|| detail("remediationHint"))
                .unwrap_or_default(),
            retryable: error.retryable.unwrap_or(false),
            exit,
            fix: detail("fix"),
            request_id: detail("requestId").map(Into::into),
            silent: false,
        }
    }

    /// Standard output could not be written.
    pub fn output(error: &std::io::Error) -> Self {
        let mut failure = Self::of(
            codes::OUTPUT_UNWRITABLE,
            format!("cannot write the output: {error}"),
        );
        failure.silent = error.kind() == std::io::ErrorKind::BrokenPipe;
        failure
    }

    /// The document of `--json`.
    pub fn json(&self) -> Value {
        let mut error = json!({
            "code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable,
        });
        if let Some(fix) = &self.fix {
            error["fix"] = fix.as_str().into();
        }
        if let Some(id) = &self.request_id {
            error["requestId"] = (**id).into();
        }
        json!({ "error": error })
    }

    /// The lines for stderr.
    pub fn lines(&self) -> String {
        let mut out = format!("error[{}]: {}\n", clean(&self.code), clean(&self.message));
        if !self.hint.is_empty() {
            out.push_str("next: ");
            out.push_str(&clean(&self.hint));
            out.push('\n');
        }
        for line in self.fix.iter().flat_map(|fix| fix.lines()) {
            out.push_str("  ");
            out.push_str(&clean(line));
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_code_and_next_step_come_through() {
        let mut details = serde_json::Map::new();
        details.insert("fix".into(), "[agents.x]\nelevated = \"ask\"".into());
        let error = ErrorBody::with(codes::ELEVATED_DISABLED, "off\u{1b}[2J", details);
        let failure = Failure::from_wire(&error);
        assert_eq!(
            (failure.code.as_str(), failure.exit),
            ("ELEVATED_DISABLED", 5)
        );
        let lines = failure.lines();
        assert!(lines.starts_with("error[ELEVATED_DISABLED]: off\\u{1b}[2J\nnext: "));
        assert!(lines.ends_with("  [agents.x]\n  elevated = \"ask\"\n"));
        assert_eq!(failure.json()["error"]["retryable"], false);
    }

    #[test]
    fn a_code_of_the_peer_has_an_exit_code_too() {
        let exit = |wire: &str| Failure::from_wire(&ErrorBody::bare(wire, "m")).exit;
        assert_eq!(
            [
                exit("NOT_PAIRED"),
                exit("FORBIDDEN"),
                exit("APPROVAL_NOT_FOUND"),
                exit("UNAVAILABLE")
            ],
            [4, 4, 3, 1]
        );
    }
}
