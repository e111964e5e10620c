//! The names of variables that a request may set.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::plan::{is_env_name, steers};

/// What stands for "none" in a list that may not be empty, because empty means that the layer below decides.
const NONE: &str = "-";
/// Most entries of a list.
const MOST: usize = 256;

/// A set of names: exact ones, beginnings (`CI_*`), or all (`*`). None of them lets a name pass that steers a loader, an interpreter or a
/// tool: that is [`crate::plan::EnvPolicy`]'s to refuse.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct EnvNames(BTreeSet<String>);

impl EnvNames {
    /// Checks the entries, and leaves out what another entry covers. `["-"]` is the empty set.
    ///
    /// # Errors
    /// What is wrong with which entry.
    pub fn new(entries: &[String]) -> Result<Self, String> {
        if entries.len() > MOST {
            return Err(format!("at most {MOST} names"));
        }
        if entries == [NONE] {
            return Ok(Self::default());
        }
        for entry in entries {
            let (name, is_beginning) = match entry.strip_suffix('*') {
                Some(beginning) => (beginning, true),
                None => (entry.as_str(), false),
            };
            if !(is_env_name(name) || is_beginning && name.is_empty()) {
                return Err(format!(
                    "{entry:?} is no name of a variable: write NAME, a beginning as NAME_*, or \"*\"; [\"-\"] alone is none"
                ));
            }
            if !is_beginning && steers(name) {
                return Err(format!(
                    "{name} steers a loader, an interpreter or a tool, and no request may set it"
                ));
            }
        }
        Ok(Self(entries.iter().cloned().collect()).normal())
    }

    /// May a request set it, as far as this list goes?
    pub fn allows(&self, name: &str) -> bool {
        self.0.iter().any(|entry| covers(entry, name))
    }

    /// What both allow.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let pairs = self
            .0
            .iter()
            .flat_map(|one| other.0.iter().map(move |two| (one, two)));
        let both = pairs.filter_map(|(one, two)| {
            if covers(one, two) {
                Some(two.clone())
            } else if covers(two, one) {
                Some(one.clone())
            } else {
                None
            }
        });
        Self(both.collect()).normal()
    }

    /// Whether the other allows all that this one does.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0
            .iter()
            .all(|entry| other.0.iter().any(|over| covers(over, entry)))
    }

    /// In order.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Without what another entry covers, so that equal sets are equal values.
    fn normal(self) -> Self {
        let is_needless = |entry: &String| {
            self.0
                .iter()
                .any(|other| other != entry && covers(other, entry))
        };
        let kept = self.0.iter().filter(|entry| !is_needless(entry));
        Self(kept.cloned().collect())
    }
}

/// Does the entry allow all that the other (a name or an entry) does?
fn covers(entry: &str, other: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(beginning) => other.starts_with(beginning),
        None => entry == other,
    }
}

impl TryFrom<Vec<String>> for EnvNames {
    type Error = String;

    fn try_from(entries: Vec<String>) -> Result<Self, String> {
        Self::new(&entries)
    }
}

impl From<EnvNames> for Vec<String> {
    fn from(names: EnvNames) -> Self {
        if names.0.is_empty() {
            vec![NONE.to_owned()]
        } else {
            names.0.into_iter().collect()
        }
    }
}
