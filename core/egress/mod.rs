//! Egress by name: which hosts a box may reach, and what its words to the proxy say. Pure.
//!
//! A box has no network. What leaves it goes through a proxy of ours, which asks here, in this order: the head of the request
//! ([`head`]) names a host and a port; a rule ([`Rules`]) allows them or not; every address that the name stands for is looked at
//! ([`Addresses`]); what a tunnel begins with must be a TLS hello to the same name ([`hello`]). Each name has one form
//! ([`Host`]), made once, and everything after that compares that form.
//!
//! What this cannot see is what is inside TLS: a client may say one name in its hello and ask for another within the same
//! connection, where the server serves both.

mod address;
mod body;
pub mod head;
pub mod hello;
mod host;
mod refusal;
mod reply;
mod rules;

pub use address::{Addresses, Class, class_of};
pub use body::{Body, BodyError};
pub use host::{Host, HostError, Name};
pub use refusal::Refusal;
pub use reply::{Answer, AnswerError};
pub use rules::{Decision, Rule, RuleError, Rules};

#[cfg(test)]
mod tests;
