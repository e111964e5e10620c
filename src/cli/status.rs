//! `portcullis status`, `dashboard`, `version`.

use std::fmt::Write as _;

use portcullis_core::auth::Scope;
use portcullis_core::protocol::limits::PROTOCOL;
use serde_json::{Value, json};

use super::failure::Failure;
use super::out::{Out, note};
use crate::client::{Client, Door, seen};
use crate::show::text::{clean, left, span, table};
use crate::show::value::{field, list, number, secret};

/// Exit code of a gateway that runs but has a room down.
const DEGRADED: u8 = 8;

/// 0 when all rooms serve, 8 when one does not, 7 when there is no gateway.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Read], &[]).await?;
    let mut status = client.call("status", json!({})).await?;
    let compared = seen::compare(&mut client, door).await;
    client.close().await;
    if let (Some(key), Some(ours)) = (compared?, status.get_mut("portcullis")) {
        ours["auditFirstKey"] = key.into();
    }
    out.both(&status, || shown(&status))?;
    Ok(if healthy(&status) { 0 } else { DEGRADED })
}

fn ours(status: &Value) -> &Value {
    status.get("portcullis").unwrap_or(&Value::Null)
}

fn healthy(status: &Value) -> bool {
    let rooms = list(ours(status), "rooms");
    field(ours(status), "auditError").is_empty()
        && !rooms.is_empty()
        && rooms
            .iter()
            .all(|r| matches!(field(r, "state"), "up" | "waiting"))
}

fn shown(status: &Value) -> String {
    let ours = ours(status);
    let mut out = format!(
        "portcullis {}, up {}, {}\n",
        clean(field(status, "runtimeVersion")),
        span(number(ours, "uptimeMs").unwrap_or_default()),
        match field(ours, "auditError") {
            "" if healthy(status) => "all rooms serve",
            "" => "DEGRADED",
            _ => "DEGRADED: nothing can be recorded, so nothing is done",
        },
    );
    // Writing to a String cannot fail.
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<10} {value}");
        }
    };
    let listeners: Vec<String> = list(ours, "listeners")
        .iter()
        .map(|l| clean(l.as_str().unwrap_or_else(|| field(l, "address"))))
        .collect();
    put("listens", listeners.join("  "));
    if let Some(tls) = ours.get("tls").filter(|tls| tls.is_object()) {
        put("pin", clean(field(tls, "spkiSha256")));
        put("tls", clean(field(tls, "reloadError")));
    }
    if let Some(driver) = ours.get("driver") {
        let (name, detail) = (field(driver, "name"), field(driver, "detail"));
        let name = if name.is_empty() { "none" } else { name };
        put(
            "sandbox",
            format!("{}  {}", clean(name), clean(detail))
                .trim_end()
                .to_owned(),
        );
    }
    let others = ours.pointer("/driver/others").and_then(Value::as_array);
    for other in others.into_iter().flatten() {
        let (name, why) = (field(other, "driver"), field(other, "why"));
        let word = match (&other["isProven"], &other["isTrying"]) {
            (Value::Bool(true), _) | (_, Value::Bool(true)) => "",
            _ => "NOT USABLE: ",
        };
        put(
            "",
            format!("{} (some agents)  {word}{}", clean(name), clean(why)),
        );
    }
    if let Some(runner) = ours.pointer("/driver/runner").filter(|r| r.is_object()) {
        put("runner", runner_line(runner));
    }
    if let Some(pending) = ours.get("pending") {
        let count = |key| number(pending, key).unwrap_or_default();
        let mut line = format!(
            "{} devices, {} approvals",
            count("devices"),
            count("approvals")
        );
        if count("devices") > 0 {
            line.push_str("   portcullis devices list");
        }
        if count("approvals") > 0 {
            line.push_str("   portcullis approvals list");
        }
        put("pending", line);
    }
    put(
        "connected",
        number(ours, "connectedDevices").map_or_else(String::new, |n| format!("{n} devices")),
    );
    if let Some(head) = ours.get("auditHead").filter(|h| h.is_object()) {
        put(
            "audit",
            format!(
                "{} records, head {}",
                number(head, "seq").unwrap_or_default(),
                clean(field(head, "hash"))
            ),
        );
    }
    put("no record", clean(field(ours, "auditError")));
    if let Some(Value::Object(sinks)) = ours.get("sinks") {
        for (name, sink) in sinks {
            put("sink", sink_line(name, sink));
        }
    }
    if let Some(Value::Object(channels)) = ours.get("notices") {
        for (name, channel) in channels {
            put("notices", notice_line(name, channel));
        }
    }
    if let Some(Value::Object(plugins)) = ours.get("plugins") {
        for (name, plugin) in plugins {
            put("plugin", plugin_line(name, plugin));
        }
    }
    // For `portcullis audit verify --key`: whoever has it elsewhere needs no word of this machine's.
    put("log key", clean(field(ours, "auditFirstKey")));
    let rows: Vec<_> = list(ours, "rooms").iter().map(room).collect();
    out.push('\n');
    out.push_str(&table(
        &[
            "ROOM",
            "STATE",
            "RESTARTS",
            "QUEUE",
            "REFUSED",
            "LAST CRASH",
        ],
        &rows,
    ));
    out
}

/// The process that speaks to the container engine.
fn runner_line(runner: &Value) -> String {
    let mut line = number(runner, "pid")
        .map_or_else(|| "is being started".to_owned(), |pid| format!("pid {pid}"));
    let again = number(runner, "restarts").unwrap_or_default();
    if again > 0 {
        let said = clean(field(runner, "said"));
        let _ = write!(
            line,
            ", started again {again} times, the last time because {said}"
        );
    }
    line
}

fn sink_line(name: &str, sink: &Value) -> String {
    let n = |key: &str| number(sink, key).unwrap_or_default();
    let mut line = format!(
        "{} ({}) has record {}, {} behind",
        clean(name),
        clean(field(sink, "kind")),
        n("taken"),
        n("lag")
    );
    if n("lost") > 0 {
        let _ = write!(line, ", {} lost to retention", n("lost"));
    }
    let error = clean(field(sink, "error"));
    if !error.is_empty() {
        line.push_str(": ");
        line.push_str(&error);
    }
    line
}

fn notice_line(name: &str, channel: &Value) -> String {
    let n = |key: &str| number(channel, key).unwrap_or_default();
    let mut line = format!(
        "{} {}: {} told, {} waiting",
        clean(name),
        clean(field(channel, "to")),
        n("told"),
        n("waiting")
    );
    if n("lost") > 0 {
        let _ = write!(line, ", {} lost", n("lost"));
    }
    let error = clean(field(channel, "error"));
    if !error.is_empty() {
        line.push_str(": ");
        line.push_str(&error);
    }
    line
}

fn plugin_line(name: &str, plugin: &Value) -> String {
    let (path, state) = (clean(field(plugin, "path")), clean(field(plugin, "state")));
    let error = clean(field(plugin, "error"));
    let line = format!("{} {path}: {state} {error}", clean(name));
    line.trim_end().to_owned()
}

fn room(room: &Value) -> Vec<String> {
    let gate = room.get("gate").unwrap_or(&Value::Null);
    let n = |v: &Value, key: &str| number(v, key).unwrap_or_default();
    vec![
        field(room, "name").to_owned(),
        field(room, "state").to_owned(),
        n(room, "restarts").to_string(),
        format!("{}/{}", n(gate, "depth"), n(gate, "capacity")),
        n(gate, "refused").to_string(),
        field(room, "last_crash").to_owned(),
    ]
}

/// Asks for a one-time code and says where to type it.
///
/// # Errors
/// [`Failure`].
pub async fn dashboard(door: &Door, open: bool, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    let answer = client.call("dashboard.code", json!({})).await?;
    client.close().await;
    let (url, code) = (field(&answer, "url"), secret(&answer, "code")?);
    let page = url
        .split('#')
        .next()
        .unwrap_or(url)
        .trim_end_matches('/')
        .trim_end_matches("/login")
        .to_owned();
    // In the fragment: browsers keep it to themselves, and no server or proxy writes it into a log.
    let link = format!("{page}/login#{code}");
    out.both(&answer, || {
        format!(
            "{}\n\nor open {}/login and type this code, good once and for {}:\n{}\n",
            clean(&link),
            clean(&page),
            number(&answer, "expiresAtMs").map_or_else(|| "a minute".to_owned(), left),
            code,
        )
    })?;
    if open && is_page(&link) {
        let opened = std::process::Command::new("xdg-open")
            .arg(&link)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        if let Err(error) = opened {
            note(&format!("no browser was opened (xdg-open: {error})"));
        }
    }
    Ok(0)
}

/// An address for a browser, and no option or other scheme for what opens it.
fn is_page(link: &str) -> bool {
    let is_plain = link.bytes().all(|b| b.is_ascii_graphic());
    is_plain && (link.starts_with("http://") || link.starts_with("https://"))
}

/// Versions.
///
/// # Errors
/// [`Failure`].
pub fn version(out: Out) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    out.both(&json!({ "version": version, "protocol": PROTOCOL }), || {
        format!("portcullis {version}, protocol {PROTOCOL}\n")
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_that_is_down_makes_it_degraded() {
        let status = |state: &str| {
            json!({"runtimeVersion": "0.1.0", "portcullis": {
                "uptimeMs": 61_000, "driver": {"name": "native", "detail": "bubblewrap", "others": [
                    {"driver": "docker", "isProven": false, "why": "there is no engine"},
                ]},
                "pending": {"devices": 1, "approvals": 0}, "listeners": ["127.0.0.1:18789"], "connectedDevices": 3,
                "auditHead": {"seq": 9, "hash": "ab"}, "auditFirstKey": "portcullis-audit/01+2+AB",
                "sinks": {"siem": {"kind": "http", "taken": 4, "lag": 5, "lost": 1, "error": "the receiver answers 503"}},
                "notices": {"webhook": {"to": "hook.example", "told": 2, "waiting": 1, "lost": 3, "error": "the receiver answers 500"}},
                "plugins": {"bell": {"path": "/opt/bell", "state": "PLUGIN_CHANGED", "error": "/opt/bell has the digest ab"}},
                "rooms": [{"name": "vault", "state": state, "restarts": 2, "gate": {"depth": 1, "capacity": 8, "refused": 0}}],
            }})
        };
        assert!(healthy(&status("waiting")));
        assert!(!healthy(&status("down")));
        assert!(!healthy(&json!({})));
        let text = shown(&status("up"));
        for part in [
            "up 1 min",
            "native  bubblewrap",
            "docker (some agents)  NOT USABLE: there is no engine",
            "1 devices",
            "vault  up",
            "1/8",
            "head ab",
            "log key    portcullis-audit/01+2+AB",
            "siem (http) has record 4, 5 behind, 1 lost to retention: the receiver answers 503",
            "connected  3 devices",
            "notices    webhook hook.example: 2 told, 1 waiting, 3 lost: the receiver answers 500",
            "plugin     bell /opt/bell: PLUGIN_CHANGED /opt/bell has the digest ab",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
