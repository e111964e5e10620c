//! The list of hosts that a box may reach.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::host::{Host, HostError, Name, host_and_port};

/// The port of a rule that names none: TLS, because without it nobody knows who answers.
pub const DEFAULT_PORT: u16 = 443;
/// Most rules of one list.
pub const MOST: usize = 256;

/// One entry: `api.example.com`, `api.example.com:8443`, `*.example.com:443`, `192.0.2.7:443`, `[2001:db8::7]:443`.
///
/// Without a port it is [`DEFAULT_PORT`]. `*.` stands for one label or more in front of the rest, and never for the rest alone; the rest
/// has two labels at least, so that nobody allows all of `com` (which of `co.uk` and `github.io` are public nobody here knows: a rule
/// for all of them is the operator's own).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    hosts: Hosts,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Hosts {
    One(Host),
    Below(Name),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Its host is none.
    #[error("{0:?}: {1}")]
    Host(String, HostError),
    /// `*` where it may not be.
    #[error(
        "{0:?}: * stands only for whole labels in front, as *.example.com, before a name of two labels or more"
    )]
    Star(String),
    /// It is an URL, a path or has a user.
    #[error("{0:?}: a rule is host:port, without a scheme, a user or a path")]
    Url(String),
    /// Too many.
    #[error("more than {MOST} rules")]
    TooMany,
}

impl Rule {
    /// Reads one.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn new(text: &str) -> Result<Self, RuleError> {
        if text.contains(['/', '@', '?', '#', '\\']) {
            return Err(RuleError::Url(text.to_owned()));
        }
        let star = || RuleError::Star(text.to_owned());
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if rest.contains('*') {
            return Err(star());
        }
        let (host, port) =
            host_and_port(rest).map_err(|error| RuleError::Host(text.to_owned(), error))?;
        let hosts = match host {
            host if !below => Hosts::One(host),
            Host::Name(name) if name.as_str().contains('.') => Hosts::Below(name),
            _ => return Err(star()),
        };
        Ok(Self {
            hosts,
            port: port.unwrap_or(DEFAULT_PORT),
        })
    }

    /// Whether it allows nothing that the other does not.
    fn is_within(&self, other: &Self) -> bool {
        let hosts = match (&self.hosts, &other.hosts) {
            (Hosts::One(host), _) => other.has(host),
            (Hosts::Below(_), Hosts::One(_)) => false,
            (Hosts::Below(own), Hosts::Below(base)) => {
                own == base || other.has(&Host::Name(own.clone()))
            }
        };
        hosts && self.port == other.port
    }

    fn has(&self, host: &Host) -> bool {
        match (&self.hosts, host) {
            (Hosts::One(one), host) => one == host,
            (Hosts::Below(base), Host::Name(name)) => {
                let front = name.as_str().strip_suffix(base.as_str());
                // Something, and then a dot: not the base itself, not `evilexample.com`.
                front.is_some_and(|front| front.len() > 1 && front.ends_with('.'))
            }
            (Hosts::Below(_), Host::Address(_)) => false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::One(host) => write!(f, "{host}:{}", self.port),
            Hosts::Below(name) => write!(f, "*.{name}:{}", self.port),
        }
    }
}

/// What the list says of a host and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// This rule allows it; one that names the host itself before one with `*`.
    Allow(&'a Rule),
    /// The host is on the list, with other ports only.
    Port,
    /// It is not on the list.
    Deny,
}

/// A list of rules, each once, in an order of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Rules(BTreeSet<Rule>);

impl Rules {
    /// Reads a list.
    ///
    /// # Errors
    /// The first that is no rule, or that they are too many.
    pub fn new<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, RuleError> {
        let mut rules = BTreeSet::new();
        for text in texts {
            rules.insert(Rule::new(text.as_ref())?);
            if rules.len() > MOST {
                return Err(RuleError::TooMany);
            }
        }
        Ok(Self(rules))
    }

    /// Nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it allows nothing that the other does not.
    pub fn is_within(&self, other: &Self) -> bool {
        let is_in = |rule: &Rule| other.0.iter().any(|wider| rule.is_within(wider));
        self.0.iter().all(is_in)
    }

    /// What both allow: of two rules that meet one is within the other.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let of = |one: &Self, two: &Self| {
            let is_in = |rule: &&Rule| two.0.iter().any(|wider| rule.is_within(wider));
            one.0.iter().filter(is_in).cloned().collect::<Vec<_>>()
        };
        let (own, theirs) = (of(self, other), of(other, self));
        Self(own.into_iter().chain(theirs).collect())
    }

    /// Each rule in its one form, ascending: for people, hashes and plans.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(Rule::to_string).collect()
    }

    /// What it says of this host and port.
    pub fn decide(&self, host: &Host, port: u16) -> Decision<'_> {
        let mut found = Decision::Deny;
        for rule in self.0.iter().filter(|rule| rule.has(host)) {
            if rule.port == port {
                // The set has exact hosts first.
                return Decision::Allow(rule);
            }
            found = Decision::Port;
        }
        found
    }
}

impl TryFrom<Vec<String>> for Rules {
    type Error = RuleError;

    fn try_from(texts: Vec<String>) -> Result<Self, RuleError> {
        Self::new(texts)
    }
}

impl From<Rules> for Vec<String> {
    fn from(rules: Rules) -> Self {
        rules.texts()
    }
}
