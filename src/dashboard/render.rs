//! From values to HTML. maud escapes; hidden characters are made visible before it.

use hyper::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use portcullis_actors::supervision::{RoomView, TreeView};
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::Value;

use crate::show::card;
use crate::show::text::{clean, fingerprint, left, now_ms, span, utc};
use crate::show::value::{field, joined, list, number};

/// The style sheet.
pub const STYLE: &str = include_str!("style.css");
/// The login's script.
pub const LOGIN_JS: &str = include_str!("login.js");
/// The script that compares the log with what a browser has seen of it.
pub const SEEN_JS: &str = include_str!("seen.js");
/// The icon.
pub const ICON: &str = include_str!("icon.svg");

/// Cards shown at once: the page stays small; the rest is said to be there.
const CARDS: usize = 50;

/// What stands on top.
pub enum Notice {
    /// The last form did this.
    Done(&'static str),
    /// The last form was refused.
    Refused(ErrorBody),
}

/// All that the page shows.
pub struct Content<'a> {
    /// Read off the gauges: a stuck room is shown, not waited for.
    pub tree: Result<TreeView, ErrorBody>,
    /// `exec.approval.list`
    pub approvals: Result<Value, ErrorBody>,
    /// `device.pair.list`
    pub devices: Result<Value, ErrorBody>,
    /// `audit.tail`
    pub records: Result<Value, ErrorBody>,
    /// `status`
    pub status: Result<Value, ErrorBody>,
    /// Whose code opened the session.
    pub by: &'a str,
    /// For the forms.
    pub csrf: String,
    /// On top.
    pub notice: Option<Notice>,
    /// Reloads by itself, and therefore has no buttons: nothing moves under a finger that decides.
    pub live: bool,
}

fn shell(title: &str, live: bool, script: Option<&str>, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if live { meta http-equiv="refresh" content="3"; }
                title { (title) }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                @if let Some(script) = script { script src=(script) defer {} }
            }
            body { (body) }
        }
    }
    .into_string()
}

/// The form for a code.
pub fn login(refused: Option<&str>) -> String {
    let body = html! {
        main.login {
            h1 { "Portcullis" }
            @if let Some(why) = refused { p.notice.bad role="alert" { (clean(why)) } }
            p { "Run " code { "portcullis dashboard" } " on this machine and type the code that it prints." }
            form name="login" method="post" action="/login" {
                label for="code" { "One-time code" }
                input #code name="code" type="password" autocomplete="off" spellcheck="false" required maxlength="128";
                p { button type="submit" { "Open the page" } }
            }
        }
    };
    shell("Portcullis: log in", false, Some("/login.js"), &body)
}

/// Between login and page: the newest checkpoint, for the script that compares it. Without script it leads on.
pub fn seen(origin: &str, size: u64, root: &str) -> String {
    let body = html! {
        noscript { meta http-equiv="refresh" content="0;url=/"; }
        main.login data-origin=(origin) data-size=(size) data-root=(root) {
            h1 { "Portcullis" }
            p #asking { "Comparing the audit log with what this browser has seen of it. " a href="/" { "To the page" } }
            div #forked hidden {
                p.notice.bad role="alert" {
                    "AUDIT_FORKED: the audit log does not go on from what this browser has seen of it: " span #why {}
                }
                p {
                    "It was cut, put back or written anew. Compare it on the gateway's machine: "
                    code { "portcullis audit verify --offline" } "."
                }
                p { a href="/" { "To the page all the same" } }
                p { button #anew type="button" { "It was put back with my knowledge: keep it as it is now" } }
            }
        }
    };
    shell("Portcullis: the audit log", false, Some("/seen.js"), &body)
}

/// A page that says why there is none.
pub fn stop(status: StatusCode, text: &str) -> String {
    let body = html! {
        main.login {
            h1 { (status.canonical_reason().unwrap_or("No")) }
            p.notice.bad role="alert" { (clean(text)) }
            p { a href="/" { "To the page" } }
        }
    };
    shell("Portcullis", false, None, &body)
}

/// The page.
pub fn page(content: &Content<'_>) -> String {
    let waiting = count(&content.approvals, |v| v.as_array().map_or(0, Vec::len))
        + count(&content.devices, |v| list(v, "pending").len());
    let title = if waiting > 0 {
        format!("({waiting}) Portcullis")
    } else {
        "Portcullis".to_owned()
    };
    let body = html! {
        a.skip href="#main" { "To the content" }
        header {
            h1 { "Portcullis" }
            nav aria-label="Views" {
                @if content.live { a href="/" { "Decide" } } @else {
                    a href="/" { "Refresh" } " " a href="/live" { "Watch live" }
                }
            }
            @if !content.live {
                form method="post" action="/logout" {
                    (hidden("csrf", &content.csrf))
                    button type="submit" { "Log out" }
                }
            }
        }
        main #main {
            (notice(content.notice.as_ref()))
            (gateway(content))
            section aria-labelledby="plans" {
                h2 #plans { "Commands that wait for a decision" }
                (plans(content))
            }
            section aria-labelledby="pairings" {
                h2 #pairings { "Devices that wait for a decision" }
                (pairings(content))
            }
            section aria-labelledby="devices" {
                h2 #devices { "Known devices" }
                (devices(&content.devices))
            }
            section aria-labelledby="tree" {
                h2 #tree { "Rooms" }
                (tree(&content.tree))
            }
            section aria-labelledby="audit" {
                h2 #audit { "Last records" }
                (records(&content.records))
            }
        }
        footer { p { "Session of " (clean(content.by)) ". Rendered " (utc(now_ms())) "." } }
    };
    shell(&title, content.live, None, &body)
}

fn count(answer: &Result<Value, ErrorBody>, of: impl Fn(&Value) -> usize) -> usize {
    answer.as_ref().map_or(0, of)
}

fn hidden(name: &str, value: &str) -> Markup {
    html! { input type="hidden" name=(name) value=(value); }
}

fn refused(error: &ErrorBody) -> Markup {
    let next = error.details.as_ref().map_or("", |d| field(d, "next"));
    html! {
        p.notice.bad role="alert" {
            strong { (clean(error.stable_code())) } ": " (clean(&error.message))
            @if !next.is_empty() { br; "Next: " (clean(next)) }
        }
    }
}

fn notice(notice: Option<&Notice>) -> Markup {
    match notice {
        None => PreEscaped(String::new()),
        Some(Notice::Done(word)) => {
            html! { p.notice role="status" { "Your decision stands: " (word) "." } }
        }
        Some(Notice::Refused(error)) => refused(error),
    }
}

fn gateway(content: &Content<'_>) -> Markup {
    let status = match &content.status {
        Ok(status) => status,
        Err(error) => return refused(error),
    };
    let ours = status.get("portcullis").unwrap_or(&Value::Null);
    let driver = ours.get("driver").unwrap_or(&Value::Null);
    let name = match field(driver, "name") {
        "" => "none: commands are refused",
        name => name,
    };
    let others = driver.get("others").and_then(Value::as_array);
    let others = others.map_or(&[][..], Vec::as_slice);
    html! {
        dl {
            dt { "Gateway" }
            dd {
                (clean(field(status, "runtimeVersion"))) ", up " (span(number(ours, "uptimeMs").unwrap_or_default())) ", "
                @if content.tree.as_ref().is_ok_and(TreeView::all_up) { span.up { "all rooms serve" } } @else { span.down { "degraded" } }
            }
            dt { "Sandbox" }
            dd { (clean(name)) " " (clean(field(driver, "detail"))) }
            @for other in others {
                dd { (clean(field(other, "driver"))) ", for some agents: " (clean(field(other, "why"))) }
            }
        }
    }
}

fn plans(content: &Content<'_>) -> Markup {
    let cards = match &content.approvals {
        Ok(answer) => card::cards(answer),
        Err(error) => return refused(error),
    };
    html! {
        @if cards.is_empty() { p { "None. What leaves the sandbox asks here." } }
        @for card in cards.iter().take(CARDS) { (plan(card, content)) }
        (more(cards.len()))
    }
}

fn more(len: usize) -> Markup {
    rest(len, "decide on these first")
}

fn rest(len: usize, what: &str) -> Markup {
    html! { @if len > CARDS { p { "And " (len - CARDS) " more: " (what) "." } } }
}

/// The label in front of a field's rows: rows without one go on.
fn grouped(rows: Vec<(&'static str, String)>) -> Vec<(&'static str, Vec<String>)> {
    let mut groups: Vec<(&'static str, Vec<String>)> = Vec::new();
    for (name, value) in rows {
        match groups.last_mut() {
            Some((_, values)) if name.is_empty() => values.push(value),
            _ => groups.push((name, vec![value])),
        }
    }
    groups
}

fn plan(shared: &card::Shared<'_>, content: &Content<'_>) -> Markup {
    let approval = shared.first;
    let id = field(approval, "id");
    // What is decided is what this page shows: one that comes later is not among them.
    let ids = shared.ids().join(" ");
    let until = number(approval, "expiresAtMs").map_or_else(|| "?".to_owned(), left);
    let request = approval.get("request").unwrap_or(&Value::Null);
    html! {
        article.card aria-labelledby={ "plan-" (id) } {
            h3 id={ "plan-" (id) } { code { (card::line(request)) } }
            p { (until) " left, then it is refused" }
            dl {
                @for (name, values) in grouped(card::rows(approval)) {
                    dt { (name) }
                    dd { ol.argv { @for value in values { li { code { (value) } } } } }
                }
                @if !shared.others.is_empty() {
                    dt { "asked by" }
                    dd { ol.argv { @for value in shared.requesters() { li { code { (value) } } } } }
                }
            }
            @if !shared.others.is_empty() {
                p { (shared.ids().len()) " ask for the very same: a decision is for these, and for none that comes later" }
            }
            @if !content.live {
                div.acts {
                    form method="post" action="/approvals" {
                        (hidden("csrf", &content.csrf)) (hidden("id", &ids))
                        div {
                            label for={ "reason-" (id) } { "Reason, told to who asked (optional)" }
                            input id={ "reason-" (id) } name="reason" maxlength="500" autocomplete="off";
                        }
                        button.deny type="submit" name="decision" value="deny" { "Deny" }
                    }
                    form method="post" action="/approvals" {
                        (hidden("csrf", &content.csrf)) (hidden("id", &ids))
                        button type="submit" name="decision" value="allow-once" { "Allow once" }
                    }
                }
            }
        }
    }
}

fn pairings(content: &Content<'_>) -> Markup {
    let all = match &content.devices {
        Ok(answer) => list(answer, "pending"),
        Err(error) => return refused(error),
    };
    html! {
        @if all.is_empty() { p { "None. A device that connects with a key of its own asks here." } }
        @for request in all.iter().take(CARDS) { (pairing(request, content)) }
        (more(all.len()))
    }
}

fn pairing(request: &Value, content: &Content<'_>) -> Markup {
    let id = field(request, "requestId");
    let name = [field(request, "displayName"), field(request, "clientId")]
        .into_iter()
        .find(|n| !n.is_empty())
        .unwrap_or("a device");
    let role = match joined(request, "roles") {
        none if none.is_empty() => field(request, "role").to_owned(),
        roles => roles,
    };
    let rows = [
        ("Fingerprint", fingerprint(field(request, "deviceId"))),
        ("Role", clean(&role)),
        ("Scopes", clean(&joined(request, "scopes"))),
        ("Platform", clean(field(request, "platform"))),
        ("From", clean(field(request, "remoteIp"))),
        ("Asked", number(request, "ts").map_or_else(String::new, utc)),
    ];
    html! {
        article.card aria-labelledby={ "pair-" (id) } {
            h3 id={ "pair-" (id) } { (clean(name)) }
            dl {
                @for (label, value) in rows.iter().filter(|(_, v)| !v.is_empty()) {
                    dt { (label) } dd.mono { (value) }
                }
            }
            @if !content.live {
                div.acts {
                    form method="post" action="/devices" {
                        (hidden("csrf", &content.csrf)) (hidden("id", id))
                        button.deny type="submit" name="decision" value="reject" { "Deny" }
                        button type="submit" name="decision" value="approve" { "Allow" }
                    }
                }
            }
        }
    }
}

fn devices(answer: &Result<Value, ErrorBody>) -> Markup {
    let all = match answer {
        Ok(answer) => list(answer, "paired"),
        Err(error) => return refused(error),
    };
    html! {
        @if all.is_empty() { p { "None." } } @else {
            div.wide {
                table {
                    thead { tr {
                        th scope="col" { "Name" } th scope="col" { "State" } th scope="col" { "Role" } th scope="col" { "Scopes" }
                        th scope="col" { "Let in" } th scope="col" { "Fingerprint" }
                    } }
                    tbody { @for device in all.iter().take(CARDS) { (device_row(device)) } }
                }
            }
            (rest(all.len(), "`portcullis devices list` shows them"))
        }
    }
}

fn device_row(device: &Value) -> Markup {
    let name = [
        field(device, "operatorLabel"),
        field(device, "displayName"),
        field(device, "clientId"),
    ]
    .into_iter()
    .find(|n| !n.is_empty())
    .unwrap_or("a device");
    let roles = joined(device, "roles");
    let (class, state) = match device.get("connected").and_then(Value::as_bool) {
        _ if roles.is_empty() => ("down", "revoked"),
        Some(true) => ("up", "connected"),
        _ => ("", "away"),
    };
    let how = match field(device, "approvedVia") {
        "silent" => "by local trust",
        _ => "by a person",
    };
    html! {
        tr {
            th scope="row" { (clean(name)) }
            td { span class=(class) { (state) } }
            td { (clean(&roles)) }
            td { (clean(&joined(device, "scopes"))) }
            td { (how) br; span { (number(device, "approvedAtMs").map_or_else(String::new, utc)) } }
            td.mono { (fingerprint(field(device, "deviceId"))) }
        }
    }
}

fn tree(tree: &Result<TreeView, ErrorBody>) -> Markup {
    let tree = match tree {
        Ok(tree) => tree,
        Err(error) => return refused(error),
    };
    html! {
        div.wide {
            table {
                caption { "Top calls down: the highest room stands first." }
                thead { tr {
                    th scope="col" { "Room" } th scope="col" { "State" }
                    th.n scope="col" { "Restarts (5 min / all)" } th.n scope="col" { "Queue now / most / limit" }
                    th.n scope="col" { "Refused" } th.n scope="col" { "Handled" } th.n scope="col" { "Mean wait / work" }
                    th scope="col" { "Facts" } th scope="col" { "Last crash" }
                } }
                tbody { @for room in tree.rooms.iter().rev() { (row(room)) } }
            }
        }
    }
}

fn micros(us: u64) -> String {
    if us < 1_000 {
        format!("{us} µs")
    } else {
        format!("{} ms", us / 1_000)
    }
}

fn row(room: &RoomView) -> Markup {
    html! {
        tr {
            th scope="row" { (room.name) }
            td { span class=(room.state.word()) { (room.state.word()) } }
            td.n { (room.recent_restarts) " / " (room.restarts) }
            @match &room.gate {
                Some(gate) => {
                    td.n { (gate.depth) " / " (gate.high_water) " / " (gate.capacity) }
                    td.n { (gate.refused) } td.n { (gate.handled) }
                    td.n { (micros(gate.mean_wait_us)) " / " (micros(gate.mean_handle_us)) }
                }
                None => { td.n colspan="4" { "-" } }
            }
            td { @for (name, value) in &room.facts { (name) " " (clean(value)) br; } }
            td { (clean(room.last_crash.as_deref().unwrap_or("-"))) }
        }
    }
}

fn records(answer: &Result<Value, ErrorBody>) -> Markup {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return refused(error),
    };
    let all = list(answer, "records");
    let head = answer.get("head").unwrap_or(&Value::Null);
    html! {
        @if let Some(seq) = number(head, "seq") {
            p { "Head: record " (seq) ", " code { (clean(field(head, "hash"))) } ". "
                code { "portcullis audit verify" } " checks every record." }
        }
        div.wide {
            table {
                thead { tr {
                    th.n scope="col" { "Seq" } th scope="col" { "Time" } th scope="col" { "Kind" } th scope="col" { "Action" }
                    th scope="col" { "Who" } th scope="col" { "On" } th scope="col" { "Outcome" }
                } }
                tbody {
                    @for shown in all.iter().rev().map(crate::show::record::Shown::of) {
                        tr {
                            td.n { (shown.seq) } td.at { (shown.at) } td.at { (shown.kind) } td.at { (shown.action) }
                            td { (shown.who) } td { (shown.on) } td { (shown.outcome) }
                        }
                    }
                }
            }
        }
        @if all.is_empty() { p { "No record yet." } }
    }
}
