//! The machine identity key: the one secret that lies in the clear, outside the state directory. Everything else is
//! sealed under a key derived from it.
//!
//! The boot keys (TLS key, password pepper) and the audit log's epoch keys ([`crate::audit::epoch`]) are needed before the
//! vault opens, so each is sealed under a label of its own and none is in the vault.

use crate::encoding::{base64url, from_base64url};
use crate::row::RowKey;
use crate::seal::{Key, NONCE, Secret};
use thiserror::Error;
use zeroize::Zeroizing;

const MAGIC: &str = "portcullis-identity-v1 ";
const SALT: &[u8] = b"portcullis/identity/v1";
const SEALED_MAGIC: &[u8; 4] = b"PCBK";
const SEALED_VERSION: u8 = 1;
const CHECK: usize = 8;

/// The machine identity key, 256 random bits. Wiped when dropped; cannot be printed.
#[derive(Clone)]
pub struct Identity(Key);

/// A key that exists before the vault is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootKey {
    /// Private key of the TLS certificate.
    Tls,
    /// Pepper of stored password hashes.
    Pepper,
}

impl BootKey {
    /// Every boot key.
    pub const ALL: [Self; 2] = [Self::Tls, Self::Pepper];

    /// File name under `keys/`.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Tls => "tls.key",
            Self::Pepper => "pepper.key",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Tls => "portcullis/boot/tls/v1",
            Self::Pepper => "portcullis/boot/pepper/v1",
        }
    }
}

/// Why an identity or what it seals cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The file holds no identity key.
    #[error(
        "the identity key file is not one of ours: restore it from your backup, or point --identity at the right file"
    )]
    Format,
    /// Sealed under another identity key.
    #[error("this state was made with another identity key: point --identity at the right file")]
    Mismatch,
    /// Right identity, altered bytes.
    #[error("a sealed key is damaged: restore the keys folder from your backup")]
    Damaged,
}

impl IdentityError {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Format => "IDENTITY_INVALID",
            Self::Mismatch => "IDENTITY_MISMATCH",
            Self::Damaged => "STATE_CORRUPT",
        }
    }
}

impl Identity {
    /// Makes an identity of 32 random bytes from the operating system.
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(Key::new(random))
    }

    /// Reads the text of an identity file.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let body = text
            .strip_prefix(MAGIC)
            .map(|body| body.strip_suffix('\n').unwrap_or(body));
        let bytes = body
            .and_then(from_base64url)
            .map(Zeroizing::new)
            .ok_or(IdentityError::Format)?;
        let key: [u8; 32] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| IdentityError::Format)?;
        Ok(Self(Key::new(key)))
    }

    /// The text of an identity file.
    pub fn to_text(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(base64url(self.0.expose()));
        let mut text = Zeroizing::new(String::with_capacity(MAGIC.len() + body.len() + 1));
        text.push_str(MAGIC);
        text.push_str(&body);
        text.push('\n');
        text
    }

    /// Tells one identity from another without telling anything of either.
    pub fn check(&self) -> [u8; CHECK] {
        let derived = self.derive("portcullis/identity-check/v1");
        let mut check = [0; CHECK];
        check.copy_from_slice(&derived.expose()[..CHECK]);
        check
    }

    /// What rows of the state database are tagged under.
    pub fn row_key(&self) -> RowKey {
        RowKey::new(self.derive("portcullis/store/rows/v1"))
    }

    /// The password that scrypt turns into the vault's wrapping key.
    pub(crate) fn vault_password(&self) -> Key {
        self.derive("portcullis/vault/scrypt/v1")
    }

    /// What seals the rows of approvals.
    pub(crate) fn approval_rows(&self) -> Key {
        self.derive("portcullis/approval/rows/v1")
    }

    /// The seed of the key that signs what people decide on connections of ours.
    pub(crate) fn decisions(&self) -> Key {
        self.derive("portcullis/approval/decisions/v1")
    }

    /// What seals the keys that sign the audit log, an epoch each.
    pub(crate) fn audit_epochs(&self) -> Key {
        self.derive("portcullis/audit/epoch/v1")
    }

    /// What seals the plans in the audit log ([`crate::plan::PlanKey`]).
    pub fn logged_plans(&self) -> Key {
        self.derive("portcullis/audit/plans/v1")
    }

    /// Seals a boot key for its file.
    pub fn seal(&self, which: BootKey, plain: &Secret, nonce: &[u8; NONCE]) -> Vec<u8> {
        let check = self.check();
        let sealed =
            self.derive(which.label())
                .seal(nonce, &boot_aad(which, &check), plain.expose());
        [SEALED_MAGIC, &[SEALED_VERSION][..], &check, nonce, &sealed].concat()
    }

    /// Opens a boot key's file.
    pub fn open(&self, which: BootKey, file: &[u8]) -> Result<Secret, IdentityError> {
        let head = SEALED_MAGIC.len() + 1;
        let (start, rest) = file.split_at_checked(head).ok_or(IdentityError::Damaged)?;
        let (check, rest) = rest.split_at_checked(CHECK).ok_or(IdentityError::Damaged)?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE>()
            .ok_or(IdentityError::Damaged)?;
        if start[..head - 1] != *SEALED_MAGIC || start[head - 1] != SEALED_VERSION {
            return Err(IdentityError::Damaged);
        }
        if check != self.check() {
            return Err(IdentityError::Mismatch);
        }
        self.derive(which.label())
            .open(nonce, &boot_aad(which, check), sealed)
            .ok_or(IdentityError::Damaged)
    }

    /// The key under which pending plans are sealed in the store.
    pub fn plans_key(&self) -> Key {
        self.derive("portcullis/pending-plans/v1")
    }

    fn derive(&self, label: &str) -> Key {
        self.0.derive(SALT, label, b"")
    }
}

fn boot_aad(which: BootKey, check: &[u8]) -> [&[u8]; 4] {
    [
        SEALED_MAGIC,
        &[SEALED_VERSION],
        which.label().as_bytes(),
        check,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_and_nothing_else_does() {
        let identity = Identity::from_random([5; 32]);
        let text = identity.to_text();
        assert_eq!(
            Identity::parse(&text).ok().map(|read| read.check()),
            Some(identity.check())
        );
        assert!(Identity::parse(text.trim_end()).is_ok());
        let body = text.trim_end();
        for wrong in [
            "",
            "portcullis-identity-v1 ",
            &body[..body.len() - 1],
            &format!("{body}AA"),
            &body[1..],
            "v2 AAAA",
        ] {
            assert_eq!(
                Identity::parse(wrong).err(),
                Some(IdentityError::Format),
                "{wrong}"
            );
        }
    }

    #[test]
    fn boot_keys_open_under_their_own_label_and_identity_only() {
        let identity = Identity::from_random([5; 32]);
        let plain = Secret::new(b"a private key".to_vec());
        let file = identity.seal(BootKey::Tls, &plain, &[9; NONCE]);
        assert_eq!(
            identity
                .open(BootKey::Tls, &file)
                .ok()
                .map(|s| s.expose().to_vec()),
            Some(b"a private key".to_vec())
        );
        assert_eq!(
            identity.open(BootKey::Pepper, &file).err(),
            Some(IdentityError::Damaged)
        );
        let other = Identity::from_random([6; 32]);
        assert_eq!(
            other.open(BootKey::Tls, &file).err(),
            Some(IdentityError::Mismatch)
        );
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(identity.open(BootKey::Tls, &bad).is_err(), "byte {at}");
            assert!(
                identity.open(BootKey::Tls, &file[..at]).is_err(),
                "cut at {at}"
            );
        }
    }
}
