//! Which attributes may leave the process: names on a list, in one place (OpenTelemetry semantic conventions 1.42, and
//! `portcullis.*`). A secret cannot leave under a name that is not here, and no type of ours prints one.

use opentelemetry::trace::Status;
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents};

/// Longest text of an attribute, bytes.
const TEXT: usize = 256;

/// Names that may leave as they are.
const ALLOWED: &[&str] = &[
    "client.address",
    "container.id",
    "container.image.name",
    "container.runtime.name",
    "error.type",
    "gen_ai.agent.id",
    "gen_ai.operation.name",
    "gen_ai.tool.call.id",
    "gen_ai.tool.name",
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "portcullis.actor.type",
    "portcullis.approval.decision",
    "portcullis.approval.id",
    "portcullis.audit.seq",
    "portcullis.box.id",
    "portcullis.device.id",
    "portcullis.door",
    "portcullis.driver",
    "portcullis.message.type",
    "portcullis.plan.hash",
    "portcullis.role",
    "portcullis.run.id",
    "portcullis.target",
    "process.exit.code",
    "rpc.method",
    "rpc.system.name",
    "session.id",
];

/// Short names of our spans' fields, and what they are called outside.
const RENAMED: &[(&str, &str)] = &[
    ("room", "portcullis.actor.type"),
    ("method", "rpc.method"),
    ("door", "portcullis.door"),
    ("role", "portcullis.role"),
    ("agent", "gen_ai.agent.id"),
    ("run", "portcullis.run.id"),
    ("target_kind", "portcullis.target"),
    ("approval", "portcullis.approval.id"),
    ("decision", "portcullis.approval.decision"),
    ("plan", "portcullis.plan.hash"),
    ("box", "portcullis.box.id"),
    ("driver", "portcullis.driver"),
    ("seq", "portcullis.audit.seq"),
    ("exit", "process.exit.code"),
    ("code", "error.type"),
    ("action", "portcullis.audit.action"),
    ("conn", "session.id"),
];

/// Takes everything off a span that is not on the list.
pub fn clean(span: &mut SpanData) {
    span.attributes = std::mem::take(&mut span.attributes)
        .into_iter()
        .filter_map(|pair| {
            let key = pair.key.as_str();
            let name = RENAMED
                .iter()
                .find(|(from, _)| *from == key)
                .map(|(_, to)| *to)
                .or_else(|| ALLOWED.iter().copied().find(|name| *name == key))?;
            Some(KeyValue::new(name, short(pair.value)))
        })
        .collect();
    span.events = SpanEvents::default();
    if !is_name(&span.name) {
        span.name = "span".into();
    }
    if let Status::Error { description } = &mut span.status {
        *description = "".into();
    }
}

fn short(value: Value) -> Value {
    match value {
        Value::String(text) if text.as_str().len() > TEXT => {
            let text = text.as_str();
            let end = (0..=TEXT)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            Value::String(text[..end].to_owned().into())
        }
        other => other,
    }
}

/// Names of spans are ours: words, dots and the like. What looks otherwise came from outside.
fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b" ._-/{}".contains(&b))
}
