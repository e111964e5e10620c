//! TLS 1.3, and nothing older: the gateway's certificate, its reload, and the verified client side.
//!
//! One provider (aws-lc-rs) is named in each builder; key exchange begins with X25519MLKEM768. A broken new file never
//! takes the place of a certificate that works.

mod client;
mod keeper;
mod made;

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_actors::clock::Clock;
use portcullis_actors::plain;
use portcullis_actors::supervision::{Flag, FlagReader};
use portcullis_core::identity::Identity;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;

use crate::config::Tls as Config;
use crate::identity::{self, KeyFileError};

pub use client::{
    Pin, PinError, client_config, notified, of_hosts, receiver, system_certificates,
    trusting_nobody, verified,
};
pub use keeper::Keeper;

/// The only protocol spoken inside (RFC 7301).
const ALPN: &[u8] = b"http/1.1";
/// A made certificate is made anew when so many days are left.
const RENEW_DAYS: u32 = 30;

/// Why there is no certificate to serve with. `Display` says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key file's mode, or a sealed key that does not open.
    #[error("{0}")]
    Key(#[from] KeyFileError),
    /// A file that does not hold what its setting says.
    #[error("{setting} {}: {why}", path.display())]
    File {
        /// `gateway.tls.…`.
        setting: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not fit, or the library refuses them.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

/// What connections are accepted with; its reader sees each reload.
pub type Serving = Option<Arc<ServerConfig>>;

/// The gateway's certificate and how to read it again.
pub struct Tls {
    config: Config,
    names: Vec<String>,
    identity: Identity,
    keys: PathBuf,
    serving: Flag<Serving>,
    shown: Flag<Value>,
    facts: Flag<Value>,
    clock: Clock,
}

impl Tls {
    /// Reads or makes the certificate. Switched off, there is none, and TLS is not spoken.
    ///
    /// # Errors
    /// [`TlsError`]: a start with TLS never serves without.
    pub fn open(
        config: Config,
        names: Vec<String>,
        identity: Identity,
        state: &Path,
        clock: Clock,
    ) -> Result<Self, TlsError> {
        let tls = Self {
            config,
            names,
            identity,
            keys: state.join("keys"),
            serving: Flag::new(None),
            shown: Flag::new(Value::Null),
            facts: Flag::new(Value::Null),
            clock,
        };
        if tls.config.enabled {
            tls.load(true)?;
        }
        Ok(tls)
    }

    /// What newcomers are served with.
    pub fn serving(&self) -> FlagReader<Serving> {
        self.serving.reader()
    }

    /// For `status`: the pin, where the certificate comes from, and a reload that failed.
    pub fn shown(&self) -> FlagReader<Value> {
        self.shown.reader()
    }

    /// The pin of the certificate served, in hexadecimal.
    pub fn pin(&self) -> Option<String> {
        Some(self.shown.get().get("spkiSha256")?.as_str()?.to_owned())
    }

    /// The certificate served: names, validity, fingerprint, pin, and from where; null where TLS is not spoken.
    pub fn facts(&self) -> Value {
        self.facts.get()
    }

    /// Whether a made certificate is to be made anew.
    pub fn is_due(&self) -> bool {
        self.config.cert_file.as_os_str().is_empty() && self.ends_soon(&self.facts.get())
    }

    fn ends_soon(&self, facts: &Value) -> bool {
        let left_ms = u64::from(RENEW_DAYS) * 86_400_000;
        facts["notAfterMs"]
            .as_u64()
            .is_some_and(|end| self.clock.now().0.saturating_add(left_ms) >= end)
    }

    /// Reads the files again. Sockets that are open stay; a failure keeps what was served, and `status` says so.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn reload(&self) -> Result<(), TlsError> {
        if !self.config.enabled {
            return Ok(());
        }
        self.load(false).inspect_err(|error| {
            let mut shown = self.shown.get();
            shown["reloadError"] = json!(error.to_string());
            self.shown.set(shown);
            let mut facts = self.facts.get();
            facts["reloadError"] = json!(error.to_string());
            self.facts.set(facts);
        })
    }

    /// With `keep` a made certificate is used again where it still fits.
    fn load(&self, keep: bool) -> Result<(), TlsError> {
        let own = !self.config.cert_file.as_os_str().is_empty();
        let (chain, key) = if own { self.files()? } else { self.made(keep)? };
        let leaf = chain
            .first()
            .ok_or_else(|| TlsError::Unusable("there is none".to_owned()))?;
        let pin = spki_sha256(leaf).map_err(unusable)?;
        let mut facts = facts_of(leaf)?;
        facts["spkiSha256"] = json!(portcullis_core::encoding::hex(&pin));
        facts["certificate"] = json!(if own { "file" } else { "generated" });
        if own {
            facts["certFile"] = json!(self.config.cert_file.display().to_string());
        }
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?;
        let builder = if self.config.client_ca_file.as_os_str().is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(self.client_roots()?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(unusable)?;
            builder.with_client_cert_verifier(verifier)
        };
        let mut server = builder.with_single_cert(chain, key).map_err(unusable)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A connection is one certificate's: nothing is resumed past a reload, and no early data can be replayed.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        self.serving.set(Some(Arc::new(server)));
        self.facts.set(facts);
        self.shown.set(json!({
            "spkiSha256": portcullis_core::encoding::hex(&pin),
            "certificate": if own { "file" } else { "generated" },
            "clientCertificates": !self.config.client_ca_file.as_os_str().is_empty(),
            "reloadError": null,
        }));
        Ok(())
    }

    fn files(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates("gateway.tls.cert_file", &self.config.cert_file)?;
        let path = &self.config.key_file;
        let bad = |why: String| TlsError::File {
            setting: "gateway.tls.key_file",
            path: path.clone(),
            why,
        };
        let pem =
            identity::read_private(path)?.ok_or_else(|| bad("there is no file".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| bad("holds no private key in PEM form".to_owned()))?;
        Ok((chain, key))
    }

    fn client_roots(&self) -> Result<RootCertStore, TlsError> {
        let path = &self.config.client_ca_file;
        let mut roots = RootCertStore::empty();
        for ca in certificates("gateway.tls.client_ca_file", path)? {
            roots.add(ca).map_err(|e| TlsError::File {
                setting: "gateway.tls.client_ca_file",
                path: path.clone(),
                why: e.to_string(),
            })?;
        }
        Ok(roots)
    }
}

/// The names that a made certificate is for.
pub fn names(bind: IpAddr, hosts: &[String]) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    if !bind.is_unspecified() && !bind.is_loopback() {
        names.push(bind.to_string());
    }
    // In a certificate an IPv6 address has no brackets.
    names.extend(
        hosts
            .iter()
            .map(|host| host.trim_matches(['[', ']']).to_owned()),
    );
    names
}

/// SHA-256 of a certificate's public key with its algorithm (RFC 7469 2.4).
///
/// # Errors
/// It is no certificate.
pub fn spki_sha256(certificate: &CertificateDer<'_>) -> Result<[u8; 32], rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    Ok(Sha256::digest(parsed.subject_public_key_info()).into())
}

/// What a person compares: names, validity, fingerprint.
fn facts_of(leaf: &CertificateDer<'_>) -> Result<Value, TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(unusable)?;
    let names = parsed.subject_alternative_name().map_err(unusable)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from);
            v4.or_else(v6).map(|ip| ip.to_string())
        }
        _ => None,
    });
    let ms = |at: &x509_parser::time::ASN1Time| {
        u64::try_from(at.timestamp())
            .unwrap_or(0)
            .saturating_mul(1000)
    };
    Ok(json!({
        "names": names.collect::<Vec<_>>(),
        "notBeforeMs": ms(&parsed.validity().not_before),
        "notAfterMs": ms(&parsed.validity().not_after),
        "sha256": portcullis_core::encoding::hex(&Sha256::digest(leaf)),
        "reloadError": null,
    }))
}

/// The one provider. Named in each builder: a default of the process could be another's.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// No file of certificates is longer, bytes.
const LONGEST: u64 = 1 << 20;

fn certificates(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |why: String| TlsError::File {
        setting,
        path: path.to_owned(),
        why,
    };
    let mut pem = vec![];
    let file = plain::open_linked(path).map_err(|e| bad(e.to_string()))?;
    file.take(LONGEST + 1)
        .read_to_end(&mut pem)
        .map_err(|e| bad(e.to_string()))?;
    if pem.len() as u64 > LONGEST {
        return Err(bad("is longer than 1 MiB".to_owned()));
    }
    let all: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(e.to_string()))?;
    if all.is_empty() {
        return Err(bad("holds no certificate in PEM form".to_owned()));
    }
    Ok(all)
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable(error.to_string())
}
