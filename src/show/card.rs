//! A pending question as a person reads it before deciding: what runs, as whom, where, and why somebody is asked.
//!
//! The gateway sends every text already made visible, with `\` escaped (`core::display`): here it is put between
//! quotes and not escaped a second time.

use std::fmt::Write as _;

use serde_json::Value;

use crate::show::text::{clean, left, span};
use crate::show::value::{field, list, number};

/// A text between its borders.
fn token(text: &str) -> String {
    format!("\"{}\"", clean(text).replace('"', "\\\""))
}

/// The command in one line, its tokens quoted where a reader could not tell them apart.
pub fn line(request: &Value) -> String {
    clean(field(request, "command"))
}

/// For whom: the agent.
pub fn agent(request: &Value) -> &str {
    field(request, "agentId")
}

/// One word for where it would run: `host`, `sandbox`, `node:…`.
pub fn target(request: &Value) -> String {
    clean(field(request, "target"))
}

/// One word, or the hosts that the gateway's proxy lets it reach, one a line.
fn network(request: &Value) -> Vec<String> {
    let hosts = request.pointer("/egress/hosts").and_then(Value::as_array);
    match hosts {
        Some(hosts) => hosts
            .iter()
            .map(|host| clean(host.as_str().unwrap_or_default()))
            .collect(),
        None => vec![clean(field(request, "egress"))],
    }
}

fn place(request: &Value) -> String {
    match target(request).as_str() {
        "" => String::new(),
        "host" => "on the host, outside the sandbox".to_owned(),
        "sandbox" => "in its sandbox".to_owned(),
        other => format!("on {other}"),
    }
}

/// What the card says, line by line: a label (empty where the line goes on) and its text, cleaned.
/// `approval` is one entry of `exec.approval.list`.
pub fn rows(approval: &Value) -> Vec<(&'static str, String)> {
    let request = approval.get("request").unwrap_or(&Value::Null);
    let mut rows = Vec::new();
    let mut put = |name: &'static str, lines: Vec<String>| {
        for (i, line) in lines.into_iter().filter(|l| !l.is_empty()).enumerate() {
            rows.push((if i == 0 { name } else { "" }, line));
        }
    };
    let one = |key: &str| vec![clean(field(request, key))];
    put("agent", one("agentId"));
    put("runs", vec![place(request)]);
    let argv = list(request, "argv").iter().filter_map(Value::as_str);
    put("argv", argv.map(token).collect());
    if let Some(change) = request.get("change") {
        put("changes", vec!["what may run without asking".to_owned()]);
        put("now", pretty(change.get("old")));
        put("then", pretty(change.get("new")));
    }
    put("program", executable(request));
    put(
        "files",
        list(request, "operands").iter().map(operand).collect(),
    );
    put("cwd", one("cwd"));
    put("user", vec![user(request)]);
    put("env", list(request, "env").iter().map(variable).collect());
    put("input", input(request));
    put("network", network(request));
    let limit = request
        .pointer("/limits/timeout_ms")
        .and_then(Value::as_u64);
    put("time limit", vec![limit.map_or_else(String::new, span)]);
    put("asked by", vec![requester(request)]);
    let reasons = list(request, "reasons").iter();
    put(
        "why asked",
        reasons.map(|r| clean(field(r, "text"))).collect(),
    );
    put("decided", votes(approval));
    put("plan", one("planHash"));
    rows
}

/// Who has said what and with what proof, and how many must.
fn votes(approval: &Value) -> Vec<String> {
    let said = list(approval, "votes").iter().map(|vote| {
        let proof = match field(&vote["proof"], "kind") {
            "device" => format!(
                "signed by device {}",
                clean(field(vote, "deviceId"))
                    .chars()
                    .take(12)
                    .collect::<String>()
            ),
            _ => "by its connection".to_owned(),
        };
        let own = match vote.get("selfOpened").and_then(Value::as_bool) {
            Some(true) => ", who opened it",
            _ => "",
        };
        let (word, by) = (clean(field(vote, "decision")), clean(field(vote, "by")));
        format!("{word} by {by}{own}, {proof}")
    });
    let needed = number(approval, "quorum").filter(|needed| *needed > 1);
    let needed =
        needed.map(|needed| format!("{needed} people must allow it, each with another paired key"));
    said.chain(needed).collect()
}

/// What it is about, apart from who asks: the same subject is one card.
pub fn subject(approval: &Value) -> &str {
    let request = approval.get("request").unwrap_or(&Value::Null);
    field(request, "subjectHash")
}

/// Pending questions about the very same, oldest first.
pub struct Shared<'a> {
    /// The oldest.
    pub first: &'a Value,
    /// The others.
    pub others: Vec<&'a Value>,
}

/// The cards of an `exec.approval.list`, each where its oldest question is.
pub fn cards(pending: &Value) -> Vec<Shared<'_>> {
    let mut all: Vec<Shared<'_>> = Vec::new();
    for one in pending.as_array().map_or(&[][..], Vec::as_slice) {
        let same = |card: &&mut Shared<'_>| {
            !subject(one).is_empty()
                && subject(card.first) == subject(one)
                && field(card.first, "approvalKind") == field(one, "approvalKind")
        };
        match all.iter_mut().find(same) {
            Some(card) => card.others.push(one),
            None => all.push(Shared {
                first: one,
                others: vec![],
            }),
        }
    }
    all
}

impl Shared<'_> {
    fn all(&self) -> impl Iterator<Item = &Value> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// Is this question of it?
    pub fn has(&self, id: &str) -> bool {
        self.all().any(|one| field(one, "id") == id)
    }

    /// All its questions.
    pub fn ids(&self) -> Vec<&str> {
        self.all().map(|one| field(one, "id")).collect()
    }

    /// Who asks, in which session, since when each question waits; with its id.
    pub fn requesters(&self) -> Vec<String> {
        let one = |approval: &Value| {
            let request = approval.get("request").unwrap_or(&Value::Null);
            let until = number(approval, "expiresAtMs").map_or_else(|| "?".to_owned(), left);
            format!(
                "{}  {}, session {}, {until} left",
                clean(field(approval, "id")),
                requester(request),
                clean(field(request, "sessionKey"))
            )
        };
        self.all().map(one).collect()
    }

    /// Below one question's card: who else asks for the very same, and the word for all that are shown.
    pub fn others(&self, id: &str) -> String {
        if self.others.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        for (name, value) in std::iter::once("asked by")
            .chain(std::iter::repeat(""))
            .zip(self.requesters())
        {
            let _ = writeln!(out, "  {name:<10} {value}");
        }
        let ids: Vec<String> = self.ids().into_iter().map(clean).collect();
        let _ = writeln!(
            out,
            "\n{} ask for the very same. portcullis approvals allow {} lets these run and none that comes later; allow {} that one alone",
            ids.len(),
            ids.join(" "),
            clean(id)
        );
        out
    }
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

/// A document, line by line; its texts are visible already, so JSON's own escaping of `\` is taken back.
fn pretty(document: Option<&Value>) -> Vec<String> {
    let text = document.and_then(|d| serde_json::to_string_pretty(d).ok());
    text.map_or_else(Vec::new, |text| {
        text.lines()
            .map(|l| clean(&l.replace("\\\\", "\\")))
            .collect()
    })
}

/// A line per file that runs.
fn executable(request: &Value) -> Vec<String> {
    let Some(program) = request.get("executable") else {
        return Vec::new();
    };
    let none = Value::Null;
    let at = |key: &str| file(program.get(key).unwrap_or(&none));
    match field(program, "kind") {
        "host" => vec![at("file")],
        "host-script" => {
            let argument = match field(program, "argument") {
                "" => String::new(),
                argument => format!("  with {}", token(argument)),
            };
            vec![
                at("file"),
                format!("read by {}{argument}", at("interpreter")),
            ]
        }
        "workspace" => vec![format!("{}  (the agent can write it)", file(program))],
        "image" => vec![format!("{}  (of the box's image)", file(program))],
        "node" => vec![format!("{}  (unverified: as the node says)", file(program))],
        other => vec![format!("{}  ({})", file(program), clean(other))],
    }
}

/// A word of the arguments that names something, and how that is kept.
fn operand(operand: &Value) -> String {
    let how = match field(operand, "held") {
        "copied" => "this text is handed over as a copy".to_owned(),
        "checked" => "compared again before the start".to_owned(),
        _ => format!("NOT KEPT, {}: it can change", clean(field(operand, "why"))),
    };
    let index = number(operand, "argvIndex").map_or_else(|| "?".to_owned(), |n| n.to_string());
    format!("argv[{index}] is {}  ({how})", file(operand))
}

fn file(file: &Value) -> String {
    let mut text = clean(field(file, "path"));
    let digest = ["sha256", "claimedSha256", "digest"]
        .into_iter()
        .map(|key| field(file, key))
        .find(|digest| !digest.is_empty());
    if let Some(digest) = digest {
        let _ = write!(
            text,
            "  sha256 {}",
            clean(digest.trim_start_matches("sha256:"))
        );
    }
    text.trim_start().to_owned()
}

fn user(request: &Value) -> String {
    let user = request.get("user").unwrap_or(&Value::Null);
    let mut text = String::new();
    if let (Some(uid), Some(gid)) = (number(user, "uid"), number(user, "gid")) {
        let _ = write!(text, "uid {uid} gid {gid}");
    }
    let groups = list(user, "groups").iter().map(ToString::to_string);
    let groups: Vec<String> = groups.collect();
    if !groups.is_empty() {
        let _ = write!(text, " groups {}", clean(&groups.join(" ")));
    }
    text
}

fn variable(variable: &Value) -> String {
    let name = clean(field(variable, "name"));
    match variable.get("value").and_then(Value::as_str) {
        Some(value) => format!("{name}={}", token(value)),
        // A secret travels by name and version only.
        None => format!(
            "{name}=secret {} version {}",
            clean(field(variable, "secret")),
            number(variable, "version").unwrap_or_default()
        ),
    }
}

/// What is open for later. Nothing where that is nothing: most commands take none.
fn input(request: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let tty = request.get("tty").unwrap_or(&Value::Null);
    if let (Some(rows), Some(cols)) = (number(tty, "rows"), number(tty, "cols")) {
        lines.push(format!("on a terminal of {rows} rows, {cols} columns"));
    }
    if field(request, "stdin") == "open" {
        lines.push("OPEN: what is piped or typed into it later is not known now".to_owned());
    }
    lines
}

fn requester(request: &Value) -> String {
    let by = request.get("requestedBy").unwrap_or(&Value::Null);
    match field(by, "principal") {
        "" => String::new(),
        who => format!(
            "{} over {}, connection {}",
            clean(who),
            clean(field(by, "door")),
            clean(field(by, "connection"))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::approval::Record;
    use portcullis_core::approval::record_json;
    use serde_json::json;

    /// As the gateway sends it: made by what makes it there.
    fn sent(subject: &Value) -> Value {
        let hash = "ab".repeat(32);
        let record: Record = serde_json::from_value(json!({
            "v": 1, "id": "a1", "status": "pending", "idempotency_key": null, "subject": subject,
            "requester": {"name": "uid:7", "role": "operator", "device": null, "agent": null, "connection": "c-1", "door": "control"},
            "plan_hash": hash, "subject_hash": hash, "reasons": [{"id": "host", "text": "outside the sandbox"}],
            "may_always": false, "created": 0, "expires": 0, "resolution": null, "used_by": null,
        }))
        .unwrap();
        record_json(&record)
    }

    fn plan(argv: &[&str], executable: &Value) -> Value {
        json!({"exec": {
            "v": 1, "target": "host", "agent": "demo", "session": "s1", "principal": "uid:7", "argv": argv,
            "executable": executable, "cwd": "/w\u{202e}", "uid": 65534, "gid": 65533, "groups": [27, 44],
            "env": {"A": {"plain": "b \"c\"\\"}, "KEY": {"secret": {"name": "API_KEY", "version": 3}}},
            "stdin": "none", "tty": false, "egress": "none", "profile_digest": "cd".repeat(32),
            "limits": {"timeout_ms": 30_000, "output_bytes": 1, "memory_bytes": null, "cpu_millis": null, "pids": null},
            "nonce": "ef".repeat(16),
        }})
    }

    fn on_host(path: &str, digit: &str) -> Value {
        json!({"path": path, "dev": 1, "ino": 2, "sha256": digit.repeat(64)})
    }

    #[test]
    fn the_hosts_that_it_may_reach_are_shown_one_a_line() {
        let shown = card(
            &json!({"request": {"egress": {"hosts": ["a.example:443", "b.example:443\u{1b}"]}}}),
        );
        assert!(shown.contains("network    a.example:443\n"), "{shown}");
        assert!(
            shown.contains("           b.example:443\\u{1b}\n"),
            "{shown}"
        );
        let shown = card(&json!({"request": {"egress": "none"}}));
        assert!(shown.contains("network    none\n"), "{shown}");
    }

    #[test]
    fn who_has_decided_and_how_many_must_is_shown() {
        let card = card(&json!({"quorum": 2, "votes": [
            {"decision": "allow-once", "by": "uid:7\u{1b}", "selfOpened": true, "deviceId": "ab".repeat(32), "proof": {"kind": "device"}},
            {"decision": "deny", "by": "token", "selfOpened": false, "deviceId": null, "proof": {"kind": "session"}}]}));
        for part in [
            "allow-once by uid:7\\u{1b}, who opened it, signed by device abababababab\n",
            "deny by token, by its connection\n",
            "2 people must allow it",
        ] {
            assert!(card.contains(part), "{part}: {card}");
        }
    }

    #[test]
    fn what_a_word_names_is_shown_with_how_it_is_kept() {
        let card = card(&json!({"request": {"argv": ["sh", "/t/x"], "operands": [
            {"argvIndex": 1, "path": "/t/x\u{1b}", "sha256": "ab", "held": "copied"},
            {"argvIndex": 2, "path": "/srv", "held": "not-kept", "why": "a folder"},
            {"argvIndex": 3, "path": "/t/y", "sha256": "cd", "held": "checked"}]}}));
        for part in [
            "argv[1] is /t/x",
            "sha256 ab  (this text is handed over",
            "argv[2] is /srv  (NOT KEPT, a folder",
            "sha256 cd  (compared again",
        ] {
            assert!(card.contains(part), "{part}: {card}");
        }
        assert!(!card.contains('\u{1b}'), "{card}");
    }

    #[test]
    fn the_frozen_plan_itself_is_shown_whole() {
        let script = json!({"host-script": {
            "script": on_host("/w/x.py", "1"), "interpreter": on_host("/usr/bin/python3", "2"), "argument": "-I",
        }});
        let shown = card(&sent(&plan(&["x.py"], &script)));
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        for part in [
            "agent      demo\n",
            "on the host, outside the sandbox",
            "\"x.py\"",
            &format!("/w/x.py  sha256 {one}\n"),
            &format!("read by /usr/bin/python3  sha256 {two}  with \"-I\"\n"),
            "cwd        /w\\u{202e}\n",
            "uid 65534 gid 65533 groups 27 44",
            "env        A=\"b \\\"c\\\"\\\\\"\n             KEY=secret API_KEY version 3\n",
            "network    none",
            "30 s",
            "uid:7 over control, connection c-1",
            "outside the sandbox",
            &"ab".repeat(32),
            "0:00 left",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn open_input_and_a_terminal_are_shown_and_nothing_where_there_is_none() {
        let program = json!({"image": {"digest": "d", "path": "sh"}});
        let mut open = plan(&["sh"], &program);
        assert!(!card(&sent(&open)).contains("input"));
        open["exec"]["stdin"] = "open".into();
        open["exec"]["tty"] = json!({"rows": 24, "cols": 80});
        let shown = card(&sent(&open));
        for part in [
            "input      on a terminal of 24 rows, 80 columns\n",
            "OPEN: what is piped or typed",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn every_token_stands_alone_and_nothing_hides() {
        let argv = [
            "/bin/sh",
            "-c",
            "echo a; rm -rf /\n# \u{1b}[2K\u{202e}",
            "\\u{202e}",
        ];
        let program = json!({"host": on_host("/bin/sh", "a")});
        let approval = sent(&plan(&argv, &program));
        let shown = card(&approval);
        let tokens = [
            "argv       \"/bin/sh\"\n",
            "             \"-c\"\n",
            "             \"echo a; rm -rf /\\n# \\u{1b}[2K\\u{202e}\"\n",
            // What only looks like an escape is told from one.
            "             \"\\\\u{202e}\"\n",
        ];
        assert!(shown.contains(&tokens.concat()), "{shown}");
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
        assert_eq!(
            line(&approval["request"]),
            r#"/bin/sh -c "echo a; rm -rf /\n# \u{1b}[2K\u{202e}" "\\u{202e}""#
        );
    }

    #[test]
    fn a_change_of_policy_shows_what_was_and_what_would_be() {
        let change = json!({"policy": {"base": "ab".repeat(32), "old": {"agents": {}}, "new": {"agents": {"x": ["rm\u{202e}"]}}}});
        let shown = card(&sent(&change));
        for part in ["now        {\n", "then       {\n", "\"rm\\u{202e}\""] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn the_very_same_is_one_card_and_anything_else_is_its_own() {
        let one = |id: &str, subject: &str, kind: &str| {
            json!({ "id": id, "approvalKind": kind, "expiresAtMs": 0, "request": {
                "subjectHash": subject, "sessionKey": "s",
                "requestedBy": { "principal": "uid:7", "door": "control", "connection": id },
            } })
        };
        let pending = json!([
            one("a", "1", "exec"),
            one("b", "2", "exec"),
            one("c", "1", "exec"),
            one("d", "1", "egress"),
            one("e", "", "exec"),
            one("f", "", "exec"),
        ]);
        let all = cards(&pending);
        let ids: Vec<Vec<&str>> = all.iter().map(Shared::ids).collect();
        assert_eq!(
            ids,
            [vec!["a", "c"], vec!["b"], vec!["d"], vec!["e"], vec!["f"]]
        );
        let text = all[0].others("c");
        assert!(
            text.contains("a  uid:7 over control, connection a"),
            "{text}"
        );
        assert!(text.contains("approvals allow a c lets"), "{text}");
        assert_eq!(all[1].others("b"), "");
    }
}
