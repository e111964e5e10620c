//! May this plan run: at once, after a person's word, or never?
//!
//! Every source (configuration, the approvals document) says what happens to a listed command and to any other; the
//! strictest of all holds, each part by itself. What is missing, malformed or unknown refuses.

use serde::{Deserialize, Serialize};

use crate::codes::{Code, ELEVATED_DISABLED, NODES_DISABLED, POLICY_DENIED};
use crate::display;
use crate::plan::{EnvValue, ExecPlan, Executable, Held, Operand, Stdin, Target};
use crate::time::Millis;

mod args;
mod chain;
mod command;
mod diff;
mod document;
mod explain;
mod judge;
mod lint;
mod list;
mod perhaps;
mod reads;
pub mod shell;
mod simple;
mod through;

pub use args::ArgWords;
pub use command::{CommandKind, kind_of, kind_of_command, reads_its_folder};
pub use diff::{Diff, diff};
pub use document::{Document, DocumentError, Entry, Security, Settings, WhenAsk, Where};
pub use explain::{entry_json, explain};
pub use judge::{Judged, Judgement, Resolved, Ruling, Source, judge, preview, sources};
pub use lint::{Finding, lint};
pub use list::{ArgPattern, PathPattern};
pub(crate) use reads::is_known_plain;
pub use reads::{Reading, Word, words};
pub use through::{Commands, MAX_DEPTH, Role, Started, Why, commands};

/// What happens to a command, from strictest to freest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// Refused.
    Deny,
    /// A person decides.
    Ask,
    /// Runs.
    Allow,
}

/// What one source says: of a command on the list (or with a grant), and of any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Of a listed command.
    pub listed: Answer,
    /// Of any other; never freer than `listed`.
    pub other: Answer,
}

impl Mode {
    /// Nothing runs.
    pub const DENY: Self = Self::of(Answer::Deny, Answer::Deny);
    /// The listed runs, a miss is refused.
    pub const ALLOWLIST: Self = Self::of(Answer::Allow, Answer::Deny);
    /// The listed runs, a miss asks.
    pub const ASK: Self = Self::of(Answer::Allow, Answer::Ask);
    /// Everything asks.
    pub const ALWAYS_ASK: Self = Self::of(Answer::Ask, Answer::Ask);
    /// Everything runs.
    pub const FULL: Self = Self::of(Answer::Allow, Answer::Allow);

    const fn of(listed: Answer, other: Answer) -> Self {
        Self { listed, other }
    }

    /// The strictest of both, part by part: adding a source never allows more.
    #[must_use]
    pub fn strictest(self, with: Self) -> Self {
        Self::of(self.listed.min(with.listed), self.other.min(with.other))
    }

    /// Is every part at most as free as in the other?
    pub fn within(self, other: Self) -> bool {
        self.listed <= other.listed && self.other <= other.other
    }
}

/// `[agents.<id>] exec`: commands of this agent wherever they run; alone decisive in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecMode {
    /// Everything runs.
    #[default]
    Full,
    /// The listed runs, a miss asks.
    Ask,
    /// The listed runs, a miss is refused.
    Allowlist,
    /// Nothing runs.
    Deny,
}

/// `[agents.<id>] elevated`: may its commands leave the sandbox?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Elevated {
    /// Never.
    #[default]
    Off,
    /// The listed may, a miss asks.
    Ask,
    /// The listed may, a miss is refused.
    Allowlist,
    /// In no configuration: of a node's own commands, where its own document alone speaks.
    #[serde(skip)]
    Unasked,
}

/// What is said of one agent's commands, beside the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentPolicy {
    /// `[agents.<id>] exec`.
    pub exec: ExecMode,
    /// `[agents.<id>] elevated`: on the gateway's host.
    pub elevated: Elevated,
    /// `[agents.<id>] nodes`: on node hosts. Nothing is listed for a node, so that `allowlist` refuses there as `deny` does.
    pub nodes: ExecMode,
    /// `[nodes.exec]` of the very node: on it alone, whoever asks.
    pub node: ExecMode,
    /// What that node's own document says of the very command, by its word.
    pub own: ExecMode,
}

impl Default for AgentPolicy {
    fn default() -> Self {
        Self {
            exec: ExecMode::Full,
            elevated: Elevated::Off,
            nodes: ExecMode::Deny,
            node: ExecMode::Full,
            own: ExecMode::Full,
        }
    }
}

impl ExecMode {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Ask => "ask",
            Self::Allowlist => "allowlist",
            Self::Deny => "deny",
        }
    }

    const fn mode(self) -> Mode {
        match self {
            Self::Full => Mode::FULL,
            Self::Ask => Mode::ASK,
            Self::Allowlist => Mode::ALLOWLIST,
            Self::Deny => Mode::DENY,
        }
    }
}

impl Elevated {
    const fn mode(self) -> Mode {
        match self {
            Self::Off => Mode::DENY,
            Self::Ask => Mode::ASK,
            Self::Allowlist => Mode::ALLOWLIST,
            Self::Unasked => Mode::FULL,
        }
    }
}

/// The approvals document, as it stands.
#[derive(Debug, Clone, Copy)]
pub enum Standing<'a> {
    /// There is none, though a state has one from its beginning: nothing runs on the host.
    Absent,
    /// Set and read.
    Valid(&'a Document),
    /// Kept but not to be read: nothing runs on the host.
    Malformed,
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// The configuration of the plan's agent; its default where the configuration does not name it.
    pub agent: AgentPolicy,
    /// The document.
    pub document: Standing<'a>,
    /// The time: of its entries some end.
    pub now: Millis,
}

/// Why a person is asked: a stable id, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The same id stands in the audit record.
    pub id: String,
    /// For the person.
    pub text: String,
}

/// What policy says of one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It runs, by this rule.
    Allow {
        /// Stable name: `config:agents.demo.exec=full`, `list:<entry>`, `grant:<id>`.
        rule: String,
    },
    /// A person decides.
    Ask {
        /// Why.
        reasons: Vec<Reason>,
        /// May the answer be kept for the same command?
        may_always: bool,
    },
    /// It does not run.
    Deny {
        /// [`ELEVATED_DISABLED`] or [`POLICY_DENIED`].
        code: &'static Code,
        /// What refuses it.
        message: String,
        /// What to add or change, exactly, where that is one thing.
        fix: Option<String>,
    },
}

/// What holds for this agent and target.
pub fn effective(rules: &Rules<'_>, agent: &str, target: &Target) -> Mode {
    let exec = rules.agent.exec.mode();
    match (target, rules.document) {
        // What it refuses by name holds in the sandbox too, and is not known.
        (_, Standing::Absent | Standing::Malformed) => Mode::DENY,
        (Target::Sandbox, Standing::Valid(_)) => exec,
        (Target::Host, Standing::Valid(_)) => exec
            .strictest(rules.agent.elevated.mode())
            .strictest(document_mode(rules.document, agent)),
        // A node is outside the sandbox like the host, and somebody else's machine: elevated mode is not about it.
        (Target::Node(_), Standing::Valid(_)) => exec
            .strictest(rules.agent.nodes.mode())
            .strictest(rules.agent.node.mode())
            .strictest(rules.agent.own.mode())
            .strictest(document_mode(rules.document, agent)),
    }
}

fn document_mode(standing: Standing<'_>, agent: &str) -> Mode {
    match standing {
        Standing::Valid(document) => document.settings(agent).mode(),
        Standing::Absent | Standing::Malformed => Mode::DENY,
    }
}

/// Decides on a valid plan. `grant` is the standing grant for its subject hash, if there is one.
pub fn decide(rules: &Rules<'_>, plan: &ExecPlan, grant: Option<&str>) -> Verdict {
    let agent = plan.agent.as_str();
    let mode = effective(rules, agent, &plan.target);
    if let Some((entry, name)) = chain::refused(rules, plan) {
        return Verdict::Deny {
            code: POLICY_DENIED,
            message: format!(
                "the approvals document refuses {} to agent {agent} (entry {})",
                display::quoted(&name),
                entry.name()
            ),
            fix: None,
        };
    }
    let listed = grant
        .filter(|_| may_always(plan))
        .map(|id| format!("grant:{id}"))
        .or_else(|| chain::listed(rules, plan));
    let answer = if listed.is_some() {
        mode.listed
    } else {
        mode.other
    };
    match answer {
        Answer::Allow => Verdict::Allow {
            rule: listed
                .filter(|_| mode.other != Answer::Allow)
                .unwrap_or_else(|| match plan.target {
                    Target::Node(_) => format!("config:agents.{agent}.nodes=full"),
                    _ => format!("config:agents.{agent}.exec=full"),
                }),
        },
        Answer::Ask => Verdict::Ask {
            reasons: reasons(plan, listed.as_deref()),
            may_always: mode.listed == Answer::Allow && may_always(plan),
        },
        Answer::Deny => deny(rules, agent, &plan.target, mode),
    }
}

/// What is denied whatever the command is: to be asked before anything is opened or looked up for a plan, so that who may
/// not leave the sandbox learns nothing of what lies outside.
pub fn denied_outright(rules: &Rules<'_>, agent: &str, target: &Target) -> Option<Verdict> {
    let mode = effective(rules, agent, target);
    (mode.listed == Answer::Deny && mode.other == Answer::Deny)
        .then(|| deny(rules, agent, target, mode))
}

fn deny(rules: &Rules<'_>, agent: &str, target: &Target, mode: Mode) -> Verdict {
    let refuse = |message: String, fix: Option<String>| Verdict::Deny {
        code: POLICY_DENIED,
        message,
        fix,
    };
    let missed =
        |what: &str| format!("the command is not on the list, and {what} refuses what is not");
    match (target, rules.agent) {
        (
            Target::Node(_),
            AgentPolicy {
                nodes: ExecMode::Deny,
                exec,
                ..
            },
        ) if exec != ExecMode::Deny => Verdict::Deny {
            code: NODES_DISABLED,
            message: format!("commands of agent {agent} may not go to nodes"),
            fix: Some(format!("[agents.{agent}]\nnodes = \"ask\"")),
        },
        (
            Target::Host,
            AgentPolicy {
                elevated: Elevated::Off,
                exec,
                ..
            },
        ) if exec != ExecMode::Deny => Verdict::Deny {
            code: ELEVATED_DISABLED,
            message: format!("commands of agent {agent} may not leave the sandbox"),
            fix: Some(format!("[agents.{agent}]\nelevated = \"ask\"")),
        },
        (
            _,
            AgentPolicy {
                exec: ExecMode::Deny,
                ..
            },
        ) => refuse(format!("agents.{agent}.exec is \"deny\""), None),
        _ if matches!(rules.document, Standing::Malformed) => {
            refuse("the approvals document cannot be read".to_owned(), None)
        }
        _ if matches!(rules.document, Standing::Absent) => refuse(
            "there is no approvals document: set one (portcullis policy set FILE)".to_owned(),
            None,
        ),
        (
            _,
            AgentPolicy {
                exec: ExecMode::Allowlist,
                ..
            },
        ) => refuse(missed(&format!("agents.{agent}.exec")), None),
        (
            Target::Host,
            AgentPolicy {
                elevated: Elevated::Allowlist,
                ..
            },
        ) if mode.listed == Answer::Allow => {
            refuse(missed(&format!("agents.{agent}.elevated")), None)
        }
        (Target::Node(_), AgentPolicy { nodes, node, .. })
            if [nodes, node]
                .iter()
                .any(|mode| mode.mode().other == Answer::Deny) =>
        {
            let (key, mode) = match nodes {
                ExecMode::Allowlist => (format!("agents.{agent}.nodes"), nodes),
                _ => ("nodes.exec of this node".to_owned(), node),
            };
            refuse(
                format!(
                    "{key} is \"{}\", and no list names commands of nodes",
                    mode.word()
                ),
                None,
            )
        }
        _ if mode.listed == Answer::Deny => refuse(
            format!("the approvals document denies commands of agent {agent}"),
            None,
        ),
        _ => refuse(missed("the approvals document"), None),
    }
}

/// May a person's word stand for the same command later? Only where the plan's hash says all that will run: what is typed into it later
/// is in no plan.
pub fn may_always(plan: &ExecPlan) -> bool {
    let bound = match &plan.executable {
        Executable::Host(_) | Executable::HostScript { .. } | Executable::Image { .. } => true,
        Executable::Workspace { .. } | Executable::Node { .. } => false,
    };
    let kept = |operand: &Operand| !matches!(operand.held, Held::Open { .. });
    bound
        && !plan.takes_input()
        && plan.operands.iter().all(kept)
        && kind_of(plan) != CommandKind::Runner
}

fn reasons(plan: &ExecPlan, listed: Option<&str>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |id: &str, text: &str| {
        reasons.push(Reason {
            id: id.to_owned(),
            text: text.to_owned(),
        });
    };
    if plan.target == Target::Host {
        add(
            "leaves-sandbox",
            "It runs on this machine, outside the sandbox.",
        );
    }
    if matches!(plan.target, Target::Node(_)) {
        add(
            "on-node",
            "It runs on another machine, outside any sandbox, as that node's own user. What the file there is, is that node's word: unverified.",
        );
    }
    if listed.is_some() {
        add("always-ask", "Policy asks for every command of this agent.");
    } else {
        add("not-listed", "No list entry or grant names this command.");
    }
    match kind_of(plan) {
        CommandKind::Runner => add(
            "runs-code",
            "It starts code that its arguments, files or input bring: read them all.",
        ),
        CommandKind::Tool => add(
            "has-exec-options",
            "The program has options that start other commands.",
        ),
        CommandKind::Plain => {}
    }
    let through = commands(&plan.argv, plan.executable.path());
    for why in &through.why {
        add(why.id, why.text);
    }
    if through.why.is_empty() && through.list.len() > 1 && chain::Chain::of(plan).is_none() {
        add(
            "not-pinned",
            "What a name in it stands for is not known, or can be another file by then.",
        );
    }
    if plan.stdin != Stdin::None {
        add(
            "open-input",
            "What is piped or typed into it later is not known now, and nobody is asked about it.",
        );
    }
    if plan.tty.is_some() {
        add(
            "on-terminal",
            "It runs on a terminal, as if a person sat at it.",
        );
    }
    for operand in &plan.operands {
        if let Held::Open { path, why } = &operand.held {
            if operand.index == 0 {
                let text = format!(
                    "It starts what the configuration in {} names, and others than root can change that.",
                    display::quoted(path)
                );
                add("reads-its-folder", &text);
                continue;
            }
            let (index, why) = (operand.index, why.text());
            let text = format!(
                "What argument {index} names is not kept ({why}): it can change until the command reads it."
            );
            add("not-kept", &text);
        }
    }
    if plan
        .env
        .values()
        .any(|v| matches!(v, EnvValue::Secret { .. }))
    {
        add(
            "uses-secrets",
            "It gets secrets of the vault in its environment.",
        );
    }
    if plan.env.keys().any(|name| !crate::plan::is_harmless(name)) {
        add("sets-variables", "It sets variables of its own.");
    }
    let texts = || {
        plan.argv
            .iter()
            .map(String::as_str)
            .chain([plan.cwd.as_str()])
            .chain(plan.executable.path())
            .chain(plan.operands.iter().map(|operand| operand.held.path()))
            .chain(plan.env.values().filter_map(|v| match v {
                EnvValue::Plain(text) => Some(text.as_str()),
                EnvValue::Secret { .. } => None,
            }))
    };
    if texts().any(display::has_hidden) {
        add(
            "hidden-characters",
            "It contains hidden or steering characters, shown as \\u{…}.",
        );
    }
    if texts().any(display::has_foreign) {
        add(
            "foreign-letters",
            "It contains letters beyond ASCII, which may look like others.",
        );
    }
    reasons
}

#[cfg(test)]
mod tests;
