//! The one page: what the tree does, what waits for a person, what was recorded last. Rendered here, whole, as plain
//! forms and tables; it needs no script. Two pages before it have one: the login's takes the code out of the address, and the
//! one behind it compares the audit log with what the browser has seen of it.
//!
//! It decides nothing itself: every read and every decision goes through the same methods as every other door, with
//! the principal of the page's session. Somebody gets a session with a one-time code of `portcullis dashboard` only.
//!
//! Cookies do not know ports: another program that listens on the same name of this machine can see the session's
//! cookie when the browser visits it, as with every local page.

mod http;
mod login;
mod page;
mod render;
#[cfg(test)]
mod tests;

pub use page::{Calls, Page, PageConfig};
