//! What holds, leaf by leaf, and who said so: for `config.get` and `portcullis config show`. Secrets are not in it.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::problem::{Place, is_secret, without_user};

/// One leaf.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Leaf {
    /// With dots.
    pub key: String,
    /// Redacted.
    pub value: serde_json::Value,
    /// `default`, `config.toml:12`, `env PORTCULLIS__GATEWAY__PORT`, `flag --port`.
    pub origin: String,
}

/// Every leaf of the merged table in the order of its keys.
pub fn leaves(merged: &Table, places: &BTreeMap<Vec<String>, Place>) -> Vec<Leaf> {
    let mut found = vec![];
    collect(merged, &mut vec![], places, &mut found);
    found
}

fn collect(
    table: &Table,
    path: &mut Vec<String>,
    places: &BTreeMap<Vec<String>, Place>,
    found: &mut Vec<Leaf>,
) {
    for (name, value) in table {
        path.push(name.clone());
        if let Value::Table(inner) = value {
            collect(inner, path, places, found);
        } else {
            found.push(Leaf {
                key: path.join("."),
                value: redacted(name, value),
                origin: origin(path, places),
            });
        }
        path.pop();
    }
}

fn redacted(name: &str, value: &Value) -> serde_json::Value {
    match value {
        // Empty says nothing; only a set secret is hidden.
        Value::String(text) if is_secret(name) && !text.is_empty() => "•••".into(),
        Value::String(text) => without_user(text).into(),
        Value::Array(items) => items.iter().map(|item| redacted(name, item)).collect(),
        other => serde_json::to_value(other).unwrap_or_default(),
    }
}

fn origin(path: &[String], places: &BTreeMap<Vec<String>, Place>) -> String {
    let own = places.get(path).or_else(|| {
        // An agent has from the template what it does not say itself.
        let template = [
            &path[..1],
            &["*".to_owned()],
            path.get(2..).unwrap_or_default(),
        ]
        .concat();
        (path[0] == "agents")
            .then(|| places.get(&template))
            .flatten()
    });
    match own {
        None | Some(Place::Default) => "default".to_owned(),
        Some(Place::File { file, line, .. }) => format!("{file}:{line}"),
        Some(Place::Env(name)) => format!("env {name}"),
        Some(Place::Flag(name)) => format!("flag {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_and_the_user_of_an_address_are_in_no_leaf() {
        let table = "[a]\napi_key = 'hunter2'\nurl = 'http://me:hunter2@host/x'\nempty_token = ''\ntoken_file = '/x'\n[a.b]\nsecret = ['hunter2']\nurls = ['https://me:hunter2@host']\n";
        let found: BTreeMap<String, serde_json::Value> =
            leaves(&table.parse().unwrap(), &BTreeMap::new())
                .into_iter()
                .map(|leaf| (leaf.key, leaf.value))
                .collect();
        assert_eq!(
            serde_json::json!(found),
            serde_json::json!({
                "a.api_key": "•••",
                "a.url": "http://•••@host/x",
                "a.empty_token": "",
                "a.token_file": "/x",
                "a.b.secret": ["•••"],
                "a.b.urls": ["https://•••@host"],
            })
        );
    }

    #[test]
    fn strangers_get_by_default_what_the_documents_promise() {
        let limits = crate::config::sections::Limits::default();
        assert_eq!(limits.handshake_ms, 15_000);
        assert_eq!(limits.unauthenticated_total, 1_024);
        assert_eq!(limits.unauthenticated_per_address, 32);
        assert_eq!(portcullis_core::protocol::limits::PREAUTH_FRAME, 65_536);
    }
}
