//! The Docker driver: boxes as hardened containers of a local engine, over its Unix socket.
//!
//! The engine's own exec, logs and networks are never used: it makes, starts, removes and lists containers, and says when one ended. Each of
//! its answers has a time-out. What a box is asked to be is in `hardening`; the kernel's word on it (`/proc/PID/status`) is asked too.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::errors::Error as EngineError;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::{Access, ImageName};
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::driver::{DriverError, ProbeContext};
use super::engine::{self, CALL, EngineConfig, EngineFacts, Fault, Opened, WORK, bounded, words};
use super::evidence;
use super::hardening::{
    BOOT_LABEL, BOX_LABEL, HOSTS, OWNER_LABEL, PROFILE_LABEL, differences, hosts_file, request,
};
use super::image::{self, Image};
use super::mapped;
use super::podman::in_dockers_words;
use super::spec::{BoxSpec, FoundBox, StartedBox};

/// How often the engine is asked for a sign of life while a box is waited for.
const PULSE: Duration = Duration::from_secs(5);

/// How often a box is asked for anew where an engine fails by chance, and after what.
const CREATED_AGAIN: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

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

/// A local engine that can keep what is asked of it. Cheap to clone.
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
    /// Looks at the engine: its version, what its kernel can limit, and the default image. That it contains anything is for
    /// [`super::probe`] to prove, with a box.
    ///
    /// # Errors
    /// `NO_DRIVER` with what was seen and the command that fixes it.
    pub async fn connect(
        context: &ProbeContext,
        config: &EngineConfig,
    ) -> Result<Self, DriverError> {
        let Opened {
            engine,
            socket,
            facts,
        } = engine::open(config).await?;
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
        self.seen().describe()
    }

    /// Makes, checks and starts a box; returns once the kernel says that its init process is confined as asked. Dropping the future may leave a
    /// container behind: it carries the box's labels, so that [`Docker::list`] finds it.
    ///
    /// # Errors
    /// `BOX_START_FAILED`; whatever was made is removed again.
    pub async fn start(&self, spec: &BoxSpec) -> Result<StartedBox, DriverError> {
        self.acceptable(spec)?;
        let spec = &within(spec, &self.inner.facts);
        write_hosts(spec)
            .map_err(|error| DriverError::Start(format!("{}: {error}", spec.run_dir.display())))?;
        let (container, image) = self.create(spec).await?;
        let started = self.check_and_start(spec, &container, image).await;
        if started.is_err()
            && let Err(error) = self.remove(&container).await
        {
            tracing::warn!(box_id = spec.id.as_str(), %error, "a box that failed to start is left behind");
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
        Ok(found.iter().filter_map(found_box).collect())
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

    /// Watches the engine and returns what was seen when it is gone: at once when it dies or stops, after two late answers (half a minute)
    /// when it hangs. A late answer alone is an engine under pressure.
    pub async fn lost(&self) -> String {
        let engine = &self.inner.engine;
        // Nothing of ours is asked for: the open stream is what tells of the end.
        let filters = HashMap::from([("label", vec![format!("{OWNER_LABEL}=")])]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let mut events = pin!(engine.events(Some(options)));
        let mut late = 0;
        loop {
            tokio::select! {
                said = events.next() => match said {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return words(&error),
                    None => return "it closed the connection".to_owned(),
                },
                () = tokio::time::sleep(PULSE) => {
                    match bounded(CALL, "ping", engine.ping()).await {
                        Ok(_) => late = 0,
                        Err(fault @ Fault::Late { .. }) => {
                            late += 1;
                            if late == 2 {
                                return fault.to_string();
                            }
                        }
                        Err(fault) => return fault.to_string(),
                    }
                }
            }
        }
    }

    /// The id of a local image.
    ///
    /// # Errors
    /// In words: that there is none, or that it cannot be a box's.
    pub async fn find_image(&self, name: &ImageName) -> Result<String, String> {
        let found = image::local(&self.inner.engine, name.as_str()).await;
        found.map(|(id, _)| id)
    }

    /// What the engine is asked for such a box, and what else decides what comes of it.
    pub fn shape(&self, spec: &BoxSpec) -> Vec<u8> {
        shape(spec, &self.inner.facts)
    }

    /// The names of the engine's runtimes.
    pub fn runtimes(&self) -> &[String] {
        &self.inner.facts.runtimes
    }

    /// The engine's socket.
    pub fn socket(&self) -> &Path {
        &self.inner.socket
    }

    /// What was found out about it.
    pub fn seen(&self) -> Seen {
        let Inner {
            socket,
            image,
            facts,
            ..
        } = &*self.inner;
        Seen {
            socket: socket.clone(),
            image: image.clone(),
            facts: facts.clone(),
        }
    }

    /// Refuses what no box of ours may be, whatever the caller thinks.
    fn acceptable(&self, spec: &BoxSpec) -> Result<(), DriverError> {
        let refuse = |why: String| Err(DriverError::Start(why));
        if spec.uid == 0 || spec.gid == 0 {
            return refuse("a box never runs as uid or gid 0".to_owned());
        }
        let own = rustix::process::geteuid().as_raw();
        if self.inner.facts.keeps_id && spec.uid != own {
            return refuse(format!(
                "a box of an engine without root has the user of this process, {own}, and no other"
            ));
        }
        if spec.owner != self.inner.owner {
            return refuse("the box names another gateway as its owner".to_owned());
        }
        if spec.limits.memory_bytes == 0 || spec.limits.cpu_millis == 0 || spec.limits.pids == 0 {
            return refuse(
                "memory, processor and pids limits are never 0, which would mean none".to_owned(),
            );
        }
        let workspace = (spec.access != Access::None).then_some(&spec.workspace);
        for path in workspace.into_iter().chain([&spec.run_dir, &spec.cell]) {
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
        if let Some(path) = workspace {
            let found = facts(path)?;
            if !found.is_dir() || found.uid() != spec.uid {
                let (path, uid) = (path.display(), spec.uid);
                return refuse(format!("{path} is not a folder of uid {uid}"));
            }
        }
        if facts(&spec.cell)?.uid() == spec.uid && spec.uid != rustix::process::geteuid().as_raw() {
            return refuse(format!(
                "{} belongs to the box's own user",
                spec.cell.display()
            ));
        }
        for mount in &spec.mounts {
            mount.is_still().map_err(|why| {
                DriverError::Start(format!("mount {}: {why}", mount.inside.display()))
            })?;
        }
        let exposes = |what: &Path| workspace.is_some_and(|path| what.starts_with(path));
        if exposes(&spec.run_dir) || exposes(&spec.cell) || exposes(&self.inner.socket) {
            return refuse(format!(
                "the workspace {} holds the gateway's or the engine's own files",
                spec.workspace.display()
            ));
        }
        Ok(())
    }

    /// Creates the container; imports the default image again if somebody removed it since the probe.
    async fn create(&self, spec: &BoxSpec) -> Result<(String, String), DriverError> {
        let Inner {
            engine,
            busybox,
            image,
            ..
        } = &*self.inner;
        let wanted = spec.image.as_ref().unwrap_or(&image.id);
        match self.create_from(spec, wanted).await {
            Err(Fault::Engine(EngineError::DockerResponseServerError {
                status_code: 404, ..
            })) if *wanted == image.id => {
                // Its id says when it was imported, so what it holds is compared: that is what was decided on.
                let again = image::ensure(engine, busybox).await?;
                if again.rootfs != image.rootfs {
                    return Err(DriverError::Start(
                        "the default image was removed, and this machine's busybox makes another one now: restart the gateway"
                            .to_owned(),
                    ));
                }
                let made = self.create_from(spec, &again.id).await;
                made.map(|container| (container, again.id))
            }
            made => made.map(|container| (container, wanted.clone())),
        }
        .map_err(|fault| DriverError::Start(fault.to_string()))
    }

    async fn create_from(&self, spec: &BoxSpec, image: &str) -> Result<String, Fault> {
        let name = format!("portcullis-{}", spec.id.as_str());
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let Inner { engine, facts, .. } = &*self.inner;
        let mut again = if facts.keeps_id { CREATED_AGAIN } else { 0 };
        loop {
            let options = Some(options.clone());
            let made = engine.create_container(options, request(spec, image, facts));
            match bounded(WORK, "create", made).await {
                // Podman 4.3 asks who has which subordinate users by a library that is not for two at once: of two requests at the same moment
                // one may be dropped, or told that there are none. Nothing was made then.
                Err(Fault::Engine(
                    EngineError::HyperLegacyError { .. }
                    | EngineError::DockerResponseServerError {
                        status_code: 500, ..
                    },
                )) if again > 0 => {
                    again -= 1;
                    tokio::time::sleep(PAUSE).await;
                }
                made => return Ok(made?.id),
            }
        }
    }

    async fn check_and_start(
        &self,
        spec: &BoxSpec,
        container: &str,
        image: String,
    ) -> Result<StartedBox, DriverError> {
        let Inner { engine, facts, .. } = &*self.inner;
        let failed = |fault: Fault| DriverError::Start(fault.to_string());
        let said = bounded(CALL, "inspect", engine.inspect_container(container, None))
            .await
            .map_err(failed)?;
        let is_default = spec
            .image
            .as_ref()
            .is_none_or(|wanted| *wanted == self.inner.image.id);
        let config = if is_default {
            None
        } else {
            let found = image::local(engine, &image).await;
            Some(found.map_err(DriverError::Start)?.1)
        };
        let asked = request(spec, &image, facts);
        let said = if facts.podman {
            in_dockers_words(&asked, said, facts)
        } else {
            said
        };
        let wrong = differences(&asked, &said, facts, config.as_ref());
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
        // Podman's API has no word for it, and gives one of its own accord with version 2 of control groups only.
        let without: &[&str] = if facts.podman { &["cgroup"] } else { &[] };
        let confined =
            evidence::confined(init_pid, spec.uid, spec.gid, without, facts.apparmor).await;
        let confined = confined
            .and_then(|()| mapped::users(init_pid, [spec.uid, spec.gid], facts.keeps_id))
            .and_then(|()| evidence::may_open(init_pid, spec.limits.open_files))
            .and_then(|()| cgroup::held(init_pid, &spec.limits, facts.keeps_id));
        if let Err(weak) = confined {
            // A cell that ends at once has no status to show: its exit code is then the better answer, as soon as the engine has seen it.
            for _ in 0..20 {
                self.init_pid(container).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            return Err(DriverError::Start(weak));
        }
        // The engine went by path: what lies there must be what was looked at, before anything runs in the box.
        for mount in &spec.mounts {
            mount.is_seen_by(init_pid).map_err(DriverError::Start)?;
        }
        Ok(StartedBox {
            init_pid,
            image_digest: Some(image),
            child: None,
        })
    }

    /// The first process of a box, while it runs.
    pub async fn init(&self, id: &BoxId) -> Option<u32> {
        let found = self.find(&self.inner.owner, Some(id)).await.ok()?;
        let container = found.into_iter().find_map(|container| container.id)?;
        self.init_pid(&container).await.ok()
    }

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
        let listed = async {
            loop {
                match self
                    .inner
                    .engine
                    .list_containers(Some(options.clone()))
                    .await
                {
                    // Podman calls one that has ended and is not tidied up yet by a word that Docker does not have; a moment later
                    // it is another.
                    Err(EngineError::JsonDataError { .. }) if self.inner.facts.podman => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    listed => return listed,
                }
            }
        };
        let found = bounded(CALL, "list", listed)
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
}

/// What is known of an engine that can keep what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Where it listens.
    pub socket: PathBuf,
    /// The default image.
    pub image: Image,
    /// What else decides what comes of a request.
    pub facts: EngineFacts,
}

impl Seen {
    /// One line for people: engine, version and socket.
    pub fn describe(&self) -> String {
        let Self { facts, socket, .. } = self;
        let engine = if facts.podman { "Podman" } else { "Docker" };
        let without = if facts.keeps_id { " without root" } else { "" };
        format!(
            "{engine} {}{without} at {}",
            facts.version,
            socket.display()
        )
    }
}

/// What an engine is asked for such a box, and what else decides what comes of it.
pub fn shape(spec: &BoxSpec, facts: &EngineFacts) -> Vec<u8> {
    let image = spec.image.as_deref().unwrap_or_default();
    let asked = serde_json::to_value(request(&within(spec, facts), image, facts));
    // In the order of the names, at every depth. What cannot be written down has no name of its own: no two are then alike.
    let asked = asked.map_or_else(|error| error.to_string(), |asked| asked.to_string());
    format!(
        "{asked}\0{}\0{}\0{}",
        facts.version, facts.default_runtime, facts.apparmor
    )
    .into_bytes()
}

/// All processors are all that there are, and an engine refuses to promise more.
fn within(spec: &BoxSpec, facts: &EngineFacts) -> BoxSpec {
    let mut spec = spec.clone();
    let most = facts.cpus.saturating_mul(1000);
    spec.limits.cpu_millis = spec.limits.cpu_millis.min(most);
    spec
}

/// Readable by the box's user whatever the gateway's mask is.
fn write_hosts(spec: &BoxSpec) -> std::io::Result<()> {
    let path = hosts_file(spec);
    std::fs::write(&path, HOSTS)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444))
}

fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(name).map(String::as_str)
}

fn found_box(container: &ContainerSummary) -> Option<FoundBox> {
    let text = |name| label(container, name).unwrap_or_default().to_owned();
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
            reason: words(&error),
        },
        None => BoxEnd::EngineLost {
            reason: "the engine closed the connection".to_owned(),
        },
    }
}
