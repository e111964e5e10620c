//! What an open vault does.

use super::keys::Wrapped;
use super::locked::Locked;
use super::messages::{Listed, OpenStatus, Rekeyed, ShownUnlocker, VaultRefusal, VaultWiring};
use super::opening::{Open, note};
use super::rows::{Edit, Parts, Row, Space, keep_use, open_record, random, read_record};
use crate::act::ActError;
use portcullis_core::audit::Entry;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::time::Millis;
use portcullis_core::vault::{
    Asked, Binds, Change, Header, KeyLabel, Kind, LastUse, MAX_EXPORT, RecordMeta, SealedRecord,
    Unlocker, VaultError, check_name,
};

/// Records that are sealed anew by one change: callers come in between.
const ANEW: usize = if cfg!(test) { 1 } else { 16 };
/// Records of an import that one change sets.
const IMPORTED: usize = 64;

impl Open {
    pub async fn set(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        name: &str,
        value: &Secret,
    ) -> Result<RecordMeta, VaultRefusal> {
        check_name(name)?;
        let present = self.rows.get(Space::Secrets, name);
        if present.is_none() && self.rows.secrets().count() >= wiring.config.max_records {
            return Err(VaultRefusal::Full(wiring.config.max_records));
        }
        let meta = self.meta(name, wiring.clock.now());
        let mut change = self.rows.manifest.next(1);
        let about = (meta, self.binds(Space::Secrets, name));
        let edit = self.sealed(&mut change, Space::Secrets, name, about, value)?;
        let entry = described(by, "vault.set", name).with("version", meta.version.to_string());
        self.change(wiring, entry, change, vec![edit], None).await?;
        Ok(meta)
    }

    pub async fn remove(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        name: &str,
    ) -> Result<(), VaultRefusal> {
        check_name(name)?;
        if self.rows.get(Space::Secrets, name).is_none() {
            return Err(VaultError::NotFound.into());
        }
        let mut change = self.rows.manifest.next(0);
        change.remove(&Space::Secrets.id(name));
        let edit = Edit::Remove {
            space: Space::Secrets,
            name: name.to_owned(),
        };
        let entry = described(by, "vault.remove", name);
        self.change(wiring, entry, change, vec![edit], None).await
    }

    /// Records that cannot be used stand in it with their code, so that a person can set or remove them.
    pub fn list(&self) -> Vec<Listed> {
        let unreadable = RecordMeta {
            version: 0,
            created_at_ms: Millis::default(),
            updated_at_ms: Millis::default(),
        };
        let listed = |(name, row): (&str, &Row)| Listed {
            name: name.to_owned(),
            meta: row.state.unwrap_or(unreadable),
            code: row.state.err().map(VaultError::code),
            binds: row.binds.clone(),
            last_use: row.used.as_ref().map(|(used, _)| used.clone()),
        };
        self.rows.secrets().map(listed).collect()
    }

    /// May it be used so, and in which version is it?
    pub fn usable(&self, name: &str, asked: &Asked) -> Result<RecordMeta, VaultRefusal> {
        check_name(name)?;
        let known = self.rows.get(Space::Secrets, name);
        // An agent that may not use it learns nothing of it, not even that there is one.
        let row = known.ok_or(match asked.agent {
            Some(_) => VaultError::NotBound,
            None => VaultError::NotFound,
        })?;
        row.binds.allow(asked)?;
        Ok(row.state?)
    }

    pub async fn reveal(
        &mut self,
        wiring: &VaultWiring,
        name: &str,
        version: Option<u64>,
        asked: Asked,
    ) -> Result<(RecordMeta, Secret), VaultRefusal> {
        self.usable(name, &asked)?;
        let (meta, secret) = self.read(wiring, Space::Secrets, name).await?;
        if version.is_some_and(|wanted| wanted != meta.version) {
            return Err(VaultError::NotFound.into());
        }
        let record = match asked.record {
            Some(record) => record,
            // No act of another room has it on record.
            None => self.note_use(wiring, name, &meta, &asked).await?,
        };
        let used = LastUse {
            at_ms: wiring.clock.now(),
            by: asked.by,
            agent: asked.agent,
            run: asked.run,
            record,
        };
        let place = (Space::Secrets, name.to_owned());
        if let Some(row) = self.rows.records.get_mut(&place) {
            keep_use(&wiring.store, name, row, used).await?;
        }
        Ok((meta, secret))
    }

    async fn note_use(
        &mut self,
        wiring: &VaultWiring,
        name: &str,
        meta: &RecordMeta,
        asked: &Asked,
    ) -> Result<u64, VaultRefusal> {
        let entry = Entry {
            principal: Some("system".to_owned()),
            ..note("vault.use", &self.rows, &self.keys)
        };
        let mut entry = described(entry, "vault.use", name)
            .with("version", meta.version.to_string())
            .with("use", asked.way.as_str())
            .with("by", asked.by.clone());
        if let Some(host) = &asked.host {
            entry = entry.with("host", host.clone());
        }
        let seq = wiring.audit.event(entry).await;
        let seq = seq.map_err(ActError::CannotRecord)?;
        self.marked = seq.0;
        Ok(seq.0)
    }

    /// What it may be used for from now on; its value and version stay.
    pub async fn bind(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        name: &str,
        binds: Binds,
    ) -> Result<(), VaultRefusal> {
        check_name(name)?;
        let (meta, secret) = self.read(wiring, Space::Secrets, name).await?;
        let mut change = self.rows.manifest.next(1);
        let mut entry = described(by, "vault.bind", name)
            .with_list("agents", binds.agents.iter().map(String::as_str));
        if let Some(hosts) = &binds.hosts {
            entry = entry.with_list("hosts", hosts.iter().map(String::as_str));
        }
        if let Some(uses) = &binds.uses {
            entry = entry.with_list("uses", uses.iter().map(|one| one.as_str()));
        }
        let edit = self.sealed(&mut change, Space::Secrets, name, (meta, binds), &secret)?;
        self.change(wiring, entry, change, vec![edit], None).await
    }

    fn binds(&self, space: Space, name: &str) -> Binds {
        self.rows
            .get(space, name)
            .map(|row| row.binds.clone())
            .unwrap_or_default()
    }

    async fn read(
        &self,
        wiring: &VaultWiring,
        space: Space,
        name: &str,
    ) -> Result<(RecordMeta, Secret), VaultRefusal> {
        let known = self.rows.get(space, name).ok_or(VaultError::NotFound)?;
        let expected = known.state?;
        let row = wiring
            .store
            .get(space.kind(), name)
            .await
            .map_err(ActError::Refused)?;
        // Only this room writes these rows: other bytes are somebody else's hand.
        let row = row.ok_or(VaultError::RecordMissing)?;
        read_record(&self.keys, &self.rows.manifest, space, &row)?;
        let (meta, secret) = open_record(&self.keys, space, &row)?;
        if expected != meta {
            return Err(VaultError::RecordCorrupt.into());
        }
        Ok((meta, secret))
    }

    /// Every secret, and the names of those that cannot be read.
    pub async fn all(
        &self,
        wiring: &VaultWiring,
    ) -> Result<(Vec<(String, Secret)>, Vec<String>), VaultRefusal> {
        let (mut all, mut left_out, mut size) = (vec![], vec![], 0);
        let names: Vec<String> = self
            .rows
            .secrets()
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in names {
            match self.read(wiring, Space::Secrets, &name).await {
                Ok((_, secret)) => {
                    size += secret.len();
                    if size > MAX_EXPORT {
                        return Err(VaultError::ExportTooLarge.into());
                    }
                    all.push((name, secret));
                }
                Err(VaultRefusal::Vault(_)) => left_out.push(name),
                Err(refusal) => return Err(refusal),
            }
        }
        Ok((all, left_out))
    }

    /// Sets what was in an export: nothing of it where a name is there already and is not to be replaced.
    pub async fn import(
        &mut self,
        wiring: &VaultWiring,
        by: &Entry,
        found: &[(String, Secret)],
        replace: bool,
    ) -> Result<usize, VaultRefusal> {
        let known = found
            .iter()
            .filter(|(name, _)| self.rows.get(Space::Secrets, name).is_some())
            .count();
        if known > 0 && !replace {
            return Err(VaultRefusal::Exists(known));
        }
        if self.rows.secrets().count() + found.len() - known > wiring.config.max_records {
            return Err(VaultRefusal::Full(wiring.config.max_records));
        }
        let now = wiring.clock.now();
        for some in found.chunks(IMPORTED) {
            let mut change = self.rows.manifest.next(some.len() as u64);
            let mut edits = vec![];
            for (name, value) in some {
                let about = (self.meta(name, now), self.binds(Space::Secrets, name));
                edits.push(self.sealed(&mut change, Space::Secrets, name, about, value)?);
            }
            let entry =
                of_vault(by.clone(), "vault.import").with("records", some.len().to_string());
            self.change(wiring, entry, change, edits, None).await?;
        }
        Ok(found.len())
    }

    /// Of a new value under this name.
    fn meta(&self, name: &str, now: Millis) -> RecordMeta {
        let before = self
            .rows
            .get(Space::Secrets, name)
            .and_then(|row| row.state.ok());
        // Also of a record that is damaged: no version comes twice.
        let known = self.rows.manifest.get(&Space::Secrets.id(name));
        RecordMeta {
            version: known.map_or(0, |entry| entry.version) + 1,
            created_at_ms: before.map_or(now, |meta| meta.created_at_ms),
            updated_at_ms: now,
        }
    }

    /// A key of another room: one that was taken along, else derived of the root key.
    pub async fn derived(
        &self,
        wiring: &VaultWiring,
        label: KeyLabel,
    ) -> Result<Key, VaultRefusal> {
        if self.rows.get(Space::Keys, label.record()).is_none() {
            return Ok(self.keys.derived(label.text()));
        }
        let (_, secret) = self.read(wiring, Space::Keys, label.record()).await?;
        let bytes: [u8; 32] = secret
            .expose()
            .try_into()
            .map_err(|_| VaultError::RecordCorrupt)?;
        Ok(Key::new(bytes))
    }

    pub fn status(&self) -> OpenStatus {
        let (manifest, unlockers) = (&self.rows.manifest, self.rows.header.unlockers());
        OpenStatus {
            records: self.rows.secrets().count(),
            unreadable: self
                .rows
                .secrets()
                .filter(|(_, row)| row.state.is_err())
                .count(),
            generation: manifest.generation(),
            epoch: manifest.epoch().term,
            seals: manifest.epoch().seals,
            to_seal_anew: self.stale(),
            unlockers: unlockers.len(),
            has_recovery: unlockers.iter().any(|one| one.kind() == Kind::Recovery),
            is_locked_in_memory: self.locked.is_whole(),
            opens_by_itself: unlockers.iter().any(|one| one.kind().is_automatic()),
        }
    }

    /// Records under an older key than the present one.
    pub fn stale(&self) -> usize {
        self.rows
            .records
            .values()
            .filter(|row| row.is_stale)
            .count()
    }

    /// A new data key. What is sealed already follows by [`Self::seal_anew`].
    pub async fn rotate(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
    ) -> Result<(u32, usize), VaultRefusal> {
        let mut change = self.rows.manifest.next(0);
        change.begin_epoch(1);
        let term = change.epoch().term;
        let entry = of_vault(by, "vault.rotate").with("epoch", term.to_string());
        self.change(wiring, entry, change, vec![], None).await?;
        self.all_are_stale();
        Ok((term, self.stale()))
    }

    fn all_are_stale(&mut self) {
        for row in self.rows.records.values_mut() {
            row.is_stale = row.state.is_ok();
        }
    }

    /// Seals some of the records that are under an older key under the present one. `true`: there are more. When there are
    /// none, the root key before is forgotten.
    pub async fn seal_anew(&mut self, wiring: &VaultWiring) -> Result<bool, VaultRefusal> {
        let stale = self.rows.records.iter().filter(|(_, row)| row.is_stale);
        let some: Vec<(Space, String)> = stale.map(|(place, _)| place.clone()).take(ANEW).collect();
        let by = Entry {
            principal: Some("system".to_owned()),
            ..Entry::default()
        };
        if some.is_empty() {
            if self.rows.header.has_previous() {
                let change = self.rows.manifest.next(0);
                let header = self.rows.header.without_previous();
                let entry = of_vault(by, "vault.rekey.end");
                self.change(wiring, entry, change, vec![], Some(header))
                    .await?;
                self.keys.forget_previous();
                self.lock();
            }
            return Ok(false);
        }
        let mut change = self.rows.manifest.next(some.len() as u64);
        let mut edits = vec![];
        for (space, name) in some {
            match self.read(wiring, space, &name).await {
                Ok((meta, secret)) => {
                    let about = (meta, self.binds(space, &name));
                    edits.push(self.sealed(&mut change, space, &name, about, &secret)?);
                }
                // It was altered while we run: it stays as it is, and is named.
                Err(VaultRefusal::Vault(error)) => {
                    if let Some(row) = self.rows.records.get_mut(&(space, name)) {
                        row.state = Err(error);
                        row.is_stale = false;
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
        if !edits.is_empty() {
            let entry = of_vault(by, "vault.reseal").with("records", edits.len().to_string());
            self.change(wiring, entry, change, edits, None).await?;
        }
        Ok(true)
    }

    pub async fn add_unlocker(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        made: Unlocker,
        replaces: Option<&str>,
    ) -> Result<(), VaultRefusal> {
        let entry = of_vault(by, "vault.unlocker.add")
            .with("unlocker", made.id())
            .with("kind", made.kind().as_str());
        let (header, entry) = match replaces {
            None => (self.rows.header.with(made)?, entry),
            Some(old) => {
                self.rows.header.unlocker(old)?;
                let entry = entry.with("replaces", old);
                (self.rows.header.replaced(old, made), entry)
            }
        };
        let change = self.rows.manifest.next(0);
        self.change(wiring, entry, change, vec![], Some(header))
            .await
    }

    pub async fn remove_unlocker(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        id: &str,
    ) -> Result<(), VaultRefusal> {
        let header = self.rows.header.without(id)?;
        let entry = of_vault(by, "vault.unlocker.remove").with("unlocker", id);
        let change = self.rows.manifest.next(0);
        self.change(wiring, entry, change, vec![], Some(header))
            .await
    }

    /// A new root key: one change has the header, a new epoch, and the keys of other rooms. What is sealed already follows
    /// by [`Self::seal_anew`]; until then the old root key lies in the header, sealed under the new one.
    pub async fn rekey(
        &mut self,
        wiring: &VaultWiring,
        by: Entry,
        before: &Header,
        wrapped: Wrapped,
    ) -> Result<Rekeyed, VaultRefusal> {
        // An unlocker came or went meanwhile, or the last new root key is not everywhere yet.
        if self.rows.header != *before || before.has_previous() {
            return Err(VaultRefusal::Overloaded);
        }
        let new = self
            .keys
            .rekeyed(wrapped.root, self.rows.manifest.epoch().term);
        let nonce = random().map_err(|_| VaultError::HeaderCorrupt)?;
        let header = self.rows.header.rekeyed(&new, wrapped.unlockers, &nonce);
        let labels = KeyLabel::ALL
            .into_iter()
            .filter(|label| self.rows.get(Space::Keys, label.record()).is_none());
        let mut change = self.rows.manifest.next(0);
        change.begin_epoch(1 + KeyLabel::ALL.len() as u64);
        let old = std::mem::replace(&mut self.keys, new);
        let now = wiring.clock.now();
        let meta = RecordMeta {
            version: 1,
            created_at_ms: now,
            updated_at_ms: now,
        };
        let edits: Result<Vec<Edit>, VaultError> = labels
            .map(|label| {
                let value = Secret::new(old.derived(label.text()).expose().to_vec());
                let about = (meta, Binds::default());
                self.sealed(&mut change, Space::Keys, label.record(), about, &value)
            })
            .collect();
        let entry = of_vault(by, "vault.rekey");
        let done = match edits {
            Ok(edits) => {
                self.change(wiring, entry, change, edits, Some(header))
                    .await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(refusal) = done {
            self.keys = old;
            return Err(refusal);
        }
        let term = self.rows.manifest.epoch().term;
        self.all_are_stale();
        for label in KeyLabel::ALL {
            let place = (Space::Keys, label.record().to_owned());
            if let Some(row) = self.rows.records.get_mut(&place) {
                // Those that this change has sealed.
                row.is_stale = row.state.is_ok_and(|state| state != meta);
            }
        }
        tracing::info!(target: "portcullis", term, "the vault has a new root key");
        Ok(Rekeyed {
            codes: wrapped.codes,
        })
    }

    /// Other keys lie elsewhere. The old pages go first: one page may hold both, and is let go with them.
    fn lock(&mut self) {
        self.locked = Locked::none();
        self.keys.hold(self.rows.manifest.epoch().term);
        self.locked = Locked::of(&self.keys);
    }

    pub fn shown_unlockers(header: &Header) -> Vec<ShownUnlocker> {
        let shown = |one: &Unlocker| ShownUnlocker {
            id: one.id().to_owned(),
            kind: one.kind(),
            source: one.source().cloned(),
            created_at_ms: one.created_at(),
            log_n: one.kdf().log_n,
            is_bound_to_machine: one.is_bound(),
        };
        header.unlockers().iter().map(shown).collect()
    }

    /// Seals a record and enters it into a change.
    fn sealed(
        &self,
        change: &mut Change,
        space: Space,
        name: &str,
        (meta, binds): (RecordMeta, Binds),
        value: &Secret,
    ) -> Result<Edit, VaultError> {
        let nonce = random().map_err(|_| VaultError::HeaderCorrupt)?;
        let (term, place) = (change.epoch().term, (space.name(), name));
        let about = (meta, binds.clone());
        let record = SealedRecord::seal(&self.keys, term, place, about, &nonce, value)?;
        let stored = serde_json::to_vec(&record).map_err(|_| VaultError::ValueInvalid)?;
        change.put(&space.id(name), meta.version, &stored);
        Ok(Edit::Put {
            space,
            name: name.to_owned(),
            meta,
            binds,
            stored,
        })
    }

    async fn change(
        &mut self,
        wiring: &VaultWiring,
        entry: Entry,
        change: Change,
        edits: Vec<Edit>,
        header: Option<Header>,
    ) -> Result<(), VaultRefusal> {
        let Self {
            keys, rows, marked, ..
        } = self;
        let parts = Parts {
            edits,
            header,
            ..Parts::default()
        };
        let done = rows.change(wiring, keys, entry, change, parts).await?;
        *marked = done.intent;
        // A new epoch has new keys.
        if self.keys.held() != Some(self.rows.manifest.epoch().term) {
            self.lock();
        }
        Ok(())
    }
}

fn described(by: Entry, action: &str, name: &str) -> Entry {
    Entry {
        action: action.to_owned(),
        object: Some(format!("secret:{name}")),
        ..by
    }
}

pub(super) fn of_vault(by: Entry, action: &str) -> Entry {
    Entry {
        action: action.to_owned(),
        object: Some("vault".to_owned()),
        ..by
    }
}
