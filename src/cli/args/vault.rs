//! The words of `portcullis vault`.

use std::path::PathBuf;

use clap::Subcommand;

/// `vault …`
#[derive(Debug, Subcommand)]
pub enum Vault {
    /// Keep a secret, read from stdin: `portcullis vault set NAME < file`
    Set {
        /// A-Z, 0-9, _
        name: String,
        /// Cut one line end off the end of the input
        #[arg(long)]
        trim: bool,
    },
    /// Names and versions
    List,
    /// Forget a secret
    Rm {
        /// Its name
        name: String,
    },
    /// What a secret is bound to, and its last use
    Show {
        /// Its name
        name: String,
    },
    /// Say what a secret may be used for: without an agent, no agent's run may have it
    Bind {
        /// Its name
        name: String,
        /// Agents whose runs may have it
        #[arg(long, value_name = "AGENT")]
        agent: Vec<String>,
        /// Hosts that it may be sent to; a use that names no host is refused then
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// run, gateway, egress (put into a box's requests to a host, so that no run sees it); without it any
        #[arg(long = "use", value_name = "USE")]
        uses: Vec<String>,
    },
    /// Open, sealed or being unlocked, and what it holds
    Status,
    /// Wipe the keys from memory now
    Seal,
    /// Open a sealed vault; what is typed is not shown
    Unlock {
        /// By a passphrase
        #[arg(long, conflicts_with = "recovery")]
        passphrase: bool,
        /// By a recovery code
        #[arg(long)]
        recovery: bool,
        /// Which one, where there are several of that kind
        #[arg(long, value_name = "ID")]
        unlocker: Option<String>,
    },
    /// A new data key, under which every secret is sealed anew
    Rotate,
    /// A new root key and a new data key: every unlocker is made anew, recovery codes are new ones
    Rekey {
        /// Unlockers that are not to open it any more
        #[arg(long, value_name = "ID")]
        drop: Vec<String>,
    },
    /// Make an empty vault in place of one that cannot be opened
    Init {
        /// What is there is lost
        #[arg(long)]
        discard_all_secrets: bool,
    },
    /// Write every secret into a new file, sealed under a passphrase that is asked for at the terminal
    Export {
        /// That file opens all secrets, wherever it goes
        #[arg(long)]
        i_understand: bool,
        /// Must not exist yet
        file: PathBuf,
    },
    /// Set the secrets of such a file
    Import {
        /// Overwrite secrets of the same name
        #[arg(long)]
        replace: bool,
        /// What export wrote
        file: PathBuf,
    },
    /// Take secrets that lie in the clear, as NAME=VALUE lines or a JSON object, from a file into the vault; the file is
    /// overwritten and removed, and whatever below the state and the backup folders still holds one is named
    Migrate {
        /// Leave the file as it is
        #[arg(long)]
        keep: bool,
        /// Overwrite secrets of the same name
        #[arg(long)]
        replace: bool,
        /// Such as .env
        file: PathBuf,
    },
    /// What opens it
    #[command(subcommand)]
    Unlockers(Unlockers),
}

/// `vault unlockers …`
#[derive(Debug, Subcommand)]
pub enum Unlockers {
    /// Their ids and kinds
    List,
    /// One more
    #[command(subcommand)]
    Add(AddUnlocker),
    /// One less, but never the last
    Remove {
        /// Its id
        id: String,
    },
}

/// `vault unlockers add …`
#[derive(Debug, Subcommand)]
pub enum AddUnlocker {
    /// A passphrase: typed twice without being shown, or a line on stdin
    Passphrase {
        /// In place of this one
        #[arg(long, value_name = "ID")]
        replace: Option<String>,
    },
    /// A code that is shown once, to be written down
    Recovery {
        /// In place of this one
        #[arg(long, value_name = "ID")]
        replace: Option<String>,
    },
    /// The content of a file of 0600 on the gateway's machine, outside the state directory
    File {
        /// Where it lies
        path: PathBuf,
        /// In place of this one
        #[arg(long, value_name = "ID")]
        replace: Option<String>,
    },
    /// A systemd credential of the gateway's service
    Credential {
        /// Its name
        name: String,
        /// In place of this one
        #[arg(long, value_name = "ID")]
        replace: Option<String>,
    },
    /// The machine's identity key, on the machine that the gateway runs on
    Machine {
        /// In place of this one
        #[arg(long, value_name = "ID")]
        replace: Option<String>,
    },
}
