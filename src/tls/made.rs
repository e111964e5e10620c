//! The certificate that we make ourselves, where none is configured.
//!
//! Its key is made once and sealed. The certificate stays for its time, over starts too: the peer's clients pin the
//! certificate itself, not its key.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use portcullis_actors::plain;
use portcullis_core::identity::BootKey;
use portcullis_core::seal::Secret;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Tls, TlsError, facts_of, spki_sha256, unusable};
use crate::identity;

/// Its life; it is made anew from the same key, so the key's pin stays.
const YEAR_DAYS: u32 = 365;
/// Beside its key. Nothing in it is secret.
const FILE: &str = "tls.crt";

impl Tls {
    /// With `keep` the one that was made before, if it is for this key and these names and has time left.
    pub(super) fn made(
        &self,
        keep: bool,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let fresh = || {
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map(|pair| Secret::new(pair.serialize_der()))
                .map_err(std::io::Error::other)
        };
        let key = identity::boot_key(&self.identity, &self.keys, BootKey::Tls, fresh)?;
        let der = PrivatePkcs8KeyDer::from(key.expose().to_vec());
        let pair = KeyPair::try_from(&der).map_err(unusable)?;
        let file = self.keys.join(FILE);
        if keep && let Some(certificate) = self.kept(&file, &pair) {
            return Ok((vec![certificate], der.into()));
        }
        let certificate = self.make(&pair)?;
        if let Err(error) = write(&file, &certificate) {
            tracing::warn!(target: "portcullis", %error, "the made certificate is not kept: the next start makes another, from the same key");
        }
        Ok((vec![certificate], der.into()))
    }

    fn kept(&self, file: &Path, pair: &KeyPair) -> Option<CertificateDer<'static>> {
        let bytes = identity::read_private(file).ok()??;
        let certificate = CertificateDer::from(bytes.to_vec());
        let of_this_key = spki_sha256(&certificate).ok()?[..]
            == Sha256::digest(pair.subject_public_key_info())[..];
        let facts = facts_of(&certificate).ok()?;
        let fits = of_this_key
            && facts["names"] == written(&self.names)
            && facts["notBeforeMs"].as_u64()? <= self.clock.now().0
            && !self.ends_soon(&facts);
        fits.then_some(certificate)
    }

    fn make(&self, pair: &KeyPair) -> Result<CertificateDer<'static>, TlsError> {
        let mut params = CertificateParams::new(self.names.clone()).map_err(unusable)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Portcullis gateway");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let spki = pair.subject_public_key_info();
        let now = self.clock.now();
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(now.0);
        let day = std::time::Duration::from_hours(24);
        // A client whose clock is a little behind is served too.
        params.not_before = (now - day).into();
        params.not_after = (now + day * YEAR_DAYS).into();
        params.serial_number = Some(rcgen::SerialNumber::from_slice(
            &Sha256::digest(&spki)[..16],
        ));
        let certificate = params.self_signed(pair).map_err(unusable)?;
        Ok(certificate.der().clone())
    }
}

/// As they are read back from a certificate: addresses in their one form.
fn written(names: &[String]) -> Value {
    let one = |name: &String| {
        name.parse::<IpAddr>()
            .map_or_else(|_| name.clone(), |ip| ip.to_string())
    };
    json!(names.iter().map(one).collect::<Vec<_>>())
}

/// One that a power cut left half is none, and made anew.
fn write(file: &Path, certificate: &CertificateDer<'_>) -> std::io::Result<()> {
    let part = file.with_extension("part");
    plain::remove(&part)?;
    let mut open = std::fs::OpenOptions::new();
    let mut to = open.write(true).create_new(true).mode(0o600).open(&part)?;
    to.write_all(certificate)?;
    std::fs::rename(part, file)
}
