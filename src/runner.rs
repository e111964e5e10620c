//! `portcullis runner`: the gateway's child that alone speaks to the container engine. What it does is
//! [`portcullis_actors::sandbox_pool::runner`]; here are its two ends: how the gateway starts one, and what one does first.
//!
//! It is given its socket as standard input, the configuration as descriptor 3, and nothing else of the gateway's.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use portcullis_actors::sandbox_pool::RunnerProgram;
use portcullis_actors::sandbox_pool::runner::{Ground, serve};
use portcullis_core::codes;
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Failure, GatewayArgs, Global, RunnerArgs};
use crate::config;
use crate::gateway::{CELL, close_inherited, flags, keep_memory, owner_of};

/// Between two of its signs of life.
const BEAT: Duration = Duration::from_secs(5);
/// What it is given of the gateway's environment, beside what sets keys of the configuration.
const VARIABLES: [&str; 1] = ["DOCKER_HOST"];
/// Nobody changes the configuration once it is written down.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);
const CONFIG_FD: i32 = 3;

/// How the gateway starts its runner: with the configuration as it has read it itself, whatever the file says later.
///
/// # Errors
/// Of the kernel.
pub fn program(
    state: &Path,
    boot: &str,
    gateway: &GatewayArgs,
    config: Option<&[u8]>,
) -> io::Result<RunnerProgram> {
    let memory = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(rustix::fs::memfd_create("portcullis-config", memory)?);
    memory.write_all(config.unwrap_or_default())?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    let reading = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    let mut args: Vec<OsString> = vec!["runner".into(), "--boot".into(), boot.into()];
    args.extend(["--state".into(), state.into()]);
    args.extend(gateway.port.map(|port| format!("--port={port}").into()));
    args.extend(gateway.bind.map(|bind| format!("--bind={bind}").into()));
    let env = config::environment()
        .filter(|(name, _)| name.starts_with(config::PREFIX) || VARIABLES.contains(&name.as_str()));
    Ok(RunnerProgram {
        program: "/proc/self/exe".into(),
        args,
        env: env.collect(),
        config: Some(OwnedFd::from(reading)),
        beat: BEAT,
    })
}

/// Serves the gateway that has started it, until that closes the socket.
pub fn run(global: &Global, args: &RunnerArgs) -> ExitCode {
    match served(global, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ERROR {why}");
            ExitCode::FAILURE
        }
    }
}

fn served(global: &Global, args: &RunnerArgs) -> Result<(), String> {
    let stranger =
        |_| "`portcullis runner` is started by the gateway, and by nobody else".to_owned();
    socket().map_err(stranger)?;
    let config = sealed().map_err(|error| format!("the configuration: {error}"))?;
    // Before anything is kept open.
    close_inherited();
    let gateway = socket().map_err(stranger)?;
    hold_still().map_err(|failure| failure.lines())?;
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    let state = global.state.as_deref().ok_or("--state is missing")?;
    let file = (!config.is_empty()).then_some(("config.toml", config.as_slice()));
    let loaded = config::merge(file, config::environment(), &flags(&args.gateway));
    let config = loaded.map_err(|errors| errors.to_string())?.config;
    let profiles = config.agents.profiles(config.sandbox.layer());
    let owner = owner_of(state);
    let boot = args.boot.clone();
    let ground = Ground::new(config.sandbox, profiles, state, CELL, owner, boot);
    let ground = ground.map_err(|crash| crash.why().to_owned())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let served = runtime.block_on(async {
        // Who ends the gateway ends it too, and may do so by a signal to both: it is needed until the last box has ended.
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ];
        let _caught: Vec<_> = kinds.into_iter().map(signal).collect();
        gateway.set_nonblocking(true)?;
        serve(tokio::net::UnixStream::from_std(gateway)?, ground).await
    });
    runtime.shutdown_background();
    served.map_err(|error| error.to_string())
}

/// Standard input, which is a socket and not a terminal.
fn socket() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr()?;
    Ok(socket)
}

fn sealed() -> io::Result<Vec<u8>> {
    let mut file = File::open(format!("/proc/self/fd/{CONFIG_FD}"))?;
    if !rustix::fs::fcntl_get_seals(&file)?.contains(SEALS) {
        return Err(io::Error::other("it is not sealed"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// It holds no secret, and gives away nothing of what it has: no core file, no look from outside, no new rights by an exec.
fn hold_still() -> Result<(), Failure> {
    keep_memory()?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| Failure::of(codes::INTERNAL, format!("PR_SET_NO_NEW_PRIVS: {error}")))
}
