//! The table `corpus.toml`, and policy held against it.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::ids::AgentId;
use portcullis_core::plan::{ExecPlan, Executable, Target};
use portcullis_core::policy::{
    AgentPolicy, Document, Elevated, ExecMode, Judgement, Resolved, Rules, Ruling, Standing,
    Verdict, decide, judge, preview,
};
use serde::Deserialize;
use serde_json::Value;

const TABLE: &str = include_str!("corpus.toml");
/// Of the lines that are right to allow, so many must be.
const ALLOWED_PERCENT: usize = 95;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    document: Value,
    machine: Machine,
    template: Vec<Template>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    programs: BTreeSet<String>,
    changeable: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    construct: String,
    name: String,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    verdict: Ruling,
    reason: String,
    shell: Option<String>,
    /// Put so often behind it, then the tail.
    repeat: Option<(String, usize)>,
    tail: Option<String>,
    argv: Option<Vec<String>>,
}

/// One line of the table, with what is said of it.
pub struct Case {
    pub argv: Vec<String>,
    /// What is right.
    pub right: Ruling,
    pub said: Judgement,
    construct: String,
    template: String,
    reason: String,
}

impl Line {
    fn argv(&self) -> Vec<String> {
        if let Some(argv) = &self.argv {
            return argv.clone();
        }
        let mut line = self.shell.clone().unwrap();
        if let Some((piece, times)) = &self.repeat {
            line.push_str(&piece.repeat(*times));
        }
        line.push_str(self.tail.as_deref().unwrap_or_default());
        vec!["sh".to_owned(), "-c".to_owned(), line]
    }
}

impl Machine {
    fn find(&self, name: &str) -> Option<Resolved> {
        if self.changeable.contains(name) {
            let path = name.to_owned();
            return Some(Resolved { path, fixed: false });
        }
        let base = match name.rsplit_once('/') {
            None => name,
            Some(("/usr/bin" | "/bin", base)) => base,
            Some(_) => return None,
        };
        let file = if base == "sh" { "dash" } else { base };
        self.programs.contains(base).then(|| Resolved {
            path: format!("/usr/bin/{file}"),
            fixed: true,
        })
    }

    fn plan(&self, argv: &[String]) -> ExecPlan {
        let agent = AgentId::new("demo").unwrap();
        let plan =
            |argv: &[String]| preview(&agent, &Target::Host, argv, "/srv", &|name| self.find(name));
        plan(argv).unwrap_or_else(|| {
            // As the gateway does with a name that stands for nothing.
            let mut plan = plan(&["ls".to_owned()]).unwrap();
            let path = argv[0].clone();
            plan.executable = Executable::Workspace { path };
            plan.argv = argv.to_vec();
            plan
        })
    }
}

const ASKING: AgentPolicy = AgentPolicy {
    exec: ExecMode::Full,
    elevated: Elevated::Ask,
    nodes: ExecMode::Deny,
    node: ExecMode::Full,
    own: ExecMode::Full,
};

/// Every line, judged.
pub fn judged() -> Vec<Case> {
    let corpus: Corpus = toml::from_str(TABLE).unwrap();
    let document = Document::parse(corpus.document).unwrap();
    let rules = Rules {
        agent: ASKING,
        document: Standing::Valid(&document),
        now: portcullis_core::time::Millis(0),
    };
    let mut cases = Vec::new();
    for template in corpus.template {
        for line in template.lines {
            let argv = line.argv();
            let plan = corpus.machine.plan(&argv);
            let said = judge(&rules, &plan, None);
            // What is shown is what is enforced.
            let enforced = match decide(&rules, &plan, None) {
                Verdict::Allow { .. } => Ruling::Allow,
                Verdict::Ask { .. } => Ruling::Ask,
                Verdict::Deny { .. } => Ruling::Deny,
            };
            assert_eq!(said.verdict, enforced, "{argv:?}");
            cases.push(Case {
                argv,
                right: line.verdict,
                said,
                construct: template.construct.clone(),
                template: template.name.clone(),
                reason: line.reason,
            });
        }
    }
    cases
}

#[test]
fn every_command_line_of_the_table_is_judged_rightly() {
    let cases = judged();
    assert!(cases.len() >= 400, "{}", cases.len());
    let mut wrong = Vec::new();
    let (mut unsafe_allows, mut right_allows, mut allows) = (0, 0, 0);
    for case in &cases {
        let ids: Vec<&str> = case.said.reasons.iter().map(|r| r.id.as_str()).collect();
        let reason = case.right == Ruling::Allow || ids.contains(&case.reason.as_str());
        if case.said.verdict != case.right || !reason {
            let (said, right) = (case.said.verdict.word(), case.right.word());
            wrong.push(format!(
                "{} / {}: {:?}: {said} {ids:?}, not {right} {}",
                case.construct, case.template, case.argv, case.reason
            ));
        }
        unsafe_allows += usize::from(case.said.verdict > case.right);
        allows += usize::from(case.right == Ruling::Allow);
        right_allows +=
            usize::from(case.right == Ruling::Allow && case.said.verdict == Ruling::Allow);
    }
    assert_eq!(unsafe_allows, 0, "\n{}", wrong.join("\n"));
    assert!(
        right_allows * 100 >= allows * ALLOWED_PERCENT,
        "\n{}",
        wrong.join("\n")
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_table_has_every_construct_with_every_verdict_and_no_template_twice_too_often() {
    let mut of_template: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut of_construct: BTreeMap<String, BTreeSet<Ruling>> = BTreeMap::new();
    let mut lines = BTreeSet::new();
    for case in judged() {
        *of_template
            .entry((case.construct.clone(), case.template))
            .or_default() += 1;
        of_construct
            .entry(case.construct)
            .or_default()
            .insert(case.right);
        assert!(lines.insert(case.argv.clone()), "twice: {:?}", case.argv);
    }
    assert!(of_template.values().all(|count| *count <= 10));
    assert!(of_construct.len() >= 25);
    for (construct, verdicts) in of_construct {
        assert_eq!(verdicts.len(), 3, "{construct} {verdicts:?}");
    }
}
