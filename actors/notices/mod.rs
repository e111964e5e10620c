//! Notices: what receivers outside are told of questions to people. A webhook over HTTPS, and a program of `[plugins]`.
//!
//! - *Owns*: a task for each of the two, with what waits there in memory, and what each was told to be open
//!   (`STATE/notices/NAME`).
//! - *Called by*: nobody but who shows how they stand; `connection` asks whether there is one.
//! - *Calls*: `approval` (its feed, and its list where the feed was not heard), `vault` for the key, `audit`, and exec's way to a
//!   program.
//! - *On a crash*, and at each start, it looks at what is open and tells what was not told: a receiver may get a notice twice, and
//!   knows it by its number. What was asked and answered while nobody could be told is not told any more; nor, after a crash between a
//!   receiver's answer and the note of it, that such a question is over.
//! - *Refuses when*: never. A question is asked, answered and over whether anybody is told or not: nothing waits for this room. A
//!   notice that is not taken after so many tries, or pushed out by newer ones, is counted, and the log says so.

mod actor;
mod channel;
mod config;
mod handle;
mod kept;
mod messages;
mod program;
mod webhook;

pub use actor::Notices;
pub use config::{
    NoticesConfig, Problem, ProgramConfig, Settings, Webhook, WebhookConfig, settings,
};
pub use handle::NoticesHandle;
pub use messages::{ChannelStatus, NoticesMsg, NoticesStatus, NoticesWiring, PluginStatus, TlsBy};

#[cfg(test)]
mod tests;
