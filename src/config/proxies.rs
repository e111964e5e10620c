//! What no single key of `[gateway.auth.trusted_proxy]` can say.

use portcullis_core::encoding;

use super::layers::Layers;
use super::sections::Gateway;

const SECTION: &str = "gateway.auth.trusted_proxy";

pub fn rules(gateway: &Gateway, layers: &mut Layers) {
    let set = &gateway.auth.trusted_proxy;
    let mut reject = |key: &str, why: &str| layers.reject(&format!("{SECTION}.{key}"), why);
    let is_asserted = !set.jwks_file.as_os_str().is_empty();
    if gateway.auth.mode.trusted_proxy {
        if set.addresses.is_empty() {
            reject(
                "addresses",
                "with mode = \"trusted-proxy\", name the proxy's address: no other is believed",
            );
        }
        if set.user_header.is_empty() && !is_asserted {
            reject(
                "user_header",
                "with mode = \"trusted-proxy\", name the header with the user, or a jwks_file",
            );
        }
        if set.allow_users.is_empty() {
            reject(
                "allow_users",
                "name who is let in; \"*\" is everybody whom the proxy names",
            );
        }
    }
    let parts = [
        ("assertion_header", &set.assertion_header),
        ("issuer", &set.issuer),
        ("audience", &set.audience),
        ("user_claim", &set.user_claim),
    ];
    for (key, text) in parts {
        if is_asserted && text.is_empty() {
            reject(
                key,
                "an assertion is checked whole: jwks_file needs assertion_header, issuer, audience and user_claim",
            );
        }
    }
    if !is_asserted && !set.assertion_header.is_empty() {
        reject(
            "jwks_file",
            "an assertion that nobody checks is none: name the key set, or leave assertion_header out",
        );
    }
    let names = [
        ("user_header", &set.user_header),
        ("scopes_header", &set.scopes_header),
        ("assertion_header", &set.assertion_header),
    ];
    let required = set
        .required_headers
        .iter()
        .map(|name| ("required_headers", name));
    for (key, name) in names.into_iter().chain(required) {
        let may_be_empty = key != "required_headers";
        if !(may_be_empty && name.is_empty()
            || hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok())
        {
            reject(key, &format!("{name:?} is no header's name"));
        }
    }
    if set
        .certificates
        .iter()
        .any(|text| encoding::unhex::<32>(text).is_none())
    {
        reject(
            "certificates",
            "each is the SHA-256 of a certificate's public key: 64 hexadecimal digits in small letters",
        );
    }
    let has_authority = gateway.tls.enabled && !gateway.tls.client_ca_file.as_os_str().is_empty();
    if !set.certificates.is_empty() && !has_authority {
        reject(
            "certificates",
            "client certificates need [gateway.tls] enabled = true and client_ca_file",
        );
    }
    if !set.loopback_uids.is_empty() && set.addresses.is_empty() {
        reject(
            "loopback_uids",
            "name the proxy's address on this machine in addresses too, such as \"127.0.0.1\"",
        );
    }
}
