//! `portcullis policy`: which commands run without a question, and what would be said of one.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::plan::{HOST_PATH, Target};
use portcullis_core::policy::shell::Unclear;
use portcullis_core::policy::{
    Document, Finding, Judgement, Reason, Resolved, Rules, Ruling, Standing, judge, lint, preview,
};
use portcullis_core::time::Millis;
use serde_json::{Value, json};

use super::approvals::{pretty, read};
use super::args::{Place, Policy, PolicyTest};
use super::devices::find as find_node;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::config;
use crate::show::text::{clean, now_ms, table};
use crate::show::value::{field, list};

/// Whose agent it is, where nobody says: as the gateway's.
const AGENT: &str = "main";

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(
    door: impl FnOnce() -> Result<Door, Failure>,
    state: impl FnOnce() -> Result<PathBuf, Failure>,
    what: &Policy,
    out: Out,
) -> Result<u8, Failure> {
    match what {
        Policy::Test(test) => {
            let answer = match (words(test), &test.document) {
                (None, _) => no_text(),
                (Some(argv), Some(document)) => here(&state()?, document, test, &argv)?,
                (Some(argv), None) => {
                    let door = door()?;
                    let mut params = place(&door, &test.place).await?;
                    params["argv"] = json!(argv);
                    if let Some(cwd) = &test.cwd {
                        params["cwd"] = json!(cwd);
                    }
                    asked(&door, "exec.policy.test", params).await?
                }
            };
            out.both(&answer, || judged(&answer))?;
        }
        Policy::Explain(whose) => {
            let door = door()?;
            let params = place(&door, whose).await?;
            let answer = asked(&door, "exec.policy.explain", params).await?;
            out.both(&answer, || explained(&answer))?;
        }
        Policy::Lint { file } => {
            let value = if let Some(file) = file {
                read(file)?
            } else {
                let mut answer = asked(&door()?, "exec.approvals.get", json!({})).await?;
                answer["file"].take()
            };
            let document = Document::parse(value)
                .map_err(|error| Failure::of(codes::INVALID_PARAMS, error.to_string()))?;
            let found = lint(&document, Millis(now_ms()));
            let answer = json!({ "findings": found });
            out.both(&answer, || findings(&found))?;
        }
        Policy::Show => {
            let answer = asked(&door()?, "exec.approvals.get", json!({})).await?;
            out.both(&answer, || pretty(&answer))?;
        }
        Policy::Set { file } => {
            let mut client = Client::connect(&door()?, &[Scope::Admin], &[]).await?;
            let now = client.call("exec.approvals.get", json!({})).await?;
            let mut params = json!({ "file": read(file)? });
            if now.get("exists") != Some(&Value::Bool(false)) {
                params["baseHash"] = json!(field(&now, "hash"));
            }
            // One that frees something is refused with CHANGE_WAITS, which says who answers it and how.
            let answer = client.call("exec.approvals.set", params).await?;
            client.close().await;
            out.both(&answer, || pretty(&answer))?;
        }
    }
    Ok(0)
}

pub(super) async fn asked(door: &Door, method: &str, params: Value) -> Result<Value, Failure> {
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    let answer = client.call(method, params).await?;
    client.close().await;
    Ok(answer)
}

/// A node is named by the beginning of its id, as everywhere.
pub(super) async fn place(door: &Door, place: &Place) -> Result<Value, Failure> {
    let mut target = target(place);
    if let Target::Node(id) = &target {
        let nodes = asked(door, "node.list", json!({})).await?;
        let node = find_node(list(&nodes, "nodes"), "nodeId", id)?;
        target = Target::Node(field(node, "nodeId").to_owned());
    }
    let mut params = json!({ "target": target.word() });
    if let Some(agent) = &place.agent {
        params["agent"] = json!(agent);
    }
    Ok(params)
}

fn target(place: &Place) -> Target {
    match &place.node {
        Some(node) => Target::Node(node.clone()),
        None if place.sandbox => Target::Sandbox,
        None => Target::Host,
    }
}

/// The words of the command; nothing, if they are no text.
fn words(test: &PolicyTest) -> Option<Vec<String>> {
    let text = |word: &OsString| word.to_str().map(str::to_owned);
    match &test.shell {
        Some(line) => Some(vec!["sh".to_owned(), "-c".to_owned(), text(line)?]),
        None => test.argv.iter().map(text).collect(),
    }
}

/// No plan says what is no text, so no run of it begins.
fn no_text() -> Value {
    let why = Unclear::NotUtf8;
    json!(Judgement {
        verdict: Ruling::Deny,
        rule: "plan".to_owned(),
        reasons: vec![Reason {
            id: why.id().to_owned(),
            text: why.text().to_owned(),
        }],
        commands: Vec::new(),
    })
}

/// Without a gateway: by a document in a file, the state's configuration, and what lies on this machine.
fn here(
    state: &Path,
    document: &Path,
    test: &PolicyTest,
    argv: &[String],
) -> Result<Value, Failure> {
    let path = state.join("config.toml");
    let loaded = config::load(&path, config::environment(), &[])
        .map_err(|error| super::config::failure(&error))?;
    let name = test.place.agent.as_deref().unwrap_or(AGENT);
    let agent = AgentId::new(name)
        .map_err(|error| Failure::of(codes::INVALID_PARAMS, format!("--agent: {error}")))?;
    let policy = crate::tree::agent_policy(&loaded.config, &agent);
    let document = Document::parse(read(document)?)
        .map_err(|error| Failure::of(codes::INVALID_PARAMS, error.to_string()))?;
    let rules = Rules {
        agent: policy,
        document: Standing::Valid(&document),
        now: Millis(now_ms()),
    };
    let target = target(&test.place);
    let cwd = test.cwd.as_deref().unwrap_or("/");
    let plan = preview(&agent, &target, argv, cwd, &find);
    let plan = plan.ok_or_else(|| {
        let name = argv.first().map_or("", String::as_str);
        Failure::of(
            codes::COMMAND_NOT_FOUND,
            format!("{}: command not found", clean(name)),
        )
    })?;
    let mut answer = json!(judge(&rules, &plan, None));
    answer["agent"] = json!(agent);
    answer["target"] = target.word().into();
    Ok(answer)
}

/// What a name stands for on this machine.
fn find(name: &str) -> Option<Resolved> {
    let asked = if name.starts_with('/') {
        PathBuf::from(name)
    } else if name.contains('/') {
        return None;
    } else {
        let mut folders = HOST_PATH
            .split(':')
            .map(|folder| Path::new(folder).join(name));
        folders.find(|path| {
            path.metadata()
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })?
    };
    let path = asked.canonicalize().ok()?;
    let is_roots = |path: &Path| {
        path.metadata()
            .is_ok_and(|data| data.uid() == 0 && data.mode() & 0o022 == 0)
    };
    let fixed = path.ancestors().all(is_roots) && asked.ancestors().skip(1).all(is_roots);
    let path = path.to_str()?.to_owned();
    Some(Resolved { path, fixed })
}

fn reasons(answer: &Value, out: &mut String) {
    for reason in list(answer, "reasons") {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "  {}: {}",
            clean(field(reason, "id")),
            clean(field(reason, "text"))
        );
    }
}

fn judged(answer: &Value) -> String {
    let mut out = format!(
        "{}, by {}\n",
        clean(field(answer, "verdict")),
        clean(field(answer, "rule"))
    );
    reasons(answer, &mut out);
    let row = |one: &Value| {
        let words: Vec<String> = list(one, "argv")
            .iter()
            .map(|w| w.as_str().unwrap_or_default().to_owned())
            .collect();
        vec![
            field(one, "verdict").to_owned(),
            portcullis_core::display::command_line(&words),
            field(one, "path").to_owned(),
            field(one, "rule").to_owned(),
        ]
    };
    let rows: Vec<_> = list(answer, "commands").iter().map(row).collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["", "COMMAND", "FILE", "RULE"], &rows));
    }
    out
}

fn explained(answer: &Value) -> String {
    let mut out = format!(
        "agent {}, {}: what is listed: {}; what is not: {}\n\n",
        clean(field(answer, "agent")),
        clean(field(answer, "target")),
        clean(field(answer, "listed")),
        clean(field(answer, "other")),
    );
    let row = |one: &Value| {
        ["rule", "listed", "other"]
            .map(|key| field(one, key).to_owned())
            .to_vec()
    };
    let rows: Vec<_> = list(answer, "sources").iter().map(row).collect();
    out.push_str(&table(&["SOURCE", "LISTED", "OTHER"], &rows));
    for (key, head) in [("allow", "LISTED"), ("deny", "REFUSED")] {
        let row = |one: &Value| {
            let args = one.get("args").filter(|args| !args.is_null());
            let args = args.map(ToString::to_string).unwrap_or_default();
            vec![
                field(one, "id").to_owned(),
                field(one, "pattern").to_owned(),
                args,
            ]
        };
        let rows: Vec<_> = list(answer, key).iter().map(row).collect();
        if !rows.is_empty() {
            out.push('\n');
            out.push_str(&table(&[head, "PATTERN", "ARGUMENTS"], &rows));
        }
    }
    for finding in list(answer, "findings") {
        let _ = writeln!(
            out,
            "\n{} {}: {}",
            clean(field(finding, "entry")),
            clean(field(finding, "id")),
            clean(field(finding, "text"))
        );
    }
    out
}

fn findings(found: &[Finding]) -> String {
    if found.is_empty() {
        return "nothing was found\n".to_owned();
    }
    let row = |one: &Finding| {
        vec![
            one.agent.clone(),
            one.entry.clone().unwrap_or_default(),
            one.id.to_owned(),
            one.text.clone(),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    table(&["AGENT", "ENTRY", "FINDING", ""], &rows)
}
