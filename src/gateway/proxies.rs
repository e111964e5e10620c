//! The rules on proxies, with the key set that the configuration names.

use portcullis_core::auth::assertion::Assertion;
use portcullis_core::auth::proxy::ProxyRules;
use portcullis_core::codes;
use portcullis_core::encoding;

use crate::cli::Failure;
use crate::config::GatewayAuth;

/// Longest key set, bytes.
const LONGEST: u64 = 256 * 1024;

/// Reads the key set where there is one. It is read at the start only.
pub fn rules(auth: &GatewayAuth) -> Result<ProxyRules, Failure> {
    let set = &auth.trusted_proxy;
    let assertion = if set.jwks_file.as_os_str().is_empty() {
        None
    } else {
        let bad = |why: &dyn std::fmt::Display| {
            let key = "[gateway.auth.trusted_proxy] jwks_file";
            Failure::of(
                codes::CONFIG_INVALID,
                format!("{key}: {} {why}", set.jwks_file.display()),
            )
        };
        let length = std::fs::metadata(&set.jwks_file)
            .map_err(|e| bad(&e))?
            .len();
        if length > LONGEST {
            return Err(bad(&"is longer than 256 KiB"));
        }
        let bytes = std::fs::read(&set.jwks_file).map_err(|e| bad(&e))?;
        let (algorithms, issuer) = (&set.algorithms, &set.issuer);
        let opened = Assertion::new(&bytes, algorithms, issuer, &set.audience, &set.user_claim);
        Some((set.assertion_header.clone(), opened.map_err(|e| bad(&e))?))
    };
    Ok(ProxyRules {
        addresses: set.addresses.clone(),
        local_uids: set.loopback_uids.clone(),
        // Anything but 64 digits was an error of the configuration.
        certificates: set
            .certificates
            .iter()
            .filter_map(|text| encoding::unhex::<32>(text))
            .collect(),
        names_users: auth.mode.trusted_proxy,
        user_header: set.user_header.clone(),
        required_headers: set.required_headers.clone(),
        allow_users: set.allow_users.clone(),
        scopes_header: set.scopes_header.clone(),
        scopes: set.scopes.clone(),
        assertion,
    })
}
