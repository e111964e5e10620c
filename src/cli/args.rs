//! The command line: its words, and nothing of what they do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

mod approvals;
mod audit;
mod grants;
mod image;
mod parse;
mod policy;
mod vault;

pub use approvals::Approvals;
pub use audit::{Audit, Query, Verify};
pub use grants::{Grants, GrantsTest};
pub use image::Image;
use parse::{destination, duration, variable};
pub use policy::{Place, Policy, PolicyTest};
pub use vault::{AddUnlocker, Unlockers, Vault};

const AFTER: &str = "Examples:
  portcullis up
  portcullis exec --agent demo -- sh -c 'id; ls /'
  portcullis exec --agent demo --host -- uname -a
  portcullis approvals watch
  portcullis vault set API_KEY < key.txt

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not permitted, 5 denied, 6 timed out, 7 no gateway,
8 degraded, 10 integrity broken. `exec` ends with its command's own code, and with 125 for every refusal of ours.";

/// The one gate that every command of an AI agent passes.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, after_help = AFTER)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// State directory [default: $`PORTCULLIS_STATE_DIR`, $`STATE_DIRECTORY`, $`XDG_STATE_HOME/portcullis`]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Control socket to dial [default: $`PORTCULLIS_SOCKET`, `run/control.sock` in the state directory, /run/portcullis/control.sock]
    #[arg(long, global = true, value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Machine identity key, outside the state directory [default: $`PORTCULLIS_IDENTITY_FILE`]
    #[arg(long, global = true, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// A gateway elsewhere, as wss://HOST[:PORT], to which this machine is a paired device
    #[arg(long, global = true, value_name = "URL", conflicts_with = "socket")]
    pub url: Option<String>,
    /// The key that gateway must have, as its `portcullis status` shows it; without it, this system's authorities vouch
    #[arg(long, global = true, value_name = "sha256:HEX", requires = "url")]
    pub pin: Option<String>,
    /// As whom that gateway runs, by name or number, where --url is ws:// and it is neither root nor you; any: do not ask who
    /// listens there
    #[arg(long, global = true, value_name = "USER", requires = "url")]
    pub gateway_user: Option<String>,
    /// File of 0600 with that gateway's token, for as long as this machine has none of its own
    #[arg(long, global = true, value_name = "FILE", requires = "url")]
    pub token_file: Option<PathBuf>,
    /// Where this machine keeps its own key and tokens for gateways elsewhere [default: $`PORTCULLIS_CLIENT_DIR`, $`XDG_STATE_HOME/portcullis-client`]
    #[arg(long, global = true, value_name = "DIR", requires = "url")]
    pub client_keys: Option<PathBuf>,
    /// Answer for machines: JSON on stdout, errors too
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway in the foreground
    Gateway(GatewayArgs),
    /// Make what a first start needs, run the gateway, and say in six lines how to use it
    Up(GatewayArgs),
    /// The gateway's own child, which alone speaks to the container engine; nobody else starts it
    #[command(hide = true)]
    Runner(RunnerArgs),
    /// Run a command for an agent, in its sandbox
    Exec(ExecArgs),
    /// Show the output of a detached run, end with its code; ctrl-C leaves it running
    Attach(AttachArgs),
    /// Decide on what waits for a person
    #[command(subcommand)]
    Approvals(Approvals),
    /// Everything that runs without asking, and the way to take it back
    #[command(subcommand)]
    Grants(Grants),
    /// Which commands run without a question, and what would be said of one
    #[command(subcommand)]
    Policy(Policy),
    /// Devices that may connect
    #[command(subcommand)]
    Devices(Devices),
    /// Node hosts, and what each may be asked
    #[command(subcommand)]
    Nodes(Nodes),
    /// This machine as a node host of a gateway elsewhere
    #[command(subcommand)]
    Node(Node),
    /// What agents' commands are held by
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// Tokens of agents, each for one agent
    #[command(subcommand)]
    Agents(Agents),
    /// Passwords of people, where [gateway.auth] mode takes them
    #[command(subcommand)]
    Password(Password),
    /// The gateway's own token
    #[command(subcommand)]
    Auth(Auth),
    /// Secrets: their names are shown, their values never
    #[command(subcommand)]
    Vault(Vault),
    /// The record of what happened
    #[command(subcommand)]
    Audit(Audit),
    /// The certificate of the TCP port
    #[command(subcommand)]
    Tls(Tls),
    /// How to reach this gateway from elsewhere, over SSH or Tailscale; nothing is opened to a network
    Remote(RemoteArgs),
    /// Rooms, sandbox driver, what is pending
    Status,
    /// A one-time code for the page
    Dashboard {
        /// Open the page in a browser too
        #[arg(long)]
        open: bool,
    },
    /// Configuration
    #[command(subcommand)]
    Config(Config),
    /// Versions of this program and of the wire
    Version,
}

impl Command {
    /// Works on this machine's files only: no gateway is spoken to.
    pub const fn is_local(&self) -> bool {
        matches!(
            self,
            Self::Gateway(_)
                | Self::Up(_)
                | Self::Runner(_)
                | Self::Version
                // A code is given on control.sock only, and what a gateway elsewhere names is no page for our browser.
                | Self::Dashboard { .. }
                | Self::Config(Config::Check)
                | Self::Audit(Audit::Verify(Verify { offline: true, .. }))
        )
    }
}

/// For `gateway` and `up`.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// TCP port; 0 takes a free one
    #[arg(long)]
    pub port: Option<u16>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<std::net::IpAddr>,
}

/// For `runner`.
#[derive(Debug, Clone, Args)]
pub struct RunnerArgs {
    /// The start of the gateway that it is a child of
    #[arg(long)]
    pub boot: String,
    /// As the gateway was started
    #[command(flatten)]
    pub gateway: GatewayArgs,
}

/// For `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// The agent to run for
    #[arg(long, short)]
    pub agent: Option<String>,
    /// End the command after this time: 500ms, 30s, 5m, 1h
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Outside the sandbox; a person is asked
    #[arg(long)]
    pub host: bool,
    /// On this node host (`portcullis nodes list`); a person is asked
    #[arg(long, value_name = "ID", conflicts_with = "host")]
    pub node: Option<String>,
    /// Set a variable; secrets belong into the vault
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Set a variable to a secret of the vault that is bound to the agent; not on a node
    #[arg(long, value_name = "NAME=SECRET", value_parser = variable, conflicts_with = "node")]
    pub secret: Vec<(String, String)>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// What our session is called, where the agent's boxes are each session's own; runs under the same name are in one
    /// [default: this command is a session]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["host", "node"])]
    pub session: Option<String>,
    /// Sent again with the same key, a request never runs twice [default: a new one]
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Pass every byte of the output to the terminal; without it only text and colours reach one
    #[arg(long)]
    pub raw: bool,
    /// Pass our standard input to the command; without it the command has none
    #[arg(long, short = 'i')]
    pub stdin: bool,
    /// On a terminal as large as ours, which the command has then: each key and every byte pass. In the sandbox only
    #[arg(long, short = 't')]
    pub tty: bool,
    /// Say the run's id and leave: it goes on without us, `portcullis attach RUN` shows its output and its end
    #[arg(long, short = 'd', conflicts_with_all = ["stdin", "tty"])]
    pub detach: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub argv: Vec<String>,
}

/// For `attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// The run, as `exec --detach` said it
    pub run: String,
    /// End it
    #[arg(long)]
    pub cancel: bool,
    /// Pass every byte of the output to the terminal; without it only text and colours reach one
    #[arg(long)]
    pub raw: bool,
}

/// `node …`
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Offer to run commands here, each after a person's word at the gateway (--url, --pin, --token-file)
    Run(NodeRun),
    /// What runs here by this machine's own word, and which changes a gateway waits to have accepted
    #[command(subcommand)]
    Policy(NodePolicy),
}

/// `node policy …`
#[derive(Debug, Subcommand)]
pub enum NodePolicy {
    /// Whether node-policy.toml holds, what it lets a gateway change, and what waits
    Show,
    /// Let a gateway's proposal hold here
    Accept {
        /// Of the proposal, or the beginning of it
        id: String,
    },
    /// Refuse it
    Reject {
        /// Of the proposal, or the beginning of it
        id: String,
    },
}

/// For `node run`.
#[derive(Debug, Clone, Args)]
pub struct NodeRun {
    /// What people see it as [default: this machine's name]
    #[arg(long)]
    pub name: Option<String>,
    /// As whom commands run where this program is root [default: nobody]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
}

/// `nodes …`
#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// Connected nodes, and approved ones that are away
    List,
    /// One node, whole
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// What waits for a person: commands that a node offers
    Pending,
    /// Let a node be asked what it offers
    Approve {
        /// Of the request, or the beginning of it
        id: String,
    },
    /// Refuse it
    Reject {
        /// Of the request, or the beginning of it
        id: String,
    },
}

/// `devices …`
#[derive(Debug, Subcommand)]
pub enum Devices {
    /// Pending and paired devices
    List,
    /// One device or request
    Show {
        /// Of a device or a request, or the beginning of it
        id: String,
    },
    /// Let a device in
    Approve {
        /// Of the request, or the beginning of it
        id: String,
        /// Refuse unless the device's fingerprint is this one
        #[arg(long, value_name = "HEX")]
        fingerprint: Option<String>,
    },
    /// Make a code that pairs one new device without a question: once, within ten minutes
    SetupCode {
        /// operator or node
        #[arg(long, default_value = "operator")]
        role: String,
        /// What an operator's device may do; without it: read
        #[arg(
            long,
            visible_alias = "scopes",
            value_name = "SCOPE",
            value_delimiter = ','
        )]
        scope: Vec<String>,
        /// The address that the code names, where the device does not dial this machine's own
        #[arg(long, value_name = "URL")]
        address: Option<String>,
    },
    /// Refuse a request
    Reject {
        /// Of the request, or the beginning of it
        id: String,
    },
    /// End a device's tokens, its live sockets, what it asked, allowed and granted, and what it runs
    Revoke {
        /// Of the device, or the beginning of it
        id: String,
        /// This role's token only
        #[arg(long)]
        role: Option<String>,
        /// Spare the commands that run for it now
        #[arg(long)]
        keep_running: bool,
    },
    /// Make a device's token void and let it fetch a new one; ends its sockets like revoke
    Rotate {
        /// Of the device, or the beginning of it
        id: String,
        /// This role's token only
        #[arg(long)]
        role: Option<String>,
        /// What the new token gives, at most what was approved; without it all of that
        #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
        scope: Vec<String>,
        /// Spare the commands that run for it now
        #[arg(long)]
        keep_running: bool,
    },
    /// Forget a device; ends all that revoke ends
    Remove {
        /// Of the device, or the beginning of it
        id: String,
        /// Spare the commands that run for it now
        #[arg(long)]
        keep_running: bool,
    },
    /// Give a device a name of your own
    Rename {
        /// Of the device, or the beginning of it
        id: String,
        /// 1 to 64 characters
        label: String,
    },
}

/// `sandbox …`
#[derive(Debug, Subcommand)]
pub enum Sandbox {
    /// Each limit of an agent's sandbox, and which setting decided it; the driver, and whether it will do
    Explain {
        /// Whose; without it, agents that nothing is said of
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
    },
    /// Every sandbox that there is: whose, and what runs in it
    List,
    /// End a sandbox, and what runs in it; the agent's folder stays, and its next run has a new one
    End {
        /// Its id, as `sandbox list` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Copy a file into an agent's sandbox or out of it: one of both is AGENT:PATH
    Cp(Copy),
    /// Try to get out of a sandbox, in every way of the project's own tests; exit code 9 if one succeeds
    Selftest {
        /// In whose; its runs are this agent's
        #[arg(long, value_name = "NAME", default_value = "selftest")]
        agent: String,
    },
    /// Make, import, list and verify the images that boxes are made of
    #[command(subcommand)]
    Image(Image),
}

/// For `sandbox cp`.
#[derive(Debug, Clone, Args)]
pub struct Copy {
    /// What to copy: a file of ours, `-` for standard input, or AGENT:PATH
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where to: a file or folder of ours, `-` for standard output, or AGENT:PATH (below /workspace where PATH is relative)
    #[arg(value_name = "TO")]
    pub to: String,
    /// Replace a file that is there
    #[arg(long, short)]
    pub force: bool,
    /// Which session's sandbox, where each has its own: as `exec --session` names it
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// End it after this time: 30s, 5m
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
}

/// `agents …`
#[derive(Debug, Subcommand)]
pub enum Agents {
    /// Make a token for an agent and show it once; one that it had before ends
    Token {
        /// Of the agent
        name: String,
    },
    /// Agents that have a token
    List,
    /// Take an agent's token back and end its sessions
    Revoke {
        /// Of the agent
        name: String,
    },
}

/// `password …`
#[derive(Debug, Subcommand)]
pub enum Password {
    /// Keep a password: typed without being shown, or from stdin
    Set {
        /// Whose
        #[arg(default_value = "default")]
        name: String,
        /// What comes is a bcrypt hash made elsewhere
        #[arg(long)]
        hash: bool,
    },
    /// Whose passwords there are
    List,
    /// Forget a password and end its sessions
    Remove {
        /// Whose
        #[arg(default_value = "default")]
        name: String,
    },
}

/// `auth …`
#[derive(Debug, Subcommand)]
pub enum Auth {
    /// The token that all may share
    #[command(subcommand)]
    Token(AuthToken),
}

/// `auth token …`
#[derive(Debug, Subcommand)]
pub enum AuthToken {
    /// Make a new one, show it once, and end every session of the old one
    Rotate,
}

/// `tls …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Tls {
    /// What is served: pin, fingerprint, names, validity, from which file
    Show,
    /// Read its files again, or make it anew; sockets that are open stay
    Reload,
}

/// For `remote`.
#[derive(Debug, Clone, Args)]
pub struct RemoteArgs {
    /// Try them: a tunnel to --ssh up to the gateway's greeting, and what Tailscale serves on this machine
    #[arg(long)]
    pub check: bool,
    /// Who logs in where, as ssh is told: USER@HOST, or ssh://USER@HOST:PORT
    #[arg(long, value_name = "USER@HOST", value_parser = destination)]
    pub ssh: Option<String>,
    /// Configuration of ssh, in place of its own files
    #[arg(long, value_name = "FILE", requires = "ssh")]
    pub ssh_config: Option<PathBuf>,
    /// Tailscale's local API
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/tailscale/tailscaled.sock"
    )]
    pub tailscale_socket: PathBuf,
}

/// `config …`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Read config.toml and name every error, without a gateway
    Check,
    /// The running gateway's configuration, secrets left out
    Show,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_commands_own() {
        let cli = Cli::try_parse_from([
            "portcullis",
            "exec",
            "--agent",
            "demo",
            "--",
            "sh",
            "-c",
            "--json",
        ])
        .unwrap();
        assert!(!cli.global.json);
        let Command::Exec(exec) = cli.command else {
            panic!()
        };
        assert_eq!(exec.argv, ["sh", "-c", "--json"]);
    }
}
