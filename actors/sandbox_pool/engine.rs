//! Reaching a local engine, and deciding whether it can keep what is asked of it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::errors::Error as EngineError;
use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum};
use serde::{Deserialize, Serialize};

use super::config::SandboxPoolConfig;
use super::driver::DriverError;
use super::image;

/// Longest wait for a plain answer of the engine.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// Making, starting or removing a container takes up to half a second on a loaded machine; an engine under pressure takes many.
pub(super) const WORK: Duration = Duration::from_secs(30);
/// The engine listens here when nobody says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Docker 20.10: the first with private cgroup namespaces.
const MIN_API: (u32, u32) = (1, 41);

/// Which engine, and from what the default image is made.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// `unix:///path` from the config; wins over the environment because it was written for this program.
    pub engine: Option<String>,
    /// `DOCKER_HOST` of the environment.
    pub docker_host: Option<String>,
    /// The host's static busybox.
    pub busybox: PathBuf,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            engine: None,
            docker_host: None,
            busybox: PathBuf::from(image::BUSYBOX),
        }
    }
}

impl EngineConfig {
    /// What the configuration says, and this process' environment.
    pub fn here(config: &SandboxPoolConfig) -> Self {
        Self {
            engine: config.engine.clone(),
            docker_host: std::env::var("DOCKER_HOST").ok(),
            ..Self::default()
        }
    }

    /// The engine's socket: the config's, else `DOCKER_HOST`, else `/var/run/docker.sock`.
    ///
    /// # Errors
    /// `NO_DRIVER` for anything but a Unix socket: a remote engine cannot mount our folders, and its kernel cannot be asked.
    pub fn socket(&self) -> Result<PathBuf, DriverError> {
        let given = [
            ("[sandbox] engine", &self.engine),
            ("DOCKER_HOST", &self.docker_host),
        ]
        .into_iter()
        .find_map(|(from, value)| {
            Some((from, value.as_deref().filter(|value| !value.is_empty())?))
        });
        let Some((from, value)) = given else {
            return Ok(PathBuf::from(DEFAULT_SOCKET));
        };
        let path = value.strip_prefix("unix://").unwrap_or(value);
        if path.starts_with('/') {
            Ok(PathBuf::from(path))
        } else {
            Err(no_driver(
                format!(
                    "{from} names {value:?}: only an engine on this machine, behind a Unix socket, is used"
                ),
                "set `[sandbox] engine = \"unix:///var/run/docker.sock\"`, or unset DOCKER_HOST",
            ))
        }
    }
}

/// What the facts of an engine decide about a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineFacts {
    /// The engine's version, for people.
    pub version: String,
    /// The runtime that is used when none is asked for.
    pub default_runtime: String,
    /// All that it has, in order.
    pub runtimes: Vec<String>,
    /// The engine confines containers with AppArmor.
    pub apparmor: bool,
    /// It is Podman, which speaks the same API with words of its own.
    pub podman: bool,
    /// It is Podman and runs as the gateway's user, which is not root, and so do its boxes: in a user namespace in which that user has the same
    /// number (`keep-id`).
    pub keeps_id: bool,
    /// Processors: an engine refuses to give more.
    pub cpus: u32,
}

/// An engine that answers and can keep what is asked of it.
pub(super) struct Opened {
    pub engine: Engine,
    pub socket: PathBuf,
    pub facts: EngineFacts,
}

/// Connects, settles the version, and looks at what the engine can do.
pub(super) async fn open(config: &EngineConfig) -> Result<Opened, DriverError> {
    let socket = config.socket()?;
    let peer = reachable(&socket).await?;
    let silent = |fault: &Fault| {
        no_driver(
            format!(
                "the engine at {} does not answer: {fault}",
                socket.display()
            ),
            "run `systemctl restart docker` and look at `docker info`",
        )
    };
    let engine = Engine::connect_with_unix(
        &socket.to_string_lossy(),
        WORK.as_secs(),
        bollard::API_DEFAULT_VERSION,
    )
    .map_err(|error| silent(&Fault::Engine(error)))?;
    let engine = bounded(CALL, "version", engine.negotiate_version())
        .await
        .map_err(|fault| silent(&fault))?;
    bounded(CALL, "ping", engine.ping())
        .await
        .map_err(|fault| silent(&fault))?;
    let version = bounded(CALL, "version", engine.version())
        .await
        .map_err(|fault| silent(&fault))?;
    let api = version.api_version.unwrap_or_default();
    if !new_enough(&api) {
        return Err(no_driver(
            format!(
                "the engine speaks API {api:?}, and 1.41 (Docker 20.10) is the oldest that is used"
            ),
            "run `apt-get install --only-upgrade docker.io`",
        ));
    }
    let info = bounded(CALL, "info", engine.info())
        .await
        .map_err(|fault| silent(&fault))?;
    let components = version.components.iter().flatten();
    let podman = components
        .into_iter()
        .any(|part| part.name == "Podman Engine");
    let own = rustix::process::geteuid().as_raw();
    let facts = capable(
        &info,
        version.version.unwrap_or_default(),
        podman,
        peer,
        own,
    )?;
    Ok(Opened {
        engine,
        socket,
        facts,
    })
}

/// Whose socket it is that lets us in, by the kernel's word: the two faults that people meet most, each with its own fix.
async fn reachable(socket: &Path) -> Result<u32, DriverError> {
    use std::io::ErrorKind;
    let at = socket.display();
    let refused = match tokio::time::timeout(CALL, tokio::net::UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => match stream.peer_cred() {
            Ok(peer) => return Ok(peer.uid()),
            Err(error) => error,
        },
        Ok(Err(error)) => error,
        Err(_) => std::io::Error::from(ErrorKind::TimedOut),
    };
    Err(match refused.kind() {
        ErrorKind::NotFound => no_driver(
            format!("there is no engine at {at}"),
            "run `apt-get install docker.io busybox-static` and `systemctl start docker`",
        ),
        ErrorKind::PermissionDenied => no_driver(
            format!("this user may not use the engine at {at}"),
            "run `usermod -aG docker USER` for the gateway's user and log in again (that group is root on this machine)",
        ),
        _ => no_driver(
            format!("the engine at {at} is not running: {refused}"),
            "run `systemctl start docker`",
        ),
    })
}

fn new_enough(api: &str) -> bool {
    let mut parts = api.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor)), None) => (major, minor) >= MIN_API,
        _ => false,
    }
}

/// Why an engine without root is not used: it holds no limit, a box's user would be its root, or another than the gateway's.
fn without_root(info: &SystemInfo, podman: bool, peer: u32, own: u32) -> Option<DriverError> {
    if info.cgroup_version != Some(SystemInfoCgroupVersionEnum::_2) {
        return Some(no_driver(
            "the engine runs without root, and under version 1 of control groups such an engine holds no limit"
                .to_owned(),
            "boot with cgroup v2, or set `[sandbox] driver = \"native\"`",
        ));
    }
    if !podman {
        // Of Docker's ids only 0 is the gateway's user outside. Whoever has that inside owns what is in /proc of the box's supervisors, which
        // are closed to every other (proc(5)); seen with 20.10.
        return Some(no_driver(
            "the engine is Docker without root: a box's user would be the root of its namespace, who may list the descriptors of the box's own supervisors"
                .to_owned(),
            "take Podman without root (`systemctl --user enable --now podman.socket`, `[sandbox] engine = \"unix:///run/user/UID/podman/podman.sock\"`), \
             an engine that runs as root, or set `[sandbox] driver = \"native\"`",
        ));
    }
    let why = if own == 0 {
        "and this gateway as root: its boxes have users of their own, which such an engine does not have".to_owned()
    } else if peer != own {
        format!("and as uid {peer}, but this gateway as uid {own}: boxes would be another user's")
    } else {
        return None;
    };
    Some(no_driver(
        format!("the engine runs without root, {why}"),
        "run the gateway as the engine's user, or name an engine that runs as root (`[sandbox] engine`)",
    ))
}

/// Refuses an engine that would silently drop what we ask of it. `peer` is who listens on its socket, `own` this process' user.
fn capable(
    info: &SystemInfo,
    version: String,
    podman: bool,
    peer: u32,
    own: u32,
) -> Result<EngineFacts, DriverError> {
    if info.os_type.as_deref() != Some("linux") {
        return Err(no_driver(
            "the engine does not run Linux containers".to_owned(),
            "use an engine on Linux",
        ));
    }
    let options = info.security_options.as_deref().unwrap_or_default();
    let named = |name: &str| {
        options
            .iter()
            .find(|option| option.split(',').any(|part| part == format!("name={name}")))
    };
    let is_second = info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2);
    // Podman does not say it (seen with 4.3).
    let rootless = named("rootless").is_some() || podman && peer != 0;
    if rootless && let Some(refused) = without_root(info, podman, peer, own) {
        return Err(refused);
    }
    for (has, what) in [
        (info.memory_limit, "memory limits"),
        (info.swap_limit, "swap limits"),
        (info.pids_limit, "pids limits"),
        (info.cpu_cfs_quota, "processor limits"),
    ] {
        // Podman says so of version 1 only, and denies swap limits under version 2 that it holds: there the kernel is asked of each box
        // (`cgroup::held`), and the first one is the trial's.
        if has != Some(true) && !(podman && is_second) {
            return Err(no_driver(
                format!("the engine's kernel has no {what}, so that it would drop them silently"),
                "boot with cgroup v2, or with `cgroup_enable=memory swapaccount=1`",
            ));
        }
    }
    match named("seccomp") {
        Some(seccomp) if !seccomp.contains("profile=unconfined") => {}
        _ => {
            return Err(no_driver(
                "the engine filters no system calls (seccomp is off)".to_owned(),
                "remove `seccomp-profile` from /etc/docker/daemon.json and run `systemctl restart docker`",
            ));
        }
    }
    if named("userns").is_some() {
        return Err(no_driver(
            "the engine maps user ids, so that a workspace would belong to another user inside the box"
                .to_owned(),
            "set `[sandbox] driver = \"native\"`",
        ));
    }
    if named("selinux").is_some() {
        return Err(no_driver(
            "the engine labels files with SELinux, and the gateway relabels no folder of yours"
                .to_owned(),
            "set `[sandbox] driver = \"native\"`",
        ));
    }
    // Podman's API does not say by which one a container was made, so none is offered.
    let offered = info.runtimes.iter().filter(|_| !podman).flatten();
    let mut runtimes: Vec<String> = offered.map(|(name, _)| name.clone()).collect();
    runtimes.sort();
    Ok(EngineFacts {
        version,
        podman,
        keeps_id: rootless,
        runtimes,
        default_runtime: info.default_runtime.clone().unwrap_or_default(),
        // Without root it cannot give one, and Podman says all the same that the machine has it.
        apparmor: named("apparmor").is_some() && !rootless,
        cpus: info
            .ncpu
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(1)
            .max(1),
    })
}

/// What kept an engine's answer from coming.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the engine gave no answer to `{what}` in {} s", within.as_secs())]
    Late {
        what: &'static str,
        within: Duration,
    },
    #[error("{}", words(.0))]
    Engine(EngineError),
}

/// The client library's error with what is behind it: "error (Connect)" alone helps nobody.
pub(super) fn words(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(behind) = source {
        let said = behind.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = behind.source();
    }
    text
}

/// The client library bounds only the wait for an answer's head; this bounds all of it.
pub(super) async fn bounded<T>(
    within: Duration,
    what: &'static str,
    call: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(within, call).await {
        Ok(answer) => answer.map_err(Fault::Engine),
        Err(_) => Err(Fault::Late { what, within }),
    }
}

pub(super) fn no_driver(reason: String, fix: &str) -> DriverError {
    DriverError::NoDriver {
        driver: "docker",
        reason,
        fix: fix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that can keep all that is asked of it.
    fn info(options: &[&str], version: SystemInfoCgroupVersionEnum) -> SystemInfo {
        SystemInfo {
            os_type: Some("linux".to_owned()),
            memory_limit: Some(true),
            swap_limit: Some(true),
            pids_limit: Some(true),
            cpu_cfs_quota: Some(true),
            cgroup_version: Some(version),
            security_options: Some(options.iter().map(|&option| option.to_owned()).collect()),
            ..SystemInfo::default()
        }
    }

    fn facts(
        info: &SystemInfo,
        podman: bool,
        peer: u32,
        own: u32,
    ) -> Result<EngineFacts, DriverError> {
        capable(info, "1".to_owned(), podman, peer, own)
    }

    fn reason(info: &SystemInfo, podman: bool, peer: u32, own: u32) -> String {
        match facts(info, podman, peer, own) {
            Err(DriverError::NoDriver { reason, .. }) => reason,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn an_engine_without_root_is_the_gateways_own_users_or_refused_also_where_it_does_not_say_so() {
        use SystemInfoCgroupVersionEnum::{_1, _2};
        let seccomp = "name=seccomp,profile=default";
        assert!(!facts(&info(&[seccomp], _2), true, 0, 0).unwrap().keeps_id);
        // The bug: Podman does not say that it runs without root; who listens on its socket is the kernel's word.
        let podman = info(&[seccomp, "name=apparmor"], _2);
        let own = facts(&podman, true, 1000, 1000).unwrap();
        assert!(
            own.keeps_id && !own.apparmor,
            "it can load no profile: {own:?}"
        );
        let docker = info(&[seccomp, "name=rootless"], _2);
        for (told, is_podman, peer, own, what) in [
            (&podman, true, 1000, 0, "this gateway as root"),
            (&podman, true, 1000, 1001, "another user's"),
            (&docker, false, 1000, 1000, "the root of its namespace"),
            (&docker, false, 1000, 0, "the root of its namespace"),
            // Root's socket before it does not make it root's.
            (&docker, false, 0, 1000, "the root of its namespace"),
            (&info(&[seccomp], _1), true, 1000, 1000, "holds no limit"),
            (
                &info(&[seccomp, "name=rootless"], _1),
                false,
                1000,
                1000,
                "holds no limit",
            ),
        ] {
            let said = reason(told, is_podman, peer, own);
            assert!(
                said.contains("without root") && said.contains(what),
                "{said}"
            );
        }
        // Docker's socket may be a proxy's: its own word is good, and the kernel's on each box.
        assert!(
            !facts(&info(&[seccomp], _2), false, 1000, 1000)
                .unwrap()
                .keeps_id
        );
        let said = reason(&info(&[seccomp, "name=userns"], _2), false, 0, 0);
        assert!(said.contains("maps user ids"), "{said}");
    }

    /// The bug: Podman under version 2 was refused for want of swap limits, which it holds there.
    #[test]
    fn podman_denies_swap_limits_under_version_2_and_the_kernel_is_asked_instead() {
        use SystemInfoCgroupVersionEnum::{_1, _2};
        let mut given = info(&["name=seccomp,profile=default"], _2);
        given.swap_limit = Some(false);
        assert!(facts(&given, true, 0, 0).is_ok());
        assert!(reason(&given, false, 0, 0).contains("no swap limits"));
        given.cgroup_version = Some(_1);
        assert!(reason(&given, true, 0, 0).contains("no swap limits"));
    }
}
