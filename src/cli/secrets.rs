//! `portcullis agents`, `password` and `auth token`: secrets that open the gateway. A new token is shown once; a password
//! comes by stdin or unseen from the terminal, and never back.

use std::io::{IsTerminal as _, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::auth::Scope;
use portcullis_core::auth::password::MAX;
use portcullis_core::codes;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::args::{Agents, Password};
use super::failure::Failure;
use super::out::Out;
use super::typing;
use crate::client::{Client, Door};
use crate::show::text::{clean, table, utc};
use crate::show::value::{field, list, number, secret};

/// `portcullis agents …`
///
/// # Errors
/// [`Failure`].
pub async fn agents(door: &Door, what: &Agents, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    match what {
        Agents::Token { name } => {
            let params = json!({ "agentId": name });
            let answer = client.call("agent.token.mint", params).await?;
            let token = secret(&answer, "token")?;
            out.both(&answer, || {
                format!(
                    "{token}\nThis token is {}'s alone and is shown this once: role agent, scope exec, over TCP or agent.sock.\n",
                    clean(name)
                )
            })?;
        }
        Agents::List => {
            let answer = client.call("agent.token.list", json!({})).await?;
            out.both(&answer, || listing(&answer, "agents", "agentId", "AGENT"))?;
        }
        Agents::Revoke { name } => {
            let params = json!({ "agentId": name });
            let answer = client.call("agent.token.revoke", params).await?;
            out.both(&answer, || {
                format!(
                    "{} has no token any more; its sessions are closed\n",
                    clean(name)
                )
            })?;
        }
    }
    client.close().await;
    Ok(0)
}

/// `portcullis password …`
///
/// # Errors
/// [`Failure`].
pub async fn password(door: &Door, what: &Password, out: Out) -> Result<u8, Failure> {
    // Read before dialling: the gateway's patience is not for typing.
    let text = match what {
        Password::Set { hash, .. } => Some(read(*hash)?),
        _ => None,
    };
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    match what {
        Password::Set { name, hash } => {
            let text = text.as_ref().map_or("", |text| text.as_str());
            let params = if *hash {
                json!({ "name": name, "hash": text })
            } else {
                json!({ "name": name, "passwordBase64": STANDARD.encode(text) })
            };
            let answer = client.call("auth.password.set", params).await?;
            out.both(&answer, || {
                format!(
                    "the password of {} is set; sessions of an old one are closed\n",
                    clean(name)
                )
            })?;
        }
        Password::List => {
            let answer = client.call("auth.password.list", json!({})).await?;
            out.both(&answer, || listing(&answer, "passwords", "name", "NAME"))?;
        }
        Password::Remove { name } => {
            let params = json!({ "name": name });
            let answer = client.call("auth.password.remove", params).await?;
            out.both(&answer, || {
                format!(
                    "{} has no password any more; its sessions are closed\n",
                    clean(name)
                )
            })?;
        }
    }
    client.close().await;
    Ok(0)
}

/// `portcullis auth token rotate`
///
/// # Errors
/// [`Failure`].
pub async fn rotate(door: &Door, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    let answer = client.call("auth.token.rotate", json!({})).await?;
    let token = secret(&answer, "token")?;
    out.both(&answer, || {
        format!(
            "{token}\nThis is the gateway's token from now on and is shown this once. Sessions of the old one are closed.\n",
        )
    })?;
    client.close().await;
    Ok(0)
}

fn listing(answer: &Value, key: &str, name: &str, head: &str) -> String {
    let all = list(answer, key);
    if all.is_empty() {
        return "none\n".to_owned();
    }
    let rows: Vec<_> = all
        .iter()
        .map(|one| {
            let made = number(one, "createdAtMs").map_or_else(String::new, utc);
            vec![field(one, name).to_owned(), made]
        })
        .collect();
    table(&[head, "MADE"], &rows)
}

fn unfit(why: &str) -> Failure {
    Failure::of(codes::PASSWORD_INVALID, why)
}

/// One line: of a file or pipe, or typed twice at a terminal that does not show it.
fn read(is_hash: bool) -> Result<Zeroizing<String>, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() && !is_hash {
        return typing::twice("password: ", MAX).map_err(|why| unfit(&why));
    }
    // Room for all at once: a growing buffer leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX + 4));
    stdin
        .lock()
        .take(MAX as u64 + 3)
        .read_to_string(&mut text)
        .map_err(|e| unfit(&format!("cannot read it: {e}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains('\n') {
        return Err(unfit("it is one line"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}
