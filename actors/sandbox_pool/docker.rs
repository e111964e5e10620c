//! The Docker driver: boxes as hardened containers of a local engine, over its Unix socket.
//!
//! The engine's own exec, logs and networks are never used: it makes, starts, removes and lists containers, and says when one ended. Each of
//! its answers has a time-out. What a box is asked to be is in `hardening`; the kernel's word on it (`/proc/PID/status`) is asked too.

use std::collections::HashMap;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::errors::Error as EngineError;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, SystemInfo};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use portcullis_core::ids::BoxId;

use super::driver::{DriverError, ProbeContext};
use super::evidence;
use super::hardening::{
    BOOT_LABEL, BOX_LABEL, EngineFacts, OWNER_LABEL, PROFILE_LABEL, differences, request,
};
use super::image::{self, Image};
use super::spec::{BoxSpec, FoundBox, StartedBox};

/// Longest wait for a plain answer of the engine.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// Making, starting or removing a container takes up to half a second on a loaded machine; an engine under pressure takes many.
const WORK: Duration = Duration::from_secs(30);
/// How often the engine is asked for a sign of life while a box is waited for.
const PULSE: Duration = Duration::from_secs(5);
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
    /// The engine's socket: the config's, else `DOCKER_HOST`, else `/var/run/docker.sock`.
    ///
    /// # Errors
    /// `NO_DRIVER` for anything but a Unix socket: a remote engine cannot mount our folders, and its kernel cannot be asked.
    pub fn socket(&self) -> Result<PathBuf, DriverError> {
        let given = [
            ("[sandbox_pool] engine", &self.engine),
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
                "set `[sandbox_pool] engine = \"unix:///var/run/docker.sock\"`, or unset DOCKER_HOST",
            ))
        }
    }
}

/// How a box ended, as [`Docker::wait`] saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoxEnd {
    /// Its init process ended; 137 is a kill, by the kernel for want of memory too.
    Exited {
        /// The exit code that the engine reports.
        code: i64,
    },
    /// There is no such box (any more).
    Gone,
    /// The engine died or does not answer: what the box does now is unknown.
    EngineLost {
        /// What was seen.
        reason: String,
    },
}

/// A local engine that has passed its probe. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Docker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    socket: PathBuf,
    owner: String,
    busybox: PathBuf,
    image: Image,
    facts: EngineFacts,
}

impl Docker {
    /// Proves that the engine can contain something here: its version, its kernel features, the default image, and one box that is made, checked
    /// against the kernel and removed.
    ///
    /// # Errors
    /// `NO_DRIVER` with what was seen and the command that fixes it.
    pub async fn probe(context: &ProbeContext, config: &EngineConfig) -> Result<Self, DriverError> {
        let driver = Self::connect(context, config).await?;
        driver.self_test(context).await?;
        Ok(driver)
    }

    /// As [`Docker::probe`], without the trial box.
    ///
    /// # Errors
    /// `NO_DRIVER` with what was seen and the command that fixes it.
    pub async fn connect(
        context: &ProbeContext,
        config: &EngineConfig,
    ) -> Result<Self, DriverError> {
        let socket = config.socket()?;
        reachable(&socket).await?;
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
        let facts = capable(&info, version.version.unwrap_or_default())?;
        let image = image::ensure(&engine, &config.busybox).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                socket,
                owner: context.owner.clone(),
                busybox: config.busybox.clone(),
                image,
                facts,
            }),
        })
    }

    /// The default image: boxes are made from its id.
    pub fn image(&self) -> &Image {
        &self.inner.image
    }

    /// One line for people: engine, version and socket.
    pub fn describe(&self) -> String {
        let Inner { facts, socket, .. } = &*self.inner;
        format!("Docker {} at {}", facts.version, socket.display())
    }

    /// Makes, checks and starts a box; returns once the kernel says that its init process is confined as asked. Dropping the future may leave a
    /// container behind: it carries the box's labels, so that [`Docker::list`] finds it.
    ///
    /// # Errors
    /// `BOX_START_FAILED`; whatever was made is removed again.
    pub async fn start(&self, spec: &BoxSpec) -> Result<StartedBox, DriverError> {
        self.acceptable(spec)?;
        let container = self.create(spec).await?;
        let started = self.check_and_start(spec, &container).await;
        if started.is_err() {
            if let Err(error) = self.remove(&container).await {
                tracing::warn!(box_id = spec.id.as_str(), %error, "a box that failed to start is left behind");
            }
        }
        started
    }

    /// Ends a box of this gateway and everything in it; returns when the engine has removed it. One that does not exist is no error.
    ///
    /// # Errors
    /// `BOX_STATE_UNKNOWN` when the engine does not answer or refuses.
    pub async fn stop(&self, id: &BoxId) -> Result<(), DriverError> {
        for container in self.find(&self.inner.owner, Some(id)).await? {
            if let Some(container) = container.id {
                self.remove(&container).await?;
            }
        }
        Ok(())
    }

    /// Every box with this owner's label, in whatever state, also one that was created and never started.
    ///
    /// # Errors
    /// `BOX_STATE_UNKNOWN` when the engine does not answer.
    pub async fn list(&self, owner: &str) -> Result<Vec<FoundBox>, DriverError> {
        let found = self.find(owner, None).await?;
        Ok(found.into_iter().filter_map(found_box).collect())
    }

    /// Waits for the end of a box or of the engine, whichever comes first. An engine that is killed is seen at once, one that hangs within 15 s.
    /// It has no time-out of its own otherwise: a box may live for days.
    pub async fn wait(&self, id: &BoxId) -> BoxEnd {
        let container = match self.find(&self.inner.owner, Some(id)).await {
            Ok(found) => found.into_iter().find_map(|container| container.id),
            Err(error) => {
                return BoxEnd::EngineLost {
                    reason: error.to_string(),
                };
            }
        };
        let Some(container) = container else {
            return BoxEnd::Gone;
        };
        let engine = &self.inner.engine;
        let options = WaitContainerOptionsBuilder::default()
            .condition("not-running")
            .build();
        let mut ends = engine.wait_container(&container, Some(options));
        let mut end = pin!(ends.next());
        loop {
            tokio::select! {
                said = &mut end => return box_end(said),
                () = tokio::time::sleep(PULSE) => {
                    if let Err(fault) = bounded(CALL, "ping", engine.ping()).await {
                        return BoxEnd::EngineLost { reason: fault.to_string() };
                    }
                }
            }
        }
    }

    /// Refuses what no box of ours may be, whatever the caller thinks.
    fn acceptable(&self, spec: &BoxSpec) -> Result<(), DriverError> {
        let refuse = |why: String| Err(DriverError::Start(why));
        if spec.uid == 0 || spec.gid == 0 {
            return refuse("a box never runs as uid or gid 0".to_owned());
        }
        if spec.owner != self.inner.owner {
            return refuse("the box names another gateway as its owner".to_owned());
        }
        if spec.limits.memory_bytes == 0 || spec.limits.cpu_millis == 0 || spec.limits.pids == 0 {
            return refuse(
                "memory, processor and pids limits are never 0, which would mean none".to_owned(),
            );
        }
        for path in [&spec.workspace, &spec.run_dir, &spec.cell] {
            // The engine resolves links as root; what it is given must be what was decided on.
            let real = std::fs::canonicalize(path)
                .map_err(|error| DriverError::Start(format!("{}: {error}", path.display())))?;
            if real != *path || path.to_str().is_none() {
                return refuse(format!(
                    "{} is not a plain, absolute path without links",
                    path.display()
                ));
            }
        }
        let facts = |path: &Path| {
            std::fs::symlink_metadata(path)
                .map_err(|error| DriverError::Start(format!("{}: {error}", path.display())))
        };
        // Who owns it decides, not a list of forbidden places: /etc, /proc and the like belong to root.
        let workspace = facts(&spec.workspace)?;
        if !workspace.is_dir() || workspace.uid() != spec.uid {
            return refuse(format!(
                "{} is not a folder of uid {}",
                spec.workspace.display(),
                spec.uid
            ));
        }
        if facts(&spec.cell)?.uid() == spec.uid && spec.uid != rustix::process::geteuid().as_raw() {
            return refuse(format!(
                "{} belongs to the box's own user",
                spec.cell.display()
            ));
        }
        let exposes = |what: &Path| what.starts_with(&spec.workspace);
        if exposes(&spec.run_dir) || exposes(&spec.cell) || exposes(&self.inner.socket) {
            return refuse(format!(
                "the workspace {} holds the gateway's or the engine's own files",
                spec.workspace.display()
            ));
        }
        Ok(())
    }

    /// Creates the container; imports the image again if somebody removed it since the probe.
    async fn create(&self, spec: &BoxSpec) -> Result<String, DriverError> {
        let Inner {
            engine,
            busybox,
            image,
            ..
        } = &*self.inner;
        match self.create_from(spec, &image.id).await {
            Err(Fault::Engine(EngineError::DockerResponseServerError {
                status_code: 404, ..
            })) => {
                let image = image::ensure(engine, busybox).await?;
                self.create_from(spec, &image.id).await
            }
            other => other,
        }
        .map_err(|fault| DriverError::Start(fault.to_string()))
    }

    async fn create_from(&self, spec: &BoxSpec, image: &str) -> Result<String, Fault> {
        let name = format!("portcullis-{}", spec.id.as_str());
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let made = self
            .inner
            .engine
            .create_container(Some(options), request(spec, image));
        Ok(bounded(WORK, "create", made).await?.id)
    }

    async fn check_and_start(
        &self,
        spec: &BoxSpec,
        container: &str,
    ) -> Result<StartedBox, DriverError> {
        let Inner { engine, facts, .. } = &*self.inner;
        let failed = |fault: Fault| DriverError::Start(fault.to_string());
        let said = bounded(CALL, "inspect", engine.inspect_container(container, None))
            .await
            .map_err(failed)?;
        let image = said.image.clone().unwrap_or_default();
        let wrong = differences(&request(spec, &image), &said, facts);
        if !wrong.is_empty() {
            return Err(DriverError::Start(format!(
                "the engine made another box than was asked for: {}",
                wrong.join("; ")
            )));
        }
        bounded(WORK, "start", engine.start_container(container, None))
            .await
            .map_err(failed)?;
        let init_pid = self.init_pid(container).await?;
        if let Err(weak) = evidence::confined(init_pid, spec.uid, spec.gid).await {
            // A cell that ends at once has no status to show: then its exit code is the better answer.
            self.init_pid(container).await?;
            return Err(DriverError::Start(weak));
        }
        Ok(StartedBox {
            init_pid,
            image_digest: Some(image),
            child: None,
        })
    }

    /// The first process of a running container.
    async fn init_pid(&self, container: &str) -> Result<u32, DriverError> {
        let said = bounded(
            CALL,
            "inspect",
            self.inner.engine.inspect_container(container, None),
        );
        let state = said
            .await
            .map_err(|fault| DriverError::Start(fault.to_string()))?
            .state
            .unwrap_or_default();
        match state.pid.and_then(|pid| u32::try_from(pid).ok()) {
            Some(pid) if pid > 1 && state.running == Some(true) => Ok(pid),
            _ => Err(DriverError::Start(format!(
                "the box ended at once with code {} {}",
                state.exit_code.unwrap_or_default(),
                state.error.unwrap_or_default()
            ))),
        }
    }

    /// Containers by label; never by name, which anybody may take.
    async fn find(
        &self,
        owner: &str,
        id: Option<&BoxId>,
    ) -> Result<Vec<ContainerSummary>, DriverError> {
        let mut labels = vec![format!("{OWNER_LABEL}={owner}")];
        labels.extend(id.map(|id| format!("{BOX_LABEL}={}", id.as_str())));
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let found = bounded(
            CALL,
            "list",
            self.inner.engine.list_containers(Some(options)),
        )
        .await
        .map_err(|fault| DriverError::Unknown(fault.to_string()))?;
        // The engine's filter is not the last word on what is ours.
        Ok(found
            .into_iter()
            .filter(|container| label(container, OWNER_LABEL) == Some(owner))
            .filter(|container| {
                id.is_none_or(|id| label(container, BOX_LABEL) == Some(id.as_str()))
            })
            .collect())
    }

    async fn remove(&self, container: &str) -> Result<(), DriverError> {
        let attempts = async {
            loop {
                let options = RemoveContainerOptionsBuilder::default()
                    .force(true)
                    .v(true)
                    .build();
                match self
                    .inner
                    .engine
                    .remove_container(container, Some(options))
                    .await
                {
                    Ok(())
                    | Err(EngineError::DockerResponseServerError {
                        status_code: 404, ..
                    }) => return Ok(()),
                    // Somebody else's removal is under way: it is ended when the container is unknown.
                    Err(EngineError::DockerResponseServerError {
                        status_code: 409, ..
                    }) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        bounded(WORK, "remove", attempts)
            .await
            .map_err(|fault| DriverError::Unknown(fault.to_string()))
    }

    /// Makes one box in folders of its own, lets [`Docker::start`] check it, and removes all again.
    async fn self_test(&self, context: &ProbeContext) -> Result<(), DriverError> {
        let trial = super::trial::Trial::new(context).map_err(|error| {
            no_driver(
                format!("the folders of a trial box cannot be made: {error}"),
                "look at the owner and mode of the state directory",
            )
        })?;
        let started = self.start(trial.spec()).await;
        let stopped = self.stop(&trial.spec().id).await;
        started.and_then(|_| stopped).map_err(|error| {
            no_driver(
                format!("a trial box did not come up: {error}"),
                "look at `docker info` and the engine's log, or set `[sandbox_pool] driver = \"native\"`",
            )
        })
    }
}

/// Whether there is a socket that lets us in: the two faults that people meet most, each with its own fix.
async fn reachable(socket: &Path) -> Result<(), DriverError> {
    use std::io::ErrorKind;
    let at = socket.display();
    let refused = match tokio::time::timeout(CALL, tokio::net::UnixStream::connect(socket)).await {
        Ok(Ok(_)) => return Ok(()),
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

/// Refuses an engine that would silently drop what we ask of it.
fn capable(info: &SystemInfo, version: String) -> Result<EngineFacts, DriverError> {
    if info.os_type.as_deref() != Some("linux") {
        return Err(no_driver(
            "the engine does not run Linux containers".to_owned(),
            "use an engine on Linux",
        ));
    }
    for (has, what) in [
        (info.memory_limit, "memory limits"),
        (info.swap_limit, "swap limits"),
        (info.pids_limit, "pids limits"),
        (info.cpu_cfs_quota, "processor limits"),
    ] {
        if has != Some(true) {
            return Err(no_driver(
                format!("the engine's kernel has no {what}, so that it would drop them silently"),
                "boot with cgroup v2, or with `cgroup_enable=memory swapaccount=1`",
            ));
        }
    }
    let options = info.security_options.as_deref().unwrap_or_default();
    let named = |name: &str| {
        options
            .iter()
            .find(|option| option.split(',').any(|part| part == format!("name={name}")))
    };
    match named("seccomp") {
        Some(seccomp) if !seccomp.contains("profile=unconfined") => {}
        _ => {
            return Err(no_driver(
                "the engine filters no system calls (seccomp is off)".to_owned(),
                "remove `seccomp-profile` from /etc/docker/daemon.json and run `systemctl restart docker`",
            ));
        }
    }
    for (name, what) in [
        ("rootless", "runs without root"),
        ("userns", "maps user ids"),
    ] {
        if named(name).is_some() {
            return Err(no_driver(
                format!(
                    "the engine {what}, so that a workspace would belong to another user inside the box"
                ),
                "set `[sandbox_pool] driver = \"native\"`",
            ));
        }
    }
    if named("selinux").is_some() {
        return Err(no_driver(
            "the engine labels files with SELinux, and the gateway relabels no folder of yours"
                .to_owned(),
            "set `[sandbox_pool] driver = \"native\"`",
        ));
    }
    Ok(EngineFacts {
        version,
        default_runtime: info.default_runtime.clone().unwrap_or_default(),
        apparmor: named("apparmor").is_some(),
    })
}

fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(name).map(String::as_str)
}

fn found_box(container: ContainerSummary) -> Option<FoundBox> {
    let text = |name| label(&container, name).unwrap_or_default().to_owned();
    let found = BoxId::new(&text(BOX_LABEL)).map(|id| FoundBox {
        id,
        boot: text(BOOT_LABEL),
        profile_hash: text(PROFILE_LABEL),
        running: container.state == Some(ContainerSummaryStateEnum::RUNNING),
    });
    if found.is_err() {
        tracing::warn!(
            container = container.id,
            "a container has our owner label and no box id: left alone"
        );
    }
    found.ok()
}

fn box_end(said: Option<Result<bollard::models::ContainerWaitResponse, EngineError>>) -> BoxEnd {
    match said {
        Some(Ok(ended)) => BoxEnd::Exited {
            code: ended.status_code,
        },
        // How the client library says "exited with something else than 0".
        Some(Err(EngineError::DockerContainerWaitError { code, .. })) => BoxEnd::Exited { code },
        Some(Err(EngineError::DockerResponseServerError {
            status_code: 404, ..
        })) => BoxEnd::Gone,
        Some(Err(error)) => BoxEnd::EngineLost {
            reason: error.to_string(),
        },
        None => BoxEnd::EngineLost {
            reason: "the engine closed the connection".to_owned(),
        },
    }
}

/// What kept an engine's answer from coming.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the engine gave no answer to `{what}` in {} s", within.as_secs())]
    Late {
        what: &'static str,
        within: Duration,
    },
    #[error("{0}")]
    Engine(EngineError),
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
