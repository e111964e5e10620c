//! One JSON object per text frame: `req` in, `res` and `event` out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codes::Code;

/// A request, its params not yet read: the method decides their shape.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    /// Opaque, 1 to 256 bytes; comes back in the answer.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// Its name.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// Unread.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    /// W3C trace context, for paired peers.
    #[serde(borrow, default)]
    pub traceparent: Option<Cow<'a, str>>,
    /// Read and ignored: we have no profiles.
    #[serde(borrow, default, rename = "expectedProfileId")]
    _profile: Option<Cow<'a, str>>,
}

/// Why bytes are no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON at all: before `connect` the socket is closed without a word, after it the frame is passed over.
    #[error("not JSON")]
    NotJson,
    /// JSON, but no request; the id, where one could be read.
    #[error("invalid request frame")]
    NotRequest {
        /// To answer with.
        id: Option<String>,
    },
}

/// Longest id of a request, bytes.
pub const ID_MAX: usize = 256;
/// Longest method name, bytes.
const METHOD_MAX: usize = 128;

impl<'a> Request<'a> {
    /// Reads a text frame. Refuses what does not round-trip: duplicate keys, trailing bytes, unknown keys.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(text: &'a str) -> Result<Self, FrameError> {
        match serde_json::from_str::<Self>(text) {
            Ok(request)
                if request.kind == "req"
                    && (1..=ID_MAX).contains(&request.id.len())
                    && (1..=METHOD_MAX).contains(&request.method.len())
                    && request.traceparent.as_ref().is_none_or(|t| t.len() <= 128) =>
            {
                Ok(request)
            }
            Ok(request) => Err(FrameError::NotRequest {
                id: Some(request.id.into_owned()).filter(|id| (1..=ID_MAX).contains(&id.len())),
            }),
            Err(error) if error.is_data() => Err(FrameError::NotRequest { id: id_of(text) }),
            Err(_) => Err(FrameError::NotJson),
        }
    }

    /// Reads the params into a method's own type; absent params read as `{}`.
    ///
    /// # Errors
    /// The text for `invalid <method> params: …`.
    pub fn params<T: Deserialize<'a>>(&self) -> Result<T, String> {
        read_params(self.params, &self.method)
    }
}

/// Reads a method's params; absent ones read as `{}`.
///
/// # Errors
/// The text for `invalid <method> params: …`.
pub fn read_params<'a, T: Deserialize<'a>>(
    params: Option<&'a RawValue>,
    method: &str,
) -> Result<T, String> {
    let text = params.map_or("{}", RawValue::get);
    if depth(text) > super::limits::JSON_DEPTH {
        return Err(format!("invalid {method} params: nested too deeply"));
    }
    serde_json::from_str(text).map_err(|e| {
        let why = e.to_string();
        // serde_json names line and column of one long line: of no use to a reader.
        let why = why.split(" at line ").next().unwrap_or_default();
        format!("invalid {method} params: {why}")
    })
}

fn id_of(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    serde_json::from_str::<Id>(text)
        .ok()
        .map(|i| i.id)
        .filter(|id| (1..=ID_MAX).contains(&id.len()))
}

/// The deepest nesting of arrays and objects in a JSON text.
fn depth(text: &str) -> usize {
    let (mut now, mut most, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                now += 1;
                most = most.max(now);
            }
            b'}' | b']' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// The body of an error answer; unused keys are absent, never null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One of the closed set.
    pub code: String,
    /// For a person; several clients match its text.
    pub message: String,
    /// `details.code` is one of [`crate::codes`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub details: Option<serde_json::Value>,
    /// Present only when true.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retryable: Option<bool>,
    /// Not before.
    #[serde(
        rename = "retryAfterMs",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub retry_after_ms: Option<u64>,
}

impl ErrorBody {
    /// With one of our codes, its next step in `details.next`.
    pub fn of(code: &'static Code, message: impl Into<String>) -> Self {
        Self::with(code, message, serde_json::Map::new())
    }

    /// With more details.
    pub fn with(
        code: &'static Code,
        message: impl Into<String>,
        mut details: serde_json::Map<String, serde_json::Value>,
    ) -> Self {
        details.insert("code".into(), code.name.into());
        details.entry("next").or_insert_with(|| code.next.into());
        Self {
            code: code.wire.to_owned(),
            message: message.into(),
            details: Some(details.into()),
            retryable: code.retryable.then_some(true),
            retry_after_ms: None,
        }
    }

    /// With just a wire code and a text that clients match.
    pub fn bare(wire: &str, message: impl Into<String>) -> Self {
        Self {
            code: wire.to_owned(),
            message: message.into(),
            details: None,
            retryable: None,
            retry_after_ms: None,
        }
    }

    /// `details.code`, or else the wire's code.
    pub fn stable_code(&self) -> &str {
        self.details
            .as_ref()
            .and_then(|d| d.get("code"))
            .and_then(serde_json::Value::as_str)
            .unwrap_or(&self.code)
    }
}

/// An answer that brings a value, as text.
pub fn ok_frame<T: Serialize + ?Sized>(id: &str, payload: &T) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Res<'a, T: ?Sized> {
        r#type: &'static str,
        id: &'a str,
        ok: bool,
        payload: &'a T,
    }
    serde_json::to_string(&Res {
        r#type: "res",
        id,
        ok: true,
        payload,
    })
}

/// An answer that brings an error, as text.
pub fn error_frame(id: &str, error: &ErrorBody) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Res<'a> {
        r#type: &'static str,
        id: &'a str,
        ok: bool,
        error: &'a ErrorBody,
    }
    serde_json::to_string(&Res {
        r#type: "res",
        id,
        ok: false,
        error,
    })
}

/// An event out.
#[derive(Debug, Serialize)]
pub struct EventFrame<'a, T: ?Sized> {
    r#type: &'static str,
    event: &'a str,
    payload: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

/// An event, as text; `seq` counts per client from 1, and `connect.challenge` has none.
pub fn event_frame<T: Serialize + ?Sized>(
    event: &str,
    payload: &T,
    seq: Option<u64>,
) -> Result<String, serde_json::Error> {
    serde_json::to_string(&EventFrame {
        r#type: "event",
        event,
        payload,
        seq,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_without_copying_and_its_params_later() {
        let text = r#"{"type":"req","id":"1","method":"health","params":{"probe":true}}"#;
        let request = Request::parse(text).unwrap();
        assert!(matches!(request.id, Cow::Borrowed("1")));
        assert_eq!(request.params.unwrap().get(), r#"{"probe":true}"#);
    }

    #[test]
    fn what_does_not_round_trip_is_refused() {
        let id = |t| match Request::parse(t) {
            Err(FrameError::NotRequest { id }) => id,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            id(r#"{"type":"req","id":"7","method":"a","extra":1}"#).as_deref(),
            Some("7")
        );
        assert_eq!(
            id(r#"{"type":"res","id":"7","method":"a"}"#).as_deref(),
            Some("7")
        );
        assert_eq!(id(r#"{"type":"req","id":"","method":"a"}"#), None);
        assert_eq!(id(r#"{"type":"req","id":7,"method":"a"}"#), None);
        assert_eq!(id(r#"{"type":"req","id":"1","id":"2","method":"a"}"#), None);
        assert_eq!(id("[]"), None);
        assert_eq!(
            Request::parse(r#"{"type":"req","id":"1","method":"a"} x"#).unwrap_err(),
            FrameError::NotJson
        );
        assert_eq!(Request::parse("").unwrap_err(), FrameError::NotJson);
        assert_eq!(Request::parse("hello").unwrap_err(), FrameError::NotJson);
    }

    #[test]
    fn a_deep_tree_of_params_is_refused_before_it_is_built() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let text = format!(r#"{{"type":"req","id":"1","method":"m","params":{deep}}}"#);
        let request = Request::parse(&text).unwrap();
        assert!(
            request
                .params::<serde_json::Value>()
                .unwrap_err()
                .contains("deep")
        );
        assert_eq!(depth(r#"{"a":"[[[\"[["}"#), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered_and_never_panics(text in "\\PC*") {
            let _ = Request::parse(&text);
        }
    }
}
