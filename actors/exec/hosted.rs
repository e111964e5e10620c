//! Commands of a host whose gateway is elsewhere: what our node host runs goes the very way of a gateway's own host runs,
//! opened once, with its digest, copied where it could be changed, and held by the cell.

use std::collections::BTreeMap;
use std::path::PathBuf;

use portcullis_cell::{Stream, Value};
use portcullis_core::codes;
use portcullis_core::ids::{AgentId, Hash32};
use portcullis_core::plan::{
    Egress, EnvPolicy, EnvValue, ExecPlan, Executable, Form, Limits, Nonce, Stdin, Target,
};

use super::config::HostConfig;
use super::host::{HostOrder, HostRun, Lost};
use super::messages::ExecRefusal;
use super::run::{HostGround, HostMeans, check_request, host_env, host_profile, open_on_host};
use crate::sandbox_pool::{Exited, RunEvent};

/// How this host's commands are held.
#[derive(Debug, Clone)]
pub struct Hosted {
    /// As `[exec.host]` of a gateway.
    pub config: HostConfig,
    /// The static cell binary, as `sandbox_pool::cell_file` wrote it.
    pub cell: PathBuf,
    /// Out of every command's reach; a folder first.
    pub masked: Vec<PathBuf>,
}

/// A command that was asked about.
#[derive(Debug, Clone)]
pub struct HostedRequest {
    /// For whom, as the gateway says.
    pub agent: AgentId,
    /// The command.
    pub argv: Vec<String>,
    /// Where.
    pub cwd: Option<String>,
    /// Set beside the fixed ones.
    pub env: BTreeMap<String, String>,
}

/// A command, opened. What runs is what is open here.
pub struct HostedPlan {
    plan: ExecPlan,
    means: HostMeans,
}

impl Hosted {
    /// Opens what would run. Blocks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, request: &HostedRequest) -> Result<HostedPlan, ExecRefusal> {
        let invalid = |error: &dyn std::fmt::Display| {
            ExecRefusal::new(codes::INVALID_PARAMS, error.to_string())
        };
        check_request(&request.argv, &request.env, None)?;
        let policy = EnvPolicy::new(&self.config.env)
            .map_err(|error| ExecRefusal::new(codes::CONFIG_INVALID, error))?;
        for name in request.env.keys() {
            policy.check(&Target::Host, name).map_err(|e| invalid(&e))?;
        }
        let ground = HostGround {
            config: &self.config,
            operator_uids: &[],
            operator_gids: &[],
            masked: self.masked.clone(),
        };
        let means = open_on_host(&ground, &request.argv, request.cwd.clone())?;
        let user = &means.opened.place.user;
        let plan = ExecPlan {
            v: Form::V2,
            target: Target::Host,
            agent: request.agent.clone(),
            session: "node".to_owned(),
            principal: "gateway".to_owned(),
            argv: request.argv.clone(),
            executable: means.opened.program.executable(),
            operands: means.opened.operands.list.clone(),
            cwd: means.cwd.path.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: Vec::new(),
            env: host_env(&request.env, user),
            stdin: Stdin::None,
            tty: None,
            // Its time is said when it is run.
            limits: Limits {
                timeout_ms: self.config.timeout_ms,
                output_bytes: self.config.output_cap_bytes,
                memory_bytes: None,
                cpu_millis: None,
                pids: None,
            },
            egress: Egress::Host,
            profile_digest: host_profile(&self.config, &self.cell, user, &means.cwd),
            // Two questions about the same command have one answer.
            nonce: Nonce::new(&[0; 32]).map_err(|e| invalid(&e))?,
        };
        plan.validate(&policy).map_err(|e| invalid(&e))?;
        Ok(HostedPlan { plan, means })
    }
}

impl HostedPlan {
    /// Of everything that would happen: program, script, what the arguments name, folder, user, variables.
    pub fn digest(&self) -> Hash32 {
        self.plan.plan_hash()
    }

    /// The plan as this host made it: what a policy reads.
    pub const fn plan(&self) -> &ExecPlan {
        &self.plan
    }

    /// The command.
    pub fn argv(&self) -> &[String] {
        &self.plan.argv
    }

    /// Where, in its one spelling.
    pub fn cwd(&self) -> &str {
        &self.plan.cwd
    }

    /// The command as people read it.
    pub fn text(&self) -> String {
        self.plan.command_line()
    }

    /// The program, or the script where it is one.
    pub fn program(&self) -> Option<(&str, Hash32)> {
        match &self.plan.executable {
            Executable::Host(file) => Some((&file.path, file.sha256)),
            Executable::HostScript { script, .. } => Some((&script.path, script.sha256)),
            _ => None,
        }
    }

    /// Looks once more whether it is what was opened, and starts it.
    ///
    /// # Errors
    /// `PLAN_CHANGED`, or it could not be started. Nothing ran.
    pub fn start(
        mut self,
        hosted: &Hosted,
        timeout_ms: Option<u64>,
    ) -> Result<HostedRun, ExecRefusal> {
        if let Some(what) = self.means.opened.changed(&self.plan) {
            return Err(ExecRefusal::new(
                codes::PLAN_CHANGED,
                format!("{what} was changed meanwhile"),
            ));
        }
        self.plan.limits.timeout_ms = hosted.config.timeout(timeout_ms);
        let order = HostOrder {
            cell: &hosted.cell,
            config: &hosted.config,
            plan: &self.plan,
            means: &self.means,
            // Of a gateway's request, which never has a secret of the vault.
            env: plain_values(&self.plan),
        };
        HostRun::start(&order).map(|run| HostedRun(Box::new(run)))
    }
}

fn plain_values(plan: &ExecPlan) -> Vec<(String, Value)> {
    let plain = |(name, value): (&String, &EnvValue)| match value {
        EnvValue::Plain(text) => Some((name.clone(), Value::new(text))),
        EnvValue::Secret { .. } => None,
    };
    plan.env.iter().filter_map(plain).collect()
}

/// A command that runs. Dropped, it is ended with all that it started.
pub struct HostedRun(Box<HostRun>);

/// What it does.
pub enum HostedNews {
    /// It wrote.
    Output(Stream, Vec<u8>),
    /// It is over, and nothing of it is left.
    Exited(Exited),
    /// How it ended is not known; or it was never begun.
    Lost(String),
}

impl HostedRun {
    /// Ends it and all that it started, by force: nothing of it is left when this returns.
    pub async fn kill(self) {
        self.0.kill().await;
    }

    /// What comes next; may be dropped and called again.
    pub async fn next(&mut self) -> HostedNews {
        match self.0.next().await {
            Ok(RunEvent::Output { stream, data, .. }) => HostedNews::Output(stream, data),
            Ok(RunEvent::Exited(exited)) => HostedNews::Exited(exited),
            Ok(RunEvent::BoxLost | RunEvent::GivenUp(_)) | Err(Lost::Box | Lost::GivenUp(_)) => {
                HostedNews::Lost("what ran it is gone".to_owned())
            }
            Err(Lost::Unknown(why) | Lost::NotStarted(why) | Lost::Refused(why)) => {
                HostedNews::Lost(why)
            }
        }
    }
}
