//! The client side: a server is who its certificate chain or its pin says, or there is no connection.

use std::io::Read as _;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::{ALPN, provider, spki_sha256};

/// The longest file of authorities.
const MOST_AUTHORITIES: u64 = 1024 * 1024;

/// SHA-256 of the public key that a server must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// A pin is 64 hexadecimal digits, with or without `sha256:` before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pin is sha256: and the 64 hexadecimal digits that `portcullis status` of that gateway shows"
)]
pub struct PinError;

impl std::str::FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        let text = text.strip_prefix("sha256:").unwrap_or(text);
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

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", portcullis_core::encoding::hex(&self.0))
    }
}

/// For connections out: with a pin the server has that key, whatever its certificate says; without one its chain ends
/// at an authority that this system trusts.
///
/// # Errors
/// This system has no file of authorities that we know.
pub fn client_config(pin: Option<Pin>) -> Result<Arc<ClientConfig>, std::io::Error> {
    let mut config = verified(pin)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The same, without a word on what is spoken inside: the HTTP client of the exporter says that itself.
///
/// # Errors
/// As [`client_config`].
pub fn verified(pin: Option<Pin>) -> Result<ClientConfig, std::io::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(std::io::Error::other)?;
    let config = if let Some(pin) = pin {
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
    Ok(config)
}

/// As [`verified`], for a receiver whose pin is a text; empty: none.
///
/// # Errors
/// As [`client_config`], and a pin that is none.
pub fn receiver(pin: &str) -> Result<Arc<ClientConfig>, std::io::Error> {
    let pin = match pin {
        "" => None,
        pin => Some(pin.parse().map_err(std::io::Error::other)?),
    };
    verified(pin).map(Arc::new)
}

/// As [`receiver`], or for one whose certificate must come from the authorities of a file; empty: none.
///
/// # Errors
/// As [`receiver`], and a file that has no certificate.
pub fn notified(pin: &str, ca_file: &std::path::Path) -> Result<Arc<ClientConfig>, std::io::Error> {
    let mut config = if ca_file.as_os_str().is_empty() {
        verified(match pin {
            "" => None,
            pin => Some(pin.parse().map_err(std::io::Error::other)?),
        })?
    } else {
        let named = |error: &dyn std::fmt::Display| {
            std::io::Error::other(format!("{}: {error}", ca_file.display()))
        };
        let bytes = portcullis_actors::plain::open_linked(ca_file).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MOST_AUTHORITIES).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let bytes = bytes.map_err(|error| named(&error))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            let certificate = certificate.map_err(|error| named(&error))?;
            roots.add(certificate).map_err(|error| named(&error))?;
        }
        if roots.is_empty() {
            return Err(named(&"there is no certificate in it"));
        }
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(std::io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For hosts whose TLS is opened for boxes: as [`verified`], and HTTP/1.1 is spoken.
///
/// # Errors
/// As [`client_config`].
pub fn of_hosts() -> Result<Arc<ClientConfig>, std::io::Error> {
    let mut config = verified(None)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Nothing of one box's connection is to be had in another's.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The certificates of the authorities that this system trusts, for boxes to trust besides.
pub fn system_certificates() -> Vec<rustls::pki_types::CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// Verifies nobody: for a client that speaks plain to this machine, and could not be led to TLS.
///
/// # Errors
/// As [`client_config`].
pub fn trusting_nobody() -> Result<ClientConfig, std::io::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(std::io::Error::other)?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// The authorities that this system trusts, or the file or folder named by `SSL_CERT_FILE` or `SSL_CERT_DIR`.
fn system_roots() -> Result<RootCertStore, std::io::Error> {
    let mut roots = RootCertStore::empty();
    // A system holds some that are too old to parse; the others count.
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added > 0 {
        return Ok(roots);
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
        let named: Pin = format!("sha256:{pin}").parse().unwrap();
        assert_eq!(
            named.to_string().to_uppercase(),
            format!("sha256:{pin}").to_uppercase()
        );
        for bad in [
            "",
            "sha256:",
            &format!("sha256:sha256:{pin}"),
            &format!("sha512:{pin}"),
            &pin[1..],
            &format!("{pin}0"),
            &pin.replace('a', "g"),
            &pin.replace('a', "+"),
        ] {
            assert_eq!(bad.parse::<Pin>(), Err(PinError), "{bad}");
        }
    }
}
