//! Egress by name: which hosts a box may reach, and what its words to the proxy say. Pure.
//!
//! A box has no network. What leaves it goes through a proxy of ours, which asks here, in this order: the head of the request
//! ([`head`]) names a host and a port; a rule ([`Rules`]) allows them or not; every address that the name stands for is looked at
//! ([`Addresses`]); what a tunnel begins with must be a TLS hello to the same name ([`hello`]). Each name has one form
//! ([`Host`]), made once, and everything after that compares that form.
//!
//! What this cannot see is what is inside TLS: a client may say one name in its hello and ask for another within the same
//! connection, where the server serves both. For hosts that the operator names ([`Terminations`]) the gateway opens TLS with an
//! authority of its own ([`AuthorityKey`]), reads the one request ([`inner`]), puts a secret of the vault in, and takes it out of the
//! answer ([`Framed`], [`Scrubber`]).

mod address;
mod authority;
mod body;
mod framed;
pub mod head;
pub mod hello;
mod host;
pub mod inner;
mod layers;
mod refusal;
mod reply;
mod rules;
mod scrub;
mod search;
mod spelled;
mod terminate;

pub use address::{Addresses, Class, class_of};
pub use authority::{AUTHORITY, AuthorityKey};
pub use body::{Body, BodyError};
pub use framed::{Framed, Framing, Unframed};
pub use host::{Host, HostError, Name};
pub use refusal::Refusal;
pub use reply::{Answer, AnswerError, MOST_HEADERS, MOST_INTERIM};
pub use rules::{Decision, Rule, RuleError, Rules};
pub use scrub::{MARK, Scrubber};
pub use terminate::{LITERAL, Termination, TerminationError, Terminations, terminations};

#[cfg(test)]
mod tests;
