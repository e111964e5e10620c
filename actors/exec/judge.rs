//! What policy would say of a command: frozen as a run's plan is, decided on as a run's is, and neither asked about, recorded
//! nor run.

use std::collections::BTreeMap;

use portcullis_core::codes;
use portcullis_core::plan::{EnvPolicy, ExecPlan, Executable, Target};
use portcullis_core::policy::{ExecMode, Judgement, Reason, Resolved, Ruling, commands, preview};

use super::actor::Exec;
use super::messages::{ExecRefusal, ExecWiring, JudgeAsk};
use super::run::{check_request, host_env, opened_on_host, prepare_words};
use crate::supervision::Ctx;

/// Judges it.
///
/// # Errors
/// [`ExecRefusal`]: a room is down, or the machine cannot run commands at all.
pub async fn judge(
    wiring: ExecWiring,
    ctx: Ctx<Exec>,
    ask: JudgeAsk,
) -> Result<Judgement, ExecRefusal> {
    if let Err(refusal) = check_request(&ask.argv, &BTreeMap::new(), None) {
        return Ok(no_plan(&ask, &refusal.message));
    }
    let approval = wiring.approval.clone();
    let denied = approval.denied_outright(&ask.agent, &ask.target).await;
    let denied = denied.map_err(|error| ExecRefusal::of_approval(&error))?;
    let mut missing = false;
    let plan = if ask.target == Target::Host && denied.is_none() {
        match on_host(&wiring, &ctx, &ask).await {
            Ok(plan) => plan,
            Err(refusal) if refusal.code == codes::COMMAND_NOT_FOUND => {
                missing = true;
                unseen(&ask)?
            }
            Err(refusal) if refusal.code == codes::INVALID_PARAMS => {
                return Ok(no_plan(&ask, &refusal.message));
            }
            Err(refusal) => return Err(refusal),
        }
    } else {
        // What is outside is looked at only for who may leave the sandbox; a box and a node say for themselves what is in them.
        unseen(&ask)?
    };
    let judged = approval.judge(plan).await;
    let mut judgement = judged.map_err(|error| ExecRefusal::of_approval(&error))?;
    if let Target::Node(node) = &ask.target
        && denied.is_none()
    {
        by_node(&wiring, &ask, node, &mut judgement).await;
    }
    if missing {
        judgement.reasons.push(Reason {
            id: "not-found".to_owned(),
            text: "The name stands for nothing on this machine: a run of it is refused.".to_owned(),
        });
    }
    Ok(judgement)
}

/// What the node's own document says, which it is asked for: of both words the stricter holds.
async fn by_node(wiring: &ExecWiring, ask: &JudgeAsk, node: &str, judgement: &mut Judgement) {
    let words = (&ask.agent, &ask.argv[..], ask.cwd.as_deref());
    let said = prepare_words(&wiring.nodes, words, &BTreeMap::new(), node).await;
    let (own, rule, reasons) = match said {
        Ok(means) => {
            let own = match means.own {
                ExecMode::Full => Ruling::Allow,
                ExecMode::Ask => Ruling::Ask,
                ExecMode::Allowlist | ExecMode::Deny => Ruling::Deny,
            };
            (own, format!("node:{}", means.rule), means.reasons)
        }
        // No run of it begins there now, and why is all that is known.
        Err(refusal) => {
            let reason = Reason {
                id: "node-refuses".to_owned(),
                text: refusal.message,
            };
            (Ruling::Deny, "node".to_owned(), vec![reason])
        }
    };
    if own < judgement.verdict {
        judgement.verdict = own;
        judgement.rule = rule;
        for command in &mut judgement.commands {
            command.verdict = command.verdict.min(own);
        }
    }
    for reason in reasons {
        if !judgement.reasons.contains(&reason) {
            judgement.reasons.push(reason);
        }
    }
}

/// Of which no plan can be made: no run of it begins.
fn no_plan(ask: &JudgeAsk, why: &str) -> Judgement {
    let id = "invalid-plan".to_owned();
    let reasons = vec![Reason {
        id,
        text: why.to_owned(),
    }];
    let mut judgement = Judgement {
        verdict: Ruling::Deny,
        rule: "plan".to_owned(),
        reasons,
        commands: Vec::new(),
    };
    for why in commands(&ask.argv, None).why {
        judgement.reasons.push(Reason {
            id: why.id.to_owned(),
            text: why.text.to_owned(),
        });
    }
    judgement
}

/// The plan of a command of which nothing is looked up.
fn unseen(ask: &JudgeAsk) -> Result<ExecPlan, ExecRefusal> {
    let find = |name: &str| {
        let path = name.to_owned();
        Some(Resolved { path, fixed: false })
    };
    let cwd = ask.cwd.as_deref().unwrap_or("/");
    let plan = preview(&ask.agent, &ask.target, &ask.argv, cwd, &find);
    let mut plan =
        plan.ok_or_else(|| ExecRefusal::new(codes::INVALID_PARAMS, "argv must name a command"))?;
    if let Executable::Host(file) = plan.executable {
        plan.executable = Executable::Workspace { path: file.path };
        plan.operands.clear();
    }
    Ok(plan)
}

async fn on_host(
    wiring: &ExecWiring,
    ctx: &Ctx<Exec>,
    ask: &JudgeAsk,
) -> Result<ExecPlan, ExecRefusal> {
    let means = opened_on_host(wiring, ctx, &ask.argv, ask.cwd.clone()).await?;
    let user = &means.opened.place.user;
    let plan = ExecPlan {
        executable: means.opened.program.executable(),
        operands: means.opened.operands.list.clone(),
        cwd: means.cwd.path.clone(),
        uid: user.uid,
        gid: user.gid,
        env: host_env(&BTreeMap::new(), user),
        ..unseen(ask)?
    };
    let policy = EnvPolicy::new(&wiring.config.host.env)
        .map_err(|error| ExecRefusal::new(codes::CONFIG_INVALID, error))?;
    plan.validate(&policy)
        .map_err(|error| ExecRefusal::new(codes::INVALID_PARAMS, error))?;
    Ok(plan)
}
