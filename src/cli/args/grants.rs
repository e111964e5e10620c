//! The words of `portcullis grants`.

use clap::{Args, Subcommand};

use super::policy::Place;

/// `grants …`
#[derive(Debug, Subcommand)]
pub enum Grants {
    /// Everything that runs without asking, how often it did and when last: grants, entries of the policy document, agents
    /// whose every command runs
    List,
    /// Take one of them back; what runs by it is ended
    Revoke {
        /// As `grants list` has it
        id: String,
    },
    /// Which of them covers a command
    Test(GrantsTest),
}

/// For `grants test`.
#[derive(Debug, Clone, Args)]
pub struct GrantsTest {
    /// Where.
    #[command(flatten)]
    pub place: Place,
    /// Working folder [default: any, and the answer says which a grant is for]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Command and arguments, after `--`
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub argv: Vec<String>,
}
