//! Bearer tokens: 256 random bits under a prefix that secret scanners find, with a checksum against typing errors.
//! Only the SHA-256 of a token is kept. A slow hash would add nothing to 256 random bits but a way to exhaust us.

use crate::encoding::{base64url, from_base64url, hex, unhex};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

const RANDOM: usize = 32;
const CHECKSUM: usize = 4;

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// One device in one role (`pc_dev_`).
    Device,
    /// The shared token of the gateway (`pc_gw_`).
    Gateway,
    /// One agent (`pc_agt_`).
    Agent,
    /// A setup code (`pc_set_`).
    Setup,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Device, Self::Gateway, Self::Agent, Self::Setup];

    /// What the token starts with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Device => "pc_dev_",
            Self::Gateway => "pc_gw_",
            Self::Agent => "pc_agt_",
            Self::Setup => "pc_set_",
        }
    }
}

/// A token in the clear. Zeroized on drop; neither printable nor serialisable: it leaves by [`Self::expose`] alone.
pub struct Token(Zeroizing<String>);

/// Why a text is no token of ours. Tells nothing about any token that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// No prefix of ours, or not 48 base64url characters after it.
    #[error(
        "not a Portcullis token: expected pc_dev_, pc_gw_, pc_agt_ or pc_set_ and 48 characters"
    )]
    Shape,
    /// The last characters do not fit the rest.
    #[error("the token's checksum is wrong: it was cut or mistyped; copy it again")]
    Checksum,
}

impl Token {
    /// Makes a token of 32 random bytes from the operating system.
    pub fn from_random(kind: TokenKind, random: &[u8; RANDOM]) -> Self {
        let mut body = Zeroizing::new([0_u8; RANDOM + CHECKSUM]);
        body[..RANDOM].copy_from_slice(random);
        body[RANDOM..].copy_from_slice(&checksum(kind, random));
        let text = Zeroizing::new(base64url(&*body));
        let mut token = String::with_capacity(kind.prefix().len() + text.len());
        token.push_str(kind.prefix());
        token.push_str(&text);
        Self(Zeroizing::new(token))
    }

    /// Reads a token of ours and checks its checksum: a cheap "you mistyped", no proof of anything.
    pub fn parse(text: &str) -> Result<(TokenKind, Self), TokenError> {
        let (kind, body) = TokenKind::ALL
            .into_iter()
            .find_map(|kind| text.strip_prefix(kind.prefix()).map(|body| (kind, body)))
            .ok_or(TokenError::Shape)?;
        if body.len() != (RANDOM + CHECKSUM) / 3 * 4 {
            return Err(TokenError::Shape);
        }
        let bytes = Zeroizing::new(from_base64url(body).ok_or(TokenError::Shape)?);
        let (random, sum) = bytes.split_at(RANDOM);
        if checksum(kind, random).as_slice() != sum {
            return Err(TokenError::Checksum);
        }
        Ok((kind, Self(Zeroizing::new(text.to_owned()))))
    }

    /// The token itself, to be handed to its owner once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

fn checksum(kind: TokenKind, random: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::new()
        .chain_update(kind.prefix())
        .chain_update(random)
        .finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// SHA-256 of a token. Compared in constant time; `Debug` shows nothing, since a token that a person chose could be
/// guessed from its hash.
#[derive(Clone)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hash of any presented text (a shared token may be of the operator's own making).
    pub fn of(presented: &str) -> Self {
        Self(Sha256::digest(presented.as_bytes()).into())
    }

    /// True when `presented` is the token. Both sides are hashed first, so neither length nor prefix shows in the time.
    pub fn matches(&self, presented: &str) -> bool {
        self.same(&Self::of(presented))
    }

    /// Constant-time comparison of two hashes.
    pub fn same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        unhex(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("expected 64 lower-case hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_one_spelling() {
        for kind in TokenKind::ALL {
            let token = Token::from_random(kind, &[7; 32]);
            assert_eq!(token.expose().len(), kind.prefix().len() + 48);
            let (parsed_kind, parsed) = Token::parse(token.expose()).expect("parses");
            assert_eq!((parsed_kind, parsed.expose()), (kind, token.expose()));
            assert!(token.hash().matches(token.expose()));
        }
        // A device token is no gateway token with another prefix.
        let device = Token::from_random(TokenKind::Device, &[7; 32]);
        let renamed = device.expose().replace("pc_dev_", "pc_gw_");
        assert_eq!(Token::parse(&renamed).err(), Some(TokenError::Checksum));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let token = Token::from_random(TokenKind::Device, &[1; 32]);
        for at in TokenKind::Device.prefix().len()..token.expose().len() {
            let mut text = token.expose().to_owned().into_bytes();
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(text).expect("ascii");
            assert_eq!(
                Token::parse(&text).err(),
                Some(TokenError::Checksum),
                "at {at}"
            );
            assert!(!token.hash().matches(&text));
        }
        for text in [
            "",
            "pc_dev_",
            "pc_dev_AAAA",
            "sk-1",
            &token.expose()[..50],
            &format!("{}A", token.expose()),
        ] {
            assert_eq!(Token::parse(text).err(), Some(TokenError::Shape), "{text}");
        }
    }

    #[test]
    fn a_hash_is_kept_as_hex_and_prints_nothing() {
        let hash = TokenHash::of("chosen by a person");
        let json = serde_json::to_string(&hash).expect("json");
        let back: TokenHash = serde_json::from_str(&json).expect("json");
        assert!(
            back.same(&hash)
                && back.matches("chosen by a person")
                && !back.matches("Chosen by a person")
        );
        assert_eq!(format!("{hash:?}"), "TokenHash(..)");
        assert!(serde_json::from_str::<TokenHash>("\"00\"").is_err());
    }
}
