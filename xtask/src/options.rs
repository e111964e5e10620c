//! What the command line asked for. Words before `--` are ours, words after it go to the thing we start.

use std::io::IsTerminal as _;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub yes: bool,
    pub offline: bool,
    /// A part or a name: `long kills`, `bench health`.
    pub names: Vec<String>,
    /// After `--`.
    pub rest: Vec<String>,
}

impl Options {
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--yes" | "-y" => options.yes = true,
                "--offline" => options.offline = true,
                "--" => {
                    options.rest.extend(words.by_ref());
                }
                flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
                name => options.names.push(name.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether nobody is there to be asked, or said yes already.
    pub fn assume_yes(&self) -> bool {
        self.yes || in_ci() || !std::io::stdin().is_terminal()
    }
}

/// `CI` set to anything but the usual spellings of no.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn words_after_the_dashes_are_passed_on_untouched() {
        let options = parse(&["--yes", "kills", "--", "--state", "x", "--"]).unwrap();
        assert!(options.yes);
        assert_eq!(options.names, ["kills"]);
        assert_eq!(options.rest, ["--state", "x", "--"]);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert_eq!(parse(&["--yse"]).unwrap_err(), "unknown option --yse");
    }
}
