//! What operators do with devices and requests.

use super::decide::{Fresh, IssuedToken, grant, issue, words};
use super::machine::{Change, Decision, Invalidation, News, Pairing, Record, resolved};
use super::records::{ApprovedVia, Device, FORMAT, Pending};
use super::surface::drop_surface;
use crate::auth::{Principal, Role, Scope, ScopeSet};
use crate::ids::DeviceId;
use crate::time::Millis;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Who asks, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its own authority.
    pub scopes: ScopeSet,
    /// The device behind it.
    pub device: Option<DeviceId>,
    /// It comes with a device, whatever else it brought: without admin it may act on itself only. A shared secret beside
    /// the device's signature is no word of a person on other devices, and a signed request is the device's as well.
    pub is_device: bool,
    /// [`Principal::behind`].
    pub behind: BTreeSet<String>,
}

impl Caller {
    /// Of a connection.
    pub fn of(principal: &Principal) -> Self {
        Self {
            scopes: principal.scopes.clone(),
            device: principal.device().cloned(),
            is_device: principal.device().is_some(),
            behind: principal.behind(),
        }
    }

    pub(super) fn is_admin(&self) -> bool {
        self.scopes.allows(Scope::Admin)
    }

    pub(super) fn is(&self, device: &DeviceId) -> bool {
        self.device.as_ref() == Some(device)
    }

    /// May it change anything of that device?
    pub fn may_touch(&self, device: &DeviceId) -> bool {
        !self.is_device || self.is_admin() || self.is(device)
    }
}

/// Why not. `Display` is the text on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Decided, expired, or never there.
    #[error("unknown requestId")]
    UnknownRequest,
    /// Not paired.
    #[error("unknown deviceId")]
    UnknownDevice,
    /// A device about its own request, or a device token's holder about another device.
    #[error("device pairing approval denied")]
    ApprovalDenied,
    /// The approver does not hold what it would give.
    #[error("missing scope: {0}")]
    MissingScope(Scope),
    /// Whatever the reason: nothing is told about other devices.
    #[error("device token rotation denied")]
    RotationDenied,
    /// As above.
    #[error("device token revocation denied")]
    RevocationDenied,
    /// As above.
    #[error("device removal denied")]
    RemovalDenied,
    /// Not 1 to 64 printable characters.
    #[error("invalid label: 1 to 64 printable characters")]
    LabelInvalid,
    /// Names that are no names, or too many of them.
    #[error(
        "invalid node surface: at most 64 caps and 256 commands, each 1 to 128 printable ASCII characters"
    )]
    SurfaceInvalid,
    /// Not connected as a node, or not under this generation any more.
    #[error("unknown nodeId")]
    UnknownNode,
    /// A setup code is for an operator with scopes, or for a node without.
    #[error(
        "a setup code is for role operator with at least one scope, or for role node with none"
    )]
    RoleInvalid,
    /// A setup code is for a device that is new.
    #[error("this device is known already: a person decides what more it may")]
    KnownDevice,
    /// Used, over, or never there.
    #[error("unknown setupId")]
    UnknownSetup,
    /// Each was let in by the one before.
    #[error(
        "too many devices have let in one another: let this one in at the gateway's own machine"
    )]
    ChainTooLong,
    /// Too many requests wait, from this address or in all.
    #[error("too many pairing requests are pending: decide on them first")]
    TooManyPending,
    /// One device has asked for other things again and again.
    #[error(
        "this device has asked for one thing after another: it can ask for something else in a minute"
    )]
    AsksTooOften,
    /// No more devices fit.
    #[error("too many devices are paired: remove some first")]
    TooManyDevices,
}

impl Refusal {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownRequest | Self::UnknownSetup => "REQUEST_NOT_FOUND",
            Self::UnknownDevice | Self::UnknownNode => "DEVICE_NOT_FOUND",
            Self::MissingScope(_) => "MISSING_SCOPE",
            Self::ApprovalDenied
            | Self::RotationDenied
            | Self::RevocationDenied
            | Self::RemovalDenied
            | Self::KnownDevice
            | Self::ChainTooLong => "PAIRING_DENIED",
            Self::LabelInvalid | Self::SurfaceInvalid | Self::RoleInvalid => "INVALID_PARAMS",
            Self::TooManyPending | Self::TooManyDevices => "TOO_MANY_PENDING",
            Self::AsksTooOften => "ASKS_TOO_OFTEN",
        }
    }
}

/// A rotated token.
pub struct Rotated {
    /// Of this role.
    pub role: Role,
    /// What it gives.
    pub scopes: ScopeSet,
    /// When.
    pub rotated_at_ms: Millis,
    /// Only for the device itself; another device gets its own at its next connection.
    pub token: Option<IssuedToken>,
}

impl Pairing {
    /// A person says yes. The approver must hold what is asked; with `narrow` the device gets what both have instead.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn approve(
        &self,
        request_id: &str,
        caller: &Caller,
        narrow: bool,
        now: Millis,
    ) -> Result<Change, Refusal> {
        let pending = self.live_request(request_id, now)?;
        // Who asks cannot answer, whatever it may answer for others.
        if caller.is(&pending.device_id) {
            return Err(Refusal::ApprovalDenied);
        }
        // Nor is it told of another's.
        if !caller.may_touch(&pending.device_id) {
            return Err(Refusal::UnknownRequest);
        }
        if pending.roles.iter().any(|role| *role != Role::Operator) && !caller.is_admin() {
            return Err(Refusal::MissingScope(Scope::Admin));
        }
        let scopes = caller.scopes.narrow(&pending.scopes);
        if !narrow
            && let Some(missing) = pending
                .scopes
                .iter()
                .find(|scope| !caller.scopes.allows(*scope))
        {
            return Err(Refusal::MissingScope(missing));
        }
        let known = self.devices.get(&pending.device_id);
        if known.is_none() && self.devices.len() >= self.limits.devices_max {
            return Err(Refusal::TooManyDevices);
        }
        let mut device = known.cloned().unwrap_or_else(|| device_of(pending, now));
        let mut surface_news = None;
        if !device.client.same_metadata(&pending.client) {
            // Another machine than the one that was approved: it gets what is shown now, and nothing of what was
            // shown then, neither scopes nor roles nor commands.
            surface_news = drop_surface(&mut device, now);
            device.grants.clear();
        }
        for role in &pending.roles {
            let before = device
                .held(*role)
                .map(|grant| grant.scopes.clone())
                .unwrap_or_default();
            let more = if *role == Role::Operator {
                scopes.clone()
            } else {
                ScopeSet::empty()
            };
            grant(&mut device, *role, before.union(&more));
        }
        device.client = pending.client.clone();
        device.approved_via = ApprovedVia::Owner;
        device.let_in_by.extend(self.lineage(&caller.behind)?);
        device.approved_at_ms = now;

        let mut change = Change::new(Record::Intent, "pairing.approve", &pending.device_id);
        change.detail.push(("request", pending.request_id.clone()));
        change.detail.push((
            "roles",
            pending
                .roles
                .iter()
                .map(|role| role.as_str())
                .collect::<Vec<_>>()
                .join(","),
        ));
        change.detail.push(("scopes", words(&scopes)));
        change.new_generation = true;
        change.drop_pending.push(pending.request_id.clone());
        change.put_devices.push(device);
        change.news.push(resolved(pending, Decision::Approved, now));
        change.news.extend(surface_news);
        if known.is_some() {
            change.news.push(invalidated(
                &pending.device_id,
                None,
                Invalidation::Reapproved,
            ));
        }
        Ok(change)
    }

    /// A person says no.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn reject(
        &self,
        request_id: &str,
        caller: &Caller,
        now: Millis,
    ) -> Result<Change, Refusal> {
        let pending = self.live_request(request_id, now)?;
        if !caller.may_touch(&pending.device_id) {
            return Err(Refusal::UnknownRequest);
        }
        let mut change = Change::new(Record::Intent, "pairing.reject", &pending.device_id);
        change.detail.push(("request", pending.request_id.clone()));
        change.drop_pending.push(pending.request_id.clone());
        change.news.push(resolved(pending, Decision::Rejected, now));
        Ok(change)
    }

    /// Forgets a device and what it asks for.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn remove(
        &self,
        device_id: &DeviceId,
        caller: &Caller,
        now: Millis,
    ) -> Result<Change, Refusal> {
        if !caller.may_touch(device_id) {
            return Err(Refusal::RemovalDenied);
        }
        let device = self.devices.get(device_id).ok_or(Refusal::UnknownDevice)?;
        let mut change = Change::new(Record::Intent, "pairing.remove", device_id);
        change.new_generation = true;
        change.drop_devices.push(device_id.clone());
        self.drop_requests(device_id, now, &mut change);
        change.news.extend(drop_surface(&mut device.clone(), now));
        change
            .news
            .push(invalidated(device_id, None, Invalidation::Removed));
        Ok(change)
    }

    /// Gives a device an operator's name.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn rename(
        &self,
        device_id: &DeviceId,
        label: &str,
        caller: &Caller,
    ) -> Result<Change, Refusal> {
        if !(1..=64).contains(&label.chars().count()) || label.chars().any(char::is_control) {
            return Err(Refusal::LabelInvalid);
        }
        if !caller.may_touch(device_id) {
            return Err(Refusal::UnknownDevice);
        }
        let mut device = self
            .devices
            .get(device_id)
            .ok_or(Refusal::UnknownDevice)?
            .clone();
        device.label = Some(label.to_owned());
        let mut change = Change::new(Record::Intent, "pairing.rename", device_id);
        change.detail.push(("label", label.to_owned()));
        change.put_devices.push(device);
        Ok(change)
    }

    /// The same for a node, by its own name on the wire.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn rename_node(
        &self,
        device_id: &DeviceId,
        name: &str,
        caller: &Caller,
    ) -> Result<Change, Refusal> {
        let device = self.devices.get(device_id);
        device
            .filter(|device| device.grants.contains_key(&Role::Node))
            .ok_or(Refusal::UnknownNode)?;
        self.rename(device_id, name, caller)
            .map_err(|refusal| match refusal {
                Refusal::UnknownDevice => Refusal::UnknownNode,
                other => other,
            })
    }

    /// Ends a role's token and makes another, for no more than was approved and than the caller holds.
    ///
    /// # Errors
    /// [`Refusal::RotationDenied`], whatever the reason.
    pub fn rotate(
        &self,
        device_id: &DeviceId,
        role: Role,
        scopes: Option<ScopeSet>,
        caller: &Caller,
        now: Millis,
        fresh: &Fresh,
    ) -> Result<(Rotated, Change), Refusal> {
        let denied = Refusal::RotationDenied;
        let mut device = self.devices.get(device_id).ok_or(denied)?.clone();
        let held = device.held(role).ok_or(denied)?;
        let scopes = scopes.unwrap_or_else(|| held.scopes.clone());
        let own = caller.is(device_id);
        let may_give = role == Role::Operator || own || caller.is_admin();
        if !caller.may_touch(device_id)
            || !may_give
            || !held.scopes.covers(&scopes)
            || !caller.scopes.covers(&scopes)
        {
            return Err(denied);
        }
        let grant = device.grants.get_mut(&role).ok_or(denied)?;
        grant.token_scopes = scopes.clone();
        grant.token = None;
        grant.rotated_at_ms = Some(now);
        let token = own.then(|| issue(grant, now, &fresh.token));
        let mut change = Change::new(Record::Intent, "pairing.token_rotate", device_id);
        change.detail.push(("role", role.to_string()));
        change.detail.push(("scopes", words(&scopes)));
        change.new_generation = true;
        change.put_devices.push(device);
        change.news.push(invalidated(
            device_id,
            Some(role),
            Invalidation::TokenRotated,
        ));
        Ok((
            Rotated {
                role,
                scopes,
                rotated_at_ms: now,
                token,
            },
            change,
        ))
    }

    /// Takes a role from a device: its token is void, and only a person brings the role back.
    ///
    /// # Errors
    /// [`Refusal::RevocationDenied`], whatever the reason.
    pub fn revoke(
        &self,
        device_id: &DeviceId,
        role: Role,
        caller: &Caller,
        now: Millis,
    ) -> Result<Change, Refusal> {
        let denied = Refusal::RevocationDenied;
        let mut device = self.devices.get(device_id).ok_or(denied)?.clone();
        if !caller.may_touch(device_id) {
            return Err(denied);
        }
        let grant = device.grants.get_mut(&role).ok_or(denied)?;
        grant.token = None;
        grant.revoked_at_ms = Some(now);
        let mut change = Change::new(Record::Intent, "pairing.token_revoke", device_id);
        if role == Role::Node {
            change.news.extend(drop_surface(&mut device, now));
        }
        change.detail.push(("role", role.to_string()));
        change.new_generation = true;
        change.put_devices.push(device);
        self.drop_requests(device_id, now, &mut change);
        change.news.push(invalidated(
            device_id,
            Some(role),
            Invalidation::TokenRevoked,
        ));
        Ok(change)
    }

    /// Forgets a device as a node: its role, its token and what it might be asked. A device that is nothing else is
    /// forgotten altogether.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn remove_node(
        &self,
        device_id: &DeviceId,
        caller: &Caller,
        now: Millis,
    ) -> Result<Change, Refusal> {
        if !caller.may_touch(device_id) {
            return Err(Refusal::RemovalDenied);
        }
        let known = self.devices.get(device_id);
        let known = known.filter(|device| device.grants.contains_key(&Role::Node));
        let mut device = known.ok_or(Refusal::UnknownNode)?.clone();
        if device.grants.len() == 1 {
            return self.remove(device_id, caller, now);
        }
        let mut change = Change::new(Record::Intent, "pairing.node_remove", device_id);
        change.new_generation = true;
        change.news.extend(drop_surface(&mut device, now));
        device.grants.remove(&Role::Node);
        change.put_devices.push(device);
        self.drop_requests(device_id, now, &mut change);
        change.news.push(invalidated(
            device_id,
            Some(Role::Node),
            Invalidation::Removed,
        ));
        Ok(change)
    }

    /// What a device asked for ends with what it had: a person who approves it later would think of another one.
    fn drop_requests(&self, device: &DeviceId, now: Millis, change: &mut Change) {
        let requests = self.pending.values();
        for pending in requests.filter(|pending| pending.device_id == *device) {
            change.drop_pending.push(pending.request_id.clone());
            change.news.push(resolved(pending, Decision::Rejected, now));
        }
    }

    fn live_request(&self, request_id: &str, now: Millis) -> Result<&Pending, Refusal> {
        let pending = self.pending.get(request_id);
        pending
            .filter(|pending| self.is_live(pending, now))
            .ok_or(Refusal::UnknownRequest)
    }
}

fn device_of(pending: &Pending, now: Millis) -> Device {
    Device {
        v: FORMAT,
        device_id: pending.device_id.clone(),
        public_key: pending.public_key.clone(),
        client: pending.client.clone(),
        label: None,
        node_surface: None,
        pending_surface: None,
        grants: BTreeMap::new(),
        generation: 0,
        approved_via: ApprovedVia::Owner,
        let_in_by: BTreeSet::new(),
        created_at_ms: now,
        approved_at_ms: now,
        last_seen_at_ms: None,
    }
}

fn invalidated(device_id: &DeviceId, role: Option<Role>, why: Invalidation) -> News {
    News::Invalidated {
        device_id: device_id.clone(),
        role,
        why,
        generation: None,
    }
}
