//! default.toml < file < environment < flags, leaf by leaf, each with the place it came from.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use portcullis_core::ids::AgentId;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::problem::{ConfigErrors, Place, Problem, is_secret, nearest, place};

/// The tables whose keys are names that somebody chooses; `*` in each is the template of all.
const AGENTS: &[&str] = &["agents"];
const SINKS: &[&str] = &["audit", "sinks"];
const PLUGINS: &[&str] = &["plugins"];
/// The name of the template in it.
const EVERY: &str = "*";
/// Before the names of variables that set a key: `PORTCULLIS__GATEWAY__PORT`.
pub const PREFIX: &str = "PORTCULLIS__";

/// One leaf that somebody set.
struct Setting {
    path: Vec<String>,
    value: Value,
    place: Place,
}

/// A setting given by a flag: the flag as the user wrote it, the key it stands for, the value.
#[derive(Debug, Clone)]
pub struct Flag {
    /// `--port`.
    pub name: &'static str,
    /// `gateway.port`.
    pub key: &'static str,
    /// As written.
    pub value: String,
}

/// The layers on top of the defaults, read into types section by section.
pub struct Layers {
    defaults: Table,
    settings: Vec<Setting>,
    merged: Table,
    places: BTreeMap<Vec<String>, Place>,
    problems: Vec<Problem>,
}

impl Layers {
    /// Begins with the built-in defaults, which are valid (a test reads them).
    pub fn new(defaults: &str) -> Self {
        let defaults: Table = defaults.parse().unwrap_or_default();
        Self {
            merged: defaults.clone(),
            defaults,
            settings: vec![],
            places: BTreeMap::new(),
            problems: vec![],
        }
    }

    /// Reads a file's bytes. `name` is shown in messages.
    pub fn file(&mut self, name: &str, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
                let place = place(name, valid, error.valid_up_to());
                self.problem(place, "", "this byte is not UTF-8", None);
                return;
            }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut broken = vec![];
        for error in errors {
            let place = place(
                name,
                text,
                error.span().map_or(text.len(), |span| span.start),
            );
            if let Place::File { line, .. } = &place {
                broken.push(*line);
            }
            self.problem(place, "", error.message(), None);
        }
        let mut found = vec![];
        let defaults = self.defaults.clone();
        self.walk(
            table.get_ref(),
            &defaults,
            &mut vec![],
            &|offset| place(name, text, offset),
            &mut found,
        );
        // What the parser made of a broken line is not what was meant.
        found.retain(
            |setting: &Setting| !matches!(&setting.place, Place::File { line, .. } if broken.contains(line)),
        );
        self.settings.extend(found);
    }

    /// Reads variables; those that do not begin with `PORTCULLIS__` are not ours.
    pub fn environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let mut path: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
                if is_reference(path.get(..4).unwrap_or_default()) {
                    // Variables have capital letters.
                    path[3].make_ascii_uppercase();
                }
                self.word(path, &value, Place::Env(name));
            }
        }
    }

    /// Reads flags.
    pub fn flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            let path = flag.key.split('.').map(str::to_owned).collect();
            self.word(path, &flag.value, Place::Flag(flag.name.to_owned()));
        }
    }

    /// Notes what a rule over several keys finds; the place is that of `key`.
    pub fn reject(&mut self, key: &str, message: &str) {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let place = self.place_of(&path);
        self.problem(place, key, message, None);
    }

    /// The first key below this table that somebody set.
    pub fn set_below(&self, table: &[&str]) -> Option<String> {
        let mut set = self.places.keys();
        let found = set.find(|path| {
            path.len() > table.len() && path.iter().zip(table).all(|(one, two)| one == two)
        })?;
        Some(found.join("."))
    }

    /// A section as its type. What does not fit is noted key by key and left at its default.
    pub fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        let mut mine: Vec<Setting> = vec![];
        let mut others = vec![];
        for setting in std::mem::take(&mut self.settings) {
            if setting.path.first().is_some_and(|first| first == name) {
                &mut mine
            } else {
                &mut others
            }
            .push(setting);
        }
        self.settings = others;
        // The template first: agents take over what it says.
        mine.sort_by_key(|setting| !is_template(&setting.path));
        let mut last = None;
        for setting in mine {
            let mut trial = Table::new();
            trial.insert(
                name.to_owned(),
                self.defaults.get(name).cloned().unwrap_or_else(empty),
            );
            put(&mut trial, &setting.path, setting.value.clone());
            match take::<T>(&trial, name) {
                Ok(_) => {
                    put(&mut self.merged, &setting.path, setting.value);
                    self.note(&setting.path, setting.place.clone());
                    last = Some(setting.place);
                }
                Err(error) => {
                    let near = nearest_variant(&error);
                    self.problem(setting.place, &setting.path.join("."), &error, near);
                }
            }
        }
        take::<T>(&self.merged, name).unwrap_or_else(|error| {
            self.problem(last.unwrap_or(Place::Default), name, &error, None);
            T::default()
        })
    }

    /// All leaves with their places, or all problems.
    pub fn finish(mut self) -> Result<(Table, BTreeMap<Vec<String>, Place>), ConfigErrors> {
        for setting in std::mem::take(&mut self.settings) {
            // A section of default.toml that no type reads: ours, and a test finds it.
            self.problem(
                setting.place,
                &setting.path.join("."),
                "no room reads this section",
                None,
            );
        }
        // In the order of the file, so that a person can walk down it.
        self.problems.sort_by_key(|problem| match &problem.place {
            Place::File { line, column, .. } => (*line, *column),
            Place::Default | Place::Env(_) | Place::Flag(_) => (usize::MAX, 0),
        });
        if self.problems.is_empty() {
            Ok((self.merged, self.places))
        } else {
            Err(ConfigErrors(self.problems))
        }
    }

    fn problem(&mut self, place: Place, key: &str, message: &str, nearest: Option<String>) {
        let message = message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        // A key may be any text, so it is shown like any other foreign text.
        let key = key
            .chars()
            .take(128)
            .flat_map(|c| {
                if c.is_control() { '\u{FFFD}' } else { c }
                    .to_string()
                    .chars()
                    .collect::<Vec<_>>()
            })
            .collect();
        self.problems.push(Problem {
            place,
            key,
            message,
            nearest,
            is_secret: false,
        });
    }

    /// The last problem is a secret where none may stand.
    fn mark_secret(&mut self, is_secret: bool) {
        if let Some(last) = self.problems.last_mut() {
            last.is_secret |= is_secret;
        }
    }

    fn walk(
        &mut self,
        table: &DeTable<'_>,
        template: &Table,
        path: &mut Vec<String>,
        at: &dyn Fn(usize) -> Place,
        found: &mut Vec<Setting>,
    ) {
        for (key, value) in table {
            let said = key.get_ref().as_ref();
            let name = if path.is_empty() {
                section_of(said)
            } else {
                said
            };
            if name != said && table.keys().any(|other| other.get_ref().as_ref() == name) {
                let message =
                    format!("[{name}] is here too, and both are one section: keep one of them");
                self.problem(at(key.span().start), said, &message, None);
                continue;
            }
            path.push(name.to_owned());
            match known(template, path) {
                Err(refusal) => {
                    self.problem(
                        at(key.span().start),
                        &path.join("."),
                        &refusal.message,
                        refusal.nearest,
                    );
                    self.mark_secret(refusal.is_secret);
                }
                Ok(Value::Table(template)) => match value.get_ref() {
                    DeValue::Table(inner) => self.walk(inner, template, path, at, found),
                    _ if is_reference(path) => {
                        self.problem(at(key.span().start), &path.join("."), LITERAL, None);
                        self.mark_secret(true);
                    }
                    other => {
                        let message = format!("expected a table, found {}", a(other.type_str()));
                        self.problem(at(value.span().start), &path.join("."), &message, None);
                    }
                },
                Ok(exemplar) => match fitting(value, exemplar) {
                    Ok(value) => found.push(Setting {
                        path: path.clone(),
                        value,
                        place: at(key.span().start),
                    }),
                    Err(message) => {
                        self.problem(at(value.span().start), &path.join("."), &message, None);
                    }
                },
            }
            path.pop();
        }
    }

    /// One word for a key, from outside any file.
    fn word(&mut self, mut path: Vec<String>, word: &str, place: Place) {
        if let Some(section) = path.first_mut() {
            *section = section_of(section).to_owned();
        }
        let mut template = &self.defaults;
        let mut exemplar = None;
        for depth in 1..=path.len() {
            match known(template, &path[..depth]) {
                Ok(Value::Table(inner)) if depth < path.len() => template = inner,
                Ok(value) if depth == path.len() && !value.is_table() => exemplar = Some(value),
                Ok(_) if is_reference(&path[..depth]) => {
                    self.problem(place, &path[..depth].join("."), LITERAL, None);
                    return self.mark_secret(true);
                }
                Ok(value) => {
                    let message = if value.is_table() {
                        "this is a section, not a key"
                    } else {
                        "this is a key, not a section"
                    };
                    return self.problem(place, &path[..depth].join("."), message, None);
                }
                Err(refusal) => {
                    self.problem(
                        place,
                        &path[..depth].join("."),
                        &refusal.message,
                        refusal.nearest,
                    );
                    return self.mark_secret(refusal.is_secret);
                }
            }
        }
        let Some(exemplar) = exemplar else {
            return self.problem(place, "", "no key is named", None);
        };
        let value = if exemplar.is_str() {
            Ok(Value::String(word.to_owned()))
        } else {
            DeValue::parse(word)
                .map_err(|_| format!("expected {}", described(exemplar)))
                .and_then(|value| fitting(&value, exemplar))
        };
        match value {
            Ok(value) => self.settings.push(Setting { path, value, place }),
            Err(message) => self.problem(place, &path.join("."), &message, None),
        }
    }

    /// Remembers where a leaf came from; a leaf of the template is every agent's.
    fn note(&mut self, path: &[String], place: Place) {
        self.places.insert(path.to_vec(), place);
    }

    /// Where a leaf was set last.
    fn place_of(&self, path: &[String]) -> Place {
        self.places.get(path).cloned().unwrap_or(Place::Default)
    }
}

fn empty() -> Value {
    Value::Table(Table::new())
}

fn is_template(path: &[String]) -> bool {
    (1..=path.len()).any(|depth| {
        named_in(&path[..depth]).is_some() && path.get(depth - 1).is_some_and(|n| n == EVERY)
    })
}

/// The table of names that the last name of the path stands in.
fn named_in(path: &[String]) -> Option<&'static [&'static str]> {
    let (_, above) = path.split_last()?;
    [AGENTS, SINKS, PLUGINS]
        .into_iter()
        .find(|table| *table == above)
}

fn take<T: DeserializeOwned>(table: &Table, name: &str) -> Result<T, String> {
    table
        .get(name)
        .cloned()
        .unwrap_or_else(empty)
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

/// Puts a leaf in its place. An agent that is new begins as the template.
fn put(table: &mut Table, path: &[String], value: Value) {
    let Some((leaf, tables)) = path.split_last() else {
        return;
    };
    let mut here = table;
    for (depth, name) in tables.iter().enumerate() {
        if !here.get(name).is_some_and(Value::is_table) {
            let fresh = named_in(&path[..=depth]).and_then(|_| here.get(EVERY).cloned());
            here.insert(name.clone(), fresh.unwrap_or_else(empty));
        }
        let Some(Value::Table(next)) = here.get_mut(name) else {
            return;
        };
        here = next;
    }
    here.insert(leaf.clone(), value);
}

/// A section that has another name too, and the name that is its room's.
const ALSO_CALLED: [(&str, &str); 1] = [("approvals", "approval")];

/// The one name of a section.
fn section_of(name: &str) -> &str {
    let found = ALSO_CALLED.iter().find(|(other, _)| *other == name);
    found.map_or(name, |(_, own)| own)
}

/// Keys of before, and what to do instead.
const REMOVED: [(&str, &str); 3] = [
    (
        "gateway.dangerously_bind_without_tls",
        "this key was removed: set gateway.tls.enabled = true, or stay on loopback and use a tunnel",
    ),
    (
        "dashboard.hosts",
        "this key is gateway.hosts now: it holds for every door",
    ),
    (
        "sandbox.uid",
        "no user is every agent's any more: each has one of its own, from sandbox.uids; take this line away",
    ),
];

struct Refusal {
    message: String,
    nearest: Option<String>,
    is_secret: bool,
}

/// Where a secret is expected, a reference stands.
const LITERAL: &str = "a secret does not stand in the configuration: `portcullis vault set NAME < file`, then { vault = \"NAME\" } here";

/// What may stand there, as an example of it.
static REFERENCE: LazyLock<Value> = LazyLock::new(|| {
    let name = ("vault".to_owned(), Value::String(String::new()));
    Value::Table(Table::from_iter([name]))
});

/// Is a secret expected there? `agents.NAME.secrets.VARIABLE`.
fn is_reference(path: &[String]) -> bool {
    matches!(path, [agents, _, secrets, _] if [agents.as_str()] == AGENTS && secrets == "secrets")
}

/// What one node's commands may do, as an example of it.
static MODE: LazyLock<Value> = LazyLock::new(|| Value::String(String::new()));

/// Is a node named there? `nodes.exec.ID`.
fn is_of_node(path: &[String]) -> bool {
    matches!(path, [nodes, exec, _] if nodes == "nodes" && exec == "exec")
}

/// What default.toml has under the last name of `path`; `template` is its table one level up.
fn known<'a>(template: &'a Table, path: &[String]) -> Result<&'a Value, Refusal> {
    let refusal = |message: String, nearest: Option<String>| Refusal {
        message,
        nearest,
        is_secret: false,
    };
    let Some(name) = path.last() else {
        return Err(refusal("no key is named".to_owned(), None));
    };
    if named_in(path).is_some() && name != EVERY {
        AgentId::new(name).map_err(|error| refusal(error.to_string(), None))?;
        return template
            .get(EVERY)
            .ok_or_else(|| refusal("unknown key".to_owned(), None));
    }
    if is_reference(path) {
        let is_variable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_name = !name.is_empty()
            && !name.as_bytes()[0].is_ascii_digit()
            && name.bytes().all(is_variable);
        return if is_name {
            Ok(&REFERENCE)
        } else {
            Err(refusal("this is no name of a variable".to_owned(), None))
        };
    }
    if is_of_node(path) {
        return Ok(&MODE);
    }
    template.get(name).ok_or_else(|| {
        if is_secret(name) {
            let refusal = |message: String, nearest: Option<String>| Refusal {
                is_secret: true,
                ..refusal(message, nearest)
            };
            return refusal(
                "a secret does not stand in the configuration: put it into the vault (`portcullis vault set NAME < file`) and name it where a key takes { vault = \"NAME\" }, or give the gateway's token by PORTCULLIS_GATEWAY_TOKEN_FILE".to_owned(),
                None,
            );
        }
        if let Some((_, why)) = REMOVED.iter().find(|(key, _)| *key == path.join(".")) {
            return refusal((*why).to_owned(), None);
        }
        let near = nearest(name, template.keys().map(String::as_str)).map(|key| {
            let mut whole = path[..path.len() - 1].to_vec();
            whole.push(key.to_owned());
            whole.join(".")
        });
        let what = if path.len() == 1 { "unknown section" } else { "unknown key" };
        if near.is_some() || template.len() > 12 {
            return refusal(what.to_owned(), near);
        }
        let all: Vec<&str> = template.keys().map(String::as_str).collect();
        refusal(format!("{what}; there are {}", all.join(", ")), None)
    })
}

/// The value as TOML's own type, if it is of the exemplar's type.
fn fitting(value: &Spanned<DeValue<'_>>, exemplar: &Value) -> Result<Value, String> {
    let plain = plain(value.get_ref()).ok_or_else(|| {
        format!(
            "expected {}, and this number is out of range",
            described(exemplar)
        )
    })?;
    match (&plain, exemplar) {
        // 1 for 1.0 is no error of the user's.
        (Value::Integer(number), Value::Float(_)) => Ok(Value::Float(*number as f64)),
        _ if plain.same_type(exemplar) => Ok(plain),
        _ => Err(format!(
            "expected {}, found {}",
            described(exemplar),
            a(plain.type_str())
        )),
    }
}

/// `None` for a number that is too large.
fn plain(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?)
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().ok()?),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| plain(item.get_ref()))
                .collect::<Option<Vec<_>>>()?,
        ),
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(key, value)| {
                    Some((key.get_ref().clone().into_owned(), plain(value.get_ref())?))
                })
                .collect::<Option<Table>>()?,
        ),
    })
}

/// The type, and the default as an example of it.
fn described(exemplar: &Value) -> String {
    format!("{} like {exemplar}", a(exemplar.type_str()))
}

fn a(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// Of serde's "unknown variant `ful`, expected one of `full`, `ask`", the nearest.
fn nearest_variant(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown variant `")?;
    let (word, rest) = rest.split_once('`')?;
    nearest(word, rest.split('`').skip(1).step_by(2)).map(|found| format!("{found:?}"))
}
