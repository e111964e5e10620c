//! Whether a box that is asked for is one that the configuration gives: the runner computes it, and compares.

use portcullis_core::ids::{AgentId, Hash32};
use portcullis_core::sandbox::{
    Access, DriverChoice, Effective, ImageName, Isolation, Profiles, Scope, UserRange,
};

use super::wire::Order;
use crate::sandbox_pool::config::SandboxPoolConfig;
use crate::sandbox_pool::docker::{self, Seen};
use crate::sandbox_pool::driver::ProbeContext;
use crate::sandbox_pool::holder::Whose;
use crate::sandbox_pool::mounts;
use crate::sandbox_pool::probe;
use crate::sandbox_pool::spec::{BoxSpec, Own};
use crate::sandbox_pool::users::User;
use crate::sandbox_pool::wanted::{Alike, digest, off_limits};

/// What requests are held against: read at the runner's start, and never again.
#[derive(Debug, Clone)]
pub struct Judge {
    /// `[sandbox]`.
    pub config: SandboxPoolConfig,
    /// What each agent's boxes must be.
    pub profiles: Profiles,
    /// Of this gateway.
    pub context: ProbeContext,
    /// Of the cell's binary.
    pub cell_digest: Hash32,
    /// A box that is no box's.
    pub neutral: BoxSpec,
    /// Users that boxes may have, each with the gid of its number; none: this process is not root, and they have its own.
    pub users: Option<UserRange>,
}

impl Judge {
    /// Does the configuration name this image for some agent?
    pub fn knows_image(&self, name: &ImageName) -> bool {
        let mut all = self.all();
        all.any(|agent| self.effective(agent.as_ref()).profile.image.as_ref() == Some(name))
    }

    /// Every agent that something is said of, and those that nothing is said of.
    fn all(&self) -> impl Iterator<Item = Option<AgentId>> {
        self.profiles.agents.keys().cloned().map(Some).chain([None])
    }

    fn effective(&self, agent: Option<&AgentId>) -> Effective {
        self.profiles.of(agent)
    }

    /// By whose profiles such a box may be made.
    fn candidates(&self, whose: &Whose) -> Vec<Effective> {
        let one = |agent: &AgentId| vec![self.effective(Some(agent))];
        let all = || self.all().map(|agent| self.effective(agent.as_ref()));
        let mut found = match whose {
            Whose::Probe => Vec::new(),
            Whose::Agent(agent) | Whose::Session(agent) | Whose::Ready(Some(agent)) => one(agent),
            Whose::Shared(_) | Whose::Ready(None) => all().collect(),
        };
        found.retain(|effective| {
            let profile = &effective.profile;
            // Whose boxes bubblewrap makes has none of an engine.
            profile.driver != DriverChoice::Native
                && match whose {
                    Whose::Probe => false,
                    Whose::Agent(_) => profile.scope == Scope::Agent,
                    Whose::Session(_) | Whose::Ready(Some(_)) => profile.scope == Scope::Session,
                    Whose::Shared(name) => profile.scope == Scope::Shared && profile.share == *name,
                    // Nobody's folder, and nobody's way out.
                    Whose::Ready(None) => {
                        let is_own = profile.workspace != Access::None || profile.may_leave();
                        profile.scope == Scope::Session && !is_own
                    }
                }
        });
        found
    }

    /// The names of images, one of which must be known by its id before [`Self::spec`] can say yes.
    pub fn images(&self, order: &Order) -> Vec<ImageName> {
        let found = self.candidates(&order.whose);
        let mut names: Vec<_> = found.into_iter().filter_map(|e| e.profile.image).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The box that is made: nothing in it is the request's but its name, its nonce and, within what is configured, its user.
    ///
    /// # Errors
    /// What of the request is not what the configuration says.
    pub fn spec(
        &self,
        seen: &Seen,
        pinned: impl Fn(&ImageName) -> Option<String>,
        order: &Order,
    ) -> Result<BoxSpec, String> {
        let is_hex = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        if order.nonce.len() != 32 || !order.nonce.bytes().all(is_hex) {
            return Err("the nonce is not 32 hexadecimal digits".to_owned());
        }
        let (uid, gid) = (order.uid, order.gid);
        if uid == 0 || gid == 0 {
            return Err("no box runs as uid or gid 0".to_owned());
        }
        let is_ours = match self.users {
            Some(range) => range.has(uid) && gid == uid,
            None => (uid, gid) == (self.context.uid, self.context.gid),
        };
        if !is_ours {
            return Err(format!("no box runs as {uid}:{gid} here"));
        }
        if order.whose == Whose::Probe {
            return self.trial(order);
        }
        let user = User { uid, gid };
        let folder = order.whose.folder().unwrap_or_default();
        if order.folder != folder {
            let asked = &order.folder;
            return Err(format!(
                "{asked:?} is not the folder of {} below workspaces/",
                order.whose
            ));
        }
        let candidates = self.candidates(&order.whose);
        if candidates.is_empty() {
            return Err(format!(
                "the configuration gives no such box to {}",
                order.whose
            ));
        }
        let mut why = String::new();
        for effective in candidates {
            let profile = &effective.profile;
            let (image, holds) = match &profile.image {
                None => (seen.image.id.clone(), seen.image.rootfs.clone()),
                Some(name) => match pinned(name) {
                    Some(id) => (id.clone(), id),
                    None => continue,
                },
            };
            if order.image.as_ref() != Some(&image) {
                why = format!("its image is {image}, and another was asked for");
                continue;
            }
            let alike = Alike {
                user,
                neutral: &self.neutral,
                cell_digest: &self.cell_digest,
                to_networks: &self.config.egress_to_networks,
                driver: ("docker", Isolation::Docker),
            };
            let hash = digest(alike, &effective, Some(holds), |spec| {
                docker::shape(spec, &seen.facts)
            });
            if order.profile != hash {
                "another profile was asked for than the configuration gives".clone_into(&mut why);
                continue;
            }
            // Looked at here, whatever the gateway saw.
            let off_limits = off_limits(&self.context, Some(&seen.socket));
            let mounts = mounts::look(&profile.mounts, &off_limits, uid)
                .map_err(|(name, why)| format!("mount {name}: {why}"))?;
            let own = Own {
                id: order.id.clone(),
                whose: order.whose.clone(),
                folder,
                mounts,
                user,
                image: Some(image),
                profile_hash: hash,
                nonce: order.nonce.clone(),
            };
            return Ok(BoxSpec::of(&self.context, profile, own));
        }
        if why.is_empty() {
            "its image is not known".clone_into(&mut why);
        }
        Err(why)
    }

    /// The box of a trial has a profile of its own, which is the same for everybody.
    fn trial(&self, order: &Order) -> Result<BoxSpec, String> {
        if order.folder != probe::folder(&order.id) {
            return Err(format!("{:?} is not the folder of a trial", order.folder));
        }
        if order.profile != probe::PROFILE || order.image.is_some() {
            return Err("a trial has no other profile or image than its own".to_owned());
        }
        let context = ProbeContext {
            uid: order.uid,
            gid: order.gid,
            ..self.context.clone()
        };
        Ok(probe::spec(&context, order.id.clone(), order.nonce.clone()))
    }
}
