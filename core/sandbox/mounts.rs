//! Folders and files of the host that boxes see besides their workspace, as the operator names them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::profile::Access;

/// Most of one profile.
const MOST: usize = 16;
/// The longest path of a source, bytes.
const LONGEST: usize = 1024;
/// Under which all of them are seen.
pub const MOUNTS_INSIDE: &str = "/mnt";

/// What a box sees of the host, by its name below [`MOUNTS_INSIDE`]. Written `SOURCE:NAME` (read-only) or `SOURCE:NAME:rw`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Mounts(BTreeMap<String, MountSource>);

/// Where one of them lies on the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountSource {
    /// An absolute path without links, as it is written.
    pub path: String,
    /// How it is seen; never [`Access::None`].
    pub access: Access,
}

impl Mounts {
    /// Reads the entries. What they name need not exist.
    ///
    /// # Errors
    /// The rule that one breaks.
    pub fn new<T: AsRef<str>>(entries: impl IntoIterator<Item = T>) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for entry in entries {
            let entry = entry.as_ref();
            let (name, source) = one(entry).map_err(|why| format!("{entry:?}: {why}"))?;
            if all.insert(name, source).is_some() {
                return Err(format!("{entry:?}: that name has another source already"));
            }
        }
        if all.len() > MOST {
            return Err(format!("at most {MOST} mounts"));
        }
        Ok(Self(all))
    }

    /// Name and source, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MountSource)> {
        self.0.iter().map(|(name, source)| (name.as_str(), source))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they are written.
    pub fn texts(&self) -> Vec<String> {
        let text = |(name, source): (&str, &MountSource)| match source.access {
            Access::Rw => format!("{}:{name}:rw", source.path),
            Access::Ro | Access::None => format!("{}:{name}", source.path),
        };
        self.iter().map(text).collect()
    }

    /// What both have, no more writable than either has it.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let both = |(name, own): (&String, &MountSource)| {
            let theirs = other.0.get(name)?;
            (theirs.path == own.path).then(|| (name.clone(), own.min(theirs).clone()))
        };
        Self(self.0.iter().filter_map(both).collect())
    }

    /// Whether each of them is in the other too, and there is as writable.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(name, own)| {
            let theirs = other.0.get(name);
            theirs.is_some_and(|theirs| theirs.path == own.path && own.access <= theirs.access)
        })
    }
}

fn one(entry: &str) -> Result<(String, MountSource), &'static str> {
    const FORM: &str = "a mount is SOURCE:NAME or SOURCE:NAME:rw, for example \"/srv/data:data\", and lies in /mnt/NAME";
    let mut parts = entry.split(':');
    let (Some(path), Some(name)) = (parts.next(), parts.next()) else {
        return Err(FORM);
    };
    let access = match (parts.next(), parts.next()) {
        (None | Some("ro"), None) => Access::Ro,
        (Some("rw"), None) => Access::Rw,
        _ => return Err(FORM),
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(is_plain) {
        return Err("NAME is 1 to 64 letters, digits, _ . or -, and begins with no dot");
    }
    let steps = path.strip_prefix('/').ok_or("SOURCE is an absolute path")?;
    let is_step = |step: &str| !matches!(step, "" | "." | "..");
    if path.len() > LONGEST || path.chars().any(char::is_control) || !steps.split('/').all(is_step)
    {
        return Err("SOURCE is a path below /, without //, . and .., and without a / at its end");
    }
    let path = path.to_owned();
    Ok((name.to_owned(), MountSource { path, access }))
}

impl TryFrom<Vec<String>> for Mounts {
    type Error = String;

    fn try_from(entries: Vec<String>) -> Result<Self, String> {
        Self::new(entries)
    }
}

impl From<Mounts> for Vec<String> {
    fn from(mounts: Mounts) -> Self {
        mounts.texts()
    }
}
