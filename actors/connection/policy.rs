//! What policy would say, for who may change it.

use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::plan::{Target, is_canonical_path};
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::json;

use super::answer::Params;
use super::devices::run_refusal;
use super::methods::{Answer, Methods, approval};
use crate::exec::JudgeAsk;

/// A command, and for whom and where it would be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    argv: Vec<String>,
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    agent: Option<AgentId>,
    #[serde(default)]
    target: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Explain {
    #[serde(default)]
    agent: Option<AgentId>,
    #[serde(default)]
    target: Option<String>,
}

/// Whose agent it is, where nobody says.
fn whose(agent: Option<AgentId>) -> Result<AgentId, ErrorBody> {
    match agent {
        Some(agent) => Ok(agent),
        None => {
            AgentId::new("main").map_err(|error| ErrorBody::of(codes::INTERNAL, error.to_string()))
        }
    }
}

/// The host, where nothing is said: lists and questions are about it above all.
fn target(word: Option<&str>) -> Result<Target, ErrorBody> {
    match word {
        None | Some("host") => Ok(Target::Host),
        Some("sandbox") => Ok(Target::Sandbox),
        Some(word) => match word.strip_prefix("node:").filter(|id| !id.is_empty()) {
            Some(id) => Ok(Target::Node(id.to_owned())),
            None => Err(ErrorBody::of(
                codes::INVALID_PARAMS,
                "target is host, sandbox or node:ID",
            )),
        },
    }
}

/// `exec.policy.test`, `exec.policy.explain`.
pub async fn call(methods: &Methods, method: &str, params: &Params<'_>) -> Answer {
    if method == "exec.policy.explain" {
        let p: Explain = params.read(method)?;
        let agent = whose(p.agent)?;
        let target = target(p.target.as_deref())?;
        let explained = methods.approval.explain(&agent, &target).await;
        return explained.map_err(approval);
    }
    let p: Test = params.read(method)?;
    if p.argv.first().is_none_or(String::is_empty) {
        return Err(ErrorBody::of(
            codes::INVALID_PARAMS,
            "argv must name a command",
        ));
    }
    if p.cwd.as_deref().is_some_and(|cwd| !is_canonical_path(cwd)) {
        return Err(ErrorBody::of(
            codes::INVALID_PARAMS,
            "cwd must be an absolute path without `.`, `..` or doubled `/`",
        ));
    }
    let ask = JudgeAsk {
        agent: whose(p.agent)?,
        target: target(p.target.as_deref())?,
        argv: p.argv,
        cwd: p.cwd,
    };
    let (agent, place) = (ask.agent.clone(), ask.target.word());
    let judged = methods.exec.judge(ask).await.map_err(run_refusal)?;
    let mut answer = json!(judged);
    answer["agent"] = json!(agent);
    answer["target"] = place.into();
    Ok(answer)
}
