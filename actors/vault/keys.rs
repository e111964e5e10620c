//! Work with unlockers. Each runs scrypt, so it is done on a thread of its own, one at a time, and comes back as a message.

use super::files;
use super::messages::{Added, Around, NewUnlocker, Rekeyed, VaultRefusal};
use super::rows::{HeaderRow, random};
use crate::supervision::Reply;
use portcullis_core::audit::{Entry, Seq};
use portcullis_core::auth::limits::{Class, Source};
use portcullis_core::identity::Identity;
use portcullis_core::seal::{Key, Secret};
use portcullis_core::time::Millis;
use portcullis_core::vault::{
    Export, ExportRandom, Header, Kind, RECOVERY_BYTES, RecoveryCode, UnlockSecret, Unlocker,
    UnlockerRandom, VaultError, VaultKeys, check_unlock_secret,
};
use zeroize::Zeroizing;

/// The keys, fresh from the blocking thread.
pub struct Unlocked {
    pub(super) keys: VaultKeys,
    pub(super) header: Unlock,
    /// Which unlocker it was.
    pub(super) by: String,
}

/// Whose keys these are.
pub(super) enum Unlock {
    /// Of the vault that lies there; with what is to be stored in place of its header, where that has an old form.
    Stored(Box<HeaderRow>, Option<Header>),
    /// Of a new one: to be stored, if none was lost.
    Made(Box<Header>),
}

/// A passphrase that is being looked at: counted and on record before.
pub struct Try {
    pub(super) intent: Seq,
    /// Whose; nobody's where nothing was typed.
    pub(super) counted: Option<(Class, Source)>,
}

/// A person who opens a sealed vault.
pub struct Person {
    pub(super) tried: Try,
    /// Why it was sealed, and stays so if this opens nothing.
    pub(super) why: VaultError,
    pub(super) reply: Reply<(), VaultRefusal>,
}

/// What came of a thread's work.
pub enum Worked {
    /// At a start, or by a person.
    Unlocked(Result<Unlocked, VaultError>, Option<Person>),
    /// An unlocker was made.
    Made {
        /// With its code, if it is a recovery code.
        made: Result<(Unlocker, Option<Zeroizing<String>>), VaultError>,
        /// Whose place it takes.
        replaces: Option<String>,
        /// Who asked.
        by: Box<Entry>,
        /// The answer.
        reply: Reply<Added, VaultRefusal>,
    },
    /// An export was sealed.
    Exported {
        /// The file.
        made: Result<Export, VaultError>,
        /// Names that are not in it.
        left_out: Vec<String>,
        /// Its record.
        intent: Seq,
        /// The answer.
        reply: Reply<(Export, Vec<String>), VaultRefusal>,
    },
    /// An export was opened.
    Imported {
        /// What was in it.
        found: Result<Vec<(String, Secret)>, VaultError>,
        /// The passphrase that was tried.
        tried: Try,
        /// May it overwrite?
        replace: bool,
        /// Who asked.
        by: Box<Entry>,
        /// The answer.
        reply: Reply<usize, VaultRefusal>,
    },
    /// Every unlocker anew, for a new root key.
    Rekeyed {
        /// Them.
        made: Result<Wrapped, VaultError>,
        /// The passphrases that were tried.
        tried: Try,
        /// What they replace.
        before: Box<Header>,
        /// Who asked.
        by: Box<Entry>,
        /// The answer.
        reply: Reply<Rekeyed, VaultRefusal>,
    },
}

impl Worked {
    /// Does anybody wait for it still? What has an intent is to be ended in any case.
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Self::Unlocked(..)
            | Self::Exported { .. }
            | Self::Imported { .. }
            | Self::Rekeyed { .. } => true,
            Self::Made { reply, .. } => reply.is_wanted(),
        }
    }
}

/// A new root key in all its unlockers.
pub struct Wrapped {
    pub(super) root: Key,
    pub(super) unlockers: Vec<Unlocker>,
    pub(super) codes: Vec<(String, Zeroizing<String>)>,
}

/// What the thread needs of the room.
#[derive(Clone)]
pub(super) struct Machine {
    pub identity: Identity,
    pub around: Around,
    pub now: Millis,
}

fn no_random(_: getrandom::Error) -> VaultError {
    VaultError::HeaderCorrupt
}

fn unlocker_random() -> Result<UnlockerRandom, VaultError> {
    Ok(UnlockerRandom {
        id: random().map_err(no_random)?,
        salt: random().map_err(no_random)?,
        nonce: random().map_err(no_random)?,
    })
}

fn random_key() -> Result<Key, VaultError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(no_random)?;
    Ok(Key::new(*bytes))
}

impl Machine {
    fn secret(&self) -> UnlockSecret<'_> {
        UnlockSecret::Machine {
            identity: &self.identity,
            machine_id: self.around.machine_id.as_deref(),
        }
    }

    /// Opens the vault by whatever needs no person, in the header's order, or makes a new vault.
    pub fn unlock(&self, row: Option<HeaderRow>) -> Result<Unlocked, VaultError> {
        let Some(row) = row else {
            return self.new_vault();
        };
        let mut why = None;
        for unlocker in row.header.unlockers() {
            if !unlocker.kind().is_automatic() {
                continue;
            }
            match self.open_by_itself(&row.header, unlocker) {
                Ok(keys) => {
                    let by = named(unlocker);
                    let header = self.in_present_form(&row, &keys)?;
                    return Ok(Unlocked {
                        keys,
                        header: Unlock::Stored(Box::new(row), header),
                        by,
                    });
                }
                Err(error) => {
                    tracing::warn!(target: "portcullis", unlocker = named(unlocker), code = error.code(), "an unlocker does not open the vault");
                    why.get_or_insert(error);
                }
            }
        }
        Err(why.unwrap_or(VaultError::Locked))
    }

    fn open_by_itself(
        &self,
        header: &Header,
        unlocker: &Unlocker,
    ) -> Result<VaultKeys, VaultError> {
        match (unlocker.kind(), unlocker.source()) {
            (Kind::Machine, _) => header.open(unlocker.id(), &self.secret()),
            (_, Some(source)) => {
                let content = files::read(source, &self.around)?;
                header.open(unlocker.id(), &UnlockSecret::Bytes(&content))
            }
            (_, None) => Err(VaultError::HeaderCorrupt),
        }
    }

    /// What replaces a header of the first form: its one unlocker, bound to this machine.
    fn in_present_form(
        &self,
        row: &HeaderRow,
        keys: &VaultKeys,
    ) -> Result<Option<Header>, VaultError> {
        let Some(old) = row
            .header
            .unlockers()
            .iter()
            .find(|one| one.is_first_form())
        else {
            return Ok(None);
        };
        let made = self.machine_unlocker(keys.root())?;
        Ok(Some(row.header.replaced(old.id(), made)))
    }

    fn machine_unlocker(&self, root: (&[u8; 16], &Key)) -> Result<Unlocker, VaultError> {
        let random = unlocker_random()?;
        Unlocker::make(root, Kind::Machine, None, &self.secret(), self.now, &random)
    }

    /// Keys and header of a new vault, which the machine opens.
    pub fn new_vault(&self) -> Result<Unlocked, VaultError> {
        let keys = VaultKeys::new(random_key()?, random().map_err(no_random)?);
        let machine = self.machine_unlocker(keys.root())?;
        let by = named(&machine);
        let header = Header::new(&keys, vec![machine]);
        Ok(Unlocked {
            keys,
            header: Unlock::Made(Box::new(header)),
            by,
        })
    }

    /// Opens the vault by what a person typed.
    pub fn unlock_by(row: HeaderRow, id: &str, secret: &Secret) -> Result<Unlocked, VaultError> {
        let keys = row.header.open(id, &UnlockSecret::Bytes(secret))?;
        let by = named(row.header.unlocker(id)?);
        Ok(Unlocked {
            keys,
            header: Unlock::Stored(Box::new(row), None),
            by,
        })
    }

    /// One more unlocker, and its code if it is a recovery code.
    pub fn make(
        &self,
        keys: &VaultKeys,
        new: &NewUnlocker,
    ) -> Result<(Unlocker, Option<Zeroizing<String>>), VaultError> {
        match new.kind {
            Kind::Machine => Ok((self.machine_unlocker(keys.root())?, None)),
            Kind::Recovery => {
                let (made, code) = self.recovery_unlocker(keys.root())?;
                Ok((made, Some(code)))
            }
            Kind::Passphrase => {
                let secret = new.secret.as_ref().ok_or(VaultError::UnlockSecret)?;
                Ok((self.of_bytes(keys.root(), new, secret)?, None))
            }
            Kind::File => {
                let source = new.source.as_ref().ok_or(VaultError::KeyFile)?;
                let content = files::read(source, &self.around)?;
                Ok((self.of_bytes(keys.root(), new, &content)?, None))
            }
        }
    }

    fn of_bytes(
        &self,
        root: (&[u8; 16], &Key),
        new: &NewUnlocker,
        secret: &Secret,
    ) -> Result<Unlocker, VaultError> {
        check_unlock_secret(new.kind, secret)?;
        let (secret, random) = (UnlockSecret::Bytes(secret), unlocker_random()?);
        Unlocker::make(
            root,
            new.kind,
            new.source.clone(),
            &secret,
            self.now,
            &random,
        )
    }

    fn recovery_unlocker(
        &self,
        root: (&[u8; 16], &Key),
    ) -> Result<(Unlocker, Zeroizing<String>), VaultError> {
        let code = RecoveryCode::from_random(random::<RECOVERY_BYTES>().map_err(no_random)?);
        let secret = code.secret();
        let (secret, random) = (UnlockSecret::Bytes(&secret), unlocker_random()?);
        let made = Unlocker::make(root, Kind::Recovery, None, &secret, self.now, &random)?;
        Ok((made, code.text()))
    }

    /// Every secret, sealed for elsewhere.
    pub fn export(
        &self,
        records: &[(String, Secret)],
        passphrase: &Secret,
    ) -> Result<Export, VaultError> {
        let random = ExportRandom {
            salt: random().map_err(no_random)?,
            nonce: random().map_err(no_random)?,
        };
        Export::seal(records, passphrase, self.now, &random)
    }

    /// A new root key for every unlocker that is not dropped: the machine and files anew, passphrases by what was typed
    /// (which must open the old one: a slip of the hand would lock out), recovery codes as new codes.
    pub fn rekey(
        &self,
        header: &Header,
        passphrases: &[(String, Secret)],
        drop: &[String],
    ) -> Result<Wrapped, VaultError> {
        let (store_id, root) = (header.store_id()?, random_key()?);
        let (mut unlockers, mut codes) = (vec![], vec![]);
        for id in drop {
            header.unlocker(id)?;
        }
        for old in header.unlockers() {
            if drop.iter().any(|id| id == old.id()) {
                continue;
            }
            let root = (&store_id, &root);
            let new = NewUnlocker {
                kind: old.kind(),
                secret: None,
                source: old.source().cloned(),
                replaces: None,
            };
            let made = match old.kind() {
                Kind::Machine => self.machine_unlocker(root)?,
                Kind::Recovery => {
                    let (made, code) = self.recovery_unlocker(root)?;
                    codes.push((made.id().to_owned(), code));
                    made
                }
                Kind::File => {
                    let source = old.source().ok_or(VaultError::HeaderCorrupt)?;
                    let content = files::read(source, &self.around)?;
                    let opened = old.open(&store_id, &UnlockSecret::Bytes(&content));
                    // Nobody guesses at a file.
                    opened.map_err(|error| match error {
                        VaultError::Wrong => VaultError::KeyFile,
                        other => other,
                    })?;
                    self.of_bytes(root, &new, &content)?
                }
                Kind::Passphrase => {
                    let typed = passphrases.iter().find(|(id, _)| id == old.id());
                    let (_, secret) = typed.ok_or(VaultError::PassphraseNeeded)?;
                    old.open(&store_id, &UnlockSecret::Bytes(secret))?;
                    self.of_bytes(root, &new, secret)?
                }
            };
            unlockers.push(made);
        }
        if unlockers.is_empty() {
            return Err(VaultError::LastUnlocker);
        }
        Ok(Wrapped {
            root,
            unlockers,
            codes,
        })
    }
}

/// As it stands in records.
fn named(unlocker: &Unlocker) -> String {
    format!("{}:{}", unlocker.kind().as_str(), unlocker.id())
}
