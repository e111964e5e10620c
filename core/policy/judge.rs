//! What policy says of a plan, for a person who asks before there is a run: the same [`decide`], and which rule it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chain::{self, Chain};
use super::reads::{Reading, words};
use super::through::{Role, commands};
use super::{
    AgentPolicy, Answer, Elevated, ExecMode, Mode, Reason, Rules, Security, Settings, Standing,
    Verdict, WhenAsk, decide, effective, reads_its_folder,
};
use crate::codes::{ELEVATED_DISABLED, NODES_DISABLED};
use crate::ids::{AgentId, Hash32};
use crate::plan::{
    Egress, EnvValue, ExecPlan, Executable, Form, HOST_PATH, Held, HostFile, Limits, Nonce,
    Operand, Stdin, Target, Unkept,
};

/// The word of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ruling {
    /// It does not run.
    Deny,
    /// A person decides.
    Ask,
    /// It runs.
    Allow,
}

impl Ruling {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Ask => "ask",
            Self::Allow => "allow",
        }
    }
}

impl From<Answer> for Ruling {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Deny => Self::Deny,
            Answer::Ask => Self::Ask,
            Answer::Allow => Self::Allow,
        }
    }
}

/// What is said of one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// Its words.
    pub argv: Vec<String>,
    /// Its file, where that is known and kept.
    pub path: Option<String>,
    /// The wrappers and shells before it, from the outside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub through: Vec<String>,
    /// What is said of it.
    pub verdict: Ruling,
    /// The entry that names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// What is said of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// Of the whole.
    pub verdict: Ruling,
    /// What decides.
    pub rule: String,
    /// Why it does not run by itself.
    pub reasons: Vec<Reason>,
    /// All that would be started, as far as it is seen.
    pub commands: Vec<Judged>,
}

/// One source of the policy, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Stable: `config:agents.demo.exec=full`.
    pub rule: String,
    /// Of what is listed.
    pub listed: Ruling,
    /// Of what is not.
    pub other: Ruling,
    #[serde(skip)]
    mode: Mode,
}

/// Everything that speaks to commands of this agent there; the strictest holds, part by part.
pub fn sources(rules: &Rules<'_>, agent: &str, target: &Target) -> Vec<Source> {
    let source = |rule: String, mode: Mode| Source {
        rule,
        listed: mode.listed.into(),
        other: mode.other.into(),
        mode,
    };
    let exec = format!("config:agents.{agent}.exec={}", rules.agent.exec.word());
    let mut all = vec![source(exec, rules.agent.exec.mode())];
    let is_read = matches!(rules.document, Standing::Valid(_));
    if *target == Target::Sandbox && is_read {
        return all;
    }
    let elevated = match rules.agent.elevated {
        Elevated::Off => "off",
        Elevated::Ask => "ask",
        Elevated::Allowlist => "allowlist",
        Elevated::Unasked => "unasked",
    };
    if matches!(target, Target::Node(_)) {
        let AgentPolicy {
            nodes, node, own, ..
        } = rules.agent;
        let rule = format!("config:agents.{agent}.nodes={}", nodes.word());
        all.push(source(rule, nodes.mode()));
        let rule = format!("config:nodes.exec={}", node.word());
        all.push(source(rule, node.mode()));
        // What is not known is not told as if it were.
        if own != ExecMode::Full {
            let rule = format!("node:document={}", own.word());
            all.push(source(rule, own.mode()));
        }
    } else {
        let rule = format!("config:agents.{agent}.elevated={elevated}");
        all.push(source(rule, rules.agent.elevated.mode()));
    }
    let written = |settings: Settings| {
        let security = match settings.security {
            Security::Deny => "deny",
            Security::Allowlist => "allowlist",
            Security::Full => "full",
        };
        let ask = match settings.ask {
            WhenAsk::Always => "always",
            WhenAsk::OnMiss => "on-miss",
            WhenAsk::Off => "off",
        };
        format!("document:{agent}.security={security},ask={ask}")
    };
    let (rule, mode) = match rules.document {
        Standing::Absent => ("document:absent".to_owned(), Mode::DENY),
        Standing::Malformed => ("document:malformed".to_owned(), Mode::DENY),
        Standing::Valid(document) => {
            let settings = document.settings(agent);
            (written(settings), settings.mode())
        }
    };
    all.push(source(rule, mode));
    all
}

/// The first source that is as strict as all together.
fn decisive(rules: &Rules<'_>, plan: &ExecPlan, listed: bool) -> String {
    let part = |mode: Mode| if listed { mode.listed } else { mode.other };
    let agent = plan.agent.as_str();
    let whole = part(effective(rules, agent, &plan.target));
    let mut all = sources(rules, agent, &plan.target).into_iter();
    all.find(|source| part(source.mode) == whole)
        .map_or_else(String::new, |source| source.rule)
}

/// Says what [`decide`] decides, by which rule, and of which commands.
pub fn judge(rules: &Rules<'_>, plan: &ExecPlan, grant: Option<&str>) -> Judgement {
    let listed = chain::listed(rules, plan);
    let refused = chain::refused(rules, plan);
    let (verdict, rule, reasons) = match decide(rules, plan, grant) {
        Verdict::Allow { rule } => (Ruling::Allow, rule, Vec::new()),
        Verdict::Ask { reasons, .. } => {
            let rule = decisive(rules, plan, listed.is_some());
            (Ruling::Ask, rule, reasons)
        }
        Verdict::Deny { code, message, .. } => {
            let (id, rule) = match &refused {
                Some((entry, _)) => ("denied-by-name", format!("deny:{}", entry.name())),
                None if code == ELEVATED_DISABLED => ("elevated-off", decisive(rules, plan, false)),
                None if code == NODES_DISABLED => ("nodes-off", decisive(rules, plan, false)),
                None if listed.is_some() => ("denied", decisive(rules, plan, true)),
                None => ("not-listed", decisive(rules, plan, false)),
            };
            let mut reasons = vec![Reason {
                id: id.to_owned(),
                text: message,
            }];
            let why = commands(&plan.argv, plan.executable.path()).why;
            reasons.extend(why.into_iter().map(|why| Reason {
                id: why.id.to_owned(),
                text: why.text.to_owned(),
            }));
            (Ruling::Deny, rule, reasons)
        }
    };
    let commands = judged(rules, plan, verdict, &rule);
    Judgement {
        verdict,
        rule,
        reasons,
        commands,
    }
}

fn judged(rules: &Rules<'_>, plan: &ExecPlan, whole: Ruling, rule: &str) -> Vec<Judged> {
    let own = plan.executable.path();
    let found = commands(&plan.argv, own).list;
    let document = match rules.document {
        Standing::Valid(document) => Some(document),
        _ => None,
    };
    let chain = Chain::of(plan);
    let mode = effective(rules, plan.agent.as_str(), &plan.target);
    let is_alone = found.len() == 1;
    let all = found
        .into_iter()
        .enumerate()
        .filter(|(_, started)| is_alone || !matches!(started.role, Role::Wrapper | Role::Shell));
    all.map(|(at, started)| {
        let path = if at == 0 {
            // Where nothing was looked up, the name is all there is.
            own.filter(|_| !matches!(plan.executable, Executable::Workspace { .. }))
                .map(str::to_owned)
        } else {
            chain::file_of(plan, &started).map(|file| file.path.clone())
        };
        let named = own.filter(|_| at == 0);
        let refusing = document.and_then(|d| chain::refusing(d, plan, &started, named));
        let entry = document.zip(chain.as_ref()).and_then(|(document, chain)| {
            let entry = chain.entry_of(document, &started, rules.now)?;
            Some(format!("list:{}", entry.name()))
        });
        let (verdict, rule) = if let Some(entry) = refusing {
            (Ruling::Deny, Some(format!("deny:{}", entry.name())))
        } else if at == 0 {
            (whole, Some(rule.to_owned()))
        } else if entry.is_some() {
            (mode.listed.into(), entry)
        } else {
            // An answer for the whole is one for each.
            let own: Ruling = mode.other.into();
            (if whole == Ruling::Allow { whole } else { own }, None)
        };
        Judged {
            argv: started.argv,
            path,
            through: started.through,
            verdict,
            rule,
        }
    })
    .collect()
}

/// What a name stands for on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The file, resolved.
    pub path: String,
    /// Nobody but root can change it, or put another in its place.
    pub fixed: bool,
}

/// The plan that a command would be, as far as policy reads it. `find` says what names stand for on that machine: bare ones
/// in [`HOST_PATH`] alone. Nothing, if its own name stands for nothing.
pub fn preview(
    agent: &AgentId,
    target: &Target,
    argv: &[String],
    cwd: &str,
    find: &dyn Fn(&str) -> Option<Resolved>,
) -> Option<ExecPlan> {
    let name = argv.first()?;
    let file = |path: String| HostFile {
        path,
        dev: 0,
        ino: 0,
        sha256: Hash32([0; 32]),
    };
    let executable = match target {
        Target::Sandbox => Executable::Image {
            digest: "preview".to_owned(),
            path: name.clone(),
        },
        Target::Node(_) => Executable::Node {
            claimed_sha256: None,
        },
        Target::Host => Executable::Host(file(find(name)?.path)),
    };
    let mut operands = Vec::new();
    if *target == Target::Host {
        if let Executable::Host(file) = &executable
            && find(name).is_some_and(|found| !found.fixed)
        {
            operands.push(Operand {
                index: 0,
                from: 0,
                held: Held::Copied(file.clone()),
            });
        }
        let found = commands(argv, executable.path());
        let mut names = found.list.iter().filter_map(|started| started.argv.first());
        let reads = names.any(|name| reads_its_folder(name));
        if reads && find(cwd).is_some_and(|folder| !folder.fixed) {
            operands.push(Operand {
                index: 0,
                from: 1,
                held: Held::Open {
                    path: cwd.to_owned(),
                    why: Unkept::Changeable,
                },
            });
        }
        for word in words(&executable, argv) {
            let named = found
                .list
                .iter()
                .find(|started| started.place == Some((word.index, word.from)));
            let name = match word.reading {
                Reading::Program => named.and_then(|started| started.argv.first().cloned()),
                Reading::Script => argv[word.index].get(word.from..).map(str::to_owned),
                Reading::Data | Reading::May | Reading::Code => None,
            };
            let Some(found) = name.and_then(|name| find(&name)) else {
                continue;
            };
            let held = if found.fixed {
                Held::Checked(file(found.path))
            } else {
                Held::Open {
                    path: found.path,
                    why: Unkept::Changeable,
                }
            };
            operands.push(Operand {
                index: u32::try_from(word.index).ok()?,
                from: u32::try_from(word.from).ok()?,
                held,
            });
        }
    }
    Some(ExecPlan {
        v: Form::V2,
        target: target.clone(),
        agent: agent.clone(),
        session: "preview".to_owned(),
        principal: "preview".to_owned(),
        argv: argv.to_vec(),
        executable,
        operands,
        cwd: cwd.to_owned(),
        uid: 65534,
        gid: 65534,
        groups: Vec::new(),
        env: BTreeMap::from([("PATH".to_owned(), EnvValue::Plain(HOST_PATH.to_owned()))]),
        stdin: Stdin::None,
        tty: None,
        limits: Limits {
            timeout_ms: 1,
            output_bytes: 1,
            memory_bytes: None,
            cpu_millis: None,
            pids: None,
        },
        egress: Egress::None,
        profile_digest: Hash32([0; 32]),
        nonce: Nonce::new(&[0; 16]).ok()?,
    })
}
