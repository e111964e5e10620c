//! A pending plan as a person reads it before deciding: what runs, as whom, where, and why somebody is asked.

use std::fmt::Write as _;

use serde_json::Value;

use crate::show::text::{clean, left, quoted, span};
use crate::show::value::{field, list, number};

/// What would run: the frozen plan itself where the request carries it, else the request's own fields.
fn plan(request: &Value) -> &Value {
    request
        .get("plan")
        .filter(|p| p.is_object())
        .unwrap_or(request)
}

/// The first text among these fields.
fn first<'a>(value: &'a Value, keys: &[&str]) -> &'a str {
    keys.iter()
        .map(|key| field(value, key))
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

/// The argv of a request, wherever it stands.
pub fn argv(request: &Value) -> Vec<String> {
    [
        plan(request).get("argv"),
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
    let plain = |t: &str| {
        !t.is_empty()
            && t.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b))
    };
    tokens
        .iter()
        .map(|t| if plain(t) { t.clone() } else { quoted(t) })
        .collect::<Vec<_>>()
        .join(" ")
}

/// For whom: the agent.
pub fn agent(request: &Value) -> &str {
    match field(plan(request), "agent") {
        "" => field(request, "agentId"),
        agent => agent,
    }
}

/// One word for where it would run: `host`, `sandbox`, `node …`.
pub fn target(request: &Value) -> String {
    let node = plan(request)
        .pointer("/target/node")
        .and_then(Value::as_str);
    match node {
        Some(node) => format!("node {}", clean(node)),
        None => match first(plan(request), &["target", "host"]) {
            "" => clean(field(request, "host")),
            "node" => format!("node {}", clean(field(request, "nodeId"))),
            word => clean(word),
        },
    }
}

fn place(request: &Value) -> String {
    match target(request).as_str() {
        "host" | "gateway" => "on the host, outside the sandbox".to_owned(),
        "sandbox" => "in its sandbox".to_owned(),
        other => format!("on {other}"),
    }
}

/// What the card says, line by line: a label (empty where the line goes on) and its text, cleaned.
/// `approval` is one entry of `exec.approval.list`.
pub fn rows(approval: &Value) -> Vec<(&'static str, String)> {
    let request = approval.get("request").unwrap_or(&Value::Null);
    let plan = plan(request);
    let mut rows = Vec::new();
    let mut put = |name: &'static str, value: String| {
        if !value.is_empty() {
            rows.push((name, value));
        }
    };
    put("agent", clean(agent(request)));
    put("runs", place(request));
    for (i, token) in argv(request).iter().enumerate() {
        put(if i == 0 { "argv" } else { "" }, quoted(token));
    }
    if argv(request).is_empty() {
        put("command", clean(field(request, "command")));
    }
    for (i, file) in executable(plan, request).into_iter().enumerate() {
        put(if i == 0 { "program" } else { "" }, file);
    }
    for (i, file) in operands(plan).into_iter().enumerate() {
        put(if i == 0 { "files" } else { "" }, file);
    }
    put("cwd", clean(first(plan, &["cwd"])));
    put("user", user(plan));
    for (i, variable) in env(plan).into_iter().enumerate() {
        put(if i == 0 { "env" } else { "" }, variable);
    }
    put("stdin", stdin(plan));
    put("network", clean(field(plan, "egress")));
    let limit = plan.pointer("/limits/timeout_ms").and_then(Value::as_u64);
    let limit = limit.or_else(|| number(plan, "timeoutMs"));
    put("time limit", limit.map_or_else(String::new, span));
    put("session", clean(first(plan, &["session", "sessionKey"])));
    put("asked by", clean(first(plan, &["principal"])));
    for (i, reason) in list(request, "reasons").iter().enumerate() {
        let text = reason.as_str().unwrap_or_else(|| field(reason, "text"));
        put(if i == 0 { "why asked" } else { "" }, clean(text));
    }
    // The warning is these reasons in one line.
    if list(request, "reasons").is_empty() {
        put("warning", clean(field(request, "warningText")));
    }
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

/// A line per file that runs. The plan's own form is tagged (`{"host": {…}}`), a request's is flat.
fn executable(plan: &Value, request: &Value) -> Vec<String> {
    let Some(program) = plan.get("executable").filter(|e| e.is_object()) else {
        return vec![clean(field(request, "resolvedPath"))];
    };
    let kinds = ["host", "image", "workspace", "node"];
    let tagged = kinds
        .iter()
        .find_map(|kind| Some((*kind, program.get(kind)?)));
    let scripted = (field(program, "kind") == "host-script").then_some(program);
    if let Some(script) = program.get("host-script").or(scripted) {
        let part = |name: &str| file("host", script.get(name).unwrap_or(&Value::Null));
        let argument = match field(script, "argument") {
            "" => String::new(),
            argument => format!("  with {}", quoted(argument)),
        };
        return vec![
            part("script"),
            format!("read by {}{argument}", part("interpreter")),
        ];
    }
    let flat = program.get("file").unwrap_or(program);
    let (kind, program) = tagged.unwrap_or((field(program, "kind"), flat));
    vec![file(kind, program)]
}

/// A line per word of the arguments that names something. The plan's own form is tagged, a request's is flat.
fn operands(plan: &Value) -> Vec<String> {
    let one = |operand: &Value| {
        let index = number(operand, "argvIndex").or_else(|| number(operand, "index"));
        let tagged = operand.get("held").and_then(Value::as_object);
        let (held, named) = tagged
            .and_then(|held| held.iter().next())
            .map_or((field(operand, "held"), operand), |(k, v)| (k.as_str(), v));
        let how = match held {
            "copied" => "this text is handed over as a copy".to_owned(),
            "checked" => "compared again before the start".to_owned(),
            _ => format!("NOT KEPT, {}: it can change", clean(field(named, "why"))),
        };
        let index = index.map_or_else(|| "?".to_owned(), |n| n.to_string());
        format!("argv[{index}] is {}  ({how})", file("host", named))
    };
    list(plan, "operands").iter().map(one).collect()
}

fn file(kind: &str, file: &Value) -> String {
    let mut text = clean(field(file, "path"));
    let digest = first(
        file,
        &["sha256", "claimed_sha256", "claimedSha256", "digest"],
    );
    if !digest.is_empty() {
        let _ = write!(text, "  sha256 {}", clean(digest));
    }
    match kind {
        "workspace" => text.push_str("  (the agent can write it)"),
        "image" => text.push_str("  (of the box's image)"),
        "node" => text.push_str("  (as the node says)"),
        _ => {}
    }
    text.trim_start().to_owned()
}

fn user(plan: &Value) -> String {
    let plan = plan.get("user").filter(|u| u.is_object()).unwrap_or(plan);
    let mut text = clean(field(plan, "user"));
    if let (Some(uid), Some(gid)) = (number(plan, "uid"), number(plan, "gid")) {
        let _ = write!(text, " uid {uid} gid {gid}");
    }
    let groups: Vec<String> = list(plan, "groups")
        .iter()
        .map(ToString::to_string)
        .collect();
    if !groups.is_empty() {
        let _ = write!(text, " groups {}", clean(&groups.join(" ")));
    }
    text.trim_start().to_owned()
}

fn stdin(plan: &Value) -> String {
    match plan.get("stdin") {
        Some(Value::String(word)) if word == "open" => "a stream that nobody has seen".to_owned(),
        Some(Value::Object(map)) => map
            .get("sha256")
            .and_then(Value::as_str)
            .map_or_else(String::new, |digest| format!("sha256 {}", clean(digest))),
        _ => String::new(),
    }
}

fn env(plan: &Value) -> Vec<String> {
    let value = |value: &Value| match value {
        Value::String(text) => quoted(text),
        // A secret travels by name and version only.
        Value::Object(_) => match (
            value.get("plain").and_then(Value::as_str),
            value.get("secret"),
        ) {
            (Some(text), _) => quoted(text),
            (_, Some(secret @ Value::Object(_))) => format!(
                "secret {} version {}",
                clean(field(secret, "name")),
                number(secret, "version").unwrap_or_default()
            ),
            (_, Some(Value::String(name))) => format!("secret {}", clean(name)),
            _ => clean(&value.to_string()),
        },
        other => clean(&other.to_string()),
    };
    match plan.get("env") {
        Some(Value::Object(map)) => map
            .iter()
            .map(|(name, v)| format!("{}={}", clean(name), value(v)))
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
    fn a_request_as_the_gateway_sends_it_shows_program_and_user() {
        let card = card(&json!({"id": "a", "request": {
            "agentId": "demo", "target": "host", "argv": ["uname"],
            "executable": {"kind": "host", "file": {"path": "/usr/bin/uname", "sha256": "ed21"}},
            "user": {"uid": 65534, "gid": 65534, "groups": []}, "egress": "host",
        }}));
        assert!(card.contains("/usr/bin/uname  sha256 ed21"), "{card}");
        assert!(card.contains("uid 65534 gid 65534"), "{card}");
        assert!(card.contains("network    host"), "{card}");
    }

    #[test]
    fn what_a_word_names_is_shown_with_how_it_is_kept() {
        let flat = json!({"request": {"argv": ["sh", "/t/x"], "operands": [
            {"argvIndex": 1, "path": "/t/x\u{1b}", "sha256": "ab", "held": "copied"},
            {"argvIndex": 2, "path": "/srv", "held": "not-kept", "why": "a folder"}]}});
        let tagged = json!({"request": {"plan": {"argv": ["sh", "/t/x"], "operands": [
            {"index": 1, "from": 0, "held": {"checked": {"path": "/t/x", "dev": 1, "ino": 2, "sha256": "ab"}}},
            {"index": 2, "from": 0, "held": {"open": {"path": "/srv", "why": "folder"}}}]}}});
        let flat = card(&flat);
        assert!(flat.contains("argv[1] is /t/x"), "{flat}");
        assert!(
            flat.contains("sha256 ab  (this text is handed over"),
            "{flat}"
        );
        assert!(!flat.contains('\u{1b}'), "{flat}");
        assert!(
            flat.contains("argv[2] is /srv  (NOT KEPT, a folder"),
            "{flat}"
        );
        let tagged = card(&tagged);
        assert!(tagged.contains("sha256 ab  (compared again"), "{tagged}");
        assert!(tagged.contains("/srv  (NOT KEPT, folder"), "{tagged}");
    }

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

    #[test]
    fn the_frozen_plan_itself_is_shown_whole() {
        let approval = json!({"id": "a1", "expiresAtMs": 0, "request": {"planHash": "ab", "agentId": "other", "plan": {
            "v": 1, "target": {"node": "n1"}, "agent": "demo", "session": "s1", "principal": "uid:7", "argv": ["x.py"],
            "executable": {"host-script": {"script": {"path": "/w/x.py", "sha256": "11"},
                "interpreter": {"path": "/usr/bin/python3", "sha256": "22"}, "argument": "-I"}},
            "cwd": "/w", "uid": 1000, "gid": 1000, "groups": [27, 44], "stdin": {"sha256": "33"}, "egress": "none",
            "env": {"A": {"plain": "b"}, "KEY": {"secret": {"name": "API_KEY", "version": 3}}}, "limits": {"timeout_ms": 30_000},
        }}});
        let shown = card(&approval);
        for part in [
            "demo",
            "on node n1",
            "\"x.py\"",
            "/w/x.py  sha256 11",
            "read by /usr/bin/python3  sha256 22  with \"-I\"",
            "uid 1000 gid 1000 groups 27 44",
            "A=\"b\"",
            "KEY=secret API_KEY version 3",
            "sha256 33",
            "none",
            "30 s",
            "s1",
            "uid:7",
            "ab",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains("other"));
    }
}
