//! Arguments of an entry, word by word, for people who write rules.

use super::command::{CommandKind, base, stem};

/// Programs of a whole service's operator: each word of theirs is a request to a service, and people allow them by name. Any
/// other that starts other programs keeps its exact arguments.
const OPERATORS: &[&str] = &[
    "docker",
    "podman",
    "nerdctl",
    "kubectl",
    "helm",
    "terraform",
    "tofu",
];

/// Is it one of those? By the file's own name.
pub(super) fn is_operators(path: &str) -> bool {
    OPERATORS.contains(&stem(base(path)).as_str())
}

/// May an argument of this program be left open?
pub(super) fn may_be_open(kind: CommandKind, path: &str) -> bool {
    kind == CommandKind::Plain || is_operators(path)
}

/// One word of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Token {
    /// This word.
    Exact(String),
    /// A word that begins so, with something after it: `--format=*`.
    Begins(String),
    /// Any one word that is no option: `*`.
    Any,
}

/// Patterns of the words after the name, in their order: a word itself, `begin*`, `*` for any one that is no option, and at the
/// end `...` for any number of such.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArgWords {
    tokens: Vec<Token>,
    rest: bool,
}

/// Most words of a pattern.
const MAX_WORDS: usize = 64;

impl ArgWords {
    /// Reads the words of a pattern.
    ///
    /// # Errors
    /// The rule that it breaks, for a person.
    pub fn parse(words: &[String]) -> Result<Self, &'static str> {
        if words.len() > MAX_WORDS {
            return Err("args has at most 64 words");
        }
        let (words, rest) = match words.split_last() {
            Some((last, words)) if last == "..." => (words, true),
            _ => (words, false),
        };
        let token = |word: &String| match word.strip_suffix('*') {
            _ if word == "..." => Err("`...` stands at the end of args"),
            Some("") => Ok(Token::Any),
            Some(begin) if !begin.contains('*') => Ok(Token::Begins(begin.to_owned())),
            None if !word.contains('*') => Ok(Token::Exact(word.clone())),
            _ => Err("a word of args has one `*`, at its end; argPattern takes it literally"),
        };
        let tokens = words.iter().map(token).collect::<Result<_, _>>()?;
        Ok(Self { tokens, rest })
    }

    /// Does it leave no word open?
    pub fn is_exact(&self) -> bool {
        !self.rest && (self.tokens.iter()).all(|token| matches!(token, Token::Exact(_)))
    }

    /// Is its first word said? It is the verb of a program that has verbs.
    pub(super) fn has_verb(&self) -> bool {
        matches!(self.tokens.first(), Some(Token::Exact(_)))
    }

    pub(super) fn matches(&self, argv: &[String]) -> bool {
        let Some(args) = argv.get(1..) else {
            return false;
        };
        let (Some(said), Some(rest)) =
            (args.get(..self.tokens.len()), args.get(self.tokens.len()..))
        else {
            return false;
        };
        let is_so = |(token, word): (&Token, &String)| match token {
            Token::Exact(own) => own == word,
            Token::Begins(own) => word
                .strip_prefix(own.as_str())
                .is_some_and(|end| !end.is_empty()),
            Token::Any => is_no_option(word),
        };
        self.tokens.iter().zip(said).all(is_so)
            && (rest.is_empty() || self.rest)
            && rest.iter().all(|word| is_no_option(word))
    }

    /// Does it match all that the other does?
    pub(super) fn spans(&self, other: &Self) -> bool {
        let open = |token: &Token, of: &Token| match (token, of) {
            (Token::Begins(own), Token::Exact(word)) => word
                .strip_prefix(own.as_str())
                .is_some_and(|end| !end.is_empty()),
            (Token::Any, Token::Exact(word)) => is_no_option(word),
            (own, of) => own == of,
        };
        let (Some(first), Some(more)) = (
            other.tokens.get(..self.tokens.len()),
            other.tokens.get(self.tokens.len()..),
        ) else {
            return false;
        };
        self.tokens.iter().zip(first).all(|(own, of)| open(own, of))
            && (self.rest || (more.is_empty() && !other.rest))
            && more.iter().all(|of| open(&Token::Any, of))
    }

    /// As written.
    pub(super) fn words(&self) -> Vec<String> {
        let word = |token: &Token| match token {
            Token::Exact(word) => word.clone(),
            Token::Begins(word) => format!("{word}*"),
            Token::Any => "*".to_owned(),
        };
        let rest = self.rest.then(|| "...".to_owned());
        self.tokens.iter().map(word).chain(rest).collect()
    }
}

/// Nothing that a program takes for an option or for a file of more options.
fn is_no_option(word: &str) -> bool {
    !word.is_empty() && !word.starts_with(['-', '+', '@'])
}
