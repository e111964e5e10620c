//! Which layer says what: a named profile, `[sandbox]`, `[agents.NAME.sandbox]`.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::env::EnvNames;
use super::mounts::Mounts;
use super::profile::{
    Access, DriverChoice, ImageName, Isolation, Named, Profile, RuntimeName, Scope, ShareName,
    Shown, SystemCalls, Unlisted,
};
use crate::egress::{Name, Rules, Terminations, terminations};
use crate::ids::AgentId;

/// No run may take longer, milliseconds: seven days.
const LONGEST: u64 = 7 * 86_400_000;
/// No box lives longer, seconds: a year.
const OLDEST: u64 = 365 * 86_400;

/// What one layer of the configuration says; `None` is "as below". In a file 0, "" and [] say that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// Begins anew from this one: what the layers below say is gone, but for the driver where they name one. It is no limit, and
    /// "docker or nothing" must not become "whatever there is" by an agent's wish for more memory.
    #[serde(deserialize_with = "word")]
    pub profile: Option<Named>,
    /// [`Profile::driver`].
    #[serde(deserialize_with = "word")]
    pub driver: Option<DriverChoice>,
    /// [`Profile::min_isolation`].
    #[serde(deserialize_with = "word")]
    pub min_isolation: Option<Isolation>,
    /// [`Profile::image`].
    #[serde(deserialize_with = "word")]
    pub image: Option<ImageName>,
    /// [`Profile::runtime`].
    #[serde(deserialize_with = "word")]
    pub runtime: Option<RuntimeName>,
    /// [`Profile::seccomp`].
    #[serde(deserialize_with = "word")]
    pub seccomp: Option<SystemCalls>,
    /// [`Profile::scope`].
    #[serde(deserialize_with = "word")]
    pub scope: Option<Scope>,
    /// [`Profile::share`].
    #[serde(deserialize_with = "word")]
    pub share: Option<ShareName>,
    /// [`Profile::workspace`].
    #[serde(deserialize_with = "word")]
    pub workspace: Option<Access>,
    /// [`Profile::workspace_bytes`].
    #[serde(deserialize_with = "size")]
    pub workspace_bytes: Option<u64>,
    /// [`Profile::workspace_files`].
    #[serde(deserialize_with = "size")]
    pub workspace_files: Option<u64>,
    /// [`Profile::mounts`].
    #[serde(deserialize_with = "mounts")]
    pub mounts: Option<Mounts>,
    /// [`Profile::egress`].
    #[serde(deserialize_with = "hosts")]
    pub egress: Option<Rules>,
    /// [`Profile::egress_unlisted`].
    #[serde(deserialize_with = "word")]
    pub egress_unlisted: Option<Unlisted>,
    /// [`Profile::terminate`].
    #[serde(deserialize_with = "terminations")]
    pub terminate: Option<Terminations>,
    /// [`Profile::env`].
    #[serde(deserialize_with = "names")]
    pub env: Option<EnvNames>,
    /// [`Profile::memory_bytes`].
    #[serde(deserialize_with = "size")]
    pub memory_bytes: Option<u64>,
    /// [`Profile::cpu_millis`].
    #[serde(deserialize_with = "count")]
    pub cpu_millis: Option<u32>,
    /// [`Profile::pids`].
    #[serde(deserialize_with = "count")]
    pub pids: Option<u32>,
    /// [`Profile::open_files`].
    #[serde(deserialize_with = "count")]
    pub open_files: Option<u32>,
    /// [`Profile::file_bytes`].
    #[serde(deserialize_with = "size")]
    pub file_bytes: Option<u64>,
    /// [`Profile::output_cap_bytes`].
    #[serde(deserialize_with = "size")]
    pub output_cap_bytes: Option<u64>,
    /// [`Profile::timeout_ms`].
    #[serde(deserialize_with = "size")]
    pub timeout_ms: Option<u64>,
    /// [`Profile::max_timeout_ms`].
    #[serde(deserialize_with = "size")]
    pub max_timeout_ms: Option<u64>,
    /// [`Profile::idle_secs`].
    #[serde(deserialize_with = "size")]
    pub idle_secs: Option<u64>,
    /// [`Profile::max_age_secs`].
    #[serde(deserialize_with = "size")]
    pub max_age_secs: Option<u64>,
}

/// A word of a file; "" says nothing.
///
/// # Errors
/// What is wrong with it.
pub fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    T::deserialize(text.into_deserializer()).map(Some)
}

/// A number of a file; 0 says nothing.
///
/// # Errors
/// What is wrong with it.
pub fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let number = u64::deserialize(from)?;
    Ok((number > 0).then_some(number))
}

/// A smaller number of a file; 0 says nothing.
///
/// # Errors
/// What is wrong with it.
pub fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let number = u32::deserialize(from)?;
    Ok((number > 0).then_some(number))
}

/// A list of a file; [] says nothing.
///
/// # Errors
/// What is wrong with it.
pub fn names<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EnvNames>, D::Error> {
    let entries = Vec::<String>::deserialize(from)?;
    if entries.is_empty() {
        return Ok(None);
    }
    EnvNames::new(&entries)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

/// A list of hosts of a file; an empty one says nothing, and one of `-` alone that there are none.
///
/// # Errors
/// What is wrong with it.
pub fn hosts<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Rules>, D::Error> {
    let entries = Vec::<String>::deserialize(from)?;
    match &entries[..] {
        [] => Ok(None),
        [one] if one == "-" => Ok(Some(Rules::default())),
        _ => Rules::new(&entries)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}

/// A list of mounts of a file; an empty one says nothing, and one of `-` alone that there are none.
///
/// # Errors
/// What is wrong with it.
pub fn mounts<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mounts>, D::Error> {
    let entries = Vec::<String>::deserialize(from)?;
    match &entries[..] {
        [] => Ok(None),
        [one] if one == "-" => Ok(Some(Mounts::default())),
        _ => Mounts::new(&entries)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}

impl Overrides {
    /// What cannot be served: the key, and what to write instead.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let floors = [
            ("memory_bytes", self.memory_bytes, 16 << 20, ""),
            ("cpu_millis", self.cpu_millis.map(u64::from), 10, ""),
            (
                "pids",
                self.pids.map(u64::from),
                16,
                ": the box's own processes count",
            ),
            ("open_files", self.open_files.map(u64::from), 32, ""),
            ("workspace_bytes", self.workspace_bytes, 1 << 20, ""),
            ("workspace_files", self.workspace_files, 64, ""),
        ];
        let floors = floors
            .into_iter()
            .filter(|(_, said, least, _)| said.is_some_and(|said| said < *least))
            .map(|(key, _, least, why)| (key, format!("{key} must be at least {least}{why}")));
        let ceilings = [
            ("timeout_ms", self.timeout_ms, LONGEST, "seven days"),
            ("max_timeout_ms", self.max_timeout_ms, LONGEST, "seven days"),
            ("idle_secs", self.idle_secs, OLDEST, "a year"),
            ("max_age_secs", self.max_age_secs, OLDEST, "a year"),
        ];
        let ceilings = ceilings
            .into_iter()
            .filter(|(_, said, most, _)| said.is_some_and(|said| said > *most))
            .map(|(key, _, most, words)| (key, format!("{key} must be at most {most}, {words}")));
        let mut found: Vec<_> = floors.chain(ceilings).collect();
        if let (Some(time), Some(most)) = (self.timeout_ms, self.max_timeout_ms)
            && time > most
        {
            found.push((
                "timeout_ms",
                format!("timeout_ms must be 1 to max_timeout_ms, {most}"),
            ));
        }
        found
    }
}

/// One layer, and how people find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `[agents.demo.sandbox]`.
    pub name: String,
    /// What it says.
    pub says: Overrides,
}

/// What holds, and who decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The profile that it began from.
    pub named: Named,
    /// The limits.
    pub profile: Profile,
    /// Who has the box together, where the scope is `shared`.
    pub sharers: Option<Sharers>,
    from: BTreeMap<&'static str, String>,
}

/// The agents of one shared box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sharers {
    /// What they call it.
    pub name: ShareName,
    /// Those that the configuration names, in order.
    pub agents: Vec<AgentId>,
    /// Besides, every agent that it does not name.
    pub others: bool,
}

/// One line of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub value: Shown,
    /// The layer that decided it.
    pub from: String,
}

impl Effective {
    fn of(named: Named) -> Self {
        let profile = named.profile();
        let from = profile
            .entries()
            .into_iter()
            .map(|(key, _)| (key, origin(named)));
        Self {
            named,
            from: from.collect(),
            profile,
            sharers: None,
        }
    }

    /// Every line, in the order of the profile.
    pub fn lines(&self) -> Vec<Line> {
        let entries = self.profile.entries().into_iter();
        entries
            .map(|(key, value)| Line {
                key,
                value,
                from: self.from.get(key).cloned().unwrap_or_default(),
            })
            .collect()
    }

    /// The layer that decided this key.
    pub fn from(&self, key: &str) -> &str {
        self.from.get(key).map_or("", String::as_str)
    }

    fn lay(&mut self, layer: &Layer) {
        let Overrides {
            profile,
            driver,
            min_isolation,
            image,
            runtime,
            seccomp,
            scope,
            share,
            workspace,
            workspace_bytes,
            workspace_files,
            mounts,
            egress,
            egress_unlisted,
            terminate,
            env,
            memory_bytes,
            cpu_millis,
            pids,
            open_files,
            file_bytes,
            output_cap_bytes,
            timeout_ms,
            max_timeout_ms,
            idle_secs,
            max_age_secs,
        } = &layer.says;
        if let Some(named) = profile {
            let (driver, by) = (self.profile.driver, self.from("driver").to_owned());
            let is_said = by != origin(self.named);
            *self = Self::of(*named);
            if is_said {
                self.profile.driver = driver;
                self.from.insert("driver", by);
            }
        }
        let (to, from) = (&mut self.profile, &mut self.from);
        let mut put = |key: &'static str, is_said: bool| {
            if is_said {
                from.insert(key, layer.name.clone());
            }
        };
        put("driver", set(&mut to.driver, driver.as_ref()));
        put(
            "min_isolation",
            set(&mut to.min_isolation, min_isolation.as_ref()),
        );
        if image.is_some() {
            to.image.clone_from(image);
            put("image", true);
        }
        if runtime.is_some() {
            to.runtime.clone_from(runtime);
            put("runtime", true);
        }
        put("seccomp", set(&mut to.seccomp, seccomp.as_ref()));
        put("scope", set(&mut to.scope, scope.as_ref()));
        put("share", set(&mut to.share, share.as_ref()));
        put("workspace", set(&mut to.workspace, workspace.as_ref()));
        put(
            "workspace_bytes",
            set(&mut to.workspace_bytes, workspace_bytes.as_ref()),
        );
        put(
            "workspace_files",
            set(&mut to.workspace_files, workspace_files.as_ref()),
        );
        put("mounts", set(&mut to.mounts, mounts.as_ref()));
        put("egress", set(&mut to.egress, egress.as_ref()));
        put(
            "egress_unlisted",
            set(&mut to.egress_unlisted, egress_unlisted.as_ref()),
        );
        put("terminate", set(&mut to.terminate, terminate.as_ref()));
        put("env", set(&mut to.env, env.as_ref()));
        put(
            "memory_bytes",
            set(&mut to.memory_bytes, memory_bytes.as_ref()),
        );
        put("cpu_millis", set(&mut to.cpu_millis, cpu_millis.as_ref()));
        put("pids", set(&mut to.pids, pids.as_ref()));
        put("open_files", set(&mut to.open_files, open_files.as_ref()));
        put("file_bytes", set(&mut to.file_bytes, file_bytes.as_ref()));
        put(
            "output_cap_bytes",
            set(&mut to.output_cap_bytes, output_cap_bytes.as_ref()),
        );
        put("timeout_ms", set(&mut to.timeout_ms, timeout_ms.as_ref()));
        put(
            "max_timeout_ms",
            set(&mut to.max_timeout_ms, max_timeout_ms.as_ref()),
        );
        put("idle_secs", set(&mut to.idle_secs, idle_secs.as_ref()));
        put(
            "max_age_secs",
            set(&mut to.max_age_secs, max_age_secs.as_ref()),
        );
    }

    /// A time above the ceiling is the ceiling's word.
    fn settle(&mut self) {
        if self.profile.timeout_ms > self.profile.max_timeout_ms {
            self.profile.timeout_ms = self.profile.max_timeout_ms;
            let by = self.from.get("max_timeout_ms").cloned().unwrap_or_default();
            self.from
                .insert("timeout_ms", format!("{by} max_timeout_ms"));
        }
    }
}

fn origin(named: Named) -> String {
    format!("profile {named}")
}

fn set<T: Clone>(to: &mut T, said: Option<&T>) -> bool {
    if let Some(value) = said {
        to.clone_from(value);
    }
    said.is_some()
}

/// The layers of a gateway: those of every agent, and each agent's own over them. The nearer layer decides, also where it gives more:
/// whoever writes one writes the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profiles {
    /// From the lowest up.
    pub every: Vec<Layer>,
    /// From the lowest up, over those of every agent.
    pub agents: BTreeMap<AgentId, Vec<Layer>>,
}

impl Profiles {
    /// What holds for the boxes of an agent; `None`: of agents that nothing is said of. Who shares a box gets what all that share it
    /// may have, and no more.
    pub fn of(&self, agent: Option<&AgentId>) -> Effective {
        let own = self.own(agent);
        if own.profile.scope == Scope::Shared {
            self.met(own)
        } else {
            own
        }
    }

    /// By the layers alone.
    fn own(&self, agent: Option<&AgentId>) -> Effective {
        let own = agent.and_then(|agent| self.agents.get(agent));
        let mut effective = Effective::of(Named::Restricted);
        for layer in self.every.iter().chain(own.into_iter().flatten()) {
            effective.lay(layer);
        }
        effective.settle();
        effective
    }

    /// Everybody who shares a box under this name, with what the layers alone say of each.
    fn sharing(&self, name: &ShareName) -> (Sharers, Vec<Effective>) {
        let shares = |effective: &Effective| {
            effective.profile.scope == Scope::Shared && effective.profile.share == *name
        };
        let every = Some(self.own(None)).filter(shares);
        let others = every.is_some();
        // Most agents share nothing, and are told by a look.
        let says_so = |layer: &Layer| layer.says.scope == Some(Scope::Shared);
        let for_all = self.every.iter().any(says_so);
        let candidates = self.agents.iter();
        let candidates = candidates.filter(|(_, layers)| for_all || layers.iter().any(says_so));
        let mut agents = Vec::new();
        let mut found: Vec<Effective> = every.into_iter().collect();
        for (agent, _) in candidates {
            let effective = self.own(Some(agent));
            if shares(&effective) {
                agents.push(agent.clone());
                found.push(effective);
            }
        }
        let sharers = Sharers {
            name: name.clone(),
            agents,
            others,
        };
        (sharers, found)
    }

    fn met(&self, mut own: Effective) -> Effective {
        let (sharers, found) = self.sharing(&own.profile.share);
        for other in &found {
            let met = own.profile.meet(&other.profile);
            let before = own.profile.entries().into_iter();
            for ((key, before), (_, after)) in before.zip(met.entries()) {
                if before != after {
                    let by = format!("{} (shares {})", other.from(key), sharers.name);
                    own.from.insert(key, by);
                }
            }
            own.profile = met;
        }
        own.sharers = Some(sharers);
        own
    }

    /// The drivers that boxes of some agent are made by.
    pub fn drivers(&self) -> BTreeSet<DriverChoice> {
        let agents = self.agents.keys().map(Some).chain([None]);
        agents.map(|agent| self.own(agent).profile.driver).collect()
    }

    /// Every host whose TLS any agent's layers have opened.
    pub fn terminated(&self) -> BTreeSet<Name> {
        let layers = self.every.iter().chain(self.agents.values().flatten());
        let said = layers.filter_map(|layer| layer.says.terminate.as_ref());
        said.flat_map(Terminations::hosts).collect()
    }

    /// What cannot be served: the key, and words; agents that share a box and name different drivers, images or runtimes.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for agent in self.agents.keys().map(Some).chain([None]) {
            let own = self.own(agent);
            if own.profile.scope != Scope::Shared || !seen.insert(own.profile.share.clone()) {
                continue;
            }
            let (sharers, all) = self.sharing(&own.profile.share);
            let differs = |differs: fn(&Profile, &Profile) -> bool| {
                let mut all = all.iter();
                all.any(|other| differs(&other.profile, &own.profile))
            };
            for (what, is_wrong) in [
                ("driver", differs(|one, other| one.driver != other.driver)),
                ("image", differs(|one, other| one.image != other.image)),
                (
                    "runtime",
                    differs(|one, other| one.runtime != other.runtime),
                ),
            ] {
                if is_wrong {
                    let name = sharers.name.as_str();
                    let mut text =
                        format!("the agents that share {name:?} must name the same {what}");
                    if what == "driver" {
                        let say = |one: &Effective| {
                            let word = one.profile.driver.as_str();
                            format!("{word:?} ({})", one.from(what))
                        };
                        let said: BTreeSet<_> = all.iter().map(say).collect();
                        let said: Vec<_> = said.into_iter().collect();
                        text = format!("{text}: one box has one; they have {}", said.join(", "));
                    }
                    found.push((what, text));
                }
            }
        }
        found
    }
}
