//! The way to the vault for other rooms.

use super::actor::Vault;
use super::messages::{
    Added, Listed, NewUnlocker, Opener, Phase, Rekeyed, ShownUnlocker, Status, VaultMsg,
    VaultRefusal, VaultWiring, Wanted,
};
use crate::supervision::{CallError, FlagReader, Handle, Policy, Reply, TreeBuilder};
use portcullis_core::audit::Entry;
use portcullis_core::auth::limits::Source;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::vault::{Asked, Binds, Export, KeyLabel, RecordMeta};
use std::time::Duration;

/// Long enough for one unlock on a slow machine and the work itself.
const WITHIN: Duration = Duration::from_secs(5);
/// For what runs scrypt for a caller, a new root key once for each unlocker.
const SLOW: Duration = Duration::from_secs(50);
/// Requests the room takes at once.
const CAPACITY: usize = 256;

/// Handle to the vault. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct VaultHandle {
    room: Handle<VaultMsg>,
    phase: FlagReader<Phase>,
}

impl VaultHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: VaultWiring) -> Self {
        let phase = wiring.around.phase.reader();
        let room = tree.room::<Vault>(Policy::new(CAPACITY).critical(), wiring);
        Self { room, phase }
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
        asked: Asked,
    ) -> Result<(RecordMeta, Secret), VaultRefusal> {
        let name = name.to_owned();
        self.ask(|reply| Wanted::Reveal {
            name,
            version,
            asked,
            reply,
        })
        .await
    }

    /// Whether a secret may be used so, and in which version it is: nothing of it is opened.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn usable(&self, name: &str, asked: Asked) -> Result<RecordMeta, VaultRefusal> {
        let name = name.to_owned();
        self.ask(|reply| Wanted::Usable { name, asked, reply })
            .await
    }

    /// What a secret may be used for from now on.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn bind(&self, by: Entry, name: &str, binds: Binds) -> Result<(), VaultRefusal> {
        let (by, name) = (Box::new(by), name.to_owned());
        self.ask(|reply| Wanted::Bind {
            by,
            name,
            binds,
            reply,
        })
        .await
    }

    /// A key for rows of another room, by its own label: a copy of the store does not have it.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn derived_key(&self, label: KeyLabel) -> Result<Key, VaultRefusal> {
        self.ask(|reply| Wanted::Derived(label, reply)).await
    }

    /// Told when it opens and when it is sealed: who holds a key of its own asks for it again, or drops it.
    pub fn phase(&self) -> FlagReader<Phase> {
        self.phase.clone()
    }

    /// How it is.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn status(&self) -> Result<Status, VaultRefusal> {
        self.ask(Wanted::Status).await
    }

    /// What opens it.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn unlockers(&self) -> Result<Vec<ShownUnlocker>, VaultRefusal> {
        self.ask(Wanted::Unlockers).await
    }

    /// Opens a sealed vault. Wrong tries of `source` are counted.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn unlock(
        &self,
        by: Entry,
        source: Source,
        opener: Opener,
    ) -> Result<(), VaultRefusal> {
        let by = Box::new(by);
        self.ask_within(SLOW, |reply| Wanted::Unlock {
            by,
            source,
            opener,
            reply,
        })
        .await
    }

    /// Wipes the keys. Until a person opens it, or the room starts again and something opens it without one.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn seal(&self, by: Entry) -> Result<(), VaultRefusal> {
        let by = Box::new(by);
        self.ask(|reply| Wanted::Seal { by, reply }).await
    }

    /// A new data key: its epoch, and how many records are to be sealed anew under it, which happens by itself.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn rotate(&self, by: Entry) -> Result<(u32, usize), VaultRefusal> {
        let by = Box::new(by);
        self.ask(|reply| Wanted::Rotate { by, reply }).await
    }

    /// One more unlocker, or one in another's place.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn add_unlocker(&self, by: Entry, new: NewUnlocker) -> Result<Added, VaultRefusal> {
        let (by, new) = (Box::new(by), Box::new(new));
        self.ask_within(SLOW, |reply| Wanted::AddUnlocker { by, new, reply })
            .await
    }

    /// One less, but never the last.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn remove_unlocker(&self, by: Entry, id: &str) -> Result<(), VaultRefusal> {
        let (by, id) = (Box::new(by), id.to_owned());
        self.ask(|reply| Wanted::RemoveUnlocker { by, id, reply })
            .await
    }

    /// A new root key and a new data key, with every unlocker made anew. Each passphrase must be given, or its unlocker
    /// dropped; recovery codes are replaced by new ones. Wrong tries of `source` are counted.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn rekey(
        &self,
        by: Entry,
        source: Source,
        passphrases: Vec<(String, Secret)>,
        drop: Vec<String>,
    ) -> Result<Rekeyed, VaultRefusal> {
        let by = Box::new(by);
        self.ask_within(SLOW, |reply| Wanted::Rekey {
            by,
            source,
            passphrases,
            drop,
            reply,
        })
        .await
    }

    /// Every secret, sealed under a passphrase, and the names of those that cannot be read and are not in it.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn export(
        &self,
        by: Entry,
        passphrase: Secret,
    ) -> Result<(Export, Vec<String>), VaultRefusal> {
        let by = Box::new(by);
        self.ask_within(SLOW, |reply| Wanted::Export {
            by,
            passphrase,
            reply,
        })
        .await
    }

    /// Sets the secrets of an export; how many. Wrong tries of `source` are counted.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn import(
        &self,
        by: Entry,
        source: Source,
        export: Export,
        passphrase: Secret,
        replace: bool,
    ) -> Result<usize, VaultRefusal> {
        let (by, export) = (Box::new(by), Box::new(export));
        self.ask_within(SLOW, |reply| Wanted::Import {
            by,
            source,
            export,
            passphrase,
            replace,
            reply,
        })
        .await
    }

    /// Throws away a vault that cannot be opened, and makes an empty one.
    ///
    /// # Errors
    /// [`VaultRefusal`].
    pub async fn init(&self, by: Entry) -> Result<(), VaultRefusal> {
        let by = Box::new(by);
        self.ask_within(SLOW, |reply| Wanted::Init { by, reply })
            .await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(Reply<T, VaultRefusal>) -> Wanted,
    ) -> Result<T, VaultRefusal> {
        self.ask_within(WITHIN, make).await
    }

    async fn ask_within<T>(
        &self,
        within: Duration,
        make: impl FnOnce(Reply<T, VaultRefusal>) -> Wanted,
    ) -> Result<T, VaultRefusal> {
        let asked = self
            .room
            .call(within, |reply| VaultMsg::Ask(make(reply)))
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
