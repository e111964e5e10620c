//! The gateway's own authority, for hosts whose TLS it opens: only boxes trust it, and only for those names.
//!
//! Its key is derived from one that the vault gives, for each use anew, and kept nowhere: a sealed vault opens no TLS. The certificate is the
//! same at every start within three months, a leaf is made for each connection and lives for a day.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use portcullis_core::egress::{AuthorityKey, Name};
use portcullis_core::seal::Key;
use portcullis_core::time::Millis;
use portcullis_core::vault::KeyLabel;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use crate::clock::Clock;
use crate::vault::{VaultHandle, VaultRefusal};

/// What is spoken inside.
const ALPN: &[u8] = b"http/1.1";
/// A leaf's life, from a little before now: clocks differ.
const LEAF: Duration = Duration::from_hours(24);
const EARLIER: Duration = Duration::from_mins(5);
/// The authority's certificate begins with the quarter before the current one, and lives for six.
const QUARTER: Duration = Duration::from_hours(24 * 91);

/// What it takes to open TLS of hosts.
#[derive(Clone)]
pub struct Opener {
    /// Has the key, and the secrets.
    pub vault: VaultHandle,
    /// The authorities that this system trusts, for boxes to trust besides.
    pub roots: Arc<[CertificateDer<'static>]>,
    /// How a host is verified; none: this system trusts nobody.
    pub client: Option<Arc<ClientConfig>>,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener({} roots)", self.roots.len())
    }
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The vault does not give its key.
    #[error(transparent)]
    Vault(#[from] VaultRefusal),
    /// A certificate cannot be made.
    #[error("a certificate could not be made: {0}")]
    Made(String),
}

impl AuthorityError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Vault(refusal) => refusal.code(),
            Self::Made(_) => "INTERNAL",
        }
    }
}

impl Opener {
    /// The authority of a box for which these hosts' TLS is opened, while the vault is open. Another box's has another key and other names:
    /// no box learns whom others ask, or trusts what was made for them.
    pub async fn authority(&self, names: &BTreeSet<Name>) -> Result<Authority, AuthorityError> {
        let key = self.vault.derived_key(KeyLabel::EgressAuthority).await?;
        let made = Authority::new(&key, names, self.clock.now());
        made.map_err(|error| AuthorityError::Made(error.to_string()))
    }

    /// What a box trusts, as PEM: what this system does, and the authority.
    pub fn bundle(&self, authority: Option<&Authority>) -> String {
        let own = authority.map(|authority| authority.certificate.der());
        let mut text = String::new();
        for certificate in own.into_iter().chain(self.roots.iter()) {
            let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in base64.as_bytes().chunks(64) {
                // Base64 is ASCII, and writing to a String cannot fail.
                let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
        text
    }
}

/// Signs with a key that cannot be written down.
struct Signer(AuthorityKey);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.public()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message))
    }
}

/// The key and its certificate, for one use.
pub struct Authority {
    issuer: Issuer<'static, Signer>,
    certificate: Certificate,
    now: Millis,
}

impl Authority {
    /// Of this key, for these names and nothing else.
    pub fn new(key: &Key, names: &BTreeSet<Name>, now: Millis) -> Result<Self, rcgen::Error> {
        let signer = Signer(AuthorityKey::derive(key, names));
        let permitted = names
            .iter()
            .map(|name| GeneralSubtree::DnsName(name.to_string()));
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Portcullis boxes' authority");
        // No authority below it, and what is not said of addresses would hold for all of them.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: permitted.collect(),
            excluded_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
            ],
        });
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let quarter = u64::try_from(QUARTER.as_millis()).unwrap_or(u64::MAX);
        let began = (now.0 / quarter).saturating_sub(1) * quarter;
        params.not_before = at(Millis(began));
        params.not_after = at(Millis(began.saturating_add(6 * quarter)));
        let serial = portcullis_core::ids::Hash32::of(signer.der_bytes());
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial.0[..16]));
        let certificate = params.self_signed(&signer)?;
        Ok(Self {
            issuer: Issuer::new(params, signer),
            certificate,
            now,
        })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.certificate.der()
    }

    /// What a box sees of this host: a key of its own, and a certificate for a day.
    pub fn leaf(&self, name: &Name) -> Result<Arc<ServerConfig>, AuthorityError> {
        let made = |error: rcgen::Error| AuthorityError::Made(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let mut params = CertificateParams::new(vec![name.to_string()]).map_err(made)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let early = u64::try_from(EARLIER.as_millis()).unwrap_or_default();
        let life = u64::try_from(LEAF.as_millis()).unwrap_or_default();
        let from = Millis(self.now.0.saturating_sub(early));
        params.not_before = at(from);
        params.not_after = at(from.plus(life));
        let leaf = params.signed_by(&key, &self.issuer).map_err(made)?;
        let broken = |error: tokio_rustls::rustls::Error| AuthorityError::Made(error.to_string());
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(broken)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.into())
            .map_err(broken)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection is made anew: nothing of one is to be had in another.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// As the makers of certificates take it.
fn at<T: From<std::time::SystemTime>>(time: Millis) -> T {
    (std::time::UNIX_EPOCH + Duration::from_millis(time.0)).into()
}
