//! What is kept of devices and requests. Rows of the store, as JSON.

use super::surface::{ApprovedSurface, PendingSurface};
use crate::auth::{Role, ScopeSet};
use crate::device::normal_metadata;
use crate::ids::DeviceId;
use crate::time::Millis;
use crate::token::TokenHash;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) const FORMAT: u8 = 1;

/// What a client says about itself: shown to a person, believed in nothing. Platform and device family are pinned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "wire.md 4.1 names each")]
pub struct Client {
    pub id: String,
    pub mode: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_family: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<IpAddr>,
    /// What the kernel says of a client on this machine, of a sub-uid its owner; not the client's own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_uid: Option<u32>,
}

impl Client {
    /// Same platform and device family, as they are signed.
    pub(super) fn same_metadata(&self, other: &Self) -> bool {
        let normal = |text: &Option<String>| normal_metadata(text.as_deref().unwrap_or_default());
        normal(&self.platform) == normal(&other.platform)
            && normal(&self.device_family) == normal(&other.device_family)
    }
}

/// Who said yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApprovedVia {
    /// A person.
    Owner,
    /// Local trust: the kernel named an operator's uid.
    Silent,
    /// A setup code, which a person had made.
    Bootstrap,
}

/// A token of which only the hash is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptToken {
    /// SHA-256 of the token.
    pub hash: TokenHash,
    /// When it was issued.
    pub created_at_ms: Millis,
}

/// One role of a device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// Approved at the most.
    pub scopes: ScopeSet,
    /// What the device has, whatever it comes in with: `scopes`, or less after a rotation that asked for less.
    pub token_scopes: ScopeSet,
    /// `None`: to be issued at the next connection that proves another credential.
    pub token: Option<KeptToken>,
    /// When the token was last rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at_ms: Option<Millis>,
    /// Set: the role is not held any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<Millis>,
}

/// A paired device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub(super) v: u8,
    /// SHA-256 of its key.
    pub device_id: DeviceId,
    /// Its key, base64url.
    pub public_key: String,
    /// As it was when it was approved.
    pub client: Client,
    /// The operator's own name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// By role.
    pub grants: BTreeMap<Role, Grant>,
    /// What it may be asked as a node: approved by a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_surface: Option<ApprovedSurface>,
    /// What it offers beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_surface: Option<PendingSurface>,
    /// Audit sequence of the last change that ended its sessions; never the same twice.
    pub generation: u64,
    /// Who said yes last.
    pub approved_via: ApprovedVia,
    /// Everybody who has let it in, and who had let those in, by name: their questions are not its to answer, nor is its word
    /// a second one beside theirs. Of the console's a uid, never the shared token. It stays until the device is removed,
    /// whoever approves it again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub let_in_by: BTreeSet<String>,
    /// When it was first paired.
    pub created_at_ms: Millis,
    /// When it was last approved.
    pub approved_at_ms: Millis,
    /// Of this process only: not worth a write per connection.
    #[serde(skip)]
    pub last_seen_at_ms: Option<Millis>,
}

impl Device {
    /// The role, unless it was revoked.
    pub fn held(&self, role: Role) -> Option<&Grant> {
        self.grants
            .get(&role)
            .filter(|grant| grant.revoked_at_ms.is_none())
    }

    /// Is it a row that this build can serve?
    pub fn is_sound(&self) -> bool {
        self.v == FORMAT
            && crate::device::DeviceKey::parse(&self.public_key)
                .is_ok_and(|key| key.id() == self.device_id.as_str())
    }
}

/// A request that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pending {
    pub(super) v: u8,
    /// `[A-Za-z0-9][A-Za-z0-9._:-]{0,127}`; a wider request gets a new one.
    pub request_id: String,
    /// Who asks.
    pub device_id: DeviceId,
    /// Its key, base64url.
    pub public_key: String,
    /// As it says of itself.
    pub client: Client,
    /// Roles asked for.
    pub roles: BTreeSet<Role>,
    /// Operator scopes asked for.
    pub scopes: ScopeSet,
    /// The device is paired and asks for more, or for the same under other metadata.
    pub is_repair: bool,
    /// First asked.
    pub created_at_ms: Millis,
    /// Last asked; the time to live counts from here.
    pub refreshed_at_ms: Millis,
}

impl Pending {
    /// Is it a row that this build can serve?
    pub fn is_sound(&self) -> bool {
        self.v == FORMAT
            && crate::device::DeviceKey::parse(&self.public_key)
                .is_ok_and(|key| key.id() == self.device_id.as_str())
    }
}
