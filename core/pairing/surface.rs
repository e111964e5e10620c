//! What a node may be asked to do: a second approval, beside that of its device (wire.md section 6.1).

use super::decide::Fresh;
use super::machine::{Change, Decision, News, Pairing, Record};
use super::manage::{Caller, Refusal};
use super::records::Device;
use crate::auth::{Role, Scope};
use crate::ids::DeviceId;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most caps, and most permissions, of a node.
const CAPS_MAX: usize = 64;
/// Most commands of a node.
const COMMANDS_MAX: usize = 256;
/// Longest name of any of them, in bytes.
const NAME_MAX: usize = 128;

/// Commands whose approval needs admin: those of wire.md 6.1, and whole families that run programs or touch files.
const ADMIN_FAMILIES: &[&str] = &[
    "system.",
    "browser.",
    "fs.",
    "file.",
    "dir.",
    "terminal.",
    "mcp.",
    "agent.",
    "desktop.",
];
/// Of those families, what only shows something.
const HARMLESS: &[&str] = &["system.notify"];

/// What a node offers, or may be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Surface {
    /// Capabilities: words for people and clients.
    #[serde(default)]
    pub caps: BTreeSet<String>,
    /// Commands that `node.invoke` may name.
    #[serde(default)]
    pub commands: BTreeSet<String>,
    /// What its host lets it do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub permissions: BTreeMap<String, bool>,
}

impl Surface {
    /// Is all of `other` in it? A permission that `other` holds must be held here.
    pub fn covers(&self, other: &Self) -> bool {
        other.caps.is_subset(&self.caps)
            && other.commands.is_subset(&self.commands)
            && other
                .permissions
                .iter()
                .all(|(name, held)| !held || self.permissions.get(name) == Some(&true))
    }

    /// The part of `declared` that this surface allows.
    #[must_use]
    pub fn narrow(&self, declared: &Self) -> Self {
        Self {
            caps: declared.caps.intersection(&self.caps).cloned().collect(),
            commands: declared
                .commands
                .intersection(&self.commands)
                .cloned()
                .collect(),
            permissions: declared
                .permissions
                .iter()
                .map(|(name, held)| {
                    let may = *held && self.permissions.get(name) == Some(&true);
                    (name.clone(), may)
                })
                .collect(),
        }
    }

    /// Is there nothing in it to approve?
    pub fn is_empty(&self) -> bool {
        self.caps.is_empty()
            && self.commands.is_empty()
            && self.permissions.values().all(|held| !held)
    }

    /// What its approver must hold: pairing; write too where there are commands; admin where one of them runs
    /// programs or touches files.
    pub fn approve_scopes(&self) -> Vec<Scope> {
        let heavy = |name: &String| {
            ADMIN_FAMILIES.iter().any(|family| name.starts_with(family))
                && !HARMLESS.contains(&name.as_str())
        };
        if self.commands.iter().any(heavy) {
            vec![Scope::Pairing, Scope::Admin]
        } else if self.commands.is_empty() {
            vec![Scope::Pairing]
        } else {
            vec![Scope::Pairing, Scope::Write]
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let is_name = |text: &String| {
            (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        let fits = self.caps.len() <= CAPS_MAX
            && self.commands.len() <= COMMANDS_MAX
            && self.permissions.len() <= CAPS_MAX;
        if fits
            && self.caps.iter().all(is_name)
            && self.commands.iter().all(is_name)
            && self.permissions.keys().all(is_name)
        {
            Ok(())
        } else {
            Err(Refusal::SurfaceInvalid)
        }
    }
}

/// What a person has approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovedSurface {
    /// Itself.
    pub surface: Surface,
    /// The node program's version when it declared it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it was first approved.
    pub created_at_ms: Millis,
    /// When it was last approved.
    pub approved_at_ms: Millis,
}

/// What waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PendingSurface {
    /// A surface that differs gets a new one, so that an answer is always to what was shown.
    pub request_id: String,
    /// Itself.
    pub surface: Surface,
    /// The node program's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Since when.
    pub created_at_ms: Millis,
}

/// What a node says at its connect. What configuration does not permit must have been taken out before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// What it offers.
    pub surface: Surface,
    /// Its program's version.
    pub version: Option<String>,
}

/// Where a node's surface stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SurfaceState {
    /// Approved by a person.
    pub approved: Option<ApprovedSurface>,
    /// Waiting for one.
    pub pending: Option<PendingSurface>,
    /// The device's generation; `None`: it is no node any more, and may be asked nothing.
    pub generation: Option<u64>,
}

/// The answer to a declaration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// What the node may be asked now: declared ∩ approved.
    pub surface: Surface,
    /// The request that waits for a person, where it declares more.
    pub pending: Option<String>,
    /// Was anything ever approved?
    pub approved: bool,
}

impl Pairing {
    /// Where the surface of a device stands.
    pub fn surface(&self, device: &DeviceId) -> SurfaceState {
        let Some(device) = self.devices.get(device) else {
            return SurfaceState::default();
        };
        let generation = device.held(Role::Node).map(|_| device.generation);
        SurfaceState {
            approved: device.node_surface.clone(),
            pending: device.pending_surface.clone(),
            generation,
        }
    }

    /// A node that is connected under `generation` says what it offers. More than was approved waits for a person,
    /// and gives nothing meanwhile; what is approved or less ends a request that waits.
    ///
    /// # Errors
    /// [`Refusal::UnknownNode`] where it is no node of this generation, [`Refusal::SurfaceInvalid`].
    pub fn declare(
        &self,
        device_id: &DeviceId,
        generation: u64,
        declared: &Declared,
        now: Millis,
        fresh: &Fresh,
    ) -> Result<(Effective, Option<Change>), Refusal> {
        declared.surface.check()?;
        let device = self
            .devices
            .get(device_id)
            .filter(|device| device.held(Role::Node).is_some() && device.generation == generation)
            .ok_or(Refusal::UnknownNode)?;
        let approved = device.node_surface.as_ref();
        let mut effective = Effective {
            surface: approved
                .map(|approved| approved.surface.narrow(&declared.surface))
                .unwrap_or_default(),
            pending: None,
            approved: approved.is_some(),
        };
        let live = device.pending_surface.as_ref();
        if declared.surface.is_empty()
            || approved.is_some_and(|approved| approved.surface.covers(&declared.surface))
        {
            // One that withdraws and asks again and again keeps its question: what it is asked is looked up all the same.
            let live = live.filter(|_| self.may_turn(device_id, now));
            let change = live.map(|live| {
                let mut change = Change::new(Record::Event, "pairing.surface_withdraw", device_id);
                change.turn = Some(now);
                change.detail.push(("request", live.request_id.clone()));
                change
                    .news
                    .push(surface_resolved(device_id, live, Decision::Rejected, now));
                change.put_devices.push(Device {
                    pending_surface: None,
                    ..device.clone()
                });
                change
            });
            return Ok((effective, change));
        }
        if let Some(live) = live.filter(|live| live.surface == declared.surface) {
            effective.pending = Some(live.request_id.clone());
            return Ok((effective, None));
        }
        if !self.may_turn(device_id, now) {
            return Err(Refusal::AsksTooOften);
        }
        let pending = PendingSurface {
            request_id: fresh.request_id.clone(),
            surface: declared.surface.clone(),
            version: declared.version.clone().map(|text| cut(&text)),
            created_at_ms: now,
        };
        let mut change = Change::new(Record::Event, "pairing.surface_request", device_id);
        change.turn = Some(now);
        change.detail.push(("request", pending.request_id.clone()));
        change
            .detail
            .push(("commands", listed(&pending.surface.commands)));
        if let Some(live) = live {
            change
                .news
                .push(surface_resolved(device_id, live, Decision::Rejected, now));
        }
        effective.pending = Some(pending.request_id.clone());
        let device = Device {
            pending_surface: Some(pending),
            ..device.clone()
        };
        change
            .news
            .push(News::SurfaceRequested(Box::new(device.clone())));
        change.put_devices.push(device);
        Ok((effective, Some(change)))
    }

    /// A person says yes to the surface that this request shows, and to nothing else. Live sessions go on: what the
    /// node may be asked is looked up when it is asked.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn approve_surface(
        &self,
        request_id: &str,
        caller: &Caller,
        now: Millis,
    ) -> Result<Change, Refusal> {
        let (device, pending) = self.surface_request(request_id)?;
        // Who asks cannot answer, whatever it may answer for others.
        if caller.is(&device.device_id) {
            return Err(Refusal::ApprovalDenied);
        }
        // Nor is it told of another's.
        if !caller.may_touch(&device.device_id) {
            return Err(Refusal::UnknownRequest);
        }
        let missing = pending
            .surface
            .approve_scopes()
            .into_iter()
            .find(|scope| !caller.scopes.allows(*scope));
        if let Some(missing) = missing {
            return Err(Refusal::MissingScope(missing));
        }
        let mut change = Change::new(Record::Intent, "pairing.surface_approve", &device.device_id);
        change.detail.push(("request", pending.request_id.clone()));
        change
            .detail
            .push(("commands", listed(&pending.surface.commands)));
        change.news.push(surface_resolved(
            &device.device_id,
            pending,
            Decision::Approved,
            now,
        ));
        let created = device
            .node_surface
            .as_ref()
            .map_or(now, |before| before.created_at_ms);
        change.put_devices.push(Device {
            node_surface: Some(ApprovedSurface {
                surface: pending.surface.clone(),
                version: pending.version.clone(),
                created_at_ms: created,
                approved_at_ms: now,
            }),
            pending_surface: None,
            ..device.clone()
        });
        Ok(change)
    }

    /// A person says no: what was approved before stays approved.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn reject_surface(
        &self,
        request_id: &str,
        caller: &Caller,
        now: Millis,
    ) -> Result<Change, Refusal> {
        let (device, pending) = self.surface_request(request_id)?;
        if !caller.may_touch(&device.device_id) {
            return Err(Refusal::UnknownRequest);
        }
        let mut change = Change::new(Record::Intent, "pairing.surface_reject", &device.device_id);
        change.detail.push(("request", pending.request_id.clone()));
        change.news.push(surface_resolved(
            &device.device_id,
            pending,
            Decision::Rejected,
            now,
        ));
        change.put_devices.push(Device {
            pending_surface: None,
            ..device.clone()
        });
        Ok(change)
    }

    fn surface_request(&self, request_id: &str) -> Result<(&Device, &PendingSurface), Refusal> {
        self.devices
            .values()
            .find_map(|device| {
                let pending = device.pending_surface.as_ref()?;
                (pending.request_id == request_id && device.held(Role::Node).is_some())
                    .then_some((device, pending))
            })
            .ok_or(Refusal::UnknownRequest)
    }
}

/// A node role that ends takes its surface with it: what comes back is approved anew.
pub(super) fn drop_surface(device: &mut Device, now: Millis) -> Option<News> {
    device.node_surface = None;
    let pending = device.pending_surface.take()?;
    Some(surface_resolved(
        &device.device_id,
        &pending,
        Decision::Removed,
        now,
    ))
}

pub(super) fn surface_resolved(
    device_id: &DeviceId,
    pending: &PendingSurface,
    decision: Decision,
    at_ms: Millis,
) -> News {
    News::SurfaceResolved {
        request_id: pending.request_id.clone(),
        device_id: device_id.clone(),
        decision,
        at_ms,
    }
}

/// For the record, which has limits of its own.
fn listed(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 7;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(","),
        more => format!("{},+{more}", shown.join(",")),
    }
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
