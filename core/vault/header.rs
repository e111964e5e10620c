//! The header: cost, salt and the wrapped root key.

use super::VaultError;
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::identity::Identity;
use crate::seal::{Key, NONCE};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const DOMAIN: &[u8] = b"portcullis-vault-header-v1";
const FORMAT: u8 = 1;

/// Cost of scrypt (RFC 7914). Floor and ceiling hold for every header that is read: a lower cost would weaken what is
/// sealed, a higher one would let an altered header exhaust memory (128 * N * r bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Kdf {
    /// log2 of N, 17 to 20.
    pub log_n: u8,
    /// Block size, 8.
    pub r: u32,
    /// Parallelism, 1 to 4.
    pub p: u32,
}

impl Kdf {
    /// N = 2^17, r = 8, p = 1: 128 MiB and about 0.8 s.
    pub const DEFAULT: Self = Self {
        log_n: 17,
        r: 8,
        p: 1,
    };

    fn allowed(self) -> bool {
        (17..=20).contains(&self.log_n) && self.r == 8 && (1..=4).contains(&self.p)
    }

    /// Slow by design: never on an actor's loop.
    fn run(self, password: &Key, salt: &[u8]) -> Result<Key, VaultError> {
        let params = scrypt::Params::new(self.log_n, self.r, self.p)
            .map_err(|_| VaultError::HeaderCorrupt)?;
        let mut key = Zeroizing::new([0; 32]);
        scrypt::scrypt(password.expose(), salt, &params, &mut *key)
            .map_err(|_| VaultError::HeaderCorrupt)?;
        Ok(Key::new(*key))
    }
}

/// As stored (JSON). Binary fields are hex or base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Header {
    v: u8,
    store_id: String,
    identity_check: String,
    kdf: Kdf,
    salt: String,
    nonce: String,
    wrapped_root: String,
}

/// Random bytes for a new vault, all from the operating system.
pub struct HeaderRandom {
    /// Names the vault in every record.
    pub store_id: [u8; 16],
    /// scrypt's salt.
    pub salt: [u8; 32],
    /// The root key.
    pub root: Key,
    /// Nonce of the wrap.
    pub nonce: [u8; NONCE],
}

/// A new vault: what to store, and the keys.
pub struct Opened {
    /// To be stored before any record.
    pub header: Header,
    /// To be kept in memory.
    pub keys: VaultKeys,
}

/// The root key and the vault's id. Wiped when dropped.
pub struct VaultKeys {
    pub(super) root: Key,
    pub(super) store_id: [u8; 16],
}

impl VaultKeys {
    /// A key for another room's rows. One label, one use.
    pub fn derived(&self, label: &'static str) -> Key {
        self.root.derive(&self.store_id, label, b"")
    }

    pub(super) fn data_key(&self, epoch: u32) -> Key {
        self.root.derive(
            &self.store_id,
            "portcullis/vault/data/v1",
            &epoch.to_be_bytes(),
        )
    }

    pub(super) fn manifest_key(&self, epoch: u32) -> Key {
        self.root.derive(
            &self.store_id,
            "portcullis/vault/manifest/v1",
            &epoch.to_be_bytes(),
        )
    }
}

impl Header {
    /// Makes a vault. Runs scrypt.
    pub fn make(identity: &Identity, random: HeaderRandom) -> Result<Opened, VaultError> {
        let kdf = Kdf::DEFAULT;
        let HeaderRandom {
            store_id,
            salt,
            root,
            nonce,
        } = random;
        let check = identity.check();
        let wrapping = kdf.run(&identity.vault_password(), &salt)?;
        let wrapped = wrapping.seal(
            &nonce,
            &aad(&store_id, &check, &cost(kdf), &salt),
            root.expose(),
        );
        let header = Self {
            v: FORMAT,
            store_id: hex(&store_id),
            identity_check: hex(&check),
            kdf,
            salt: hex(&salt),
            nonce: hex(&nonce),
            wrapped_root: base64url(&wrapped),
        };
        Ok(Opened {
            header,
            keys: VaultKeys { root, store_id },
        })
    }

    /// Unwraps the root key. Runs scrypt, but not for another identity or a cost outside the limits.
    pub fn open(&self, identity: &Identity) -> Result<VaultKeys, VaultError> {
        let read = || {
            let store_id: [u8; 16] = unhex(&self.store_id)?;
            let check: [u8; 8] = unhex(&self.identity_check)?;
            let salt: [u8; 32] = unhex(&self.salt)?;
            let nonce: [u8; NONCE] = unhex(&self.nonce)?;
            Some((
                store_id,
                check,
                salt,
                nonce,
                from_base64url(&self.wrapped_root)?,
            ))
        };
        let (store_id, check, salt, nonce, wrapped) = read()
            .filter(|_| self.v == FORMAT && self.kdf.allowed())
            .ok_or(VaultError::HeaderCorrupt)?;
        if check != identity.check() {
            return Err(VaultError::IdentityMismatch);
        }
        let root = self
            .kdf
            .run(&identity.vault_password(), &salt)?
            .open(
                &nonce,
                &aad(&store_id, &check, &cost(self.kdf), &salt),
                &wrapped,
            )
            .ok_or(VaultError::HeaderCorrupt)?;
        let root: [u8; 32] = root
            .expose()
            .try_into()
            .map_err(|_| VaultError::HeaderCorrupt)?;
        Ok(VaultKeys {
            root: Key::new(root),
            store_id,
        })
    }
}

fn cost(kdf: Kdf) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0] = kdf.log_n;
    bytes[1..5].copy_from_slice(&kdf.r.to_be_bytes());
    bytes[5..].copy_from_slice(&kdf.p.to_be_bytes());
    bytes
}

fn aad<'a>(store_id: &'a [u8], check: &'a [u8], cost: &'a [u8], salt: &'a [u8]) -> [&'a [u8]; 5] {
    [DOMAIN, store_id, check, cost, salt]
}
