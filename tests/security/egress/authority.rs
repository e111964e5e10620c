//! The certificates that boxes are shown: for whom they hold, and for how long. By two other hands, rustls and OpenSSL.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use portcullis_actors::sandbox_pool::egress::Authority as Own;
use portcullis_core::egress::Name;
use portcullis_core::seal::Key;
use portcullis_core::time::Millis;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;

use super::terminated::trusting;

/// The leaf that a server with this config shows, whoever it is for.
async fn shown(
    config: Arc<ServerConfig>,
    client: ClientConfig,
    name: &str,
) -> std::io::Result<CertificateDer<'static>> {
    let (one, two) = tokio::io::duplex(65_536);
    let server = tokio::spawn(async move {
        if let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(config).accept(one).await {
            let _ = stream.shutdown().await;
        }
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(client))
        .connect(name, two)
        .await;
    let leaf = stream.map(|stream| {
        stream.get_ref().1.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    });
    server.abort();
    leaf
}

/// Believes everybody: to look at what is shown.
#[derive(Debug)]
struct Believing;

impl rustls::client::danger::ServerCertVerifier for Believing {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn believing() -> ClientConfig {
    let mut config = trusting_nobody();
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Believing));
    config
}

fn trusting_nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

fn now() -> Millis {
    portcullis_actors::clock::Clock::system().now()
}

/// By two other hands, rustls and OpenSSL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_holds_for_its_names_alone_and_a_leaf_for_a_day() {
    let names = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| Name::new(text).unwrap())
            .collect::<BTreeSet<_>>()
    };
    let key = Key::new([7; 32]);
    let own = Own::new(&key, &names(&["api.test", "b.test"]), now()).unwrap();
    // The same at the next start; other names, another vault: another authority.
    let again = Own::new(&key, &names(&["api.test", "b.test"]), now()).unwrap();
    assert_eq!(own.certificate(), again.certificate());
    for other in [
        Own::new(&key, &names(&["api.test"]), now()),
        Own::new(&Key::new([8; 32]), &names(&["api.test", "b.test"]), now()),
    ] {
        assert_ne!(own.certificate(), other.unwrap().certificate());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, der: &[u8]| {
        let path = folder.path().join(name);
        let pem = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-out"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn();
        let mut child = pem.unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), der).unwrap();
        assert!(child.wait().unwrap().success());
        path
    };
    let authority = file("ca.pem", own.certificate());
    for (name, is_within) in [
        ("api.test", true),
        ("b.test", true),
        ("c.test", false),
        ("evilapi.test", false),
        ("test", false),
    ] {
        let leaf = own.leaf(&Name::new(name).unwrap()).unwrap();
        let by_rustls = shown(leaf.clone(), trusting(own.certificate().clone()), name).await;
        assert_eq!(by_rustls.is_ok(), is_within, "{name}: {by_rustls:?}");
        let shown = shown(leaf, believing(), name).await.unwrap();
        let path = file("leaf.pem", &shown);
        let verified = Command::new("openssl")
            .args([
                "verify",
                "-purpose",
                "sslserver",
                "-verify_hostname",
                name,
                "-CAfile",
            ])
            .arg(&authority)
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(
            verified.status.success(),
            is_within,
            "{name}: {}",
            String::from_utf8_lossy(&verified.stderr)
        );
        let (_, parsed) = x509_parser::parse_x509_certificate(&shown).unwrap();
        let life =
            parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
        assert!(life <= 24 * 3600 && !parsed.is_ca(), "{life}");
    }
    let text = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&authority)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for words in [
        "Name Constraints: critical",
        "Basic Constraints: critical",
        "CA:TRUE, pathlen:0",
        "DNS:api.test",
        "IP:0.0.0.0/0.0.0.0",
        "Certificate Sign",
        "P-256",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(
        !text.contains("Digital Signature") && !text.contains("CRL Sign"),
        "{text}"
    );
}
