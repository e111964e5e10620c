//! Decisions of this machine's people, each signed with its key: at the gateway here too, where the kernel says who they
//! are, and the key says that it was they.

use std::path::Path;

use portcullis_core::approval::{Extent, Similar, Statement, Word, plan_json};
use portcullis_core::auth::{Role, Scope};
use portcullis_core::codes;
use portcullis_core::encoding::{from_base64url, hex};
use portcullis_core::ids::Hash32;
use portcullis_core::plan::ExecPlan;
use portcullis_core::time::Millis;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::device::Device;
use super::keys::{Keys, Place};
use super::remote::Session;
use super::wire::{Client, Door};
use crate::cli::{Failure, note};
use crate::show::text::typed;
use crate::show::value::{field, number};

/// What a gateway says of a key that waits for a person.
const PAIRING: &str = "PAIRING_REQUIRED";

/// How far a word reaches, where it is not as far as it says.
#[derive(Debug, Clone, Copy, Default)]
pub enum Reach {
    /// As the word does.
    #[default]
    Usual,
    /// In the same session.
    Session,
    /// For so long, ms.
    For(u64),
}

/// Who decides at one gateway. The key is opened once, at the first decision.
pub struct Decider {
    door: Door,
    open: Option<Open>,
}

enum Open {
    Here(Box<Device>),
    Elsewhere(Box<Session>),
    /// At the gateway here, whose kernel says who we are: why no key signs.
    Unsigned,
}

impl Decider {
    /// At this gateway.
    pub const fn new(door: Door) -> Self {
        Self { door, open: None }
    }

    /// A connection on which this machine's key counts; at the gateway here it is paired by that.
    ///
    /// # Errors
    /// What the key's file, the gateway or its pairing says.
    pub async fn connect(&mut self, scopes: &[Scope]) -> Result<Client, Failure> {
        if self.open.is_none() {
            self.open = Some(open(&self.door).await?);
        }
        match (&self.door, &self.open) {
            (Door::Socket(path), Some(Open::Here(device))) => {
                match Client::beside_uid(path, device, scopes).await {
                    Err(failure) if failure.code == PAIRING => {
                        let id = typed(failure.request_id.as_deref().unwrap_or_default());
                        note(&format!(
                            "this machine's key is not paired, and local trust pairs none here: nothing is signed until `portcullis devices approve {id}`"
                        ));
                        self.open = Some(Open::Unsigned);
                        Client::connect(&self.door, scopes, &[]).await
                    }
                    other => other,
                }
            }
            (Door::Socket(_), Some(Open::Unsigned)) => {
                Client::connect(&self.door, scopes, &[]).await
            }
            (_, Some(Open::Elsewhere(session))) => {
                Client::of_session(&self.door, session, scopes).await
            }
            _ => Err(Failure::of(codes::INTERNAL, "no key is open")),
        }
    }

    /// Decides on one question; gives it as it was, and the gateway's answer. `shown`: as it was on the screen before.
    ///
    /// # Errors
    /// The gateway's refusal.
    pub async fn decide(
        &mut self,
        id: &str,
        word: Word,
        reach: Reach,
        reason: Option<&str>,
        shown: Option<&Value>,
    ) -> Result<(Value, Value), Failure> {
        let (client, approval) = self.look(id, false).await?;
        if let Some(shown) = shown {
            is_what_is_signed(&approval, shown)?;
        }
        let answer = self.say(client, &approval, word, reach, reason, None).await;
        Ok((approval, answer?))
    }

    /// The question, with what could be allowed as similar where that is asked for; and the connection to answer on.
    ///
    /// # Errors
    /// The gateway's refusal.
    pub async fn look(&mut self, id: &str, similar: bool) -> Result<(Client, Value), Failure> {
        // Here the kernel says what we may; elsewhere who only answers commands asks for no more.
        let all = [Scope::Admin, Scope::Approvals];
        let scopes = match self.door {
            Door::Socket(_) => &all[..],
            Door::Remote(_) => &all[1..],
        };
        let mut client = self.connect(scopes).await?;
        let mut ask = json!({ "id": id });
        if similar {
            ask["similar"] = true.into();
        }
        let approval = client.call("exec.approval.get", ask).await?;
        let is_change = field(&approval, "approvalKind") == "policy";
        if is_change && matches!(self.door, Door::Remote(_)) {
            client.close().await;
            client = self.connect(&all).await?;
        }
        is_what_is_signed(&approval, &approval)?;
        Ok((client, approval))
    }

    /// The answer to a question that was looked at; `similar`: the rule that the gateway proposed with it.
    ///
    /// # Errors
    /// The gateway's refusal.
    pub async fn say(
        &mut self,
        mut client: Client,
        approval: &Value,
        word: Word,
        reach: Reach,
        reason: Option<&str>,
        similar: Option<&Similar>,
    ) -> Result<Value, Failure> {
        let mut params = self.signed(approval, word, reach, similar)?;
        if let Some(reason) = reason {
            params["reason"] = reason.into();
        }
        if let Some(similar) = similar {
            params["similar"] = json!(similar);
        }
        let answer = client.call("exec.approval.resolve", params).await;
        client.close().await;
        answer
    }

    /// The parameters of a decision on what `exec.approval.get` gave.
    fn signed(
        &self,
        approval: &Value,
        word: Word,
        reach: Reach,
        similar: Option<&Similar>,
    ) -> Result<Value, Failure> {
        let odd = || {
            Failure::of(
                codes::INTERNAL,
                "the gateway does not say what a decision is signed with: it is of another version",
            )
        };
        // An older gateway knows of no signatures.
        let Some(terms) = approval.get("sign") else {
            return match reach {
                Reach::Usual => {
                    Ok(json!({ "id": field(approval, "id"), "decision": word.as_str() }))
                }
                Reach::Session | Reach::For(_) => Err(odd()),
            };
        };
        let hash = |name: &str| Hash32::try_from(field(terms, name).to_owned()).map_err(|_| odd());
        let usual = Extent::of(word);
        let until = match usual {
            Extent::Once => number(terms, "onceUntilMs"),
            _ => number(terms, "grantUntilMs"),
        };
        let until = until.ok_or_else(odd)?;
        let (scope, expires) = match reach {
            Reach::Usual => (usual, until),
            Reach::Session => (Extent::Session, until),
            Reach::For(ms) => {
                // By the gateway's clock, which is not ours.
                let longest = number(terms, "nowMs").ok_or_else(odd)?.saturating_add(ms);
                (Extent::Until, longest.min(until))
            }
        };
        let statement = Statement {
            gateway: hash("gateway")?,
            approval: field(approval, "id"),
            // Who allows a rule signs the rule, and not what it was made of.
            plan: match similar {
                Some(similar) => similar.hash(hash("planHash")?),
                None => hash("planHash")?,
            },
            word,
            scope,
            expires: Millis(expires),
        };
        let mut params = self.proof(&statement);
        params["id"] = statement.approval.into();
        params["decision"] = word.as_str().into();
        params["scope"] = scope.as_str().into();
        Ok(params)
    }

    /// `proof` and `expiresAtMs` of what this machine's key says; without one, what stands without a proof.
    pub fn proof(&self, statement: &Statement<'_>) -> Value {
        let mut params = json!({ "expiresAtMs": statement.expires });
        let device = match &self.open {
            Some(Open::Here(device)) => device,
            Some(Open::Elsewhere(session)) => session.device(),
            Some(Open::Unsigned) | None => return params,
        };
        let (public_key, signature) = device.sign(&statement.to_sign());
        params["proof"] =
            json!({ "kind": "device", "publicKey": public_key, "signature": signature });
        params
    }
}

/// Is the plan whose hash the gateway wants signed the very one that it shows? The hash is made here, of the plan itself: a
/// gateway that was taken gets no signature for what nobody saw.
fn is_what_is_signed(approval: &Value, told: &Value) -> Result<(), Failure> {
    let Some(terms) = approval.get("sign") else {
        return Ok(());
    };
    if field(approval, "approvalKind") != "exec" {
        return Ok(());
    }
    let other = || {
        Failure::of(
            codes::PLAN_CHANGED,
            "the gateway wants another plan signed than it shows: nothing was signed",
        )
        .hint("do not decide there: find out what that gateway runs, and who changed it")
    };
    let plan = from_base64url(field(terms, "plan")).ok_or_else(other)?;
    let plan = ExecPlan::from_json(&plan).map_err(|_| other())?;
    let is_its = plan.plan_hash().to_string() == field(terms, "planHash");
    let request = told.get("request").ok_or_else(other)?;
    let shows = plan_json(&plan);
    let mut shows = shows.as_object().into_iter().flatten();
    let same = shows.all(|(key, value)| request.get(key) == Some(value))
        && field(request, "planHash") == field(terms, "planHash");
    if is_its && same { Ok(()) } else { Err(other()) }
}

async fn open(door: &Door) -> Result<Open, Failure> {
    let path = match door {
        Door::Remote(remote) => {
            let session = remote.as_ref().clone().open(Role::Operator).await?;
            return Ok(Open::Elsewhere(Box::new(session)));
        }
        Door::Socket(path) => path,
    };
    let place = match Place::find(None) {
        Ok(place) => place,
        Err(failure) => {
            note(&format!("nothing is signed: {}", failure.message));
            return Ok(Open::Unsigned);
        }
    };
    let gateway = here(path);
    let opened = tokio::task::spawn_blocking(move || {
        let keys = Keys::open(place)?;
        Device::of(&keys, Role::Operator, &gateway)
    });
    let opened = opened.await;
    let device = opened.map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))??;
    Ok(Open::Here(Box::new(device)))
}

/// The name of the key for the gateway at this socket: in an alphabet of keys' names.
fn here(socket: &Path) -> String {
    let path = std::fs::canonicalize(socket).unwrap_or_else(|_| socket.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    format!("SOCKET_{}", hex(&digest)[..32].to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::encoding::base64url;
    use portcullis_core::ids::{AgentId, DeviceId};
    use portcullis_core::nodes::{OnNode, plan_of};
    use portcullis_core::plan::Nonce;
    use std::collections::BTreeMap;

    fn plan(argv: &[&str]) -> ExecPlan {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let (agent, env) = (AgentId::new("demo").unwrap(), BTreeMap::new());
        let run = OnNode {
            node: &DeviceId::new(&"ab".repeat(32)).unwrap(),
            said: &json!({}),
            agent: &agent,
            argv: &argv,
            cwd: "/",
            sha256: None,
            env: &env,
            timeout_ms: 1_000,
        };
        plan_of(run, "c-1", "uid:0", Nonce::new(&[7; 16]).unwrap())
    }

    fn question(shown: &ExecPlan, signs: &ExecPlan, sent: &ExecPlan) -> Value {
        let mut request = plan_json(shown);
        request["planHash"] = json!(signs.plan_hash());
        json!({
            "approvalKind": "exec", "request": request,
            "sign": { "planHash": signs.plan_hash(), "plan": base64url(&sent.to_json()) },
        })
    }

    #[test]
    fn a_gateway_gets_no_signature_for_another_plan_than_it_shows() {
        let (ls, rm) = (plan(&["ls"]), plan(&["rm", "-rf", "/"]));
        let good = question(&ls, &ls, &ls);
        assert!(is_what_is_signed(&good, &good).is_ok());
        for (shown, signs, sent) in [
            (&ls, &rm, &rm),
            (&ls, &rm, &ls),
            (&rm, &ls, &ls),
            (&ls, &ls, &rm),
        ] {
            let bad = question(shown, signs, sent);
            let failure = is_what_is_signed(&bad, &bad).unwrap_err();
            assert_eq!(failure.code, "PLAN_CHANGED");
        }
        // The card on the screen was another's; or the plan itself is kept back.
        let other = question(&rm, &rm, &rm);
        assert!(is_what_is_signed(&good, &other).is_err());
        let mut without = good.clone();
        without["sign"].as_object_mut().unwrap().remove("plan");
        assert!(is_what_is_signed(&without, &without).is_err());
        // Any one thing that is shown.
        for key in [
            "command", "argv", "cwd", "nodeId", "env", "agentId", "limits", "target",
        ] {
            let mut told = good.clone();
            told["request"][key] = json!("something else");
            assert!(is_what_is_signed(&good, &told).is_err(), "{key}");
        }
    }
}
