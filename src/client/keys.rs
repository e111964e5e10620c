//! What our own clients keep: the device's keys and tokens, sealed as the vault seals secrets, under an identity of the
//! client's own.
//!
//! `keys.json` is the vault's header and its sealed records (`core::vault`), in one private file that is replaced whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use portcullis_core::codes;
use portcullis_core::identity::Identity;
use portcullis_core::seal::{Key, NONCE, Secret};
use portcullis_core::time::Millis;
use portcullis_core::vault::{
    self, Binds, Header, Kind, RecordMeta, SealedRecord, UnlockSecret, Unlocker, UnlockerRandom,
    VaultError, VaultKeys,
};
use serde::{Deserialize, Serialize};

use crate::above;
use crate::cli::Failure;
use crate::files;
use crate::identity;
use crate::random::random;
use crate::show::text::now_ms;

const FORMAT: u8 = 1;
const NAMESPACE: &str = "client";
const EPOCH: u32 = 1;
/// A client has no audit log of its own: its records rest on no intent.
const INTENT: u64 = 0;

/// Where a client's keys are, and the identity that opens them.
#[derive(Debug, Clone)]
pub struct Place {
    /// Private folder.
    pub folder: PathBuf,
    /// Identity file, outside the folder.
    pub identity: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    v: u8,
    /// In any form that [`Header::parse`] knows.
    header: serde_json::Value,
    records: BTreeMap<String, SealedRecord>,
}

/// The open store. Cannot be printed.
pub struct Keys {
    place: Place,
    keys: VaultKeys,
}

impl Place {
    /// `--client-keys`, else `PORTCULLIS_CLIENT_DIR`, `XDG_STATE_HOME/portcullis-client` or
    /// `~/.local/state/portcullis-client`; the identity from `PORTCULLIS_CLIENT_IDENTITY_FILE`, else
    /// `XDG_CONFIG_HOME/portcullis/client.key` or `~/.config/portcullis/client.key`.
    ///
    /// # Errors
    /// `INVALID_PARAMS` when nothing is set.
    pub fn find(flag: Option<&Path>) -> Result<Self, Failure> {
        let var = |name: &str| {
            let value = std::env::var_os(name).filter(|v| !v.is_empty());
            value.map(PathBuf::from)
        };
        let base = |name: &str, home: &str| {
            var(name)
                .filter(|path| path.is_absolute())
                .or_else(|| var("HOME").map(|path| path.join(home)))
        };
        let folder = flag
            .map(Path::to_path_buf)
            .or_else(|| var("PORTCULLIS_CLIENT_DIR"))
            .or_else(|| {
                base("XDG_STATE_HOME", ".local/state").map(|b| b.join("portcullis-client"))
            });
        let identity = var("PORTCULLIS_CLIENT_IDENTITY_FILE").or_else(|| {
            base("XDG_CONFIG_HOME", ".config").map(|b| b.join("portcullis/client.key"))
        });
        match (folder, identity) {
            (Some(folder), Some(identity)) => Ok(Self { folder, identity }),
            _ => Err(Failure::of(
                codes::INVALID_PARAMS,
                "no place for this client's keys: neither --client-keys nor HOME is set",
            )
            .hint("set HOME, or PORTCULLIS_CLIENT_DIR and PORTCULLIS_CLIENT_IDENTITY_FILE")),
        }
    }

    /// What no command may reach.
    pub fn paths(&self) -> Vec<PathBuf> {
        vec![self.folder.clone(), self.identity.clone()]
    }

    fn file(&self) -> PathBuf {
        self.folder.join("keys.json")
    }

    /// Held while the file is read and replaced.
    fn lock(&self) -> Result<File, Failure> {
        let path = self.folder.join("lock");
        let failed = |e: std::io::Error| Failure::io(codes::STATE_MODE, path.display(), &e);
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags(
                rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK,
            ))
            .open(&path)
            .map_err(failed)?;
        if !lock.metadata().map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("is no file")));
        }
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| failed(e.into()))?;
        Ok(lock)
    }

    /// Made private, or found so.
    fn make_folder(&self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::io(codes::STATE_MODE, self.folder.display(), &e);
        self.check_above()?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(failed)?;
        let meta = std::fs::symlink_metadata(&self.folder).map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        let why = if !meta.is_dir() {
            "is no folder".to_owned()
        } else if meta.uid() != own {
            format!("belongs to uid {}", meta.uid())
        } else if meta.mode() & 0o077 != 0 {
            format!("has mode {:04o}", meta.mode() & 0o7777)
        } else {
            return self.check_above();
        };
        let at = self.folder.display();
        Err(Failure::of(
            codes::STATE_MODE,
            format!("{at} {why}: others could reach the keys; run: chmod 700 {at}"),
        ))
    }

    /// Who may write a folder above puts keys of his own there.
    fn check_above(&self) -> Result<(), Failure> {
        let at = self.folder.display();
        match above::open_above(&self.folder) {
            Ok(None) => Ok(()),
            Ok(Some(open)) => Err(Failure::of(
                codes::STATE_MODE,
                format!("others could put another folder in the place of {at}: {open}"),
            )
            .hint(format!(
                "chmod go-w {}, or choose another with --client-keys DIR",
                open.folder.display()
            ))),
            Err(e) => Err(Failure::io(
                codes::STATE_MODE,
                format!("the folders above {at}"),
                &e,
            )),
        }
    }

    fn read(&self) -> Result<Option<Kept>, Failure> {
        let Some(bytes) = identity::read_private(&self.file()).map_err(|e| of_file(&e))? else {
            return Ok(None);
        };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|_| self.damaged())?;
        if kept.v != FORMAT {
            return Err(Failure::of(
                codes::STATE_FORMAT,
                format!("{}: made by a newer Portcullis", self.file().display()),
            ));
        }
        Ok(Some(kept))
    }

    /// The whole file or none of it: beside it, synced, then in its place.
    fn write(&self, kept: &Kept) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::io(codes::STATE_MODE, self.file().display(), &e);
        let text = serde_json::to_vec(kept).map_err(|e| failed(e.into()))?;
        files::replace(&self.file(), &text).map_err(failed)
    }

    fn damaged(&self) -> Failure {
        Failure::of(
            codes::STATE_CORRUPT,
            format!("{}: altered or damaged", self.file().display()),
        )
        .hint("restore it from your backup; or move it away, and pair this client anew")
    }

    fn sealed(&self, error: VaultError) -> Failure {
        match error {
            VaultError::IdentityMismatch => Failure::of(
                codes::IDENTITY_MISMATCH,
                format!(
                    "{}: sealed under another identity than {}",
                    self.file().display(),
                    self.identity.display()
                ),
            )
            .hint("point PORTCULLIS_CLIENT_IDENTITY_FILE at the right file"),
            _ => self.damaged(),
        }
    }
}

impl Keys {
    /// Opens the store, or makes one. Blocks, and takes a second: the vault's key is derived.
    ///
    /// # Errors
    /// `STATE_MODE`, `IDENTITY_MISMATCH`, `STATE_CORRUPT` and what the disk says.
    pub fn open(place: Place) -> Result<Self, Failure> {
        place.make_folder()?;
        let (identity, _) =
            identity::open_or_make(&place.identity, &place.folder).map_err(|e| of_file(&e))?;
        let _lock = place.lock()?;
        let keys = match place.read()? {
            Some(kept) => {
                let stored = kept.header.to_string();
                let header = Header::parse(stored.as_bytes()).map_err(|e| place.sealed(e))?;
                let id = header.unlockers().first().map_or("", Unlocker::id);
                header
                    .open(id, &machine(&identity))
                    .map_err(|e| place.sealed(e))?
            }
            None => make(&place, &identity)?,
        };
        Ok(Self { place, keys })
    }

    /// Opens one record.
    ///
    /// # Errors
    /// `STATE_CORRUPT`: it was altered.
    pub fn get(&self, name: &str) -> Result<Option<Secret>, Failure> {
        let kept = self.place.read()?.ok_or_else(|| self.place.damaged())?;
        self.open_record(&kept, name)
    }

    fn open_record(&self, kept: &Kept, name: &str) -> Result<Option<Secret>, Failure> {
        let record = kept.records.get(name);
        let at = vault::Place {
            namespace: NAMESPACE,
            name,
            intent: INTENT,
        };
        let opened = record.map(|r| r.open(&self.keys, at));
        opened.transpose().map_err(|e| self.place.sealed(e))
    }

    /// Seals and keeps one record, in place of an older one.
    ///
    /// # Errors
    /// What the disk says; the older one stands.
    pub fn put(&self, name: &str, value: &Secret) -> Result<(), Failure> {
        let _lock = self.place.lock()?;
        let kept = self.place.read()?.ok_or_else(|| self.place.damaged())?;
        self.seal_into(kept, name, value)
    }

    /// The record of this name, made once: who comes second finds the first one's.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn get_or_make(
        &self,
        name: &str,
        fresh: impl FnOnce() -> Result<Secret, Failure>,
    ) -> Result<Secret, Failure> {
        let _lock = self.place.lock()?;
        let kept = self.place.read()?.ok_or_else(|| self.place.damaged())?;
        if let Some(found) = self.open_record(&kept, name)? {
            return Ok(found);
        }
        let made = fresh()?;
        self.seal_into(kept, name, &made)?;
        Ok(made)
    }

    fn seal_into(&self, mut kept: Kept, name: &str, value: &Secret) -> Result<(), Failure> {
        let now = Millis(now_ms());
        let before = kept.records.get(name).map(SealedRecord::meta);
        let meta = RecordMeta {
            version: before.map_or(1, |m| m.version.saturating_add(1)),
            created_at_ms: before.map_or(now, |m| m.created_at_ms),
            updated_at_ms: now,
        };
        let nonce = random::<NONCE>()?;
        let place = (NAMESPACE, name);
        let sealed = SealedRecord::seal(
            &self.keys,
            EPOCH,
            place,
            (meta, Binds::default()),
            &nonce,
            value,
        )
        .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))?;
        kept.records.insert(name.to_owned(), sealed);
        self.place.write(&kept)
    }
}

/// Bound to no machine: a home directory may be several machines'.
const fn machine(identity: &Identity) -> UnlockSecret<'_> {
    UnlockSecret::Machine {
        identity,
        machine_id: None,
    }
}

fn make(place: &Place, identity: &Identity) -> Result<VaultKeys, Failure> {
    let keys = VaultKeys::new(Key::new(random()?), random()?);
    let fresh = UnlockerRandom {
        id: random()?,
        salt: random()?,
        nonce: random()?,
    };
    let (secret, now) = (machine(identity), Millis(now_ms()));
    let unlocker = Unlocker::make(keys.root(), Kind::Machine, None, &secret, now, &fresh)
        .map_err(|e| place.sealed(e))?;
    let header = serde_json::to_value(Header::new(&keys, vec![unlocker]))
        .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))?;
    place.write(&Kept {
        v: FORMAT,
        header,
        records: BTreeMap::new(),
    })?;
    Ok(keys)
}

fn of_file(error: &identity::KeyFileError) -> Failure {
    let code = codes::find(error.code()).unwrap_or(codes::STATE_MODE);
    Failure::of(code, error.to_string())
}

fn flags(flags: rustix::fs::OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn place(folder: &tempfile::TempDir) -> Place {
        Place {
            folder: folder.path().join("client"),
            identity: folder.path().join("client.key"),
        }
    }

    fn code<T>(result: Result<T, Failure>) -> String {
        result.err().map(|f| f.code).unwrap_or_default()
    }

    /// The bug: with one key for all, a gateway that passed on the challenge of another had this client's proof for it.
    #[test]
    fn at_each_gateway_and_in_each_role_a_client_is_another_device() {
        use portcullis_core::auth::Role;
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(place(&folder)).unwrap();
        let id = |role, gateway: &str| {
            let device = super::super::device::Device::of(&keys, role, gateway);
            device.unwrap().id()
        };
        let one = id(Role::Operator, "A");
        assert_eq!(id(Role::Operator, "A"), one);
        assert_ne!(id(Role::Operator, "B"), one);
        assert_ne!(id(Role::Node, "A"), one);
    }

    #[test]
    fn what_a_client_keeps_is_sealed_private_made_once_and_opens_for_its_identity_alone() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(place(&folder)).unwrap();
        let value = Secret::new(b"planted-device-token".to_vec());
        keys.put("TOKEN_X", &value).unwrap();
        let made = keys
            .get_or_make("KEY_X", || Ok(Secret::new(vec![7; 32])))
            .unwrap();
        let again = Keys::open(place(&folder)).unwrap();
        let kept = again.get_or_make("KEY_X", || panic!("it exists")).unwrap();
        assert_eq!(made.expose(), kept.expose());
        let token = again.get("TOKEN_X").unwrap().unwrap();
        assert_eq!(token.expose(), b"planted-device-token");
        assert!(again.get("TOKEN_Y").unwrap().is_none());
        // Nothing of it is in the clear, nothing is left beside it, and all is private.
        for entry in std::fs::read_dir(place(&folder).folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = path.metadata().unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o600, "{path:?}");
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(20).any(|w| w == b"planted-device-token"));
        }
        assert_eq!(
            std::fs::read_dir(place(&folder).folder).unwrap().count(),
            2,
            "the file and its lock"
        );
        // A record passes for no other, and not altered.
        let file = place(&folder).file();
        let text = std::fs::read_to_string(&file).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["records"]["TOKEN_Y"] = json["records"]["TOKEN_X"].clone();
        std::fs::write(&file, json.to_string()).unwrap();
        assert_eq!(code(again.get("TOKEN_Y")), "STATE_CORRUPT");
        assert!(again.get("TOKEN_X").unwrap().is_some());
        // Another identity opens nothing.
        std::fs::remove_file(place(&folder).identity).unwrap();
        assert_eq!(code(Keys::open(place(&folder))), "IDENTITY_MISMATCH");
    }

    #[test]
    fn keys_that_others_could_reach_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        drop(Keys::open(place(&folder)).unwrap());
        for (path, mode) in [
            (place(&folder).file(), 0o640),
            (place(&folder).identity, 0o604),
            (place(&folder).folder, 0o750),
        ] {
            let before = path.metadata().unwrap().permissions();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(code(Keys::open(place(&folder))), "STATE_MODE", "{path:?}");
            std::fs::set_permissions(&path, before).unwrap();
        }
        assert!(Keys::open(place(&folder)).is_ok());
        // The identity never lies beside what it opens.
        let inside = Place {
            identity: place(&folder).folder.join("client.key"),
            ..place(&folder)
        };
        assert_eq!(code(Keys::open(inside)), "IDENTITY_INVALID");
    }
}
