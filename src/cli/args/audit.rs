//! The words of `portcullis audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::parse::moment;

/// `audit …`
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// The last records
    Tail {
        /// How many
        #[arg(short, default_value_t = 20)]
        n: u32,
    },
    /// Search the records
    Query(Query),
    /// Read the whole log again and check every hash, key and checkpoint
    Verify(Verify),
    /// A signed checkpoint of the log as it is, and its first public key: keep both elsewhere
    Head,
    /// One record whole, with its outcome, what a person was asked, and of a run the plan that is sealed in it
    Show {
        /// Its number
        seq: u64,
        /// At a gateway elsewhere too: ask for `operator.approvals`, without which the plan stays sealed
        #[arg(long)]
        plan: bool,
    },
    /// Prove that a record is in the log
    Prove {
        /// Its number
        seq: u64,
        /// Write the proof to this file [usual ending: .tlog-proof]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Prove that the log has only grown from one size to another
    Consistency {
        /// The smaller size, in records
        old: u64,
        /// The larger; 0: all that there are
        #[arg(default_value_t = 0)]
        new: u64,
    },
    /// Write the records as lines for other systems
    Export {
        /// jsonl, ocsf or cef
        #[arg(long, default_value = "jsonl", value_parser = ["jsonl", "ocsf", "cef"])]
        format: String,
        /// From this sequence number on
        #[arg(long, value_name = "SEQ", default_value_t = 1)]
        from: u64,
    },
}

/// For `audit verify`.
#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// Read the files themselves, without a gateway
    #[arg(long)]
    pub offline: bool,
    /// The log's first public key, as the gateway told it at its first start
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A checkpoint that was kept elsewhere; without it, the one that this user has seen last
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
}

/// For `audit query`.
#[derive(Debug, Clone, Args)]
pub struct Query {
    /// exec.run, pairing.approve …
    #[arg(long)]
    pub action: Option<String>,
    /// Who
    #[arg(long)]
    pub principal: Option<String>,
    /// On what
    #[arg(long)]
    pub object: Option<String>,
    /// ok, refused, failed, unknown
    #[arg(long)]
    pub outcome: Option<String>,
    /// From this sequence number on
    #[arg(long, value_name = "SEQ")]
    pub since_seq: Option<u64>,
    /// Up to this sequence number
    #[arg(long, value_name = "SEQ")]
    pub until_seq: Option<u64>,
    /// Not older than this: 10m, 2h, or Unix milliseconds
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub since: Option<u64>,
    /// Older than this
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub until: Option<u64>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    pub limit: u32,
}
