//! "Allow similar": the narrowest rule that covers more than the very same command, proposed to a person who sees what it
//! would have matched, and granted for a while.
//!
//! Only of programs that are known to start nothing, whatever their words are: no interpreter, shell, wrapper or package
//! runner has a word that may vary. Everything but the varying words stays as it was asked for, by the hash of the plan.

use serde::{Deserialize, Serialize};

use crate::display;
use crate::ids::Hash32;
use crate::plan::{ExecPlan, is_canonical_path};
use crate::policy::{is_known_plain, may_always};

const DOMAIN: &[u8] = b"portcullis-similar-v1\0";
/// Digits of a word that is a number.
const DIGITS: usize = 12;
/// Parts of a folder's path, below which nothing varies.
const DEEP: usize = 2;
/// What lies there is the system's, or another thing for each process.
const CLOSED: &[&str] = &[
    "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin",
    "snap", "sys", "usr",
];

/// What one word must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Slot {
    /// This.
    Is(String),
    /// Decimal digits.
    Number,
    /// A name in this folder itself; none that begins with a dot.
    In(String),
}

/// A rule of this kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Similar {
    /// The words as they were asked for: all that is not said of the others is as in that plan.
    argv: Vec<String>,
    /// What each word must be.
    words: Vec<Slot>,
}

impl Slot {
    fn of(word: &str) -> Self {
        let is_number = |word: &str| {
            (1..=DIGITS).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit())
        };
        if is_number(word) {
            return Self::Number;
        }
        match word.rsplit_once('/') {
            Some((folder, name)) if is_open(folder) && is_name(name) => Self::In(folder.to_owned()),
            _ => Self::Is(word.to_owned()),
        }
    }

    fn takes(&self, word: &str) -> bool {
        match self {
            Self::Is(own) => own == word,
            Self::Number => Self::of(word) == Self::Number,
            Self::In(folder) => {
                let name = word.strip_prefix(folder.as_str());
                name.and_then(|name| name.strip_prefix('/'))
                    .is_some_and(is_name)
            }
        }
    }

    /// For a person.
    pub fn text(&self) -> String {
        match self {
            Self::Is(word) => display::quoted(word),
            Self::Number => "(any number)".to_owned(),
            Self::In(folder) => format!("(any name in {})", display::quoted(folder)),
        }
    }
}

/// May names in this folder vary?
fn is_open(folder: &str) -> bool {
    let mut parts = folder.split('/').skip(1);
    is_canonical_path(folder)
        && folder.split('/').skip(1).count() >= DEEP
        && parts.next().is_some_and(|first| !CLOSED.contains(&first))
}

/// One part of a path that hides and steers nothing.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && !name.contains('/')
        && !name.chars().any(char::is_control)
        && !display::has_hidden(name)
        && !display::has_foreign(name)
}

impl Similar {
    /// The narrowest rule that covers more than this command.
    ///
    /// # Errors
    /// Why there is none, for a person.
    pub fn of(plan: &ExecPlan) -> Result<Self, &'static str> {
        if !may_always(plan) {
            return Err("its plan does not say all that would run, or takes input later");
        }
        if !is_known_plain(plan) || !plan.operands.is_empty() {
            return Err(
                "only a program of the system that is known to start no other may have words that vary",
            );
        }
        let own = plan.argv.iter().take(1).cloned().map(Slot::Is);
        let words = plan.argv.iter().skip(1).map(|word| Slot::of(word));
        let words: Vec<Slot> = own.chain(words).collect();
        if words.iter().all(|slot| matches!(slot, Slot::Is(_))) {
            return Err("none of its words is a number or a file's name: --always covers it");
        }
        Ok(Self {
            argv: plan.argv.clone(),
            words,
        })
    }

    /// Are these words what it says?
    pub fn takes(&self, argv: &[String]) -> bool {
        argv.len() == self.words.len()
            && self
                .words
                .iter()
                .zip(argv)
                .all(|(slot, word)| slot.takes(word))
    }

    /// Does it cover this plan? `about` is the subject of the plan that it was proposed for.
    pub fn covers(&self, plan: &ExecPlan, about: Hash32) -> bool {
        if !self.takes(&plan.argv) || !is_known_plain(plan) || !plan.operands.is_empty() {
            return false;
        }
        let as_asked = ExecPlan {
            argv: self.argv.clone(),
            ..plan.clone()
        };
        as_asked.subject_hash() == about
    }

    /// What stands in a decision's proof for the plan: who signs, signs this rule.
    pub fn hash(&self, plan: Hash32) -> Hash32 {
        // Of strings and lists: JSON has one spelling of it here.
        let rule = serde_json::to_vec(self).unwrap_or_default();
        Hash32::of(&[DOMAIN, &plan.0[..], &rule[..]].concat())
    }

    /// For a person: word by word.
    pub fn text(&self) -> String {
        let words: Vec<String> = self.words.iter().map(Slot::text).collect();
        words.join(" ")
    }

    /// What each word must be.
    pub fn words(&self) -> &[Slot] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{EnvValue, Executable, Stdin, TtySize};

    /// Of the system's program that is called so.
    fn host_plan(argv: &[&str]) -> ExecPlan {
        let mut plan = crate::plan::tests::host_plan(argv);
        if let Executable::Host(file) = &mut plan.executable {
            file.path = format!("/usr/bin/{}", argv[0]);
        }
        plan
    }

    fn proposed(argv: &[&str]) -> Result<Similar, &'static str> {
        Similar::of(&host_plan(argv))
    }

    #[test]
    fn the_narrowest_rule_varies_numbers_and_names_in_one_folder() {
        let rule = proposed(&["tail", "-n", "50", "/srv/app/one.log"]).unwrap();
        let says = [
            Slot::Is("tail".into()),
            Slot::Is("-n".into()),
            Slot::Number,
            Slot::In("/srv/app".into()),
        ];
        assert_eq!(rule.words(), says);
        assert_eq!(rule.text(), "tail -n (any number) (any name in /srv/app)");
        let about = host_plan(&["tail", "-n", "50", "/srv/app/one.log"]).subject_hash();
        let covers = |argv: &[&str]| rule.covers(&host_plan(argv), about);
        assert!(covers(&["tail", "-n", "50", "/srv/app/one.log"]));
        assert!(covers(&["tail", "-n", "7", "/srv/app/two.log"]));
        for other in [
            &["tail", "-n", "7", "/srv/app/sub/two.log"][..],
            &["tail", "-n", "7", "/srv/app/../x"],
            &["tail", "-n", "7", "/srv/app/.."],
            &["tail", "-n", "7", "/srv/app/.hidden"],
            &["tail", "-n", "7", "/srv/app/"],
            &["tail", "-n", "7", "/srv/application"],
            &["tail", "-n", "7", "/srv/app/a\u{202e}b"],
            &["tail", "-n", "7", "/srv/app/a\nb"],
            &["tail", "-n", "-7", "/srv/app/two.log"],
            &["tail", "-n", "7k", "/srv/app/two.log"],
            &["tail", "-n", "1234567890123", "/srv/app/two.log"],
            &["tail", "-f", "7", "/srv/app/two.log"],
            &["tail", "-n", "7", "/srv/app/two.log", "/srv/app/three.log"],
            &["tail", "-n", "7"],
            &["head", "-n", "7", "/srv/app/two.log"],
        ] {
            assert!(!covers(other), "{other:?}");
        }
    }

    #[test]
    fn all_else_of_the_plan_stays_as_it_was_asked_for() {
        let asked = host_plan(&["cat", "/srv/app/one"]);
        let rule = Similar::of(&asked).unwrap();
        let about = asked.subject_hash();
        let other = || host_plan(&["cat", "/srv/app/two"]);
        assert!(rule.covers(&other(), about));
        let changes: [fn(&mut ExecPlan); 8] = [
            |plan| plan.cwd = "/srv".into(),
            |plan| plan.uid += 1,
            |plan| plan.principal = "uid:7".into(),
            |plan| plan.limits.timeout_ms += 1,
            |plan| {
                let value = EnvValue::Plain("1".into());
                plan.env.insert("A".into(), value);
            },
            |plan| plan.stdin = Stdin::Open,
            |plan| plan.tty = Some(TtySize { rows: 1, cols: 1 }),
            |plan| plan.agent = crate::ids::AgentId::new("other").unwrap(),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = other();
            change(&mut changed);
            assert!(!rule.covers(&changed, about), "change {at}");
        }
    }

    #[test]
    fn what_may_start_others_and_what_takes_input_has_no_word_that_varies() {
        for argv in [
            &["sh", "/srv/app/x"][..],
            &["bash", "-c", "5"],
            &["python3", "/srv/app/x.py"],
            &["env", "cat", "/srv/app/x"],
            &["timeout", "5", "cat", "/srv/app/x"],
            &["xargs", "-n", "5", "cat"],
            &["sudo", "cat", "/srv/app/x"],
            &["npx", "/srv/app/x"],
            &["git", "-C", "/srv/app/x", "status"],
            &["find", "/srv/app/x", "-exec", "id"],
            &["docker", "run", "5"],
            &["nobody-knows-it", "5"],
        ] {
            assert!(proposed(argv).is_err(), "{argv:?}");
        }
        let mut open = host_plan(&["cat", "/srv/app/x"]);
        open.stdin = Stdin::Open;
        assert!(Similar::of(&open).is_err());
        let mut seated = host_plan(&["cat", "/srv/app/x"]);
        seated.tty = Some(TtySize { rows: 1, cols: 1 });
        assert!(Similar::of(&seated).is_err());
        // Nothing varies, or only where the system's own lies.
        for argv in [
            &["cat", "x"][..],
            &["cat", "/x"],
            &["cat", "/srv/x"],
            &["cat", "/etc/app/x"],
            &["cat", "/proc/1/environ"],
            &["cat", "/run/keys/x"],
            &["cat", "/srv/app/../x/y"],
            &["uname", "-a"],
        ] {
            assert!(proposed(argv).is_err(), "{argv:?}");
        }
    }

    #[test]
    fn another_rule_is_another_hash() {
        let plan = host_plan(&["cat", "/srv/app/one"]);
        let one = Similar::of(&plan).unwrap();
        let other = proposed(&["cat", "/srv/other/one"]).unwrap();
        let hash = plan.plan_hash();
        assert_ne!(one.hash(hash), other.hash(hash));
        assert_ne!(one.hash(hash), hash);
        assert_ne!(one.hash(hash), one.hash(Hash32::of(b"x")));
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Similar>(&json).unwrap(), one);
    }
}
