//! Why something does not leave a box, in words for the log and for who asked: often an agent, that can do something about it.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::address::Class;
use super::head::HeadError;
use super::hello::HelloError;
use super::host::Host;
use super::inner::InnerError;
use super::reply::AnswerError;
use super::rules::Rules;

/// Most rules that an answer lists.
const SHOWN: usize = 32;

/// Why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// What was sent is no request to this proxy.
    Head(HeadError),
    /// The host is not on the list.
    NotListed(Host, u16),
    /// The host is on the list, with other ports.
    Port(Host, u16),
    /// An address, and no rule names it.
    Literal(Host, u16),
    /// The name stands for an address that is not the world's.
    Address(Host, IpAddr, Class),
    /// The name stands for the very machine that the gateway runs on.
    Own(Host, IpAddr),
    /// The name was not found, or not in time.
    Unresolved(Host),
    /// Nobody answers at the address.
    Unreachable(Host, u16),
    /// What the tunnel began with is no hello for its host.
    Hello(HelloError),
    /// The server's answer is none.
    Answer(AnswerError),
    /// The box has as many connections as it may have.
    Connections(usize),
    /// The box asks too often.
    Rate,
    /// The log cannot take it, and what is not in the log does not happen.
    Unrecorded,
    /// The client was too slow.
    Slow,
    /// It is not on the list, and a person was asked who has not answered yet.
    Waits(Host, u16),
    /// It is not on the list, and a person said no.
    SaidNo(Host, u16),
    /// What was asked inside TLS that the gateway opens is nothing to pass on.
    Inner(InnerError),
    /// The host's TLS is opened here, and the vault does not give the authority's key: its code, and in words.
    Closed(&'static str, String),
    /// A secret that belongs into the request is not to be had: its name, the vault's code, and in words.
    Secret(String, &'static str, String),
    /// The host is not who it must be: what its certificate lacks.
    Unverified(Host, String),
}

impl Refusal {
    /// The word in records.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Head(error) => error.word(),
            Self::NotListed(..) => "not-listed",
            Self::Port(..) => "port-not-listed",
            Self::Literal(..) => "address-not-listed",
            Self::Address(_, _, class) => class.as_str(),
            Self::Own(..) => "own-machine",
            Self::Unresolved(_) => "unresolved",
            Self::Unreachable(..) => "unreachable",
            Self::Hello(error) => error.word(),
            Self::Answer(_) => "bad-answer",
            Self::Connections(_) => "too-many-connections",
            Self::Rate => "too-often",
            Self::Unrecorded => "not-recorded",
            Self::Slow => "too-slow",
            Self::Waits(..) => "asked",
            Self::SaidNo(..) => "said-no",
            Self::Inner(error) => error.word(),
            Self::Closed(..) => "authority-closed",
            Self::Secret(..) => "secret-refused",
            Self::Unverified(..) => "host-unverified",
        }
    }

    /// Status line of the answer, without `HTTP/1.1`.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::Head(error) => error.status(),
            Self::NotListed(..)
            | Self::Port(..)
            | Self::Literal(..)
            | Self::Address(..)
            | Self::Own(..)
            | Self::Waits(..)
            | Self::SaidNo(..)
            | Self::Hello(_) => "403 Forbidden",
            Self::Unresolved(_)
            | Self::Unreachable(..)
            | Self::Answer(_)
            | Self::Unverified(..) => "502 Bad Gateway",
            Self::Connections(_) | Self::Unrecorded | Self::Closed(..) | Self::Secret(..) => {
                "503 Service Unavailable"
            }
            Self::Inner(error) => error.status(),
            Self::Rate => "429 Too Many Requests",
            Self::Slow => "408 Request Timeout",
        }
    }

    /// Has policy said no? Else it is a failure, or nobody's policy.
    pub const fn is_denial(&self) -> bool {
        matches!(
            self,
            Self::Head(_)
                | Self::NotListed(..)
                | Self::Port(..)
                | Self::Literal(..)
                | Self::Address(..)
                | Self::Own(..)
                | Self::Hello(_)
                | Self::Waits(..)
                | Self::SaidNo(..)
                | Self::Inner(_)
                | Self::Secret(..)
                | Self::Unverified(..)
        )
    }

    /// For who asked. `section`: of the configuration, where the list stands.
    pub fn text(&self, rules: &Rules, section: &str) -> String {
        let ask = |rule: String| {
            format!(
                "{}To ask for it: tell the operator to add {rule:?} to `egress` in {section} of config.toml and to restart the gateway. \
                 Trying other spellings, addresses or ports does not help.\n",
                list(rules)
            )
        };
        let reason = match self {
            Self::Head(error) => format!("this proxy does not take this request: {error}\n"),
            Self::NotListed(host, port) => format!(
                "{host}:{port} is not on the list of hosts that this sandbox may reach.\n{}",
                ask(format!("{host}:{port}"))
            ),
            Self::Port(host, port) => format!(
                "{host} is on the list of hosts that this sandbox may reach, but not with port {port}.\n{}",
                ask(format!("{host}:{port}"))
            ),
            Self::Literal(host, port) => format!(
                "{host}:{port} is an address: hosts are allowed by name, and no rule names this address.\n{}",
                list(rules)
            ),
            Self::Address(host, address, class) => format!(
                "{host} stands for {address}, which is a {class} address: this sandbox reaches public ones only. {}\n",
                if class.is_never() {
                    "No setting allows it."
                } else {
                    "Where this host is meant, the operator names its network in `egress_to_networks`."
                }
            ),
            Self::Own(host, address) => format!(
                "{host} stands for {address}, which is the gateway's own machine. Where that is meant, the operator names it in \
                 `egress_to_networks`.\n"
            ),
            Self::Unresolved(host) => format!("the name {host} was not found, or not in time.\n"),
            Self::Unreachable(host, port) => {
                format!("{host}:{port} is allowed, but nobody answers there.\n")
            }
            Self::Hello(error) => format!("the tunnel was closed: {error}\n"),
            Self::Answer(error) => format!("the server's answer was not passed on: {error}\n"),
            Self::Connections(most) => format!(
                "this sandbox has {most} connections open, which is the most: close one and try again.\n"
            ),
            Self::Rate => "this sandbox asks too often: wait a minute.\n".to_owned(),
            Self::Unrecorded => {
                "the audit log cannot take a record of this, so it was not done: try again later.\n"
                    .to_owned()
            }
            Self::Slow => "the request did not come in time.\n".to_owned(),
            Self::Waits(host, port) => format!(
                "{host}:{port} is not on the list of hosts that this sandbox may reach. A person was asked (`portcullis approvals list`) and \
                 has not answered yet: try again in a minute. Trying other spellings, addresses or ports does not help.\n"
            ),
            Self::SaidNo(host, port) => format!(
                "a person said that this sandbox may not reach {host}:{port}. Trying again, or other spellings, does not help.\n"
            ),
            Self::Inner(error) => format!(
                "the gateway opens TLS of this host, and does not pass this request on: {error}\n"
            ),
            Self::Closed(code, words) => format!(
                "{code}: the gateway opens TLS of this host, and cannot now: {words}. Hosts whose TLS it does not open are reached as ever.\n"
            ),
            Self::Secret(name, code, words) => format!(
                "{code}: the secret {name} belongs into this request and cannot be put in: {words}. It was not sent.\n\
                 To ask for it: tell the operator to run `portcullis vault show {name}`.\n"
            ),
            Self::Unverified(host, words) => {
                format!("{host} did not prove that it is {host}, so nothing was sent: {words}\n")
            }
        };
        format!("portcullis egress: {reason}")
    }
}

fn list(rules: &Rules) -> String {
    let all = rules.texts();
    let mut text = format!(
        "Allowed: {}",
        all.iter()
            .take(SHOWN)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    );
    if all.len() > SHOWN {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", all.len() - SHOWN);
    }
    text.push_str(".\n");
    text
}
