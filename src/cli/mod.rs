//! The commands of a person at a terminal and of scripts. Each speaks to the gateway through `control.sock`, so that
//! it passes the same gate as every other client.

mod approvals;
pub mod args;
mod audit;
mod config;
mod copy;
mod devices;
mod exec;
mod failure;
mod given;
mod grants;
mod images;
mod migrate;
mod nodes;
mod out;
mod policy;
mod sandbox;
mod secrets;
pub mod selftest;
mod state;
mod status;
mod tls;
mod tunnels;
mod typing;
mod vault;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use portcullis_core::codes;

pub use args::{Cli, Command, GatewayArgs, Global, Node, NodePolicy, NodeRun, RunnerArgs};
pub use failure::Failure;
pub use out::note;
pub use state::{identity_file, remote, state_dir};

use out::Out;

use crate::show::text::document;

/// The exit code of `exec` and `attach` for everything that is not its command's own end (as Docker's).
const EXEC_REFUSED: u8 = 125;

/// Reads the command line. On a wrong one it prints the help or the error and returns the exit code: 0 for help, 125
/// for `exec`, else 2.
///
/// # Errors
/// The exit code to end with.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, u8> {
    let args: Vec<OsString> = args.into_iter().collect();
    let error = match Cli::try_parse_from(&args) {
        Ok(cli) if cli.global.url.is_some() && cli.command.is_local() => Cli::command().error(
            clap::error::ErrorKind::ArgumentConflict,
            "--url names a gateway elsewhere, and this command works on this machine only",
        ),
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    let own: Vec<&OsString> = args.iter().skip(1).take_while(|a| *a != "--").collect();
    if error.exit_code() == 0 {
        // Help or version: a closed stdout is nobody's loss.
        let _ = error.print();
        return Err(0);
    }
    if own.iter().any(|a| *a == "--json") {
        let text = error.to_string();
        let message = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let failure =
            Failure::of(codes::INVALID_PARAMS, message).hint("`portcullis help` shows the words");
        let _ = out::line(&document(&failure.json()));
    } else {
        let _ = error.print();
    }
    let words = Cli::command();
    let word = own
        .iter()
        .filter_map(|a| a.to_str())
        .find(|a| words.find_subcommand(a).is_some());
    let is_exec = matches!(word, Some("exec" | "attach"));
    Err(if is_exec { EXEC_REFUSED } else { 2 })
}

/// Runs any command but `gateway` and `up`, which the caller keeps for itself, and returns the exit code.
pub fn run(cli: &Cli) -> ExitCode {
    let out = Out {
        json: cli.global.json,
    };
    let is_exec = matches!(cli.command, Command::Exec(_) | Command::Attach(_));
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::of(codes::INTERNAL, format!("cannot start: {e}")))
        .and_then(|runtime| {
            let result = runtime.block_on(command(cli, out));
            // A thread may sit in a read of the terminal: it must not hold the end.
            runtime.shutdown_background();
            result
        });
    let code = match result {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, out);
            if is_exec { EXEC_REFUSED } else { failure.exit }
        }
    };
    ExitCode::from(code)
}

/// Tells of a failure: on stdout as JSON when asked so, else on stderr.
pub fn report(failure: &Failure, out: Out) {
    if failure.silent {
        return;
    }
    if out.json {
        let _ = out::line(&document(&failure.json()));
    } else {
        out::note(failure.lines().trim_end());
    }
}

async fn command(cli: &Cli, out: Out) -> Result<u8, Failure> {
    let state = || state_dir(cli.global.state.as_deref());
    let door = || state::door(&cli.global);
    match &cli.command {
        Command::Gateway(_)
        | Command::Up(_)
        | Command::Runner(_)
        | Command::Node(args::Node::Run(_)) => Err(Failure::of(
            codes::INTERNAL,
            "what serves is not a client's command",
        )),
        Command::Node(args::Node::Policy(what)) => nodes::local(&cli.global, what, out),
        Command::Exec(args) => exec::run(&door()?, args, out).await,
        Command::Attach(args) => exec::attach(&door()?, args, out).await,
        Command::Approvals(args::Approvals::Watch) => watch::run(&door()?, out).await,
        Command::Approvals(what) => approvals::run(&door()?, what, out).await,
        Command::Grants(what) => grants::run(&door()?, what, out).await,
        Command::Policy(what) => policy::run(door, state, what, out).await,
        Command::Devices(what) => devices::run(&door()?, what, out).await,
        Command::Nodes(what) => nodes::run(&door()?, what, out).await,
        Command::Sandbox(args::Sandbox::Image(what)) => {
            if cli.global.url.is_some() {
                let why = "images are made on the machine of the engine: leave --url out";
                return Err(Failure::of(codes::INVALID_PARAMS, why));
            }
            images::run(state, what, out).await
        }
        Command::Sandbox(what) => sandbox::run(&door()?, what, out).await,
        Command::Agents(what) => secrets::agents(&door()?, what, out).await,
        Command::Password(what) => secrets::password(&door()?, what, out).await,
        Command::Auth(args::Auth::Token(args::AuthToken::Rotate)) => {
            secrets::rotate(&door()?, out).await
        }
        Command::Vault(args::Vault::Migrate {
            keep,
            replace,
            file,
        }) => {
            let wanted = migrate::Wanted {
                file,
                keep: *keep,
                replace: *replace,
                state: state_dir(cli.global.state.as_deref())?,
            };
            migrate::run(&door()?, &wanted, out).await
        }
        Command::Vault(what) => vault::run(&door()?, what, out).await,
        Command::Audit(what) => audit::run(door, state, what, out).await,
        Command::Tls(what) => tls::run(&door()?, *what, out).await,
        Command::Remote(args) => tunnels::run(&door()?, args, out).await,
        Command::Status => status::run(&door()?, out).await,
        Command::Dashboard { open } => status::dashboard(&door()?, *open, out).await,
        Command::Config(what) => config::run(door, state, what, out).await,
        Command::Version => status::version(out),
    }
}

/// Ctrl-C, from now on: listened to once, so that none is lost between two looks.
struct Interrupts(Option<tokio::signal::unix::Signal>);

impl Interrupts {
    fn listen() -> Self {
        // Without a handler the default stands: ctrl-C ends the process.
        Self(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).ok())
    }

    /// The next one.
    async fn next(&mut self) {
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}
