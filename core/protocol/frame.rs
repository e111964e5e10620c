//! One object per message: `req` in, `res` and `event` out, as JSON text or as MessagePack.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::strict::{self, OUT_OF_RANGE, Strict, Text, TextOrNull, Unsound, VALUES_MAX};
use crate::codes::Code;

/// A request, with its params read once: the method gives them their shape, and nobody reads the bytes again.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// Opaque, 1 to 256 bytes; comes back in the answer.
    pub id: Cow<'a, str>,
    /// Its name.
    pub method: Cow<'a, str>,
    /// Absent ones are `{}`. Or why they are refused, which is told after role and scope.
    pub params: Result<Value, Unsound>,
    /// W3C trace context, for paired peers.
    pub traceparent: Option<Cow<'a, str>>,
}

/// Why bytes are no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON at all: before `connect` the socket is closed without a word, after it the frame is passed over.
    #[error("not JSON")]
    NotJson,
    /// It can be read, but is no request; the id, where one could be read.
    #[error("invalid request frame")]
    NotRequest {
        /// To answer with.
        id: Option<String>,
        /// What is wrong with it.
        why: String,
    },
}

/// Longest id of a request, bytes.
pub const ID_MAX: usize = 256;
/// Longest method name, bytes.
const METHOD_MAX: usize = 128;
const TRACE_MAX: usize = 128;

impl<'a> Request<'a> {
    /// Reads a text frame. Refuses what does not round-trip: duplicate keys, trailing bytes, unknown keys.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(text: &'a str) -> Result<Self, FrameError> {
        let mut parts = Parts::default();
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = Envelope(&mut parts)
            .deserialize(&mut reader)
            .and_then(|()| reader.end());
        match read {
            Ok(()) => parts.request(),
            Err(error) if error.is_data() || error.to_string().starts_with(OUT_OF_RANGE) => {
                Err(parts.refuse(strict::of_json(&error).to_string()))
            }
            Err(_) => Err(FrameError::NotJson),
        }
    }

    /// Reads a MessagePack frame, by the same rules.
    ///
    /// # Errors
    /// [`FrameError::NotRequest`].
    pub fn unpack(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let mut parts = Parts::default();
        match strict::whole(bytes, |reader| Envelope(&mut parts).deserialize(reader)) {
            Ok(()) => parts.request(),
            Err(error) => {
                let why = parts.wrong.take();
                let why = why.unwrap_or_else(|| strict::of_msgpack(&error).to_string());
                Err(parts.refuse(why))
            }
        }
    }

    /// Reads the params into a method's own type.
    ///
    /// # Errors
    /// The text for `invalid <method> params: …`.
    pub fn params<T: for<'de> Deserialize<'de>>(&self) -> Result<T, String> {
        match &self.params {
            Ok(params) => read_params(params, &self.method),
            Err(unsound) => Err(unsound_params(&self.method, unsound)),
        }
    }
}

/// Gives params the shape that a method has for them.
///
/// # Errors
/// The text for `invalid <method> params: …`.
pub fn read_params<'a, T: Deserialize<'a>>(params: &'a Value, method: &str) -> Result<T, String> {
    // serde would take a list for an object, by the order of its fields.
    if params.is_array() {
        return Err(format!(
            "invalid {method} params: a list where an object belongs"
        ));
    }
    T::deserialize(params).map_err(|e| format!("invalid {method} params: {}", without_value(&e)))
}

/// What a shape's error says, without the value that does not fit: it may be a secret that stands in the wrong place, and
/// the answer ends in logs and close reasons.
fn without_value(error: &serde_json::Error) -> String {
    let text = error.to_string();
    for what in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = text.strip_prefix(what) {
            // `string "…", expected a map`: the last one is serde's own, and what it expects are our words.
            let kind = rest.split([' ', ',']).next().unwrap_or_default();
            let expected = rest.rfind(", expected ").map_or("", |at| &rest[at..]);
            return format!("{what}{kind}{expected}");
        }
    }
    if text.starts_with("unknown variant `") {
        let expected = text.rfind("`, expected ").map_or("", |at| &text[at + 1..]);
        return format!("unknown variant{expected}");
    }
    text
}

/// The same text where they cannot be used at all.
pub fn unsound_params(method: &str, unsound: &Unsound) -> String {
    format!("invalid {method} params: {unsound}")
}

/// What was read of a frame, so far.
#[derive(Default)]
struct Parts<'a> {
    kind: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    method: Option<Cow<'a, str>>,
    params: Option<Result<Value, Unsound>>,
    trace: Option<Cow<'a, str>>,
    has_trace: bool,
    profile: bool,
    wrong: Option<String>,
}

impl<'a> Parts<'a> {
    fn request(mut self) -> Result<Request<'a>, FrameError> {
        let sized = |text: &Option<Cow<'a, str>>, most: usize| {
            text.as_ref().is_some_and(|t| (1..=most).contains(&t.len()))
        };
        let wrong = if self.wrong.is_some() {
            self.wrong.take()
        } else if self.kind.as_deref() != Some("req") {
            Some("type must be \"req\"".to_owned())
        } else if !sized(&self.id, ID_MAX) {
            Some(format!("id must be a text of 1 to {ID_MAX} bytes"))
        } else if !sized(&self.method, METHOD_MAX) {
            Some(format!("method must be a text of 1 to {METHOD_MAX} bytes"))
        } else if (self.trace.as_ref()).is_some_and(|t| t.len() > TRACE_MAX) {
            Some(format!("traceparent has at most {TRACE_MAX} bytes"))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(self.refuse(wrong));
        }
        match (self.id, self.method) {
            (Some(id), Some(method)) => Ok(Request {
                id,
                method,
                params: self.params.unwrap_or_else(|| Ok(Map::new().into())),
                traceparent: self.trace,
            }),
            (id, method) => Err(Self {
                id,
                method,
                ..Self::default()
            }
            .refuse(String::new())),
        }
    }

    fn refuse(self, why: String) -> FrameError {
        let id = self.id.map(Cow::into_owned);
        FrameError::NotRequest {
            id: id.filter(|id| (1..=ID_MAX).contains(&id.len())),
            why,
        }
    }
}

/// Reads a frame's own keys. What is wrong is noted and the rest read on, so that the answer has its id.
struct Envelope<'p, 'a>(&'p mut Parts<'a>);

impl<'a> DeserializeSeed<'a> for Envelope<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Envelope<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let parts = self.0;
        while let Some(key) = map.next_key_seed(Text)? {
            let is_again = match &*key {
                "type" if parts.kind.is_none() => {
                    parts.kind = Some(map.next_value_seed(Text)?);
                    false
                }
                "id" if parts.id.is_none() => {
                    parts.id = Some(map.next_value_seed(Text)?);
                    false
                }
                "method" if parts.method.is_none() => {
                    parts.method = Some(map.next_value_seed(Text)?);
                    false
                }
                "params" if parts.params.is_none() => {
                    let (mut note, mut left) = (None, VALUES_MAX);
                    let value = map.next_value_seed(Strict::new(&mut note, &mut left))?;
                    parts.params = Some(match (note, value) {
                        (Some(unsound), _) => Err(unsound),
                        (None, Value::Null) => Ok(Map::new().into()),
                        (None, value) => Ok(value),
                    });
                    false
                }
                "traceparent" if !parts.has_trace => {
                    parts.trace = map.next_value_seed(TextOrNull)?;
                    parts.has_trace = true;
                    false
                }
                // Read and ignored: we have no profiles.
                "expectedProfileId" if !parts.profile => {
                    map.next_value_seed(TextOrNull)?;
                    parts.profile = true;
                    false
                }
                "type" | "id" | "method" | "params" | "traceparent" | "expectedProfileId" => true,
                _ => {
                    // Not the key itself: it may be long, and what is known says enough.
                    let known = "a frame has the keys type, id, method, params and traceparent";
                    parts.wrong.get_or_insert_with(|| known.to_owned());
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if is_again {
                if key == "id" {
                    // Which of the two is meant?
                    parts.id = Some(Cow::Borrowed(""));
                }
                map.next_value::<IgnoredAny>()?;
                parts
                    .wrong
                    .get_or_insert_with(|| Unsound::twice(&key).to_string());
            }
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_without_copying_and_its_params_once() {
        let text = r#"{"type":"req","id":"1","method":"health","params":{"probe":true}}"#;
        let request = Request::parse(text).unwrap();
        assert!(matches!(request.id, Cow::Borrowed("1")));
        assert_eq!(request.params, Ok(serde_json::json!({"probe": true})));
        for absent in [
            r#"{"type":"req","id":"1","method":"m"}"#,
            r#"{"type":"req","id":"1","method":"m","params":null}"#,
        ] {
            let request = Request::parse(absent).unwrap();
            assert_eq!(request.params, Ok(serde_json::json!({})));
        }
    }

    fn refused(text: &str) -> (Option<String>, String) {
        match Request::parse(text) {
            Err(FrameError::NotRequest { id, why }) => (id, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_not_round_trip_is_refused() {
        let id = |t| refused(t).0;
        for (frame, found) in [
            (
                r#"{"type":"req","id":"7","method":"a","extra":1}"#,
                Some("7"),
            ),
            (
                r#"{"extra":{"x":[1]},"type":"req","id":"7","method":"a"}"#,
                Some("7"),
            ),
            (r#"{"type":"res","id":"7","method":"a"}"#, Some("7")),
            (
                r#"{"type":"req","method":"a","method":"b","id":"7"}"#,
                Some("7"),
            ),
            (r#"{"type":"req","id":"","method":"a"}"#, None),
            (r#"{"type":"req","id":7,"method":"a"}"#, None),
            (r#"{"type":"req","id":"1","id":"2","method":"a"}"#, None),
            ("[]", None),
        ] {
            assert_eq!(id(frame).as_deref(), found, "{frame}");
        }
        for text in [
            r#"{"type":"req","id":"1","method":"a"} x"#,
            r#"{"type":"req","id":"1","method":"a"}{}"#,
            "",
            "hello",
        ] {
            assert_eq!(
                Request::parse(text).unwrap_err(),
                FrameError::NotJson,
                "{text}"
            );
        }
    }

    fn params_of(params: &str) -> Result<Value, Unsound> {
        let text = format!(r#"{{"type":"req","id":"1","method":"m","params":{params}}}"#);
        let request = Request::parse(&text).unwrap();
        assert_eq!(request.id, "1");
        request.params
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_at_every_depth() {
        for params in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":1}"#,
            r#"{"x":{"a":1,"b":2,"a":1},"y":1}"#,
            r#"{"x":[[{"a":{"a":1}},{"a":[],"a":[]}],1]}"#,
        ] {
            assert_eq!(
                params_of(params),
                Err(Unsound::Twice("a".into())),
                "{params}"
            );
        }
        assert!(params_of(r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}"#).is_ok());
    }

    #[test]
    fn numbers_that_do_not_keep_their_value_are_refused() {
        for good in [
            "9007199254740992",
            "-9007199254740992",
            "0.1",
            "-0.0",
            "1e15",
        ] {
            assert!(params_of(&format!(r#"{{"n":{good}}}"#)).is_ok(), "{good}");
        }
        for bad in [
            "9007199254740993",
            "-9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "1e16",
            "1e300",
        ] {
            let params = params_of(&format!(r#"{{"n":[{bad}]}}"#));
            assert_eq!(params, Err(Unsound::Number), "{bad}");
        }
        // What no double holds ends the reading, but not without an answer.
        let (id, why) = refused(r#"{"type":"req","id":"9","method":"m","params":[1e999]}"#);
        assert_eq!(id.as_deref(), Some("9"));
        assert!(why.contains("finite"), "{why}");
        for not_json in ["NaN", "Infinity", "-Infinity", "01", "+1"] {
            let text = format!(r#"{{"type":"req","id":"1","method":"m","params":[{not_json}]}}"#);
            assert_eq!(Request::parse(&text).unwrap_err(), FrameError::NotJson);
        }
    }

    #[test]
    fn a_deep_tree_of_params_is_refused_before_it_is_built() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(params_of(&nested(32)).is_ok());
        for depth in [33, 64, 10_000] {
            assert_eq!(params_of(&nested(depth)), Err(Unsound::Deep));
            let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
            assert_eq!(params_of(&objects), Err(Unsound::Deep));
        }
        let text = r#"{"type":"req","id":"1","method":"m","params":{"a":1,"a":1}}"#;
        let error = Request::parse(text).unwrap().params::<Value>().unwrap_err();
        assert_eq!(error, r#"invalid m params: the key "a" stands twice"#);
    }

    #[test]
    fn a_small_frame_does_not_become_a_large_tree() {
        let of = |n: usize| format!("[{}1]", "1,".repeat(n - 1));
        assert!(params_of(&of(VALUES_MAX)).is_ok());
        assert_eq!(params_of(&of(VALUES_MAX + 1)), Err(Unsound::Many));
        assert_eq!(
            params_of(&format!("[{0},{0}]", of(60_000))),
            Err(Unsound::Many)
        );
        let keys: Vec<String> = (0..=VALUES_MAX).map(|n| format!("\"{n}\":1")).collect();
        assert_eq!(
            params_of(&format!("{{{}}}", keys.join(","))),
            Err(Unsound::Many)
        );
        let packed = [vec![0xdd, 0, 2, 0, 0], vec![1; 0x2_0000]].concat();
        assert_eq!(strict::msgpack(&packed), Err(Unsound::Many));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered_and_never_panics(text in "\\PC*") {
            let _ = Request::parse(&text);
        }

        #[test]
        fn any_bytes_are_answered_and_never_panic(bytes in proptest::collection::vec(0_u8.., 0..256)) {
            let _ = Request::unpack(&bytes);
        }
    }
}
