//! Names that travel: each is checked once, where it enters, and is a type from there on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct IdError {
    /// Which name.
    pub what: &'static str,
    /// What it must look like.
    pub rule: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $test:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// [`IdError`] with the rule.
            pub fn new(text: &str) -> Result<Self, IdError> {
                let test: fn(&str) -> bool = $test;
                if test(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { what: $what, rule: $rule })
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

id!(
    /// An agent: it names a workspace folder, so nothing but letters, digits, `_` and `-`.
    AgentId, "an agent name",
    "1 to 64 characters a-z, 0-9, _ or -, beginning with a letter or digit",
    |t| t.len() <= 64
        && t.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
);
id!(
    /// A device: SHA-256 of its public key (wire.md 4.3).
    DeviceId, "a device id", "64 lower-case hexadecimal digits", |t| is_hex(t, 64)
);
id!(
    /// A box: part of a socket path, so short.
    BoxId, "a box id", "12 lower-case hexadecimal digits", |t| is_hex(t, 12)
);
id!(
    /// One run of one plan.
    RunId, "a run id", "1 to 128 characters A-Z, a-z, 0-9, . _ : or -", is_request_id
);
id!(
    /// One question to a person.
    ApprovalId, "an approval id", "1 to 128 characters A-Z, a-z, 0-9, . _ : or -", is_request_id
);

/// The shape that clients parse out of close reasons (wire.md 6).
fn is_request_id(t: &str) -> bool {
    (1..=128).contains(&t.len())
        && t.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && t.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

/// SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash32(pub [u8; 32]);

impl Hash32 {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Hash32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Hash32 {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        let error = IdError {
            what: "a digest",
            rule: "64 lower-case hexadecimal digits",
        };
        if !is_hex(&text, 64) {
            return Err(error);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| error.clone())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error.clone())?;
        }
        Ok(Self(bytes))
    }
}

impl From<Hash32> for String {
    fn from(hash: Hash32) -> Self {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_name_cannot_leave_its_folder() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "A",
            "-a",
            "a b",
            "a\0",
            &"a".repeat(65),
        ] {
            assert!(AgentId::new(bad).is_err(), "{bad:?}");
        }
        assert!(AgentId::new("demo-1_x").is_ok());
    }

    #[test]
    fn a_digest_reads_back() {
        let hash = Hash32::of(b"x");
        assert_eq!(Hash32::try_from(hash.to_string()), Ok(hash));
        assert!(Hash32::try_from(hash.to_string().to_uppercase()).is_err());
    }
}
