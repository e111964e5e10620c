//! What is wrong with a configuration: all of it at once, each with its place, and without repeating a secret.

use std::fmt;

/// Longest piece of a line that is shown.
const SHOWN: usize = 160;
/// A key further away than this is no typing error.
const NEAR: usize = 3;

/// Where a setting was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the built-in default.toml.
    Default,
    /// In a file: its name as it was given, line and column from 1, the line itself with secrets blotted out.
    File {
        file: String,
        line: usize,
        column: usize,
        text: String,
    },
    /// By an environment variable.
    Env(String),
    /// By a flag of the command line.
    Flag(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default.toml (built in)"),
            Self::File {
                file, line, column, ..
            } => write!(f, "{file}:{line}:{column}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The key, with dots; empty where there is none (a line that is no TOML).
    pub key: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The nearest valid key or value.
    pub nearest: Option<String>,
    /// It is a secret where none may stand.
    pub is_secret: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean {nearest}?")?;
        }
        if let Place::File {
            line, column, text, ..
        } = &self.place
        {
            let gutter = line.to_string();
            write!(f, "\n  {gutter} | {text}")?;
            if *column <= text.chars().count() + 1 {
                write!(
                    f,
                    "\n  {:width$} | {:indent$}^",
                    "",
                    "",
                    width = gutter.len(),
                    indent = column - 1
                )?;
            }
        }
        Ok(())
    }
}

/// Everything that is wrong; nothing is started. Code `CONFIG_INVALID`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl ConfigErrors {
    /// Does a secret stand in it?
    pub fn has_secret(&self) -> bool {
        self.0.iter().any(|problem| problem.is_secret)
    }

    /// How many there are, in one line.
    pub fn summary(&self) -> String {
        let count = self.0.len();
        let noun = if count == 1 { "error" } else { "errors" };
        format!("{count} {noun} in the configuration; nothing was started")
    }

    /// Each with its place and line.
    pub fn details(&self) -> String {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        all.join("\n")
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.summary(), self.details())
    }
}

/// The place of a byte offset in a file's text. Any offset is taken, also one past the end.
pub fn place(file: &str, text: &str, offset: usize) -> Place {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let start = text[..offset].rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].split(['\n', '\r']).next().unwrap_or_default();
    Place::File {
        file: file.to_owned(),
        line: text[..start].matches('\n').count() + 1,
        column: text[start..offset].chars().count() + 1,
        text: if holds_long_secret(text) || is_among_secrets(&text[..offset]) {
            "(not shown: near a secret)".to_owned()
        } else {
            shown(line)
        },
    }
}

/// The line without control characters, secrets and what is too long.
fn shown(line: &str) -> String {
    let mut line = blot(line);
    if let Some((at, _)) = line.char_indices().nth(SHOWN) {
        line.truncate(at);
    }
    line.chars()
        .map(|c| if c.is_control() { '\u{FFFD}' } else { c })
        .collect()
}

/// Cuts the line behind the `=` of a key that names a secret, and takes a user's part out of an address.
fn blot(line: &str) -> String {
    let mut cut = line.to_owned();
    for (at, _) in line.match_indices('=') {
        let key = line[..at].trim_end().trim_end_matches(['"', '\'']);
        let key = key
            .rsplit(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))
            .next()
            .unwrap_or_default();
        if is_secret(key) || line[..at].contains("secrets") {
            cut.truncate(at);
            cut.push_str("= •••");
            break;
        }
    }
    without_user(&cut)
}

/// `http://user:word@host/?key=word` as `http://•••@host/?•••`.
pub fn without_user(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (address, behind) = rest.split_at(rest.find(['"', '\'', ' ']).unwrap_or(rest.len()));
    let address = match address.split_once('?') {
        Some((front, _)) => format!("{front}?•••"),
        None => address.to_owned(),
    };
    let authority = address.split(['/', '?']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://•••{}{behind}", &address[user.len()..]),
        None => format!("{scheme}://{address}{behind}"),
    }
}

/// In a table of secrets any key may have one.
fn is_among_secrets(before: &str) -> bool {
    let header = before
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with('['));
    header.is_some_and(|line| line.trim_end().trim_end_matches(']').ends_with("secrets"))
}

/// A secret in a text over several lines: then no line of the file is safe to show.
fn holds_long_secret(text: &str) -> bool {
    text.lines().any(|line| {
        line.split_once('=').is_some_and(|(key, value)| {
            let value = value.trim_start();
            is_secret(
                key.trim()
                    .trim_matches(['"', '\''])
                    .rsplit('.')
                    .next()
                    .unwrap_or_default(),
            ) && (value.starts_with("\"\"\"") || value.starts_with("'''"))
        })
    })
}

/// Whether a key of that name would hold a secret: `token`, `api_key`, but not `token_file`.
pub fn is_secret(key: &str) -> bool {
    let last = key
        .rsplit(['_', '-', '.'])
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    matches!(
        last.as_str(),
        "token"
            | "password"
            | "passwd"
            | "secret"
            | "passphrase"
            | "key"
            | "apikey"
            | "credential"
            | "credentials"
    )
}

/// The candidate that differs least, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).flat_map(char::to_lowercase).collect();
    candidates
        .map(|candidate| {
            (
                distance(&word, &candidate.chars().collect::<Vec<_>>()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= NEAR.min(candidate.chars().count() / 2))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to add, drop, change or swap with the next (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut rows: Vec<usize> = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(a[i - 1] != b[j - 1]);
                let mut least = (rows[(i - 1) * width + j] + 1)
                    .min(rows[i * width + j - 1] + 1)
                    .min(rows[(i - 1) * width + j - 1] + changed);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[(i - 2) * width + j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_or_missing_letter_is_near_and_another_word_is_not() {
        let keys = ["port", "bind", "max_restarts"];
        assert_eq!(nearest("prot", keys.into_iter()), Some("port"));
        assert_eq!(nearest("Bind", keys.into_iter()), Some("bind"));
        assert_eq!(
            nearest("max_restart", keys.into_iter()),
            Some("max_restarts")
        );
        assert_eq!(nearest("colour", keys.into_iter()), None);
        assert_eq!(nearest("", keys.into_iter()), None);
    }

    #[test]
    fn a_shown_line_holds_no_secret_and_no_control_character() {
        for line in [
            "token = \"hunter2\"",
            "a = { api_key = 'hunter2' }",
            "\"password\" = hunter2",
            "url = \"http://me:hunter2@x/\"",
        ] {
            assert!(!shown(line).contains("hunter2"), "{}", shown(line));
        }
        assert_eq!(
            shown("token_file = \"/x\"\u{1b}[2J"),
            "token_file = \"/x\"\u{FFFD}[2J"
        );
        let long = "[a]\ntoken = \"\"\"\nhunter2\"\"\"\nb = 1";
        let Place::File { text, line, .. } = place("f", long, 18) else {
            panic!()
        };
        assert_eq!((text.as_str(), line), ("(not shown: near a secret)", 3));
    }

    #[test]
    fn a_place_is_counted_in_characters_from_one() {
        let text = "a = 1\r\nb = \"ü\" x";
        let at = text.find('x').unwrap();
        assert_eq!(
            place("f", text, at),
            Place::File {
                file: "f".into(),
                line: 2,
                column: 9,
                text: "b = \"ü\" x".into()
            }
        );
        assert!(matches!(
            place("f", "", 99),
            Place::File {
                line: 1,
                column: 1,
                ..
            }
        ));
        assert!(matches!(
            place("f", "ü", 1),
            Place::File {
                line: 1,
                column: 1,
                ..
            }
        ));
    }

    /// The bug: a key in the query of an address was told to whoever may read the configuration.
    #[test]
    fn no_user_and_no_query_of_an_address_is_told() {
        for (text, told) in [
            ("no address", "no address"),
            ("https://h/p", "https://h/p"),
            ("https://h/p?api_key=x@y", "https://h/p?•••"),
            ("https://h?k=x", "https://h?•••"),
            ("http://u:w@h:1/p?k=x", "http://•••@h:1/p?•••"),
            (
                "a = \"http://u:w@h/?k=x\" # b",
                "a = \"http://•••@h/?•••\" # b",
            ),
        ] {
            assert_eq!(without_user(text), told);
        }
    }
}
