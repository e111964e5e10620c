//! `vault.*`: secrets by name, what opens them, and the vault's own states.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::auth::limits::Source;
use portcullis_core::auth::{Door, Principal, Proof};
use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::seal::Secret;
use portcullis_core::vault::{Binds, Export, KeySource, Kind, Use};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Params;
use super::decisions::Given;
use super::methods::{About, Answer, Methods, Name, Nothing, Wiped, refused};
use crate::act::entry_of;
use crate::vault::{NewUnlocker, Opener, VaultRefusal};

/// What takes or gives something that opens the vault: only the door that the kernel vouches for.
const CONTROL_ONLY: &[&str] = &[
    "vault.unlock",
    "vault.rekey",
    "vault.init",
    "vault.export",
    "vault.import",
    "vault.unlockers.add",
    "vault.unlockers.remove",
];

impl Methods {
    pub(super) async fn vault_methods(
        &self,
        about: About<'_>,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        let by = about.principal;
        if CONTROL_ONLY.contains(&method) && by.door != Door::Control {
            return Err(ErrorBody::of(
                codes::MISSING_SCOPE,
                "what opens the vault is given on control.sock only: use the command line on the gateway's machine",
            ));
        }
        let (vault, entry) = (&self.vault, entry_of(by));
        match method {
            "vault.status" => {
                params.read::<Nothing>(method)?;
                Ok(self.vault_status().await)
            }
            "vault.list" => {
                params.read::<Nothing>(method)?;
                let entries = vault.list().await.map_err(refusal)?;
                Ok(json!({ "entries": entries }))
            }
            "vault.set" => {
                let p: Set = params.read(method)?;
                let value = bytes(&p.value_base64, "vault.set", "valueBase64")?;
                let meta = vault.set(entry, &p.name, value).await.map_err(refusal)?;
                Ok(json!({ "name": p.name, "version": meta.version }))
            }
            "vault.remove" => {
                let p: Name = params.read(method)?;
                vault.remove(entry, &p.name).await.map_err(refusal)?;
                Ok(json!({ "name": p.name }))
            }
            "vault.bind" => {
                let p: Bind = params.read(method)?;
                let binds = Binds {
                    agents: p.agents.iter().map(ToString::to_string).collect(),
                    hosts: p.hosts,
                    uses: p.uses,
                };
                vault.bind(entry, &p.name, binds).await.map_err(refusal)?;
                Ok(json!({ "name": p.name }))
            }
            "vault.seal" => {
                params.read::<Nothing>(method)?;
                vault.seal(entry).await.map_err(refusal)?;
                Ok(self.vault_status().await)
            }
            "vault.unlock" => {
                let p: Unlock = params.read(method)?;
                let opener = match (p.kind, p.secret_base64) {
                    (None, None) => Opener::Automatic,
                    (Some(kind), Some(secret)) => Opener::Typed {
                        kind,
                        id: p.unlocker,
                        secret: bytes(&secret, "vault.unlock", "secretBase64")?,
                    },
                    _ => {
                        return Err(wrong(
                            "vault.unlock",
                            "kind and secretBase64 belong together",
                        ));
                    }
                };
                let unlocked = vault.unlock(entry, source_of(by), opener).await;
                unlocked.map_err(refusal)?;
                Ok(self.vault_status().await)
            }
            "vault.rotate" => {
                params.read::<Nothing>(method)?;
                let (epoch, to_seal_anew) = vault.rotate(entry).await.map_err(refusal)?;
                Ok(json!({ "epoch": epoch, "toSealAnew": to_seal_anew }))
            }
            "vault.rekey" => {
                let p: Rekey = params.read(method)?;
                let mut passphrases = vec![];
                for one in p.passphrases {
                    let secret = bytes(&one.secret_base64, "vault.rekey", "secretBase64")?;
                    passphrases.push((one.unlocker, secret));
                }
                let made = vault.rekey(entry, source_of(by), passphrases, p.drop).await;
                let made = made.map_err(refusal)?;
                let codes: Vec<Value> = made
                    .codes
                    .iter()
                    .map(|(id, code)| json!({ "unlocker": id, "recoveryCode": **code }))
                    .collect();
                Ok(json!({ "recoveryCodes": codes }))
            }
            "vault.init" => {
                let p: Init = params.read(method)?;
                if !p.discard {
                    return Err(wrong(
                        "vault.init",
                        "discard must be true: what is there is lost",
                    ));
                }
                vault.init(entry).await.map_err(refusal)?;
                Ok(self.vault_status().await)
            }
            "vault.export" => {
                let p: ExportParams = params.read(method)?;
                let passphrase = bytes(&p.passphrase_base64, "vault.export", "passphraseBase64")?;
                let proof = self.check_export(about, p.proof, p.expires_at_ms).await?;
                let entry = match proof {
                    Some(proof) => entry
                        .with("connection", about.connection)
                        .with("proof", json!(proof).to_string()),
                    None => entry,
                };
                let (export, left_out) = vault.export(entry, passphrase).await.map_err(refusal)?;
                Ok(json!({ "export": export, "leftOut": left_out }))
            }
            "vault.import" => {
                let p: ImportParams = params.read(method)?;
                let export = Export::parse(p.export.to_string().as_bytes())
                    .map_err(|error| refusal(error.into()))?;
                let passphrase = bytes(&p.passphrase_base64, "vault.import", "passphraseBase64")?;
                let (from, replace) = (source_of(by), p.replace);
                let set = vault.import(entry, from, export, passphrase, replace);
                let set = set.await;
                Ok(json!({ "imported": set.map_err(refusal)? }))
            }
            "vault.unlockers.list" => {
                params.read::<Nothing>(method)?;
                let all = vault.unlockers().await.map_err(refusal)?;
                Ok(json!({ "unlockers": all }))
            }
            "vault.unlockers.add" => {
                let p: Add = params.read(method)?;
                let secret = match &p.secret_base64 {
                    Some(secret) => Some(bytes(secret, "vault.unlockers.add", "secretBase64")?),
                    None => None,
                };
                let source = match (p.file, p.credential) {
                    (Some(path), None) => Some(KeySource::File(path)),
                    (None, Some(name)) => Some(KeySource::Credential(name)),
                    (None, None) => None,
                    _ => return Err(wrong("vault.unlockers.add", "file or credential, not both")),
                };
                let fits = match p.kind {
                    Kind::Passphrase => secret.is_some() && source.is_none(),
                    Kind::File => secret.is_none() && source.is_some(),
                    Kind::Machine | Kind::Recovery => secret.is_none() && source.is_none(),
                };
                if !fits {
                    return Err(wrong(
                        "vault.unlockers.add",
                        "a passphrase takes secretBase64, a file takes file or credential, the others nothing",
                    ));
                }
                let new = NewUnlocker {
                    kind: p.kind,
                    secret,
                    source,
                    replaces: p.replaces,
                };
                let made = vault.add_unlocker(entry, new).await.map_err(refusal)?;
                let mut answer = json!({ "unlocker": made.id });
                if let Some(code) = &made.code {
                    answer["recoveryCode"] = code.as_str().into();
                }
                Ok(answer)
            }
            "vault.unlockers.remove" => {
                let p: Id = params.read(method)?;
                let removed = vault.remove_unlocker(entry, &p.unlocker).await;
                removed.map_err(refusal)?;
                Ok(json!({ "unlocker": p.unlocker }))
            }
            _ => Err(portcullis_core::protocol::method::unknown(method)),
        }
    }

    async fn vault_status(&self) -> Value {
        match self.vault.status().await {
            Ok(status) => json!(status),
            Err(refusal) => json!({ "state": "down", "reason": refusal.to_string() }),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn refusal(refusal: VaultRefusal) -> ErrorBody {
    let mut error = refused(refusal.code(), &refusal);
    if let VaultRefusal::Sealed(why) = &refusal
        && let Some(details) = error.details.as_mut()
    {
        // Of the two codes this one says what is to be done.
        details["reason"] = why.code().into();
    }
    error
}

/// Whose tries are counted.
const fn source_of(by: &Principal) -> Source {
    match by.proof {
        Proof::PeerUid(uid) => Source::User(uid),
        _ => Source::Local,
    }
}

fn wrong(method: &str, why: &str) -> ErrorBody {
    ErrorBody::of(
        codes::INVALID_PARAMS,
        format!("invalid {method} params: {why}"),
    )
}

fn bytes(text: &Wiped, method: &str, field: &str) -> Result<Secret, ErrorBody> {
    STANDARD
        .decode(text.0.as_bytes())
        .map(Secret::new)
        .map_err(|_| wrong(method, &format!("{field} is not standard base64")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Set {
    name: String,
    value_base64: Wiped,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bind {
    name: String,
    agents: Vec<AgentId>,
    #[serde(default)]
    hosts: Option<BTreeSet<String>>,
    #[serde(default)]
    uses: Option<BTreeSet<Use>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Unlock {
    #[serde(default)]
    kind: Option<Kind>,
    #[serde(default)]
    unlocker: Option<String>,
    #[serde(default)]
    secret_base64: Option<Wiped>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rekey {
    #[serde(default)]
    passphrases: Vec<Passphrase>,
    #[serde(default)]
    drop: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Passphrase {
    unlocker: String,
    secret_base64: Wiped,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Init {
    discard: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ExportParams {
    passphrase_base64: Wiped,
    #[serde(default)]
    expires_at_ms: Option<u64>,
    #[serde(default)]
    proof: Option<Given>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ImportParams {
    export: Value,
    passphrase_base64: Wiped,
    #[serde(default)]
    replace: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Add {
    kind: Kind,
    #[serde(default)]
    secret_base64: Option<Wiped>,
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    credential: Option<String>,
    #[serde(default)]
    replaces: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Id {
    unlocker: String,
}
