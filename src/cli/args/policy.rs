//! The words of `policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `policy …`
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// What would be said of a command, by which rule and why; nothing is asked, recorded or run
    Test(PolicyTest),
    /// What holds for an agent's commands, and which setting says so
    Explain(Place),
    /// Entries of the document that match nothing, are covered by others, or let code in
    Lint {
        /// A document of JSON or TOML to look at, `-` for stdin, without a gateway [default: the gateway's own]
        file: Option<PathBuf>,
    },
    /// The document that holds
    Show,
    /// Replace it; what frees something waits for a person
    Set {
        /// Its new text, JSON or TOML, `-` for stdin
        file: PathBuf,
    },
}

/// For whom, and where.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Whose commands [default: main]
    #[arg(long)]
    pub agent: Option<String>,
    /// On this node
    #[arg(long, conflicts_with = "sandbox")]
    pub node: Option<String>,
    /// In the agent's sandbox [default: on the gateway's machine, outside it]
    #[arg(long)]
    pub sandbox: bool,
}

/// For `policy test`.
#[derive(Debug, Clone, Args)]
pub struct PolicyTest {
    /// Where.
    #[command(flatten)]
    pub place: Place,
    /// A line, as `sh -c` would get it
    #[arg(
        long,
        value_name = "LINE",
        conflicts_with = "argv",
        required_unless_present = "argv"
    )]
    pub shell: Option<std::ffi::OsString>,
    /// Working folder
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// By this document and the state's own config.toml, on this machine and without a gateway
    #[arg(long, value_name = "FILE")]
    pub document: Option<PathBuf>,
    /// Command and arguments
    #[arg(last = true)]
    pub argv: Vec<std::ffi::OsString>,
}
