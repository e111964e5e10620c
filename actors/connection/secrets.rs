//! `auth.*` and `agent.token.*`: the secrets that open doors. Made and changed on `control.sock` only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::auth::Door;
use portcullis_core::auth::password::PasswordHash;
use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::seal::Secret;
use portcullis_core::token::Token;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Params;
use super::methods::{About, Answer, Methods, Nothing, Wiped, refused};
use super::shake::SECRET_CHANGED;
use crate::auth::{AuthRefusal, Listed, NewPassword};

impl Methods {
    pub(super) async fn secrets(
        &self,
        about: About<'_>,
        method: &str,
        params: &Params<'_>,
    ) -> Answer {
        let (auth, by) = (&self.auth, about.principal);
        // Who holds such a secret comes in by it: only the door that the kernel vouches for makes one.
        let only_looks = matches!(method, "auth.password.list" | "agent.token.list");
        if by.door != Door::Control && !only_looks {
            return Err(ErrorBody::of(
                codes::MISSING_SCOPE,
                "secrets are made and changed on control.sock only: use the command line on the gateway's machine",
            ));
        }
        match method {
            "auth.token.rotate" => {
                params.read::<Nothing>(method)?;
                let made = auth.rotate(by).await.map_err(refusal)?;
                // A page is opened by a code, and whoever held the old token may have got one: all begin anew.
                let pages = self.dashboard.end_all().await;
                let answer = json!({ "token": shown(made.token.as_ref()) });
                let answer = self.over(about, made.ended, SECRET_CHANGED, answer).await;
                pages.map_err(|_| {
                    ErrorBody::of(
                        codes::DEADLINE,
                        "the token is changed and the old one is void, but the page's sessions were not seen to end: sign out there, or change it once more",
                    )
                })?;
                answer
            }
            "agent.token.mint" => {
                let p: Agent = params.read(method)?;
                let made = auth.mint(by, &p.agent_id).await.map_err(refusal)?;
                let answer = json!({ "agentId": p.agent_id, "token": shown(made.token.as_ref()) });
                self.over(about, made.ended, SECRET_CHANGED, answer).await
            }
            "agent.token.revoke" => {
                let p: Agent = params.read(method)?;
                let made = auth.revoke(by, &p.agent_id).await.map_err(refusal)?;
                let answer = json!({ "agentId": p.agent_id });
                self.over(about, made.ended, SECRET_CHANGED, answer).await
            }
            "agent.token.list" => {
                params.read::<Nothing>(method)?;
                let all = auth.agents().await.map_err(refusal)?;
                Ok(json!({ "agents": listed(&all, "agentId") }))
            }
            "auth.password.set" => {
                let p: Set = params.read(method)?;
                let new = match (p.password_base64, p.hash) {
                    (Some(text), None) => {
                        let bytes = STANDARD.decode(text.0.as_bytes());
                        NewPassword::Plain(Secret::new(bytes.map_err(|_| both())?))
                    }
                    (None, Some(hash)) => {
                        let hash = PasswordHash::parse(&hash.0);
                        NewPassword::Hash(hash.map_err(|e| refusal(AuthRefusal::Unfit(e)))?)
                    }
                    _ => return Err(both()),
                };
                let set = auth.set_password(by, &p.name, new).await;
                let made = set.map_err(refusal)?;
                let answer = json!({ "name": p.name });
                self.over(about, made.ended, SECRET_CHANGED, answer).await
            }
            "auth.password.remove" => {
                let p: Name = params.read(method)?;
                let removed = auth.remove_password(by, &p.name).await;
                let made = removed.map_err(refusal)?;
                let answer = json!({ "name": p.name });
                self.over(about, made.ended, SECRET_CHANGED, answer).await
            }
            "auth.password.list" => {
                params.read::<Nothing>(method)?;
                let all = auth.passwords().await.map_err(refusal)?;
                Ok(json!({ "passwords": listed(&all, "name") }))
            }
            _ => Err(ErrorBody::of(
                codes::UNKNOWN_METHOD,
                format!("unknown method: {method}"),
            )),
        }
    }
}

fn shown(token: Option<&Token>) -> Option<&str> {
    token.map(Token::expose)
}

fn listed(all: &[Listed], name: &str) -> Vec<Value> {
    all.iter()
        .map(|one| json!({ name: one.name, "createdAtMs": one.created_at }))
        .collect()
}

fn both() -> ErrorBody {
    ErrorBody::of(
        codes::INVALID_PARAMS,
        "invalid auth.password.set params: passwordBase64 (standard base64) or hash is needed, not both",
    )
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn refusal(refusal: AuthRefusal) -> ErrorBody {
    refused(refusal.code(), &refusal)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Agent {
    agent_id: AgentId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Name {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Set {
    name: String,
    #[serde(default)]
    password_base64: Option<Wiped>,
    #[serde(default)]
    hash: Option<Wiped>,
}
