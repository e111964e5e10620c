//! The client side: a server is who its certificate chain or its pin says, or there is no connection.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::{ALPN, provider, spki_sha256};

/// Where Linux systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// SHA-256 of the public key that a server must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// A pin is 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pin is the 64 hexadecimal digits that `portcullis status` of that gateway shows")]
pub struct PinError;

impl std::str::FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        if text.len() != 64 {
            return Err(PinError);
        }
        let mut pin = [0; 32];
        for (to, pair) in pin.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (high, low) = (digit(pair[0]), digit(pair[1]));
            *to = high.zip(low).map(|(h, l)| h << 4 | l).ok_or(PinError)?;
        }
        Ok(Self(pin))
    }
}

/// For connections out: with a pin the server has that key, whatever its certificate says; without one its chain ends
/// at an authority that this system trusts.
///
/// # Errors
/// This system has no file of authorities that we know.
pub fn client_config(pin: Option<Pin>) -> Result<Arc<ClientConfig>, std::io::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(std::io::Error::other)?;
    let mut config = if let Some(pin) = pin {
        let verifier = Pinned {
            pin,
            provider: provider(),
        };
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth()
    } else {
        builder
            .with_root_certificates(system_roots()?)
            .with_no_client_auth()
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn system_roots() -> Result<RootCertStore, std::io::Error> {
    let mut roots = RootCertStore::empty();
    for path in SYSTEM_ROOTS {
        let Ok(all) = CertificateDer::pem_file_iter(path) else {
            continue;
        };
        // A system's file holds some that are too old to parse; the others count.
        let (added, _) = roots.add_parsable_certificates(all.filter_map(Result::ok));
        if added > 0 {
            return Ok(roots);
        }
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        "this system trusts no certificate authority (ca-certificates is not installed): name the gateway's pin",
    ))
}

/// Trusts one key. The handshake's signature is checked with it as ever: who has only the certificate gets nowhere.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if spki_sha256(end_entity)? == self.pin.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never asked: only TLS 1.3 is offered.
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_64_hexadecimal_digits_and_nothing_else() {
        let pin = "0123456789abcdefABCDEF0123456789abcdef0123456789abcdef0123456789";
        assert!(pin.parse::<Pin>().is_ok());
        for bad in [
            "",
            &pin[1..],
            &format!("{pin}0"),
            &pin.replace('a', "g"),
            &pin.replace('a', "+"),
        ] {
            assert_eq!(bad.parse::<Pin>(), Err(PinError), "{bad}");
        }
    }
}
