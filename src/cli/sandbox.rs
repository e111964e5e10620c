//! `portcullis sandbox`.

use std::fmt::Write as _;

use portcullis_core::auth::Scope;
use serde_json::{Value, json};

use super::args::Sandbox;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::text::{clean, table};
use crate::show::value::{field, list, number};

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Sandbox, out: Out) -> Result<u8, Failure> {
    let agent = match what {
        Sandbox::Explain { agent } => agent,
        Sandbox::List => return boxes(door, out).await,
        Sandbox::End { id } => return end(door, id, out).await,
        Sandbox::Cp(copy) => return super::copy::run(door, copy, out).await,
        Sandbox::Selftest { agent } => return super::selftest::run(door, agent, out).await,
        Sandbox::Image(_) => {
            let why = "images are the engine's matter, not the gateway's";
            return Err(Failure::of(portcullis_core::codes::INTERNAL, why));
        }
    };
    let mut client = Client::connect(door, &[Scope::Read], &[]).await?;
    let params = match agent {
        Some(agent) => json!({ "agent": agent }),
        None => json!({}),
    };
    let answer = client.call("sandbox.explain", params).await?;
    client.close().await;
    out.both(&answer, || shown(&answer))?;
    Ok(0)
}

async fn boxes(door: &Door, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Read], &[]).await?;
    let answer = client.call("sandbox.list", json!({})).await?;
    client.close().await;
    out.both(&answer, || listed(&answer))?;
    Ok(0)
}

/// One line for each box.
fn listed(answer: &Value) -> String {
    let row = |one: &Value| {
        let (scope, by) = (field(one, "scope"), field(one, "sessionOf"));
        let session = match (scope, field(one, "session")) {
            ("session", "") => format!("a connection of {by}"),
            ("session", name) => format!("{name} of {by}"),
            _ => String::new(),
        };
        vec![
            field(one, "id").to_owned(),
            if scope.is_empty() {
                "kept ready"
            } else {
                scope
            }
            .to_owned(),
            field(one, if scope == "shared" { "share" } else { "agent" }).to_owned(),
            field(one, "driver").to_owned(),
            field(one, "state").to_owned(),
            number(one, "runs").unwrap_or_default().to_string(),
            session,
        ]
    };
    let rows: Vec<_> = list(answer, "boxes").iter().map(row).collect();
    if rows.is_empty() {
        return "no sandbox; an agent's next run makes one\n".to_owned();
    }
    let head = ["ID", "SCOPE", "WHOSE", "DRIVER", "STATE", "RUNS", "SESSION"];
    table(&head, &rows)
}

async fn end(door: &Door, id: &str, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    let answer = client.call("sandbox.end", json!({ "id": id })).await?;
    client.close().await;
    out.both(&answer, || {
        format!("{}: ended\n", clean(field(&answer, "ended")))
    })?;
    Ok(0)
}

fn shown(answer: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<10} {value}");
        }
    };
    let or = |text: &str, otherwise: &str| {
        if text.is_empty() {
            otherwise.to_owned()
        } else {
            clean(text)
        }
    };
    put(
        "agent",
        or(
            field(answer, "agent"),
            "any that has no [agents.NAME.sandbox]",
        ),
    );
    put("profile", clean(field(answer, "profile")));
    let weaker = if answer["weaker"] == true {
        ", WEAKER than the profile takes"
    } else {
        ""
    };
    let isolation = match field(answer, "isolation") {
        "" => String::new(),
        isolation => format!(" (isolation {}{weaker})", clean(isolation)),
    };
    put(
        "driver",
        format!("{}{isolation}", or(field(answer, "driver"), "none")),
    );
    put("", clean(field(answer, "driverWhy")));
    put("image", clean(field(answer, "imageDigest")));
    put("hash", clean(field(answer, "profileHash")));
    let refused = &answer["refused"];
    if refused.is_object() {
        put(
            "REFUSED",
            format!(
                "{}: {}",
                clean(field(refused, "code")),
                clean(field(refused, "message"))
            ),
        );
        put("next", clean(field(refused, "next")));
    }
    let shared = &answer["shared"];
    if shared.is_object() {
        let mut agents: Vec<String> = list(shared, "agents")
            .iter()
            .filter_map(Value::as_str)
            .map(clean)
            .collect();
        if shared["others"] == true {
            agents.push("EVERY AGENT THAT HAS NO SECTION OF ITS OWN".to_owned());
        }
        put(
            "SHARED",
            format!(
                "{:?} IS ONE BOX OF {}",
                clean(field(shared, "name")),
                agents.join(", ")
            ),
        );
        put(
            "",
            "each can read, change and end what the others do in it; it has what all of them may have and no more".to_owned(),
        );
    }
    let rows: Vec<Vec<String>> = list(answer, "lines")
        .iter()
        .map(|line| {
            let value = match &line["value"] {
                Value::Array(names) if names.is_empty() => "none".to_owned(),
                Value::Array(names) => names
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(" "),
                Value::String(word) if word.is_empty() => "the driver's own".to_owned(),
                Value::String(word) => word.clone(),
                other => other.to_string(),
            };
            vec![
                field(line, "key").to_owned(),
                value,
                field(line, "from").to_owned(),
            ]
        })
        .collect();
    out.push('\n');
    out.push_str(&table(&["LIMIT", "VALUE", "DECIDED BY"], &rows));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_names_who_decided_and_a_weaker_driver_is_said_loudly() {
        let answer = json!({
            "agent": "demo", "profile": "restricted", "driver": "native", "driverWhy": "bubblewrap", "isolation": "native",
            "weaker": true, "imageDigest": null, "profileHash": null,
            "refused": { "code": "ISOLATION_TOO_WEAK", "message": "m", "next": "n" },
            "lines": [
                { "key": "pids", "value": 128, "from": "[agents.demo.sandbox]" },
                { "key": "image", "value": "", "from": "profile restricted" },
                { "key": "env", "value": [], "from": "[sandbox]" },
                { "key": "env", "value": ["A", "B_*"], "from": "\u{1b}[2J" },
            ],
        });
        let text = shown(&answer);
        for wanted in [
            "driver     native (isolation native, WEAKER than the profile takes)",
            "REFUSED    ISOLATION_TOO_WEAK: m",
            "next       n",
            "pids   128               [agents.demo.sandbox]",
            "image  the driver's own  profile restricted",
            "env    none              [sandbox]",
            "A B_*",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains('\u{1b}'));
        assert!(!text.contains("SHARED"));
        let text = shown(&json!({
            "profile": "restricted", "lines": [],
            "shared": { "name": "team", "agents": ["a", "b"], "others": true },
        }));
        let wanted =
            "SHARED     \"team\" IS ONE BOX OF a, b, EVERY AGENT THAT HAS NO SECTION OF ITS OWN";
        assert!(text.contains(wanted), "{text}");
        let text = shown(&json!({ "profile": "restricted", "lines": [] }));
        assert!(
            text.contains("driver     none\n") && text.contains("agent      any"),
            "{text}"
        );
    }
}
