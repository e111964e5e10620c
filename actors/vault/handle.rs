//! The way to the vault for other rooms.

use super::actor::Vault;
use super::messages::{Listed, VaultMsg, VaultRefusal, VaultWiring, Wanted};
use crate::supervision::{CallError, Handle, Policy, Reply, TreeBuilder};
use portcullis_core::audit::Entry;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::vault::RecordMeta;
use std::time::Duration;

/// Long enough for one unlock on a slow machine and the work itself.
const WITHIN: Duration = Duration::from_secs(5);
/// Requests the room takes at once.
const CAPACITY: usize = 256;

/// Handle to the vault. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct VaultHandle {
    room: Handle<VaultMsg>,
}

impl VaultHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: VaultWiring) -> Self {
        let room = tree.room::<Vault>(Policy::new(CAPACITY).critical(), wiring);
        Self { room }
    }

    /// Sets a secret; durable when it returns. `by` names who and through which door (and an idempotency key, a request
    /// id), the vault fills in the rest.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn set(
        &self,
        by: Entry,
        name: &str,
        value: Secret,
    ) -> Result<RecordMeta, VaultRefusal> {
        let (by, name) = (Box::new(by), name.to_owned());
        self.ask(|reply| Wanted::Set {
            by,
            name,
            value,
            reply,
        })
        .await
    }

    /// Every name with its version and times; never a value.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn list(&self) -> Result<Vec<Listed>, VaultRefusal> {
        self.ask(Wanted::List).await
    }

    /// Removes a secret; durable when it returns.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn remove(&self, by: Entry, name: &str) -> Result<(), VaultRefusal> {
        let (by, name) = (Box::new(by), name.to_owned());
        self.ask(|reply| Wanted::Remove { by, name, reply }).await
    }

    /// A secret for one run. `version`: what the frozen plan names; another one is `VAULT_NOT_FOUND`.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn reveal(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<(RecordMeta, Secret), VaultRefusal> {
        let name = name.to_owned();
        self.ask(|reply| Wanted::Reveal {
            name,
            version,
            reply,
        })
        .await
    }

    /// A key for rows of another room, by its own label: a copy of the store does not have it.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn derived_key(&self, label: &'static str) -> Result<Key, VaultRefusal> {
        self.ask(|reply| Wanted::Derived(label, reply)).await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(Reply<T, VaultRefusal>) -> Wanted,
    ) -> Result<T, VaultRefusal> {
        let asked = self
            .room
            .call(WITHIN, |reply| VaultMsg::Ask(make(reply)))
            .await;
        asked.map_err(|error| match error {
            CallError::Refused(refusal) => refusal,
            CallError::Overloaded => VaultRefusal::Overloaded,
            CallError::Unavailable { may_have_run } | CallError::Deadline { may_have_run } => {
                VaultRefusal::Down { may_have_run }
            }
        })
    }
}
