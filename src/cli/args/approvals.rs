//! The words of `portcullis approvals`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::parse::duration;

/// `approvals …`
#[derive(Debug, Subcommand)]
pub enum Approvals {
    /// What is pending, oldest first
    List,
    /// One pending plan, whole
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Let it run
    Allow {
        /// Its id, or the beginning of it; of a command that several ask for, those that this is for
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// And the same command of the same agent from now on, until the grant is revoked
        #[arg(long)]
        always: bool,
        /// As --always, in the same session only
        #[arg(long, conflicts_with_all = ["always", "for"])]
        session: bool,
        /// As --always, for so long: 30m, 8h, 7d
        #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "always")]
        r#for: Option<Duration>,
        /// As --always, also where a number or a file's name in it is another: the rule, and which of the commands that ran
        /// last it would have matched, are shown before
        #[arg(long, conflicts_with = "always")]
        similar: bool,
        /// With --similar: grant what is shown without asking once more
        #[arg(long, requires = "similar")]
        yes: bool,
    },
    /// Refuse it
    Deny {
        /// Its id, or the beginning of it; of a command that several ask for, those that this is for
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Told to who asked
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show each request as it comes and decide by key: a, d
    Watch,
    /// The policy document; with --set, replace it
    Policy {
        /// A JSON file with the new document, `-` for stdin
        #[arg(long, value_name = "FILE")]
        set: Option<PathBuf>,
    },
    /// What may run without asking
    Grants,
    /// Take a grant back
    Revoke {
        /// Of the grant
        grant: String,
    },
}
