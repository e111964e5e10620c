//! Unlockers: each wraps the root key under a key of its own, which scrypt (RFC 7914) makes of a secret.
//!
//! ```text
//! secret --scrypt(N, r, p, salt, context)--> wrapping key --AES-256-GCM--> root key
//! ```
//!
//! What stands beside the wrapped key (its id, kind, cost, salt, source) is its associated data, and all of the header is
//! named by the manifest: none can be altered, exchanged or put back.

use super::VaultError;
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::identity::Identity;
use crate::seal::{Key, NONCE, Secret, join};
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

const DOMAIN: &[u8] = b"portcullis-vault-unlocker-v2";
const FIRST_DOMAIN: &[u8] = b"portcullis-vault-header-v1";
/// Shortest passphrase, characters.
pub const MIN_PASSPHRASE: usize = 12;
/// Shortest content of a key file, bytes.
pub const MIN_KEY_FILE: usize = 32;
/// Longest secret of an unlocker, bytes.
pub const MAX_UNLOCK: usize = 64 * 1024;

/// Cost of scrypt (RFC 7914). Floor and ceiling hold for every header that is read: a lower cost would weaken what is
/// sealed, a higher one would let an altered header exhaust memory (128 * N * r bytes: 256 MiB at most) and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Kdf {
    /// log2 of N, 17 or 18.
    pub log_n: u8,
    /// Block size, 8.
    pub r: u32,
    /// Parallelism, 1 or 2.
    pub p: u32,
}

impl Kdf {
    /// N = 2^17, r = 8, p = 1: 128 MiB and about 0.8 s.
    pub const DEFAULT: Self = Self {
        log_n: 17,
        r: 8,
        p: 1,
    };

    pub(super) fn is_allowed(self) -> bool {
        (17..=18).contains(&self.log_n) && self.r == 8 && (1..=2).contains(&self.p)
    }

    /// Slow by design: never on an actor's loop.
    pub(super) fn run(self, password: &[u8], salt: &[u8]) -> Result<Key, VaultError> {
        if !self.is_allowed() {
            return Err(VaultError::HeaderCorrupt);
        }
        let mut key = Zeroizing::new([0; 32]);
        self.fill(password, salt, &mut *key)?;
        Ok(Key::new(*key))
    }

    /// Whatever the cost: limits are the caller's.
    pub(super) fn fill(
        self,
        password: &[u8],
        salt: &[u8],
        key: &mut [u8],
    ) -> Result<(), VaultError> {
        let params = scrypt::Params::new(self.log_n, self.r, self.p)
            .map_err(|_| VaultError::HeaderCorrupt)?;
        scrypt::scrypt(password, salt, &params, key).map_err(|_| VaultError::HeaderCorrupt)
    }

    fn bytes(self) -> [u8; 9] {
        let mut bytes = [0; 9];
        bytes[0] = self.log_n;
        bytes[1..5].copy_from_slice(&self.r.to_be_bytes());
        bytes[5..].copy_from_slice(&self.p.to_be_bytes());
        bytes
    }
}

/// What opens the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The machine's identity key, on the machine with this machine-id.
    Machine,
    /// What a person types.
    Passphrase,
    /// The content of a file, or of a systemd credential.
    File,
    /// A code that was shown once.
    Recovery,
}

impl Kind {
    /// The word in records and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Passphrase => "passphrase",
            Self::File => "file",
            Self::Recovery => "recovery",
        }
    }

    /// Does it open without a person?
    pub const fn is_automatic(self) -> bool {
        matches!(self, Self::Machine | Self::File)
    }
}

/// Where the secret of a [`Kind::File`] comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// An absolute path.
    File(String),
    /// A name in `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).
    Credential(String),
}

impl KeySource {
    fn text(&self) -> String {
        match self {
            Self::File(path) => format!("file:{path}"),
            Self::Credential(name) => format!("credential:{name}"),
        }
    }
}

/// What an unlocker is opened or made with.
pub enum UnlockSecret<'a> {
    /// For [`Kind::Machine`].
    Machine {
        /// The machine's key.
        identity: &'a Identity,
        /// `/etc/machine-id` (machine-id(5)), where there is one.
        machine_id: Option<&'a str>,
    },
    /// Every other kind.
    Bytes(&'a Secret),
}

impl UnlockSecret<'_> {
    fn password(&self) -> Secret {
        match self {
            Self::Machine { identity, .. } => {
                Secret::new(identity.vault_password().expose().to_vec())
            }
            Self::Bytes(secret) => Secret::new(secret.expose().to_vec()),
        }
    }

    fn context(&self) -> &[u8] {
        match self {
            Self::Machine { machine_id, .. } => machine_id.unwrap_or_default().as_bytes(),
            Self::Bytes(_) => b"",
        }
    }
}

/// Random bytes for one unlocker.
pub struct UnlockerRandom {
    /// Names it.
    pub id: [u8; 4],
    /// scrypt's salt.
    pub salt: [u8; 32],
    /// Nonce of the wrap.
    pub nonce: [u8; NONCE],
}

/// As stored (JSON). Binary fields are hex or base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Unlocker {
    id: String,
    kind: Kind,
    created_at_ms: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<KeySource>,
    /// Tells another identity from a damaged header, before scrypt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_check: Option<String>,
    /// The same of the machine-id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine_check: Option<String>,
    kdf: Kdf,
    salt: String,
    nonce: String,
    wrapped_root: String,
    /// Wrapped as the first form of the header did.
    #[serde(skip)]
    is_first_form: bool,
}

impl Unlocker {
    /// Wraps the root key. Runs scrypt.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn make(
        (store_id, root): (&[u8; 16], &Key),
        kind: Kind,
        source: Option<KeySource>,
        secret: &UnlockSecret<'_>,
        now: Millis,
        random: &UnlockerRandom,
    ) -> Result<Self, VaultError> {
        let kdf = Kdf::DEFAULT;
        let (identity_check, machine_check) = match secret {
            UnlockSecret::Machine {
                identity,
                machine_id,
            } => (
                Some(hex(&identity.check())),
                machine_id.map(|id| hex(&machine_check(store_id, id))),
            ),
            UnlockSecret::Bytes(_) => (None, None),
        };
        let mut made = Self {
            id: hex(&random.id),
            kind,
            created_at_ms: now,
            source,
            identity_check,
            machine_check,
            kdf,
            salt: hex(&random.salt),
            nonce: hex(&random.nonce),
            wrapped_root: String::new(),
            is_first_form: false,
        };
        let salt = join(&[&random.salt, secret.context()]);
        let wrapping = kdf.run(secret.password().expose(), &salt)?;
        let wrapped = made.with_aad(store_id, &random.salt, |aad| {
            wrapping.seal(&random.nonce, aad, root.expose())
        });
        made.wrapped_root = base64url(&wrapped);
        Ok(made)
    }

    /// Of a header of the first form.
    pub(super) fn first_form(
        check: String,
        kdf: Kdf,
        salt: String,
        nonce: String,
        wrapped_root: String,
    ) -> Self {
        Self {
            id: "00000000".to_owned(),
            kind: Kind::Machine,
            created_at_ms: Millis::default(),
            source: None,
            identity_check: Some(check),
            machine_check: None,
            kdf,
            salt,
            nonce,
            wrapped_root,
            is_first_form: true,
        }
    }

    /// Unwraps the root key. Runs scrypt, but not for what is known beforehand not to open.
    ///
    /// # Errors
    /// [`VaultError::Wrong`] for a wrong secret; [`VaultError::IdentityMismatch`], [`VaultError::OtherMachine`],
    /// [`VaultError::HeaderCorrupt`].
    pub fn open(&self, store_id: &[u8; 16], secret: &UnlockSecret<'_>) -> Result<Key, VaultError> {
        let read = || {
            let salt: [u8; 32] = unhex(&self.salt)?;
            let nonce: [u8; NONCE] = unhex(&self.nonce)?;
            Some((salt, nonce, from_base64url(&self.wrapped_root)?))
        };
        let (salt, nonce, wrapped) = read()
            .filter(|_| self.kdf.is_allowed())
            .ok_or(VaultError::HeaderCorrupt)?;
        // With the right machine everything is known: what does not open then was altered.
        let otherwise = match secret {
            UnlockSecret::Machine {
                identity,
                machine_id,
            } => {
                if self.identity_check.as_deref() != Some(&hex(&identity.check())) {
                    return Err(VaultError::IdentityMismatch);
                }
                let here = machine_id.map(|id| hex(&machine_check(store_id, id)));
                if self.machine_check.is_some() && self.machine_check != here {
                    return Err(VaultError::OtherMachine);
                }
                VaultError::HeaderCorrupt
            }
            UnlockSecret::Bytes(_) => VaultError::Wrong,
        };
        let context = match self.machine_check {
            Some(_) => secret.context(),
            None => b"",
        };
        let salted = if self.is_first_form {
            salt.to_vec()
        } else {
            join(&[&salt, context])
        };
        let root = self
            .kdf
            .run(secret.password().expose(), &salted)
            .map(|wrapping| {
                self.with_aad(store_id, &salt, |aad| wrapping.open(&nonce, aad, &wrapped))
            })?
            .ok_or(otherwise)?;
        let root: [u8; 32] = root
            .expose()
            .try_into()
            .map_err(|_| VaultError::HeaderCorrupt)?;
        Ok(Key::new(root))
    }

    /// Names it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it takes.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Where its secret comes from.
    pub const fn source(&self) -> Option<&KeySource> {
        self.source.as_ref()
    }

    /// When it was made.
    pub const fn created_at(&self) -> Millis {
        self.created_at_ms
    }

    /// Its cost.
    pub const fn kdf(&self) -> Kdf {
        self.kdf
    }

    /// Does it open on one machine only?
    pub const fn is_bound(&self) -> bool {
        self.machine_check.is_some()
    }

    /// Is it to be made anew in the present form?
    pub const fn is_first_form(&self) -> bool {
        self.is_first_form
    }

    fn with_aad<T>(
        &self,
        store_id: &[u8; 16],
        salt: &[u8; 32],
        use_it: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        let cost = self.kdf.bytes();
        if self.is_first_form {
            let check: Option<[u8; 8]> = self.identity_check.as_deref().and_then(unhex);
            return use_it(&[
                FIRST_DOMAIN,
                store_id,
                &check.unwrap_or_default(),
                &cost,
                salt,
            ]);
        }
        let source = self.source.as_ref().map(KeySource::text);
        use_it(&[
            DOMAIN,
            store_id,
            self.id.as_bytes(),
            self.kind.as_str().as_bytes(),
            &self.created_at_ms.0.to_be_bytes(),
            source.unwrap_or_default().as_bytes(),
            self.identity_check
                .as_deref()
                .unwrap_or_default()
                .as_bytes(),
            self.machine_check.as_deref().unwrap_or_default().as_bytes(),
            &cost,
            salt,
        ])
    }
}

/// Is it good enough to be kept?
///
/// # Errors
/// [`VaultError::UnlockSecret`].
pub fn check_unlock_secret(kind: Kind, secret: &Secret) -> Result<(), VaultError> {
    let long_enough = match kind {
        Kind::Passphrase => std::str::from_utf8(secret.expose())
            .is_ok_and(|text| text.chars().count() >= MIN_PASSPHRASE),
        Kind::File => secret.len() >= MIN_KEY_FILE,
        Kind::Machine | Kind::Recovery => true,
    };
    if long_enough && secret.len() <= MAX_UNLOCK {
        return Ok(());
    }
    Err(VaultError::UnlockSecret)
}

/// Not the machine-id itself: machine-id(5) asks that it be hashed with something of one's own.
fn machine_check(store_id: &[u8; 16], machine_id: &str) -> [u8; 8] {
    let digest = Sha256::digest(join(&[
        b"portcullis-vault-machine-v1",
        store_id,
        machine_id.as_bytes(),
    ]));
    let mut check = [0; 8];
    check.copy_from_slice(&digest[..8]);
    check
}
