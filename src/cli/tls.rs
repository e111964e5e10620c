//! `portcullis tls`.

use std::fmt::Write as _;

use portcullis_core::auth::Scope;
use serde_json::{Value, json};

use super::args::Tls;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::show::text::{clean, utc};
use crate::show::value::{field, list, number};

/// Shows the certificate, after it was read again where that is asked.
///
/// # Errors
/// [`Failure`]: `CERTIFICATE_INVALID` where the old one is kept.
pub async fn run(door: &Door, what: Tls, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::Admin], &[]).await?;
    let method = match what {
        Tls::Show => "tls.show",
        Tls::Reload => "tls.reload",
    };
    let answer = client.call(method, json!({})).await?;
    client.close().await;
    out.both(&answer, || shown(&answer))?;
    Ok(0)
}

fn shown(facts: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<12} {value}");
        }
    };
    put("pin", clean(field(facts, "spkiSha256")));
    put("fingerprint", clean(field(facts, "sha256")));
    let names: Vec<_> = list(facts, "names")
        .iter()
        .filter_map(Value::as_str)
        .map(clean)
        .collect();
    put("names", names.join("  "));
    let at = |key| number(facts, key).map_or_else(String::new, utc);
    put(
        "valid",
        format!("{} to {}", at("notBeforeMs"), at("notAfterMs")),
    );
    put(
        "from",
        match (field(facts, "certificate"), field(facts, "certFile")) {
            ("generated", _) => {
                "made by the gateway, and made anew 30 days before its end".to_owned()
            }
            (_, "") => "a file of the gateway's machine".to_owned(),
            (_, file) => clean(file),
        },
    );
    put("not taken", clean(field(facts, "reloadError")));
    out
}
