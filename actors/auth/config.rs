//! `[auth]` in the configuration, and the modes of `[gateway.auth]`.

use portcullis_core::protocol::limits::SIGNATURE_SKEW_MS;
use serde::{Deserialize, Deserializer};

/// Limits of authentication.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Connects that are decided at once; more are told to try again.
    pub concurrent: usize,
}

impl Default for AuthConfig {
    fn default() -> Self {
        // The clock window of signatures is the wire's and no setting.
        const { assert!(SIGNATURE_SKEW_MS == 120_000) }
        Self { concurrent: 256 }
    }
}

/// Which shared secrets are taken: one word, or several joined by `+`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// The shared token.
    pub token: bool,
    /// Passwords of people.
    pub password: bool,
    /// Users whom a trusted proxy names. Stands alone: beside a secret for all, nobody could say who somebody is.
    pub trusted_proxy: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            token: true,
            password: false,
            trusted_proxy: false,
        }
    }
}

impl<'de> Deserialize<'de> for Modes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut modes = Self {
            token: false,
            password: false,
            trusted_proxy: text == "trusted-proxy",
        };
        if modes.trusted_proxy {
            return Ok(modes);
        }
        for word in text.split('+') {
            match word.trim() {
                "token" => modes.token = true,
                "password" => modes.password = true,
                _ => {
                    return Err(serde::de::Error::custom(format!(
                        "{text:?} is not \"token\", \"password\", \"token+password\" or \"trusted-proxy\""
                    )));
                }
            }
        }
        Ok(modes)
    }
}
