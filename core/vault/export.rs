//! A file of secrets to be taken elsewhere, sealed under a passphrase.

use super::unlocker::{Kdf, check_unlock_secret};
use super::{Kind, MAX_VALUE, VaultError, check_name};
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::seal::{NONCE, Secret, join};
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use zeroize::Zeroizing;

const DOMAIN: &[u8] = b"portcullis-vault-export-v1";
const FORMAT: u8 = 1;
/// Most bytes of names and values in one file: it must fit into one message of the wire.
pub const MAX_EXPORT: usize = 8 * 1024 * 1024;

/// As written (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Export {
    /// Says in the file what it is.
    #[serde(rename = "portcullisVaultExport")]
    v: u8,
    made_at_ms: Millis,
    kdf: Kdf,
    salt: String,
    nonce: String,
    sealed: String,
}

/// Random bytes for one export.
pub struct ExportRandom {
    /// scrypt's salt.
    pub salt: [u8; 32],
    /// Of the seal.
    pub nonce: [u8; NONCE],
}

impl Export {
    /// Seals names and values. Runs scrypt.
    ///
    /// # Errors
    /// [`VaultError::UnlockSecret`] for a weak passphrase, [`VaultError::ExportTooLarge`].
    pub fn seal(
        records: &[(String, Secret)],
        passphrase: &Secret,
        now: Millis,
        random: &ExportRandom,
    ) -> Result<Self, VaultError> {
        check_unlock_secret(Kind::Passphrase, passphrase)?;
        let size: usize = records
            .iter()
            .map(|(name, value)| name.len() + value.len() + 8)
            .sum();
        if size > MAX_EXPORT {
            return Err(VaultError::ExportTooLarge);
        }
        // Room for all at once: a buffer that grows leaves copies behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(size));
        for (name, value) in records {
            for field in [name.as_bytes(), value.expose()] {
                let len = u32::try_from(field.len()).map_err(|_| VaultError::ExportTooLarge)?;
                plain.extend_from_slice(&len.to_be_bytes());
                plain.extend_from_slice(field);
            }
        }
        let mut export = Self {
            v: FORMAT,
            made_at_ms: now,
            kdf: Kdf::DEFAULT,
            salt: hex(&random.salt),
            nonce: hex(&random.nonce),
            sealed: String::new(),
        };
        let key = export
            .kdf
            .run(passphrase.expose(), &join(&[DOMAIN, &random.salt]))?;
        let sealed = key.seal(&random.nonce, &export.aad(&now.0.to_be_bytes()), &plain);
        export.sealed = base64url(&sealed);
        Ok(export)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`VaultError::ExportInvalid`].
    pub fn parse(file: &[u8]) -> Result<Self, VaultError> {
        serde_json::from_slice::<Self>(file)
            .ok()
            .filter(|export| export.v == FORMAT && export.kdf.is_allowed())
            .ok_or(VaultError::ExportInvalid)
    }

    /// Opens it. Runs scrypt.
    ///
    /// # Errors
    /// [`VaultError::Wrong`]: not this passphrase, or altered. [`VaultError::ExportInvalid`].
    pub fn open(&self, passphrase: &Secret) -> Result<Vec<(String, Secret)>, VaultError> {
        let read = || {
            let salt: [u8; 32] = unhex(&self.salt)?;
            let nonce: [u8; NONCE] = unhex(&self.nonce)?;
            Some((salt, nonce, from_base64url(&self.sealed)?))
        };
        let (salt, nonce, sealed) = read().ok_or(VaultError::ExportInvalid)?;
        let key = self
            .kdf
            .run(passphrase.expose(), &join(&[DOMAIN, &salt]))
            .map_err(|_| VaultError::ExportInvalid)?;
        let aad = self.made_at_ms.0.to_be_bytes();
        let plain = key
            .open(&nonce, &self.aad(&aad), &sealed)
            .ok_or(VaultError::Wrong)?;
        let mut rest = plain.expose();
        let (mut records, mut names) = (vec![], BTreeSet::new());
        while !rest.is_empty() {
            let name = field(&mut rest)?;
            let value = field(&mut rest)?;
            let name = std::str::from_utf8(name).map_err(|_| VaultError::ExportInvalid)?;
            check_name(name)?;
            if value.is_empty() || value.len() > MAX_VALUE {
                return Err(VaultError::ValueInvalid);
            }
            if !names.insert(name) {
                return Err(VaultError::ExportInvalid);
            }
            records.push((name.to_owned(), Secret::new(value.to_vec())));
        }
        Ok(records)
    }

    fn aad<'a>(&self, made_at: &'a [u8; 8]) -> [&'a [u8]; 3] {
        debug_assert!(self.v == FORMAT);
        [DOMAIN, &[FORMAT], made_at]
    }
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], VaultError> {
    let (len, after) = rest
        .split_first_chunk::<4>()
        .ok_or(VaultError::ExportInvalid)?;
    let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| VaultError::ExportInvalid)?;
    let (field, after) = after
        .split_at_checked(len)
        .ok_or(VaultError::ExportInvalid)?;
    *rest = after;
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(bytes: &[u8]) -> Secret {
        Secret::new(bytes.to_vec())
    }

    fn sealed(records: &[(String, Secret)], passphrase: &[u8]) -> Result<Export, VaultError> {
        let random = ExportRandom {
            salt: [3; 32],
            nonce: [4; 12],
        };
        Export::seal(records, &secret(passphrase), Millis(5), &random)
    }

    #[test]
    fn an_export_opens_by_its_passphrase_alone_and_whole() {
        let records = [
            ("A".to_owned(), secret(b"planted-value")),
            ("B_2".to_owned(), secret(&[0xff; 300])),
        ];
        let export = sealed(&records, b"correct horse battery").expect("seals");
        let file = serde_json::to_vec(&export).expect("json");
        assert!(!file.windows(7).any(|part| part == b"planted"));
        let read = Export::parse(&file).expect("reads");
        let opened = read.open(&secret(b"correct horse battery")).expect("opens");
        let plain: Vec<_> = opened
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
            .collect();
        assert_eq!(plain, [("A", &b"planted-value"[..]), ("B_2", &[0xff; 300])]);
        let wrong = read.open(&secret(b"another horse battery"));
        assert_eq!(wrong.err(), Some(VaultError::Wrong));
        let text = String::from_utf8(file).expect("text");
        for (from, to) in [("\"madeAtMs\":5", "\"madeAtMs\":6"), ("0303", "0403")] {
            let altered = Export::parse(text.replacen(from, to, 1).as_bytes()).expect("reads");
            let opened = altered.open(&secret(b"correct horse battery"));
            assert_eq!(opened.err(), Some(VaultError::Wrong), "{from}");
        }
        for (from, to) in [
            ("Export\":1", "Export\":2"),
            ("\"logN\":17", "\"logN\":16"),
            ("{", "["),
        ] {
            let altered = Export::parse(text.replacen(from, to, 1).as_bytes());
            assert_eq!(altered.err(), Some(VaultError::ExportInvalid), "{from}");
        }
    }

    /// The bug: a crafted file with one name twice crashed the vault's room.
    #[test]
    fn a_file_with_a_name_twice_is_none() {
        let twice = ["A", "B", "A"].map(|name| (name.to_owned(), secret(b"x")));
        let export = sealed(&twice, b"correct horse battery").expect("seals");
        let opened = export.open(&secret(b"correct horse battery"));
        assert_eq!(opened.err(), Some(VaultError::ExportInvalid));
    }

    #[test]
    fn a_weak_passphrase_and_too_much_are_refused_before_any_work() {
        assert_eq!(sealed(&[], b"short").err(), Some(VaultError::UnlockSecret));
        let much: Vec<_> = (0..=MAX_EXPORT / MAX_VALUE)
            .map(|n| (format!("N{n}"), secret(&vec![1; MAX_VALUE])))
            .collect();
        let refused = sealed(&much, b"correct horse battery");
        let code = refused.err().map(VaultError::code);
        assert_eq!(code, Some("VAULT_EXPORT_TOO_LARGE"));
    }
}
