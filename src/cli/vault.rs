//! `portcullis vault`: a secret comes by stdin only, and no value ever comes back.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::approval::Statement;
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::ids::Hash32;
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::args::{AddUnlocker, Unlockers, Vault};
use super::failure::Failure;
use super::out::Out;
use super::typing;
use crate::client::{Client, Decider, Door};
use crate::show::text::{clean, now_ms, table, utc};
use crate::show::value::{field, list, number};

/// Largest secret, bytes (the registry's `VAULT_VALUE_INVALID`).
const VALUE_MAX: u64 = 64 * 1024;

/// How long the signature for an export is good, ms.
const SIGNED_MS: u64 = 300_000;

/// Longest line that opens the vault.
const TYPED_MAX: usize = 4 * 1024;

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(door: &Door, what: &Vault, out: Out) -> Result<u8, Failure> {
    // Read before dialling: the gateway's patience is not for typing.
    let (method, params) = match what {
        // Migrating needs the state directory too: super::migrate does it.
        Vault::Status | Vault::Migrate { .. } => return status(door, out).await,
        Vault::Export { i_understand, file } => {
            return export(door, *i_understand, file, out).await;
        }
        Vault::Import { replace, file } => return import(door, *replace, file, out).await,
        Vault::Set { name, trim } => {
            let value = secret(*trim)?;
            let params = json!({ "name": name, "valueBase64": STANDARD.encode(&*value) });
            ("vault.set", params)
        }
        Vault::List => ("vault.list", json!({})),
        Vault::Rm { name } => ("vault.remove", json!({ "name": name })),
        Vault::Show { name } => return show(door, name, out).await,
        Vault::Bind {
            name,
            agent,
            host,
            uses,
        } => {
            let mut params = json!({ "name": name, "agents": agent });
            if !host.is_empty() {
                params["hosts"] = json!(host);
            }
            if !uses.is_empty() {
                params["uses"] = json!(uses);
            }
            ("vault.bind", params)
        }
        Vault::Seal => ("vault.seal", json!({})),
        Vault::Rotate => ("vault.rotate", json!({})),
        Vault::Init {
            discard_all_secrets,
        } => ("vault.init", json!({ "discard": discard_all_secrets })),
        Vault::Unlock {
            passphrase,
            recovery,
            unlocker,
        } => {
            let kind = match (passphrase, recovery) {
                (true, _) => Some("passphrase"),
                (_, true) => Some("recovery"),
                _ => by_what(&unlockers(door).await?),
            };
            ("vault.unlock", unlock(kind, unlocker.as_deref())?)
        }
        Vault::Rekey { drop } => {
            let all = unlockers(door).await?;
            ("vault.rekey", rekey(&all, drop)?)
        }
        Vault::Unlockers(Unlockers::List) => ("vault.unlockers.list", json!({})),
        Vault::Unlockers(Unlockers::Remove { id }) => {
            ("vault.unlockers.remove", json!({ "unlocker": id }))
        }
        Vault::Unlockers(Unlockers::Add(add)) => ("vault.unlockers.add", added(add)?),
    };
    let answer = ask(door, method, params).await?;
    out.both(&answer, || match what {
        Vault::Set { name, .. } => {
            let version = number(&answer, "version").unwrap_or_default();
            format!("{} is kept, version {version}\n", clean(name))
        }
        Vault::List => listing(&answer),
        Vault::Rm { name } => format!("{} is gone\n", clean(name)),
        Vault::Bind { name, .. } => format!("{} is bound so\n", clean(name)),
        Vault::Rotate => format!(
            "data key {} seals from now on; {} secrets follow\n",
            number(&answer, "epoch").unwrap_or_default(),
            number(&answer, "toSealAnew").unwrap_or_default()
        ),
        Vault::Rekey { .. } => list(&answer, "recoveryCodes").iter().fold(
            "the vault has a new root key; what opened the old one opens nothing any more\n".to_owned(),
            |text, code| text + &shown_code(code),
        ),
        Vault::Unlockers(Unlockers::List) => unlocker_listing(&answer),
        Vault::Unlockers(Unlockers::Remove { id }) => {
            format!("{} opens nothing any more; who has kept a copy of the state and it: `portcullis vault rekey`\n", clean(id))
        }
        Vault::Unlockers(Unlockers::Add(_)) => {
            format!("unlocker {} is added\n", clean(field(&answer, "unlocker"))) + &shown_code(&answer)
        }
        _ => format!("the vault is {}\n", clean(field(&answer, "state"))),
    })?;
    Ok(0)
}

async fn ask(door: &Door, method: &str, params: Value) -> Result<Value, Failure> {
    let scope = match method {
        "vault.status" => Scope::Read,
        _ => Scope::Admin,
    };
    let mut client = Client::connect(door, &[scope], &[]).await?;
    let answer = client.call(method, params).await;
    client.close().await;
    answer
}

async fn show(door: &Door, name: &str, out: Out) -> Result<u8, Failure> {
    let answer = ask(door, "vault.list", json!({})).await?;
    let entries = list(&answer, "entries");
    let found = entries.iter().find(|one| field(one, "name") == name);
    let one = found.ok_or_else(|| {
        let name = clean(name);
        Failure::of(codes::VAULT_NOT_FOUND, format!("no secret {name}"))
    })?;
    let words = |key: &str, none: &str| match one["binds"][key].as_array() {
        Some(words) => {
            let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
            clean(&words.join(", "))
        }
        None => none.to_owned(),
    };
    out.both(one, || {
        let used = used(&one["lastUse"]);
        format!(
            "{}, version {}\nagents    {}\nhosts     {}\nuses      {}\nlast use  {used}\n",
            clean(name),
            number(one, "version").unwrap_or_default(),
            words("agents", "none: no agent's run may have it"),
            words(
                "hosts",
                "any for a run; the gateway itself sends it to none"
            ),
            words("uses", "any"),
        )
    })?;
    Ok(0)
}

/// When, by whom, for which run, and where the log has it.
fn used(last: &Value) -> String {
    let Some(at) = number(last, "atMs") else {
        return "never".to_owned();
    };
    let mut text = format!("{} by {}", utc(at), clean(field(last, "by")));
    for (key, before) in [("agent", " for "), ("run", ", run ")] {
        if last[key].is_string() {
            text = format!("{text}{before}{}", clean(field(last, key)));
        }
    }
    let record = number(last, "record").unwrap_or_default();
    format!("{text} (portcullis audit show {record})")
}

async fn status(door: &Door, out: Out) -> Result<u8, Failure> {
    let answer = ask(door, "vault.status", json!({})).await?;
    out.both(&answer, || told(&answer))?;
    Ok(if field(&answer, "state") == "open" {
        0
    } else {
        8
    })
}

fn told(answer: &Value) -> String {
    let mut lines = vec![format!("the vault is {}", clean(field(answer, "state")))];
    if answer["reason"].is_string() {
        let (code, reason) = (field(answer, "code"), field(answer, "reason"));
        lines.push(format!("{}: {}", clean(code), clean(reason)));
    }
    if let Some(records) = number(answer, "records") {
        let count = |key: &str| number(answer, key).unwrap_or_default();
        lines.push(format!(
            "secrets   {records}, {} of them unreadable, {} to be sealed anew",
            count("unreadable"),
            count("toSealAnew")
        ));
        lines.push(format!(
            "keys      data key {}, sealed {} times; change {} of the vault",
            count("epoch"),
            count("seals"),
            count("generation")
        ));
        let person = if answer["opensByItself"] == true {
            ""
        } else {
            ", a person opens it at each start"
        };
        let recovery = if answer["hasRecovery"] == true {
            ""
        } else {
            "; no recovery code: `portcullis vault unlockers add recovery`"
        };
        lines.push(format!(
            "unlockers {}{person}{recovery}",
            count("unlockers")
        ));
    }
    lines.join("\n") + "\n"
}

/// A person's act: asked at the terminal, recorded by the gateway.
async fn export(door: &Door, understood: bool, file: &Path, out: Out) -> Result<u8, Failure> {
    ask(door, "vault.status", json!({})).await?;
    let nobody = |why: &str| Failure::of(codes::VAULT_NEEDS_PERSON, why);
    if !understood || !std::io::stdin().is_terminal() {
        return Err(nobody(
            "every secret leaves the vault: a person says so at a terminal",
        ));
    }
    let mut err = std::io::stderr();
    // A question that is not seen is not answered.
    let _ = write!(
        err,
        "Whoever has this file and its passphrase has every secret. Type export to go on: "
    );
    let _ = err.flush();
    let mut word = String::new();
    let read = std::io::stdin().read_line(&mut word);
    if read.is_err() || word.trim() != "export" {
        return Err(nobody("nothing was exported"));
    }
    let passphrase =
        typing::twice("passphrase of the file: ", TYPED_MAX).map_err(|why| weak(&why))?;
    let mut decider = Decider::new(door.clone());
    let mut client = decider.connect(&[Scope::Admin, Scope::Approvals]).await?;
    let status = client.call("status", json!({})).await?;
    let gateway = field(&status["portcullis"], "gatewayId").to_owned();
    let gateway = Hash32::try_from(gateway)
        .map_err(|_| Failure::of(codes::INTERNAL, "the gateway does not say its id"))?;
    let connection = field(&client.hello["server"], "connId").to_owned();
    let until = Millis(now_ms()).plus(SIGNED_MS);
    let said = Statement::of_export(gateway, &connection, until);
    let mut params = decider.proof(&said);
    params["passphraseBase64"] = STANDARD.encode(&*passphrase).into();
    let answer = client.call("vault.export", params).await?;
    client.close().await;
    let failed = |e: std::io::Error| Failure::io(codes::OUTPUT_UNWRITABLE, file.display(), &e);
    let mut kept = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    kept.write_all(answer["export"].to_string().as_bytes())
        .and_then(|()| kept.sync_all())
        .map_err(failed)?;
    let left_out = list(&answer, "leftOut");
    let told = json!({ "file": file, "leftOut": left_out });
    out.both(&told, || {
        left_out.iter().fold(
            format!("every secret is in {}\n", clean(&file.to_string_lossy())),
            |text, name| {
                let name = clean(name.as_str().unwrap_or_default());
                text + &format!("but {name}, which cannot be read: `portcullis vault list`\n")
            },
        )
    })?;
    Ok(0)
}

async fn import(door: &Door, replace: bool, file: &Path, out: Out) -> Result<u8, Failure> {
    ask(door, "vault.status", json!({})).await?;
    let unfit = |why: String| Failure::of(codes::VAULT_EXPORT_INVALID, why);
    let text = std::fs::read_to_string(file)
        .map_err(|e| unfit(format!("{}: {e}", clean(&file.to_string_lossy()))))?;
    let export: Value =
        serde_json::from_str(&text).map_err(|_| unfit("it is no JSON".to_owned()))?;
    let passphrase =
        typing::line("passphrase of the file: ", TYPED_MAX).map_err(|why| weak(&why))?;
    let params = json!({
        "export": export,
        "passphraseBase64": STANDARD.encode(&*passphrase),
        "replace": replace,
    });
    let answer = ask(door, "vault.import", params).await?;
    out.both(&answer, || {
        let count = number(&answer, "imported").unwrap_or_default();
        format!("{count} secrets are kept\n")
    })?;
    Ok(0)
}

async fn unlockers(door: &Door) -> Result<Vec<Value>, Failure> {
    let answer = ask(door, "vault.unlockers.list", json!({})).await?;
    Ok(list(&answer, "unlockers").to_vec())
}

/// What needs no person, where there is such; else a passphrase; else a code.
fn by_what(unlockers: &[Value]) -> Option<&'static str> {
    let has = |kind: &str| unlockers.iter().any(|one| field(one, "kind") == kind);
    match () {
        () if has("machine") || has("file") => None,
        () if has("passphrase") => Some("passphrase"),
        () => Some("recovery"),
    }
}

fn unlock(kind: Option<&str>, unlocker: Option<&str>) -> Result<Value, Failure> {
    let Some(kind) = kind else {
        return Ok(json!({}));
    };
    let prompt = match kind {
        "recovery" => "recovery code: ",
        _ => "passphrase: ",
    };
    let typed = typing::line(prompt, TYPED_MAX).map_err(|why| weak(&why))?;
    Ok(json!({ "kind": kind, "unlocker": unlocker, "secretBase64": STANDARD.encode(&*typed) }))
}

fn rekey(unlockers: &[Value], drop: &[String]) -> Result<Value, Failure> {
    let mut passphrases = vec![];
    for one in unlockers {
        let id = field(one, "id");
        if field(one, "kind") != "passphrase" || drop.iter().any(|dropped| dropped == id) {
            continue;
        }
        let prompt = format!("passphrase of {}: ", clean(id));
        let typed = typing::line(&prompt, TYPED_MAX).map_err(|why| weak(&why))?;
        passphrases.push(json!({ "unlocker": id, "secretBase64": STANDARD.encode(&*typed) }));
    }
    Ok(json!({ "passphrases": passphrases, "drop": drop }))
}

fn added(add: &AddUnlocker) -> Result<Value, Failure> {
    let (mut params, replace) = match add {
        AddUnlocker::Passphrase { replace } => {
            let typed = typing::twice("passphrase: ", TYPED_MAX).map_err(|why| weak(&why))?;
            let secret = STANDARD.encode(&*typed);
            (
                json!({ "kind": "passphrase", "secretBase64": secret }),
                replace,
            )
        }
        AddUnlocker::Recovery { replace } => (json!({ "kind": "recovery" }), replace),
        AddUnlocker::Machine { replace } => (json!({ "kind": "machine" }), replace),
        AddUnlocker::File { path, replace } => {
            // The gateway stands elsewhere than this shell.
            let whole = std::path::absolute(path).map_err(|e| weak(&e.to_string()))?;
            let whole = whole.to_str().ok_or_else(|| weak("its path is no text"))?;
            (json!({ "kind": "file", "file": whole }), replace)
        }
        AddUnlocker::Credential { name, replace } => {
            (json!({ "kind": "file", "credential": name }), replace)
        }
    };
    if let Some(replace) = replace {
        params["replaces"] = replace.as_str().into();
    }
    Ok(params)
}

fn weak(why: &str) -> Failure {
    Failure::of(codes::VAULT_UNLOCKER_WEAK, why)
}

fn shown_code(answer: &Value) -> String {
    match answer["recoveryCode"].as_str() {
        Some(code) => format!(
            "{}\nThis recovery code is shown this once: write it down and keep it away from this machine.\n",
            clean(code)
        ),
        None => String::new(),
    }
}

fn unlocker_listing(answer: &Value) -> String {
    let from = |one: &Value| match (&one["source"]["file"], &one["source"]["credential"]) {
        (Value::String(path), _) => path.clone(),
        (_, Value::String(name)) => format!("credential {name}"),
        _ if one["isBoundToMachine"] == true => "this machine-id".to_owned(),
        _ => String::new(),
    };
    let rows: Vec<_> = list(answer, "unlockers")
        .iter()
        .map(|one| {
            vec![
                field(one, "id").to_owned(),
                field(one, "kind").to_owned(),
                from(one),
                number(one, "createdAtMs").map_or_else(String::new, utc),
            ]
        })
        .collect();
    table(&["ID", "KIND", "FROM", "MADE"], &rows)
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
                match e["code"].as_str() {
                    Some(code) => code.to_owned(),
                    None => number(e, "version").unwrap_or_default().to_string(),
                },
                at(e, "createdAtMs"),
                at(e, "updatedAtMs"),
            ]
        })
        .collect();
    table(&["NAME", "VERSION", "CREATED", "CHANGED"], &rows)
}
