//! A pending plan as a person reads it before deciding: what runs, as whom, where, and why somebody is asked.

use std::fmt::Write as _;

use serde_json::Value;

use crate::show::text::{clean, left, quoted, span};
use crate::show::value::{field, list, number};

/// The argv of a request, wherever it stands.
pub fn argv(request: &Value) -> Vec<String> {
    [
        request.get("argv"),
        request.pointer("/systemRunBinding/argv"),
        request.get("commandArgv"),
    ]
    .into_iter()
    .flatten()
    .find_map(Value::as_array)
    .map(|tokens| {
        tokens
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    })
    .unwrap_or_default()
}

/// The command in one line, its tokens quoted where a reader could not tell them apart.
pub fn line(request: &Value) -> String {
    let tokens = argv(request);
    if tokens.is_empty() {
        return clean(field(request, "command"));
    }
    tokens
        .iter()
        .map(|t| {
            let plain = !t.is_empty()
                && t.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b));
            if plain { t.clone() } else { quoted(t) }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Target, for the head of the card.
fn target(request: &Value) -> String {
    let target = match field(request, "target") {
        "" => field(request, "host"),
        target => target,
    };
    match target {
        "host" | "gateway" => "on the host, outside the sandbox".to_owned(),
        "sandbox" => "in its sandbox".to_owned(),
        "node" => format!("on node {}", clean(field(request, "nodeId"))),
        other => clean(other),
    }
}

/// What the card says, line by line: a label (empty where the line goes on) and its text, cleaned.
/// `approval` is one entry of `exec.approval.list`.
pub fn rows(approval: &Value) -> Vec<(&'static str, String)> {
    let request = approval.get("request").unwrap_or(&Value::Null);
    let mut rows = Vec::new();
    let mut put = |name: &'static str, value: String| {
        if !value.is_empty() {
            rows.push((name, value));
        }
    };
    put("agent", clean(field(request, "agentId")));
    put("runs", target(request));
    for (i, token) in argv(request).iter().enumerate() {
        put(if i == 0 { "argv" } else { "" }, quoted(token));
    }
    if argv(request).is_empty() {
        put("command", clean(field(request, "command")));
    }
    put("program", executable(request));
    put("cwd", clean(field(request, "cwd")));
    put("user", user(request));
    for (i, variable) in env(request).into_iter().enumerate() {
        put(if i == 0 { "env" } else { "" }, variable);
    }
    put("network", clean(field(request, "egress")));
    put(
        "time limit",
        number(request, "timeoutMs").map_or_else(String::new, span),
    );
    put("session", clean(field(request, "sessionKey")));
    put("asked by", clean(field(request, "principal")));
    for reason in list(request, "reasons") {
        let text = reason.as_str().unwrap_or_else(|| field(reason, "text"));
        put("why asked", clean(text));
    }
    put("warning", clean(field(request, "warningText")));
    put("plan", clean(field(request, "planHash")));
    rows
}

/// The whole card for a terminal.
pub fn card(approval: &Value) -> String {
    let until = number(approval, "expiresAtMs").map_or_else(|| "?".to_owned(), left);
    let mut out = format!("{}  ({until} left)\n", clean(field(approval, "id")));
    for (name, value) in rows(approval) {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {name:<10} {value}");
    }
    out
}

fn executable(request: &Value) -> String {
    let Some(program) = request.get("executable").filter(|e| e.is_object()) else {
        return clean(field(request, "resolvedPath"));
    };
    let mut text = clean(field(program, "path"));
    let digest = match field(program, "sha256") {
        "" => field(program, "claimedSha256"),
        digest => digest,
    };
    if !digest.is_empty() {
        let _ = write!(text, "  sha256 {}", clean(digest));
    }
    match field(program, "kind") {
        "workspace" => text.push_str("  (the agent can write it)"),
        "image" => text.push_str("  (inside the image)"),
        "node" => text.push_str("  (as the node says)"),
        _ => {}
    }
    text
}

fn user(request: &Value) -> String {
    let name = clean(field(request, "user"));
    match (number(request, "uid"), number(request, "gid")) {
        (Some(uid), Some(gid)) => format!("{name} uid {uid} gid {gid}")
            .trim_start()
            .to_owned(),
        _ => name,
    }
}

fn env(request: &Value) -> Vec<String> {
    match request.get("env") {
        Some(Value::Object(map)) => map
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    Value::String(text) => quoted(text),
                    // A secret travels by name and version only.
                    Value::Object(secret) => format!(
                        "secret {}",
                        clean(secret.get("secret").and_then(Value::as_str).unwrap_or("?"))
                    ),
                    other => clean(&other.to_string()),
                };
                format!("{}={value}", clean(name))
            })
            .collect(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(clean).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_token_stands_alone_and_nothing_hides() {
        let approval = json!({"id": "a1", "expiresAtMs": 0, "request": {
            "agentId": "demo\u{202e}", "target": "host", "argv": ["/bin/sh", "-c", "echo a; rm -rf /\n# \u{1b}[2K"],
            "executable": {"kind": "host", "path": "/bin/sh", "sha256": "1f0c"}, "cwd": "/w", "user": "nobody",
            "uid": 65534, "gid": 65534, "reasons": ["outside the sandbox"], "env": {"A": "b c"},
        }});
        let shown = card(&approval);
        assert!(shown.contains("argv       \"/bin/sh\"\n             \"-c\"\n             \"echo a; rm -rf /\\n# \\u{1b}[2K\"\n"), "{shown}");
        for part in [
            "demo\\u{202e}",
            "outside the sandbox",
            "sha256 1f0c",
            "nobody uid 65534 gid 65534",
            "A=\"b c\"",
            "0:00 left",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
        assert_eq!(
            line(&approval["request"]),
            r#"/bin/sh -c "echo a; rm -rf /\n# \u{1b}[2K""#
        );
    }
}
