//! `portcullis nodes`: node hosts, and what each may be asked.

use portcullis_core::auth::Scope;
use serde_json::{Value, json};

use super::args::{Global, NodePolicy, Nodes};
use super::devices::find;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::text::{clean, cut, table};
use crate::show::value::{field, joined, list};

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Nodes, out: Out) -> Result<u8, Failure> {
    // What runs commands is approved with admin (wire.md 6.1); a lesser operator gets less.
    let scopes = [Scope::Admin, Scope::Pairing, Scope::Read];
    let mut client = Client::connect(door, &scopes, &[]).await?;
    match what {
        Nodes::List => {
            let nodes = client.call("node.list", json!({})).await?;
            out.both(&nodes, || listing(list(&nodes, "nodes")))?;
        }
        Nodes::Show { id } => {
            let nodes = client.call("node.list", json!({})).await?;
            let node = field(find(list(&nodes, "nodes"), "nodeId", id)?, "nodeId").to_owned();
            let node = client
                .call("node.describe", json!({ "nodeId": node }))
                .await?;
            out.both(&node, || shown(&node))?;
        }
        Nodes::Pending => {
            let all = client.call("node.pair.list", json!({})).await?;
            out.both(&all["pending"], || pending(list(&all, "pending")))?;
        }
        Nodes::Approve { id } | Nodes::Reject { id } => {
            let all = client.call("node.pair.list", json!({})).await?;
            let request = find(list(&all, "pending"), "requestId", id)?;
            let approve = matches!(what, Nodes::Approve { .. });
            let (method, word) = if approve {
                ("node.pair.approve", "approved")
            } else {
                ("node.pair.reject", "rejected")
            };
            let params = json!({ "requestId": field(request, "requestId") });
            let answer = client.call(method, params).await?;
            out.both(&answer, || {
                let commands = joined(request, "commands");
                format!("{word} {}: {}\n", name(request), clean(&commands))
            })?;
        }
    }
    client.close().await;
    Ok(0)
}

/// `portcullis node policy`: of this machine, without a gateway.
///
/// # Errors
/// [`Failure`].
pub fn local(global: &Global, what: &NodePolicy, out: Out) -> Result<u8, Failure> {
    let answer = crate::node::policy(global, what)?;
    out.both(&answer, || match what {
        NodePolicy::Show => own(&answer),
        NodePolicy::Accept { .. } => "accepted: it holds now\n".to_owned(),
        NodePolicy::Reject { .. } => "rejected\n".to_owned(),
    })?;
    Ok(0)
}

fn own(answer: &Value) -> String {
    let (edit, approvers) = (field(answer, "remoteEdit"), answer["approvers"].to_string());
    let document = match (field(answer, "document"), field(answer, "why")) {
        (word, "") => word.to_owned(),
        (word, why) => format!("{word}, so nothing runs here: {why}"),
    };
    let fields = [
        ("document", document.as_str()),
        ("at", field(answer, "path")),
        ("approvers", &approvers),
        ("edits", edit),
    ];
    let line = |(name, value): (&str, &str)| format!("{name:<10} {}\n", clean(value));
    let mut text = fields.map(line).concat();
    let row = |one: &Value| {
        let stands = one["stands"] == true;
        vec![
            field(one, "id").to_owned(),
            clean(field(one, "gateway")),
            if stands { "waits" } else { "of another state" }.to_owned(),
            clean(&one["proposed"].to_string()),
        ]
    };
    let rows: Vec<Vec<String>> = list(answer, "proposals").iter().map(row).collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&["PROPOSAL", "GATEWAY", "STATE", "WHAT"], &rows));
    }
    text
}

/// Of a name, in a line that says more.
const NAME_MAX: usize = 40;

fn name(node: &Value) -> String {
    let id = field(node, "nodeId");
    let short = short(id);
    match field(node, "displayName") {
        "" => short,
        name => format!("{} ({short})", cut(&clean(name), NAME_MAX)),
    }
}

/// Long enough to be typed.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn listing(nodes: &[Value]) -> String {
    if nodes.is_empty() {
        return "no node is connected or approved\n".to_owned();
    }
    let rows = nodes.iter().map(|node| {
        let here = node["connected"] == true;
        vec![
            name(node),
            if here { "connected" } else { "away" }.to_owned(),
            field(node, "approvalState").to_owned(),
            joined(node, "commands"),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    table(&["NODE", "STATE", "APPROVAL", "COMMANDS"], &rows)
}

fn shown(node: &Value) -> String {
    let here = node["connected"] == true;
    let commands = joined(node, "commands");
    let fields = [
        ("node", field(node, "nodeId")),
        ("name", field(node, "displayName")),
        ("state", if here { "connected" } else { "away" }),
        ("approval", field(node, "approvalState")),
        ("version", field(node, "version")),
        ("platform", field(node, "platform")),
        ("commands", &commands),
    ];
    let line = |(name, value): (&str, &str)| format!("{name:<10} {}\n", clean(value));
    fields.map(line).concat()
}

fn pending(requests: &[Value]) -> String {
    if requests.is_empty() {
        return "nothing waits\n".to_owned();
    }
    let rows = requests.iter().map(|request| {
        vec![
            short(field(request, "requestId")),
            name(request),
            joined(request, "commands"),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    table(&["ID", "NODE", "COMMANDS"], &rows)
}
