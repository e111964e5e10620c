//! The header: the vault's id and its unlockers.

use super::VaultError;
use super::unlocker::{Kdf, UnlockSecret, Unlocker};
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::seal::{Key, NONCE};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

const DATA: &str = "portcullis/vault/data/v1";
const MANIFEST: &str = "portcullis/vault/manifest/v1";
const PREVIOUS: &[u8] = b"portcullis-vault-previous-root-v1";
const FORMAT: u8 = 2;
const FIRST_FORMAT: u8 = 1;
/// Most unlockers of a vault.
pub const MAX_UNLOCKERS: usize = 16;

/// As stored (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Header {
    v: u8,
    store_id: String,
    unlockers: Vec<Unlocker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Previous>,
}

/// The root key before the present one, until nothing is sealed under it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Previous {
    /// The last epoch that it sealed.
    up_to: u32,
    nonce: String,
    sealed: String,
}

/// As it was stored before there were several unlockers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FirstHeader {
    v: u8,
    store_id: String,
    identity_check: String,
    kdf: Kdf,
    salt: String,
    nonce: String,
    wrapped_root: String,
}

/// The root key and the vault's id, and the keys of one epoch. Wiped when dropped.
pub struct VaultKeys {
    pub(super) root: Key,
    pub(super) store_id: [u8; 16],
    /// The last epoch of the root key before, and that key.
    pub(super) previous: Option<(u32, Key)>,
    /// Made once and kept where they lie, so that they can be locked there.
    held: Option<Box<Held>>,
}

/// The keys of the epoch that is sealed under.
struct Held {
    epoch: u32,
    data: Key,
    manifest: Key,
}

/// For work elsewhere: without the epoch's keys, which it does not need.
impl Clone for VaultKeys {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            store_id: self.store_id,
            previous: self.previous.clone(),
            held: None,
        }
    }
}

impl VaultKeys {
    /// Of a new vault.
    pub const fn new(root: Key, store_id: [u8; 16]) -> Self {
        Self {
            root,
            store_id,
            previous: None,
            held: None,
        }
    }

    /// From now on the keys of this epoch are the same ones, at the same place, until another is held.
    pub fn hold(&mut self, epoch: u32) {
        if self.held() != Some(epoch) {
            self.held = Some(Box::new(Held {
                epoch,
                data: self.of_epoch(DATA, epoch),
                manifest: self.of_epoch(MANIFEST, epoch),
            }));
        }
    }

    /// The epoch whose keys are held.
    pub fn held(&self) -> Option<u32> {
        self.held.as_ref().map(|held| held.epoch)
    }

    /// After a new root key: what was sealed up to this epoch is under the old one.
    #[must_use]
    pub fn rekeyed(&self, root: Key, up_to: u32) -> Self {
        Self {
            root,
            store_id: self.store_id,
            previous: Some((up_to, self.root.clone())),
            held: None,
        }
    }

    /// Nothing is sealed under the root key before any more.
    pub fn forget_previous(&mut self) {
        self.previous = None;
    }

    /// Where in memory the root keys and the held epoch's keys lie: for who keeps them from being written to swap.
    pub fn places(&self) -> Vec<(*const u8, usize)> {
        let previous = self.previous.iter().map(|(_, key)| key);
        let held = self
            .held
            .iter()
            .flat_map(|held| [&held.data, &held.manifest]);
        let all = std::iter::once(&self.root).chain(previous).chain(held);
        all.flat_map(Key::places).collect()
    }

    /// What is wrapped by unlockers.
    pub const fn root(&self) -> (&[u8; 16], &Key) {
        (&self.store_id, &self.root)
    }

    /// A key for another room's rows. One label, one use.
    pub fn derived(&self, label: &str) -> Key {
        self.root.derive(&self.store_id, label, b"")
    }

    pub(super) fn data_key(&self, epoch: u32) -> Cow<'_, Key> {
        match &self.held {
            Some(held) if held.epoch == epoch => Cow::Borrowed(&held.data),
            _ => Cow::Owned(self.of_epoch(DATA, epoch)),
        }
    }

    pub(super) fn manifest_key(&self, epoch: u32) -> Cow<'_, Key> {
        match &self.held {
            Some(held) if held.epoch == epoch => Cow::Borrowed(&held.manifest),
            _ => Cow::Owned(self.of_epoch(MANIFEST, epoch)),
        }
    }

    fn of_epoch(&self, label: &str, epoch: u32) -> Key {
        let root = match &self.previous {
            Some((up_to, previous)) if epoch <= *up_to => previous,
            _ => &self.root,
        };
        root.derive(&self.store_id, label, &epoch.to_be_bytes())
    }
}

impl Header {
    /// Of a new vault.
    pub fn new(keys: &VaultKeys, unlockers: Vec<Unlocker>) -> Self {
        Self {
            v: FORMAT,
            store_id: hex(&keys.store_id),
            unlockers,
            previous: None,
        }
    }

    /// Reads what is stored.
    ///
    /// # Errors
    /// [`VaultError::HeaderCorrupt`].
    pub fn parse(stored: &[u8]) -> Result<Self, VaultError> {
        if let Ok(header) = serde_json::from_slice::<Self>(stored) {
            let is_right = header.v == FORMAT
                && (1..=MAX_UNLOCKERS).contains(&header.unlockers.len())
                && unhex::<16>(&header.store_id).is_some();
            return Some(header)
                .filter(|_| is_right)
                .ok_or(VaultError::HeaderCorrupt);
        }
        let first: FirstHeader =
            serde_json::from_slice(stored).map_err(|_| VaultError::HeaderCorrupt)?;
        if first.v != FIRST_FORMAT || unhex::<16>(&first.store_id).is_none() {
            return Err(VaultError::HeaderCorrupt);
        }
        Ok(Self {
            v: FORMAT,
            store_id: first.store_id,
            unlockers: vec![Unlocker::first_form(
                first.identity_check,
                first.kdf,
                first.salt,
                first.nonce,
                first.wrapped_root,
            )],
            previous: None,
        })
    }

    /// To be stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: a header is JSON")
    }

    /// Names the vault in every seal.
    ///
    /// # Errors
    /// [`VaultError::HeaderCorrupt`].
    pub fn store_id(&self) -> Result<[u8; 16], VaultError> {
        unhex(&self.store_id).ok_or(VaultError::HeaderCorrupt)
    }

    /// In the order in which they are tried.
    pub fn unlockers(&self) -> &[Unlocker] {
        &self.unlockers
    }

    /// One of them.
    ///
    /// # Errors
    /// [`VaultError::UnlockerNotFound`].
    pub fn unlocker(&self, id: &str) -> Result<&Unlocker, VaultError> {
        self.unlockers
            .iter()
            .find(|unlocker| unlocker.id() == id)
            .ok_or(VaultError::UnlockerNotFound)
    }

    /// Opens the vault by one unlocker. Runs scrypt.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(&self, id: &str, secret: &UnlockSecret<'_>) -> Result<VaultKeys, VaultError> {
        let store_id = self.store_id()?;
        let root = self.unlocker(id)?.open(&store_id, secret)?;
        let previous = match &self.previous {
            None => None,
            Some(previous) => Some((
                previous.up_to,
                previous
                    .open(&store_id, &root)
                    .ok_or(VaultError::HeaderCorrupt)?,
            )),
        };
        Ok(VaultKeys {
            root,
            store_id,
            previous,
            held: None,
        })
    }

    /// With one more.
    ///
    /// # Errors
    /// [`VaultError::UnlockersFull`], or its id is taken.
    pub fn with(&self, unlocker: Unlocker) -> Result<Self, VaultError> {
        if self.unlockers.len() >= MAX_UNLOCKERS || self.unlocker(unlocker.id()).is_ok() {
            return Err(VaultError::UnlockersFull);
        }
        let mut header = self.clone();
        header.unlockers.push(unlocker);
        Ok(header)
    }

    /// Without one, but never without any.
    ///
    /// # Errors
    /// [`VaultError::UnlockerNotFound`], [`VaultError::LastUnlocker`].
    pub fn without(&self, id: &str) -> Result<Self, VaultError> {
        self.unlocker(id)?;
        if self.unlockers.len() == 1 {
            return Err(VaultError::LastUnlocker);
        }
        let mut header = self.clone();
        header.unlockers.retain(|unlocker| unlocker.id() != id);
        Ok(header)
    }

    /// The one in place of another, which keeps its turn.
    #[must_use]
    pub fn replaced(&self, id: &str, by: Unlocker) -> Self {
        let mut header = self.clone();
        if let Some(slot) = header.unlockers.iter_mut().find(|one| one.id() == id) {
            *slot = by;
        }
        header
    }

    /// All of them anew, for keys with a new root; the old root stays readable by the new one until nothing needs it.
    #[must_use]
    pub fn rekeyed(&self, keys: &VaultKeys, unlockers: Vec<Unlocker>, nonce: &[u8; NONCE]) -> Self {
        let previous = keys.previous.as_ref().map(|(up_to, old)| Previous {
            up_to: *up_to,
            nonce: hex(nonce),
            sealed: base64url(&keys.root.seal(
                nonce,
                &[PREVIOUS, &keys.store_id, &up_to.to_be_bytes()],
                old.expose(),
            )),
        });
        Self {
            unlockers,
            previous,
            ..self.clone()
        }
    }

    /// Is there a root key before the present one?
    pub const fn has_previous(&self) -> bool {
        self.previous.is_some()
    }

    /// Nothing is sealed under it any more.
    #[must_use]
    pub fn without_previous(&self) -> Self {
        Self {
            previous: None,
            ..self.clone()
        }
    }
}

impl Previous {
    fn open(&self, store_id: &[u8; 16], root: &Key) -> Option<Key> {
        let nonce: [u8; NONCE] = unhex(&self.nonce)?;
        let sealed = from_base64url(&self.sealed)?;
        let aad: [&[u8]; 3] = [PREVIOUS, store_id, &self.up_to.to_be_bytes()];
        let opened = root.open(&nonce, &aad, &sealed)?;
        let bytes: [u8; 32] = opened.expose().try_into().ok()?;
        Some(Key::new(bytes))
    }
}
