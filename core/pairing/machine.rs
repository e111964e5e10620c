//! The state, and how it changes: decided first, settled once durable.

use super::manage::Refusal;
use super::records::{ApprovedVia, Client, Device, Pending};
use crate::auth::limits::Source;
use crate::auth::{Role, ScopeSet};
use crate::ids::DeviceId;
use crate::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// Requests dropped in one change: a commit has room for 256 operations.
const EXPIRE_AT_ONCE: usize = 200;

/// New questions of one device within [`TURN_MS`]: each is recorded, and shown to a person in place of the last.
const TURNS: u8 = 8;
/// See [`TURNS`].
const TURN_MS: u64 = 60_000;
/// Devices whose turns are remembered before what is over is forgotten.
const TURNS_KEPT: usize = 1_024;

/// Names that one device may have behind it.
const LINEAGE: usize = 64;

/// How a device has come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetIn {
    /// By whom, and by whom they, by name.
    pub by: BTreeSet<String>,
    /// First.
    pub at: Millis,
    /// Last: what it may has come with it.
    pub approved: Millis,
    /// By the kernel's word that it is an operator's process.
    pub is_local: bool,
    /// That operator, where it was.
    pub user: Option<u32>,
}

/// The key of a device that is paired as an operator, and what it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorKey {
    /// In its one spelling.
    pub public_key: String,
    /// What the device has.
    pub scopes: ScopeSet,
    /// It counts no longer than this is the device's generation.
    pub generation: u64,
    /// The user of this machine whom local trust let it in for, where it did.
    pub user: Option<u32>,
}

/// Numbers that bound the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a request waits, in ms.
    pub pending_ttl_ms: u64,
    /// Most requests in all.
    pub pending_max: usize,
    /// Most requests from one address (an IPv6 /64 is one address; on this machine each user counts alone).
    pub pending_per_address: usize,
    /// Most paired devices.
    pub devices_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_ttl_ms: 300_000,
            pending_max: 256,
            pending_per_address: 8,
            devices_max: 4_096,
        }
    }
}

/// All devices and requests.
#[derive(Debug, Clone)]
pub struct Pairing {
    pub(super) limits: Limits,
    pub(super) devices: BTreeMap<DeviceId, Device>,
    pub(super) pending: BTreeMap<String, Pending>,
    /// Since when, and how often each device has asked something new. In memory only.
    turns: BTreeMap<DeviceId, (Millis, u8)>,
}

/// How a change is recorded before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A privileged act: intent before, outcome after.
    Intent,
    /// A fact: one event before.
    Event,
    /// Nothing new is known: a refreshed or expired request.
    Nothing,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A person or local trust said yes.
    Approved,
    /// A person said no, or a wider request took its place.
    Rejected,
    /// Nobody decided in time.
    Expired,
    /// Who asked is not paired any more.
    Removed,
}

impl Decision {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Removed => "removed",
        }
    }
}

/// Why a device's live sockets are closed: 4001 with this reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named by its reason")]
pub enum Invalidation {
    TokenRotated,
    TokenRevoked,
    Removed,
    Reapproved,
}

impl Invalidation {
    /// The close reason of wire.md section 6; the close code is 4001.
    pub const fn close_reason(self) -> &'static str {
        match self {
            Self::TokenRotated => "client invalidated: device-token-rotated",
            Self::TokenRevoked => "client invalidated: device-token-revoked",
            Self::Removed => "client invalidated: device-pair-removed",
            Self::Reapproved => "client invalidated: device-pairing-reapproved",
        }
    }
}

/// What others hear once a change is durable.
#[derive(Debug, Clone)]
pub enum News {
    /// A person is asked.
    Requested(Box<Pending>),
    /// A request is over.
    Resolved {
        /// Which.
        request_id: String,
        /// Whose.
        device_id: DeviceId,
        /// How.
        decision: Decision,
        /// When.
        at_ms: Millis,
    },
    /// A person is asked about a node's surface: the device with what waits.
    SurfaceRequested(Box<Device>),
    /// Such a request is over.
    SurfaceResolved {
        /// Which.
        request_id: String,
        /// Whose.
        device_id: DeviceId,
        /// How.
        decision: Decision,
        /// When.
        at_ms: Millis,
    },
    /// Sessions of this device under an older generation must end before their next frame.
    Invalidated {
        /// Whose.
        device_id: DeviceId,
        /// The role that was touched; `None` for all. Sessions of other roles end as well and come back.
        role: Option<Role>,
        /// Why.
        why: Invalidation,
        /// The generation that lives on; `None` when the device is gone.
        generation: Option<u64>,
    },
}

impl News {
    /// Whose affair it is.
    pub fn device(&self) -> &DeviceId {
        match self {
            Self::Requested(pending) => &pending.device_id,
            Self::SurfaceRequested(device) => &device.device_id,
            Self::Resolved { device_id, .. }
            | Self::SurfaceResolved { device_id, .. }
            | Self::Invalidated { device_id, .. } => device_id,
        }
    }
}

/// One atomic change: to be recorded, stored, then [settled](Pairing::settle).
#[derive(Debug, Clone)]
pub struct Change {
    /// How it is recorded.
    pub record: Record,
    /// Audit action, `pairing.…`.
    pub action: &'static str,
    /// Whom it is about.
    pub device_id: DeviceId,
    /// Redacted facts for the record.
    pub detail: Vec<(&'static str, String)>,
    /// Rows to write.
    pub put_devices: Vec<Device>,
    /// Rows to delete.
    pub drop_devices: Vec<DeviceId>,
    /// Rows to write.
    pub put_pending: Vec<Pending>,
    /// Rows to delete.
    pub drop_pending: Vec<String>,
    /// What to tell afterwards.
    pub news: Vec<News>,
    /// Do live sessions of the devices written end?
    pub new_generation: bool,
    /// The device asks something new: when.
    pub turn: Option<Millis>,
}

impl Change {
    pub(super) fn new(record: Record, action: &'static str, device_id: &DeviceId) -> Self {
        Self {
            record,
            action,
            device_id: device_id.clone(),
            detail: Vec::new(),
            put_devices: Vec::new(),
            drop_devices: Vec::new(),
            put_pending: Vec::new(),
            drop_pending: Vec::new(),
            news: Vec::new(),
            new_generation: false,
            turn: None,
        }
    }

    /// Puts the sequence of the intent where it belongs. To be called once, before the rows are written.
    pub fn stamp(&mut self, intent: u64) {
        if !self.new_generation {
            return;
        }
        for device in &mut self.put_devices {
            device.generation = intent;
        }
        let gone = !self.drop_devices.is_empty();
        for news in &mut self.news {
            if let News::Invalidated { generation, .. } = news {
                *generation = (!gone).then_some(intent);
            }
        }
    }
}

impl Pairing {
    /// From what the store holds.
    pub fn restore(limits: Limits, devices: Vec<Device>, pending: Vec<Pending>) -> Self {
        Self {
            limits,
            devices: devices
                .into_iter()
                .map(|device| (device.device_id.clone(), device))
                .collect(),
            pending: pending
                .into_iter()
                .map(|pending| (pending.request_id.clone(), pending))
                .collect(),
            turns: BTreeMap::new(),
        }
    }

    /// May this device ask something new?
    pub(super) fn may_turn(&self, device: &DeviceId, now: Millis) -> bool {
        let turns = self.turns.get(device);
        !turns.is_some_and(|(since, asked)| *asked >= TURNS && is_within(*since, now))
    }

    fn turn(&mut self, device: DeviceId, now: Millis) {
        if self.turns.len() >= TURNS_KEPT {
            self.turns.retain(|_, (since, _)| is_within(*since, now));
        }
        let turns = self.turns.entry(device).or_insert((now, 0));
        if !is_within(turns.0, now) {
            *turns = (now, 0);
        }
        turns.1 = turns.1.saturating_add(1);
    }

    /// Takes a durable change over.
    pub fn settle(&mut self, change: Change) -> Vec<News> {
        if let Some(now) = change.turn {
            self.turn(change.device_id.clone(), now);
        }
        for id in change.drop_devices {
            self.devices.remove(&id);
        }
        for id in change.drop_pending {
            self.pending.remove(&id);
        }
        for device in change.put_devices {
            self.devices.insert(device.device_id.clone(), device);
        }
        for pending in change.put_pending {
            self.pending.insert(pending.request_id.clone(), pending);
        }
        change.news
    }

    /// The generation under which a session of this device and role may live; `None`: under none.
    pub fn generation(&self, device: &DeviceId, role: Role) -> Option<u64> {
        let device = self.devices.get(device)?;
        device.held(role).map(|_| device.generation)
    }

    /// How it has come in; `None`: it is not paired.
    pub fn let_in(&self, device: &DeviceId) -> Option<LetIn> {
        let device = self.devices.get(device)?;
        let is_local = device.approved_via == ApprovedVia::Silent;
        Some(LetIn {
            by: device.let_in_by.clone(),
            at: device.created_at_ms,
            approved: device.approved_at_ms,
            is_local,
            user: device.client.remote_uid.filter(|_| is_local),
        })
    }

    /// The key of this device, if it is paired as an operator.
    pub fn operator_key(&self, device: &DeviceId) -> Option<OperatorKey> {
        let device = self.devices.get(device)?;
        let held = device.held(Role::Operator)?;
        let is_local = device.approved_via == ApprovedVia::Silent;
        Some(OperatorKey {
            public_key: device.public_key.clone(),
            scopes: held.scopes.narrow(&held.token_scopes),
            generation: device.generation,
            user: device.client.remote_uid.filter(|_| is_local),
        })
    }

    /// Whoever is behind a device that is let in by these: they, and who let them in. Kept with it: it stays true when one
    /// of them is removed.
    ///
    /// # Errors
    /// [`Refusal::ChainTooLong`].
    pub(super) fn lineage(&self, behind: &BTreeSet<String>) -> Result<BTreeSet<String>, Refusal> {
        let mut all = behind.clone();
        for name in behind {
            let device = name.strip_prefix("device:");
            let device = device.and_then(|id| DeviceId::new(id).ok());
            if let Some(device) = device.and_then(|id| self.devices.get(&id)) {
                all.extend(device.let_in_by.iter().cloned());
            }
        }
        if all.len() > LINEAGE {
            return Err(Refusal::ChainTooLong);
        }
        Ok(all)
    }

    /// The generation of a device in whatever role; `None`: it is not paired.
    pub fn lives(&self, device: &DeviceId) -> Option<u64> {
        self.devices.get(device).map(|device| device.generation)
    }

    /// A paired device.
    pub fn device(&self, device: &DeviceId) -> Option<&Device> {
        self.devices.get(device)
    }

    /// Notes that a device is here. Memory only.
    pub fn seen(&mut self, device: &DeviceId, now: Millis) {
        if let Some(device) = self.devices.get_mut(device) {
            device.last_seen_at_ms = Some(now);
        }
    }

    /// How many devices and requests there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.devices.len(), self.pending.len())
    }

    /// Drops the requests whose time is over; `None` when there are none.
    pub fn expire(&self, now: Millis) -> Option<Change> {
        let over: Vec<_> = self
            .pending
            .values()
            .filter(|pending| !self.is_live(pending, now))
            .take(EXPIRE_AT_ONCE)
            .collect();
        let mut change = Change::new(Record::Nothing, "pairing.expire", &over.first()?.device_id);
        for pending in over {
            change.drop_pending.push(pending.request_id.clone());
            change.news.push(resolved(pending, Decision::Expired, now));
        }
        Some(change)
    }

    /// A request from the future was written before the clock was set back: nobody knows how long it has waited, so
    /// it is over, and its device asks again.
    pub(super) fn is_live(&self, pending: &Pending, now: Millis) -> bool {
        pending.refreshed_at_ms <= now
            && now.since(pending.refreshed_at_ms) < self.limits.pending_ttl_ms
    }

    pub(super) fn pending_of(&self, device: &DeviceId, now: Millis) -> Option<&Pending> {
        self.pending
            .values()
            .find(|pending| pending.device_id == *device && self.is_live(pending, now))
    }
}

fn is_within(since: Millis, now: Millis) -> bool {
    since <= now && now.since(since) < TURN_MS
}

pub(super) fn resolved(pending: &Pending, decision: Decision, at_ms: Millis) -> News {
    News::Resolved {
        request_id: pending.request_id.clone(),
        device_id: pending.device_id.clone(),
        decision,
        at_ms,
    }
}

/// Whom a request counts against: as with those who guess, so that no spelling of an address, and on this machine no
/// address at all, makes one user many.
pub(super) fn source(client: &Client) -> Source {
    Source::of(client.remote_ip, client.remote_uid)
}
