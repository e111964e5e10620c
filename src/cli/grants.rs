//! `portcullis grants`: what runs without asking, in one list, and the way to take any of it back.

use portcullis_core::approval::Similar;
use portcullis_core::auth::Scope;
use portcullis_core::display::command_line;
use portcullis_core::plan::Target;
use serde_json::{Value, json};

use super::args::{Grants, GrantsTest};
use super::failure::Failure;
use super::out::Out;
use super::policy::{asked, place};
use crate::client::{Client, Door};
use crate::show::text::{clean, table, utc};
use crate::show::value::{field, list, number};

/// Whose agent it is, where nobody says: as the gateway's.
const AGENT: &str = "main";

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Grants, out: Out) -> Result<u8, Failure> {
    match what {
        Grants::List => {
            let ledger = ledger(door).await?;
            out.both(&ledger, || listing(&ledger))?;
        }
        Grants::Revoke { id } => {
            let answer = revoke(door, id).await?;
            out.both(&answer, || format!("{} is taken back\n", clean(id)))?;
        }
        Grants::Test(test) => {
            let answer = covered(door, test).await?;
            out.both(&answer, || told(&answer))?;
        }
    }
    Ok(0)
}

/// An entry is of the document, which only an admin changes.
pub(super) async fn revoke(door: &Door, id: &str) -> Result<Value, Failure> {
    let scope = if id.starts_with("list:") {
        Scope::Admin
    } else {
        Scope::Approvals
    };
    let mut client = Client::connect(door, &[scope], &[]).await?;
    let params = json!({ "grantId": id });
    let answer = client.call("exec.approval.grants.revoke", params).await?;
    client.close().await;
    Ok(answer)
}

async fn ledger(door: &Door) -> Result<Value, Failure> {
    let mut client = Client::connect(door, &[Scope::Approvals], &[]).await?;
    let ledger = client.call("exec.approval.grants.list", json!({})).await?;
    client.close().await;
    Ok(ledger)
}

fn used(one: &Value) -> [String; 2] {
    let count = number(one, "useCount").unwrap_or_default().to_string();
    let last = number(one, "lastUsedAtMs").map_or_else(|| "never".to_owned(), utc);
    [count, last]
}

/// What it covers, in words.
fn what(one: &Value) -> String {
    match field(one, "kind") {
        "entry" => {
            let args = one.pointer("/args/args").and_then(Value::as_array);
            let args = match args {
                Some(args) => {
                    let words = args.iter().filter_map(Value::as_str).map(str::to_owned);
                    let words: Vec<String> = words.collect();
                    command_line(&words)
                }
                None if one["args"].is_null() => "(any arguments)".to_owned(),
                None => one["args"].to_string(),
            };
            clean(format!("{} {args}", field(one, "pattern")).trim_end())
        }
        "mode" => "every command".to_owned(),
        _ => format!(
            "{}  in {}",
            clean(field(one, "command")),
            clean(field(one, "cwd"))
        ),
    }
}

fn targets(one: &Value) -> String {
    match one.get("targets").and_then(Value::as_array) {
        Some(all) => {
            let words: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
            words.join(" ")
        }
        None => clean(field(one, "target")),
    }
}

fn id(one: &Value) -> String {
    let id = match field(one, "grantId") {
        "" => field(one, "id"),
        id => id,
    };
    clean(id)
}

fn listing(ledger: &Value) -> String {
    let of = |name: &str| list(ledger, name).to_vec();
    let all = [of("grants"), of("entries"), of("modes")].concat();
    if all.is_empty() {
        return "nothing runs without asking\n".to_owned();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|one| {
            let [count, last] = used(one);
            let until = number(one, "expiresAtMs").map_or_else(|| "revoked".to_owned(), utc);
            vec![
                id(one),
                clean(field(one, "agentId")),
                targets(one),
                count,
                last,
                until,
                what(one),
            ]
        })
        .collect();
    let mut out = table(
        &["ID", "AGENT", "WHERE", "USES", "LAST", "UNTIL", "WHAT"],
        &rows,
    );
    out.push_str("\nportcullis grants revoke ID takes one back; of the configuration (config:…) it says what to write there\n");
    out
}

/// By the words: a grant holds for the same program file, user and variables too, which only a run shows.
async fn covered(door: &Door, test: &GrantsTest) -> Result<Value, Failure> {
    let agent = test.place.agent.as_deref().unwrap_or(AGENT);
    let target = match &test.place.node {
        Some(node) => Target::Node(node.clone()),
        None if test.place.sandbox => Target::Sandbox,
        None => Target::Host,
    };
    let (ledger, target) = (ledger(door).await?, target.word());
    let line = command_line(&test.argv);
    let by_words = |grant: &Value| {
        let rule: Result<Similar, _> = serde_json::from_value(grant["similar"].clone());
        match rule {
            Ok(rule) => rule.takes(&test.argv),
            Err(_) => field(grant, "command") == line,
        }
    };
    let is_it = |grant: &&Value| {
        field(grant, "agentId") == agent
            && field(grant, "target") == target
            && by_words(grant)
            && (test.cwd.as_deref()).is_none_or(|cwd| field(grant, "cwd") == cwd)
    };
    let grants: Vec<&Value> = list(&ledger, "grants").iter().filter(is_it).collect();
    let mut params = place(door, &test.place).await?;
    params["argv"] = json!(test.argv);
    if let Some(cwd) = &test.cwd {
        params["cwd"] = json!(cwd);
    }
    let judged = asked(door, "exec.policy.test", params).await?;
    let rule = field(&judged, "rule").to_owned();
    let allowed = field(&judged, "verdict") == "allow";
    let names: Vec<&str> = rule
        .strip_prefix("list:")
        .unwrap_or("")
        .split('+')
        .collect();
    let entries: Vec<&Value> = list(&ledger, "entries")
        .iter()
        .filter(|entry| allowed && field(entry, "agentId") == agent)
        .filter(|entry| {
            let own = field(entry, "id").strip_prefix("list:");
            let own = own.and_then(|own| own.strip_prefix(agent)?.strip_prefix(':'));
            own.is_some_and(|own| names.contains(&own) || rule == format!("list:{own}"))
        })
        .collect();
    // A grant lets run what is asked about; it does nothing where policy refuses.
    let grants = if field(&judged, "verdict") == "deny" {
        vec![]
    } else {
        grants
    };
    Ok(json!({
        "covered": allowed || !grants.is_empty(),
        "verdict": field(&judged, "verdict"),
        "rule": rule,
        "grants": grants,
        "entries": entries,
    }))
}

fn told(answer: &Value) -> String {
    let mut out = String::new();
    let mut put = |line: String| {
        out.push_str(&line);
        out.push('\n');
    };
    for one in list(answer, "grants").iter().chain(list(answer, "entries")) {
        let [count, last] = used(one);
        put(format!(
            "{} covers it: {} (used {count} times, last {last})",
            id(one),
            what(one)
        ));
    }
    if !list(answer, "grants").is_empty() {
        put(
            "a grant is for the same program file, folder, user, limits and variables as then"
                .to_owned(),
        );
    }
    let verdict = field(answer, "verdict");
    match (verdict, field(answer, "rule")) {
        ("allow", rule) if list(answer, "entries").is_empty() => {
            put(format!("{} lets it run", clean(rule)));
        }
        ("allow", _) => {}
        ("deny", rule) => put(format!("nothing lets it run: {} refuses it", clean(rule))),
        (_, rule) if list(answer, "grants").is_empty() => {
            put(format!("nothing covers it: {} asks", clean(rule)));
        }
        _ => {}
    }
    out
}
