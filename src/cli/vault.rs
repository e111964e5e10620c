//! `portcullis vault`: a secret comes by stdin only, and no value ever comes back.

use std::io::{IsTerminal as _, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::{Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::args::Vault;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::text::{clean, table, utc};
use crate::show::value::{field, list, number};

/// Largest secret, bytes (the registry's `VAULT_VALUE_INVALID`).
const VALUE_MAX: u64 = 64 * 1024;

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Vault, out: Out) -> Result<u8, Failure> {
    // Read before dialling: the gateway's patience is not for typing.
    let value = match what {
        Vault::Set { trim, .. } => Some(secret(*trim)?),
        _ => None,
    };
    let scope = match what {
        Vault::Status => Scope::Read,
        _ => Scope::Admin,
    };
    let mut client = Client::connect(door, &[scope], &[]).await?;
    let mut exit = 0;
    match what {
        Vault::Set { name, .. } => {
            let encoded = STANDARD.encode(value.as_deref().map_or(&[][..], Vec::as_slice));
            let mut params = json!({ "name": name, "valueBase64": encoded });
            let answer = client.call("vault.set", params.take()).await?;
            let version = number(&answer, "version").unwrap_or_default();
            out.both(&answer, || {
                format!("{} is kept, version {version}\n", clean(name))
            })?;
        }
        Vault::List => {
            let answer = client.call("vault.list", json!({})).await?;
            out.both(&answer, || listing(&answer))?;
        }
        Vault::Rm { name } => {
            let answer = client.call("vault.remove", json!({ "name": name })).await?;
            out.both(&answer, || format!("{} is gone\n", clean(name)))?;
        }
        Vault::Status => {
            let answer = client.call("vault.status", json!({})).await?;
            let state = field(&answer, "state");
            if state != "open" {
                exit = 8;
            }
            out.both(&answer, || format!("the vault is {}\n", clean(state)))?;
        }
    }
    client.close().await;
    Ok(exit)
}

/// All of stdin.
fn secret(trim: bool) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::of(
            codes::VAULT_VALUE_INVALID,
            "a secret is read from a file or a pipe, not from the keyboard, which would show it",
        )
        .hint("`portcullis vault set NAME < file`"));
    }
    // Room for all at once: a growing buffer leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(
        usize::try_from(VALUE_MAX).unwrap_or(0) + 2,
    ));
    stdin
        .lock()
        .take(VALUE_MAX + 1)
        .read_to_end(&mut value)
        .map_err(|e| {
            Failure::of(
                codes::VAULT_VALUE_INVALID,
                format!("cannot read the secret: {e}"),
            )
        })?;
    if trim && value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    if value.is_empty() || value.len() as u64 > VALUE_MAX {
        value.zeroize();
        return Err(Failure::of(
            codes::VAULT_VALUE_INVALID,
            "the secret on stdin is empty or longer than 64 KiB",
        ));
    }
    Ok(value)
}

fn listing(answer: &Value) -> String {
    let entries = list(answer, "entries");
    if entries.is_empty() {
        return "the vault is empty\n".to_owned();
    }
    let at = |e: &Value, key: &str| number(e, key).map_or_else(String::new, utc);
    let rows: Vec<_> = entries
        .iter()
        .map(|e| {
            vec![
                field(e, "name").to_owned(),
                number(e, "version").unwrap_or_default().to_string(),
                at(e, "createdAtMs"),
                at(e, "updatedAtMs"),
            ]
        })
        .collect();
    table(&["NAME", "VERSION", "CREATED", "CHANGED"], &rows)
}
