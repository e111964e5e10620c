//! What an agent's box must be: the one value that boxes are made from, runs are placed by, and `sandbox.explain` shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use portcullis_core::egress::Addresses;
use portcullis_core::ids::{AgentId, BoxId, Hash32};
use portcullis_core::sandbox::{
    Access, Effective, ImageName, Isolation, Line, Owner, Profile, Shown, SystemCalls,
};

use super::actor::SandboxPool;
use super::driver::{Driver, ProbeContext};
use super::drivers::{MOST_WAITING, Waiting};
use super::engine::EngineConfig;
use super::holder::Whose;
use super::messages::{BoxProfile, Explained, ExplainedRefusal, PoolError, SandboxPoolMsg};
use super::mounts::{self, BoxMount};
use super::request::millis;
use super::spec::{BoxLimits, BoxSpec, DEAD_MAN};
use super::users::User;
use crate::supervision::Crash;

/// What a box of an agent must be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What makes it.
    pub driver: Driver,
    /// Every limit.
    pub effective: Effective,
    /// The image's id, as the engine names it; none with the native driver.
    pub image: Option<String>,
    /// What else of the host it sees, as it lies there now.
    pub mounts: Vec<BoxMount>,
    /// Whom everything in it runs as.
    pub user: User,
    /// Digest of everything that shapes the box: a box with another one is another box.
    pub hash: String,
}

/// Why there is none.
pub enum Unmet {
    /// No box will do.
    Refused(PoolError),
    /// The engine has not been asked for this image.
    Unknown(ImageName),
    /// Who would have it has no user of the host yet, or its folder was not looked at.
    NoUser(Owner, Access),
    /// No agent was named, and each has a user of its own.
    Nobody,
}

/// A local image, by the name that the configuration gives it.
pub enum Found {
    /// Pinned to this id, until the drivers are proven anew or no box could be made from it.
    Known(String),
    /// The engine is being asked; these wait.
    Asked(Vec<Waiting>),
}

/// The images that agents name.
pub type Images = BTreeMap<ImageName, Found>;

/// Every box has its own name, folder and nonce: in what is hashed they are the same.
pub fn neutral(context: &ProbeContext) -> Result<BoxSpec, Crash> {
    Ok(BoxSpec {
        id: BoxId::new("000000000000")?,
        whose: Whose::Probe,
        workspace: PathBuf::from("/workspace"),
        access: Access::Rw,
        mounts: Vec::new(),
        runtime: None,
        seccomp: SystemCalls::Strict,
        image: None,
        run_dir: PathBuf::from("/run"),
        cell: PathBuf::from("/cell"),
        limits: context.limits,
        uid: context.uid,
        gid: context.gid,
        owner: String::new(),
        boot: String::new(),
        profile_hash: String::new(),
        nonce: String::new(),
        dead_man: DEAD_MAN,
        egress: false,
    })
}

/// What no box may see: the gateway's own folders and the engine's socket.
pub fn off_limits(context: &ProbeContext, socket: Option<&Path>) -> Vec<PathBuf> {
    let state = context.run_root.parent().unwrap_or(&context.run_root);
    let mut paths = vec![
        state.to_owned(),
        context.workspaces.clone(),
        context.cell.clone(),
    ];
    paths.extend(socket.map(Path::to_owned));
    paths
}

/// What shapes the boxes of all agents alike.
#[derive(Clone, Copy)]
pub struct Alike<'a> {
    /// Whom everything in them runs as.
    pub user: User,
    /// See [`neutral`].
    pub neutral: &'a BoxSpec,
    /// Of the cell's binary.
    pub cell_digest: &'a Hash32,
    /// Networks that names may stand for although they are not the world's.
    pub to_networks: &'a Addresses,
    /// The driver's name, and how strong it is.
    pub driver: (&'static str, Isolation),
}

/// Digest of everything that shapes a box: its limits, the driver and what it would be asked, the image, the cell. Two runs with the
/// same one were contained alike.
pub fn digest(
    alike: Alike<'_>,
    effective: &Effective,
    image: Option<String>,
    asked: impl FnOnce(&BoxSpec) -> Vec<u8>,
) -> String {
    let User { uid, gid } = alike.user;
    let shape = BoxSpec {
        uid,
        gid,
        access: effective.profile.workspace,
        mounts: mounts::shape(&effective.profile.mounts),
        runtime: effective.profile.runtime.clone(),
        seccomp: effective.profile.seccomp,
        image: image.clone(),
        limits: BoxLimits::of(&effective.profile),
        egress: effective.profile.may_leave(),
        ..alike.neutral.clone()
    };
    let (driver, isolation) = alike.driver;
    let mut bytes = b"portcullis-box-v2\0".to_vec();
    for field in [
        effective.profile.canonical().as_slice(),
        driver.as_bytes(),
        isolation.as_str().as_bytes(),
        image.unwrap_or_default().as_bytes(),
        &alike.cell_digest.0,
        &uid.to_be_bytes(),
        &gid.to_be_bytes(),
        &asked(&shape),
        // Of a way out, the host's part: the box shows none of it.
        alike.to_networks.texts().join("\n").as_bytes(),
    ] {
        bytes.extend((field.len() as u64).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    Hash32::of(&bytes).to_string()
}

impl SandboxPool {
    /// What holds for an agent's boxes, whatever the driver is.
    pub(super) fn effective(&self, agent: Option<&AgentId>) -> Effective {
        self.wiring.profiles.of(agent)
    }

    /// What an agent's box must be under this driver.
    pub(super) fn wanted(&self, driver: &Driver, agent: Option<&AgentId>) -> Result<Wanted, Unmet> {
        let effective = self.effective(agent);
        let (asked, has) = (effective.profile.min_isolation, driver.isolation());
        if has < asked {
            return Err(Unmet::Refused(PoolError::TooWeak { asked, has }));
        }
        let (image, holds) = self.image(driver, &effective)?;
        Self::has_runtime(driver, &effective.profile)?;
        let user = self.user(agent, &effective.profile)?;
        let sources = &effective.profile.mounts;
        let mounts = mounts::look(sources, &self.off_limits(), user.uid);
        let mounts =
            mounts.map_err(|(name, why)| Unmet::Refused(PoolError::Mount { name, why }))?;
        let hash = self.hash(driver, &effective, holds, user);
        Ok(Wanted {
            driver: driver.clone(),
            effective,
            image,
            mounts,
            user,
            hash,
        })
    }

    /// Whether the driver has what the profile names.
    fn has_runtime(driver: &Driver, profile: &Profile) -> Result<(), Unmet> {
        let Some(name) = &profile.runtime else {
            return Ok(());
        };
        let why = match driver {
            Driver::Native(_) => "the native driver has no runtimes".to_owned(),
            Driver::Docker(docker) if docker.has_runtime(name) => return Ok(()),
            Driver::Docker(docker) if docker.runtimes().is_empty() => {
                "the engine does not say by which one it makes a box".to_owned()
            }
            Driver::Docker(docker) => format!("the engine has {}", docker.runtimes().join(", ")),
        };
        let name = name.clone();
        Err(Unmet::Refused(PoolError::Runtime { name, why }))
    }

    /// See [`off_limits`]. The engine's socket is, whichever driver makes the box, and whether or not an engine answers there yet.
    fn off_limits(&self) -> Vec<PathBuf> {
        let socket = EngineConfig::here(&self.wiring.config).socket().ok();
        let mut paths = off_limits(&self.context, socket.as_deref());
        paths.extend(self.wiring.private.iter().cloned());
        paths
    }

    /// The image's id, and what tells what it holds.
    fn image(
        &self,
        driver: &Driver,
        effective: &Effective,
    ) -> Result<(Option<String>, Option<String>), Unmet> {
        match (&effective.profile.image, driver) {
            (None, Driver::Docker(docker)) => {
                // Imported again it has another id, and holds the same.
                let image = docker.image();
                Ok((Some(image.id.clone()), Some(image.rootfs.clone())))
            }
            (None, Driver::Native(_)) => Ok((None, None)),
            (Some(name), Driver::Docker(_)) => match self.images.get(name) {
                Some(Found::Known(id)) => Ok((Some(id.clone()), Some(id.clone()))),
                _ => Err(Unmet::Unknown(name.clone())),
            },
            (Some(name), Driver::Native(_)) => Err(Unmet::Refused(PoolError::Image {
                name: name.clone(),
                why: "the native driver has no images, its boxes see this machine's /usr"
                    .to_owned(),
            })),
        }
    }

    fn hash(
        &self,
        driver: &Driver,
        effective: &Effective,
        image: Option<String>,
        user: User,
    ) -> String {
        let alike = Alike {
            user,
            neutral: &self.neutral,
            cell_digest: &self.cell_digest,
            to_networks: &self.wiring.config.egress_to_networks,
            driver: (driver.name(), driver.isolation()),
        };
        digest(alike, effective, image, |spec| driver.shape(spec))
    }

    /// Answers a request, or keeps it until it can be answered.
    pub(super) async fn request(&mut self, request: Waiting) -> Result<(), Crash> {
        if !request.is_wanted() {
            return Ok(());
        }
        let Some((driver, request)) = self.driver_for(request) else {
            return Ok(());
        };
        let wanted = match self.wanted(&driver, request.agent()) {
            Ok(wanted) => Ok(wanted),
            Err(Unmet::Unknown(name)) => {
                self.look_for_image(&driver, name, request);
                return Ok(());
            }
            Err(Unmet::Refused(refusal)) => Err(refusal),
            Err(Unmet::NoUser(owner, access)) => {
                match request {
                    // Who only wants to know gives away nothing, but for agents that the configuration names.
                    Waiting::Explain(Some(agent), reply)
                        if !self.wiring.profiles.agents.contains_key(&agent) =>
                    {
                        reply.ok(self.explained(Some(agent), Some(&driver), Ok(None)));
                    }
                    request => self.settle(owner, access, Some(request)),
                }
                return Ok(());
            }
            Err(Unmet::Nobody) => {
                if let Waiting::Explain(agent, reply) = request {
                    reply.ok(self.explained(agent, Some(&driver), Ok(None)));
                }
                return Ok(());
            }
        };
        match (request, wanted) {
            (Waiting::Run(start), Ok(wanted)) => self.start_in_box(&driver, start, wanted).await?,
            (Waiting::Profile(_, timeout, reply), Ok(wanted)) => {
                let profile = wanted.effective.profile;
                reply.ok(BoxProfile {
                    driver: driver.name(),
                    image_digest: wanted.image,
                    profile_hash: wanted.hash,
                    uid: wanted.user.uid,
                    gid: wanted.user.gid,
                    limits: BoxLimits::of(&profile),
                    timeout_ms: profile.timeout(timeout.map(millis)),
                    output_bytes: profile.output_cap_bytes,
                    egress: profile.egress.texts(),
                    env: profile.env,
                    scope: profile.scope,
                    sharers: wanted.effective.sharers,
                });
            }
            (Waiting::Explain(agent, reply), wanted) => {
                reply.ok(self.explained(agent, Some(&driver), wanted.map(Some)));
            }
            (request, Err(refusal)) => self.refuse(request, refusal),
        }
        Ok(())
    }

    /// Tells a request that nothing will run.
    pub(super) fn refuse(&self, request: Waiting, why: PoolError) {
        match request {
            Waiting::Run(start) => start.reply.refuse(why),
            Waiting::Profile(_, _, reply) => reply.refuse(why),
            Waiting::Explain(agent, reply) => {
                let driver = self.driver_of(agent.as_ref());
                reply.ok(self.explained(agent, driver, Err(why)));
            }
        }
    }

    fn explained(
        &self,
        agent: Option<AgentId>,
        driver: Option<&Driver>,
        wanted: Result<Option<Wanted>, PoolError>,
    ) -> Explained {
        let effective = self.effective(agent.as_ref());
        let config = &self.wiring.config;
        let mut lines = effective.lines();
        // Beside the image: of the host, as that is of the engine.
        lines.insert(2, self.user_line(agent.as_ref(), &effective.profile));
        // Not of the profile: the same for the boxes of all agents.
        lines.push(Line {
            key: "egress_to_networks",
            value: Shown::List(config.egress_to_networks.texts()),
            from: "[sandbox]".to_owned(),
        });
        let owner = agent.as_ref();
        let owner = owner.map(|agent| Owner::of(&effective.profile, agent).folder());
        let (held, full) = self.disk_lines(owner.as_deref(), &effective.profile);
        lines.extend(held);
        let isolation = driver.map(Driver::isolation);
        let (refused, wanted) = match wanted {
            Ok(None) => (
                None,
                driver.and_then(|driver| self.known(driver, agent.as_ref())),
            ),
            Ok(Some(wanted)) => (None, Some((wanted.image, Some(wanted.hash)))),
            Err(refusal) => (Some(ExplainedRefusal::from(&refusal)), None),
        };
        let refused = refused.or_else(|| full.as_ref().map(ExplainedRefusal::from));
        let (image_digest, profile_hash) = wanted.unwrap_or_default();
        Explained {
            agent,
            profile: effective.named,
            shared: effective.sharers,
            lines,
            driver: driver.map(Driver::name),
            driver_why: self.drivers.standing(effective.profile.driver).1,
            weaker: isolation.is_some_and(|has| has < effective.profile.min_isolation),
            isolation,
            image_digest,
            profile_hash,
            refused,
        }
    }

    /// Image and hash, as far as they are known of an agent whose boxes have no user yet, or one that nobody asked for in this life.
    fn known(
        &self,
        driver: &Driver,
        agent: Option<&AgentId>,
    ) -> Option<(Option<String>, Option<String>)> {
        let effective = self.effective(agent);
        let (image, holds) = self.image(driver, &effective).ok()?;
        let user = self.had_user(agent, &effective.profile);
        let hash = user.map(|user| self.hash(driver, &effective, holds, user));
        Some((image, hash))
    }

    /// Asks the engine beside the loop; the request waits.
    fn look_for_image(&mut self, driver: &Driver, name: ImageName, request: Waiting) {
        let Driver::Docker(docker) = driver else {
            return;
        };
        match self.images.get_mut(&name) {
            Some(Found::Asked(waiting)) if waiting.len() >= MOST_WAITING => {
                let most = self.wiring.config.max_boxes;
                self.refuse(request, PoolError::Full(most));
            }
            Some(Found::Asked(waiting)) => waiting.push(request),
            Some(Found::Known(_)) | None => {
                self.images
                    .insert(name.clone(), Found::Asked(vec![request]));
                let (docker, ctx) = (docker.clone(), self.ctx.clone());
                let asking = async move {
                    let found = docker.find_image(&name).await;
                    ctx.notify(SandboxPoolMsg::Image(name, found));
                };
                self.ctx.task("image", 0, asking).keep();
            }
        }
    }

    /// The engine has answered.
    pub(super) async fn image_found(
        &mut self,
        name: ImageName,
        found: Result<String, String>,
    ) -> Result<(), Crash> {
        let Some(Found::Asked(waiting)) = self.images.remove(&name) else {
            return Ok(());
        };
        match found {
            Ok(id) => {
                tracing::info!(image = name.as_str(), %id, "an image is pinned");
                self.images.insert(name, Found::Known(id));
                for request in waiting {
                    self.request(request).await?;
                }
                self.review().await?;
            }
            // Asked for again by the next: somebody may have made it since.
            Err(why) => {
                for request in waiting {
                    let (name, why) = (name.clone(), why.clone());
                    self.refuse(request, PoolError::Image { name, why });
                }
            }
        }
        Ok(())
    }

    /// No box came of it, so the next run looks again what the names stand for.
    pub(super) fn forget_images(&mut self) {
        self.images
            .retain(|_, found| matches!(found, Found::Asked(_)));
    }
}
