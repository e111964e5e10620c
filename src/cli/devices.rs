//! `portcullis devices`: who may connect.

use std::fmt::Write as _;

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Value, json};

use super::args::Devices;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::qr;
use crate::show::text::{clean, cut, fingerprint, now_ms, span, table, utc};
use crate::show::value::{field, joined, list, number, secret};

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Devices, out: Out) -> Result<u8, Failure> {
    // Approving a device's scopes needs those scopes (wire.md 6), so admin is asked for; a lesser operator gets less.
    let scopes = match what {
        Devices::List | Devices::Show { .. } => [Scope::Pairing].as_slice(),
        _ => &[Scope::Admin, Scope::Pairing],
    };
    let mut client = Client::connect(door, scopes, &[]).await?;
    let all = client.call("device.pair.list", json!({})).await?;
    match what {
        Devices::List => out.both(&all, || listing(&all))?,
        Devices::Show { id } => {
            let found = find(list(&all, "pending"), "requestId", id)
                .or_else(|_| find(list(&all, "paired"), "deviceId", id))?;
            out.both(found, || shown(found))?;
        }
        Devices::Approve {
            id,
            fingerprint: wanted,
        } => {
            let pending = find(list(&all, "pending"), "requestId", id)?;
            let device = field(pending, "deviceId");
            if let Some(wanted) = wanted {
                let wanted: String = wanted.chars().filter(char::is_ascii_hexdigit).collect();
                if wanted.to_ascii_lowercase() != device {
                    return Err(Failure::of(
                        codes::PAIRING_DENIED,
                        format!("the fingerprint of this device is {}", fingerprint(device)),
                    )
                    .hint("compare it with what the device shows; nothing was approved"));
                }
            }
            let params = json!({ "requestId": field(pending, "requestId") });
            let answer = client.call("device.pair.approve", params).await?;
            out.both(&answer, || {
                format!("approved {}\n{}", name(pending), shown(pending))
            })?;
        }
        Devices::SetupCode {
            role,
            scope,
            address,
        } => {
            let mut params = json!({ "role": role });
            if !scope.is_empty() {
                params["scopes"] = json!(scopes_of(scope)?);
            }
            if let Some(url) = address {
                params["publicUrl"] = url.as_str().into();
            }
            let answer = client.call("device.pair.setupCode", params).await?;
            let code = secret(&answer, "setupCode")?;
            out.both(&answer, || setup_code(&answer, code, role))?;
        }
        Devices::Reject { id } => {
            let pending = find(list(&all, "pending"), "requestId", id)?;
            let params = json!({ "requestId": field(pending, "requestId") });
            let answer = client.call("device.pair.reject", params).await?;
            out.both(&answer, || format!("rejected {}\n", name(pending)))?;
        }
        Devices::Revoke {
            id,
            role,
            keep_running,
        } => {
            let device = find(list(&all, "paired"), "deviceId", id)?;
            let how = json!({ "keepRunning": keep_running });
            let method = "device.token.revoke";
            let answer = each_role(&mut client, device, method, role.as_deref(), &how).await?;
            let answer = json!({ "deviceId": field(device, "deviceId"), "revoked": answer });
            out.both(&answer, || {
                format!(
                    "revoked {}: its tokens are void\n{}",
                    name(device),
                    ended(*keep_running)
                )
            })?;
        }
        Devices::Rotate {
            id,
            role,
            scope,
            keep_running,
        } => {
            let device = find(list(&all, "paired"), "deviceId", id)?;
            let mut how = json!({ "keepRunning": keep_running });
            if !scope.is_empty() {
                how["scopes"] = json!(scopes_of(scope)?);
            }
            let method = "device.token.rotate";
            let answer = each_role(&mut client, device, method, role.as_deref(), &how).await?;
            let answer = json!({ "deviceId": field(device, "deviceId"), "rotated": answer });
            out.both(&answer, || {
                format!(
                    "rotated {}: its old token is void\n{}It gets a new token when it connects with the shared token.\n",
                    name(device),
                    ended(*keep_running)
                )
            })?;
        }
        Devices::Remove { id, keep_running } => {
            let device = find(list(&all, "paired"), "deviceId", id)?;
            let params =
                json!({ "deviceId": field(device, "deviceId"), "keepRunning": keep_running });
            let answer = client.call("device.pair.remove", params).await?;
            out.both(&answer, || {
                format!("removed {}\n{}", name(device), ended(*keep_running))
            })?;
        }
        Devices::Rename { id, label } => {
            let device = find(list(&all, "paired"), "deviceId", id)?;
            let params = json!({ "deviceId": field(device, "deviceId"), "label": label });
            let answer = client.call("device.pair.rename", params).await?;
            out.both(&answer, || {
                format!("{} is now {}\n", name(device), clean(label))
            })?;
        }
    }
    client.close().await;
    Ok(0)
}

/// The code as text, and drawn for a camera.
fn setup_code(answer: &Value, code: &str, role: &str) -> String {
    let until = utc(number(answer, "expiresAtMs").unwrap_or_default());
    format!(
        "Setup code for one new device as {}, good once, until {until}:\n\n{code}\n\n{}\n\
         It names {}. Whoever has it is let in: show it to that device only.\n",
        clean(role),
        qr::drawn(code).unwrap_or_default(),
        clean(field(answer, "gatewayUrl")),
    )
}

/// The one whose id begins so.
pub(super) fn find<'a>(all: &'a [Value], key: &str, id: &str) -> Result<&'a Value, Failure> {
    if let Some(exact) = all.iter().find(|v| field(v, key) == id) {
        return Ok(exact);
    }
    let mut found = all
        .iter()
        .filter(|v| !id.is_empty() && field(v, key).starts_with(id));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Failure::of(
            codes::INVALID_PARAMS,
            format!("several begin with {id}"),
        )
        .hint("`portcullis devices list` shows them: give more of the id")),
        (None, _) if key == "requestId" => Err(Failure::of(
            codes::REQUEST_NOT_FOUND,
            format!("no pending request is called {id}"),
        )),
        (None, _) => Err(Failure::of(
            codes::DEVICE_NOT_FOUND,
            format!("no device is called {id}"),
        )),
    }
}

/// The same for one role of a device, or for each that it holds.
async fn each_role(
    client: &mut Client,
    device: &Value,
    method: &str,
    role: Option<&str>,
    how: &Value,
) -> Result<Vec<Value>, Failure> {
    let live = list(device, "tokens")
        .iter()
        .filter(|t| t.get("revokedAtMs").is_none());
    let roles: Vec<String> = match role {
        Some(role) => vec![role.to_owned()],
        None => live.map(|t| field(t, "role").to_owned()).collect(),
    };
    if roles.is_empty() {
        return Err(Failure::of(
            codes::DEVICE_NOT_FOUND,
            format!("{} has no token that is valid", name(device)),
        )
        .hint("`portcullis devices remove ID` forgets it"));
    }
    let mut answers = Vec::new();
    for role in roles {
        let mut params = how.clone();
        params["deviceId"] = field(device, "deviceId").into();
        params["role"] = role.into();
        answers.push(client.call(method, params).await?);
    }
    Ok(answers)
}

/// What went with it.
const fn ended(keep_running: bool) -> &'static str {
    if keep_running {
        "Its sockets are closed; what it asked, allowed and granted is void. What runs for it goes on.\n"
    } else {
        "Its sockets are closed; what it asked, allowed and granted is void; what ran for it is ended.\n"
    }
}

/// Scopes as people write them: with or without `operator.`.
fn scopes_of(words: &[String]) -> Result<Vec<Scope>, Failure> {
    words
        .iter()
        .map(|word| {
            Scope::parse(word)
                .or_else(|| Scope::parse(&format!("operator.{word}")))
                .ok_or_else(|| {
                    let all: Vec<&str> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
                    Failure::of(codes::INVALID_PARAMS, format!("no scope is called {word}"))
                        .hint(format!("scopes: {}", all.join(", ")))
                })
        })
        .collect()
}

/// Of a name, in a line that says more.
const NAME_MAX: usize = 40;

/// What a person calls it.
fn name(device: &Value) -> String {
    let short: String = field(device, "deviceId").chars().take(12).collect();
    ["operatorLabel", "displayName", "clientId"]
        .into_iter()
        .map(|key| field(device, key))
        .find(|text| !text.is_empty())
        .map_or_else(
            || clean(&short),
            |label| format!("{} ({})", cut(&clean(label), NAME_MAX), clean(&short)),
        )
}

fn roles(device: &Value) -> String {
    match joined(device, "roles") {
        none if none.is_empty() => field(device, "role").to_owned(),
        roles => roles,
    }
}

fn listing(all: &Value) -> String {
    let now = now_ms();
    let ago = |v: &Value, key: &str| {
        number(v, key).map_or_else(
            || "-".to_owned(),
            |at| format!("{} ago", span(now.saturating_sub(at))),
        )
    };
    let (pending, paired) = (list(all, "pending"), list(all, "paired"));
    let mut out = String::new();
    if !pending.is_empty() {
        let rows: Vec<_> = pending
            .iter()
            .map(|p| {
                vec![
                    field(p, "requestId").to_owned(),
                    name(p),
                    roles(p),
                    joined(p, "scopes"),
                    field(p, "remoteIp").to_owned(),
                    ago(p, "ts"),
                ]
            })
            .collect();
        out.push_str("Waiting for a decision\n");
        out.push_str(&table(
            &["REQUEST", "DEVICE", "ROLE", "SCOPES", "FROM", "ASKED"],
            &rows,
        ));
        out.push_str("portcullis devices show REQUEST, then approve REQUEST or reject REQUEST\n\n");
    }
    if paired.is_empty() {
        out.push_str("no device is paired\n");
        return out;
    }
    let rows: Vec<_> = paired
        .iter()
        .map(|d| {
            let live = list(d, "tokens")
                .iter()
                .any(|t| t.get("revokedAtMs").is_none());
            let connected = d.get("connected").and_then(Value::as_bool).unwrap_or(false);
            let state = match (live, connected) {
                (false, _) => "revoked",
                (true, true) => "connected",
                (true, false) => "paired",
            };
            vec![
                field(d, "deviceId").chars().take(12).collect(),
                name(d),
                state.to_owned(),
                roles(d),
                joined(d, "scopes"),
                ago(d, "lastSeenAtMs"),
            ]
        })
        .collect();
    out.push_str(&table(
        &["ID", "DEVICE", "STATE", "ROLE", "SCOPES", "SEEN"],
        &rows,
    ));
    out
}

fn shown(device: &Value) -> String {
    let mut out = String::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {name:<12} {value}");
        }
    };
    put("fingerprint", fingerprint(field(device, "deviceId")));
    for (label, key) in [
        ("request", "requestId"),
        ("name", "displayName"),
        ("your label", "operatorLabel"),
        ("client", "clientId"),
        ("platform", "platform"),
        ("from", "remoteIp"),
        ("approved via", "approvedVia"),
    ] {
        put(label, clean(field(device, key)));
    }
    put("roles", clean(&roles(device)));
    put("scopes", clean(&joined(device, "scopes")));
    for (label, key) in [
        ("asked", "ts"),
        ("approved", "approvedAtMs"),
        ("last seen", "lastSeenAtMs"),
    ] {
        put(label, number(device, key).map_or_else(String::new, utc));
    }
    for token in list(device, "tokens") {
        let state = match number(token, "revokedAtMs") {
            Some(at) => format!("revoked {}", utc(at)),
            None => "valid".to_owned(),
        };
        put("token", format!("{}: {state}", clean(field(token, "role"))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_finds_one_and_only_one() {
        let all = [
            json!({"deviceId": "abc1"}),
            json!({"deviceId": "abc2"}),
            json!({"deviceId": "abc"}),
        ];
        assert_eq!(find(&all, "deviceId", "abc1").unwrap()["deviceId"], "abc1");
        assert_eq!(find(&all, "deviceId", "abc").unwrap()["deviceId"], "abc");
        assert_eq!(find(&all, "deviceId", "ab").unwrap_err().exit, 2);
        assert_eq!(find(&all, "deviceId", "x").unwrap_err().exit, 3);
        assert_eq!(find(&all, "deviceId", "").unwrap_err().exit, 3);
    }

    #[test]
    fn a_devices_name_cannot_forge_the_list() {
        let all = json!({"pending": [{"requestId": "r1", "deviceId": "ab", "displayName": "x\u{1b}[1A\rpaired", "ts": 1,
            "role": "operator", "scopes": ["operator.read"]}], "paired": []});
        let shown = listing(&all);
        assert!(shown.contains("x\\u{1b}[1A\\rpaired"), "{shown}");
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
