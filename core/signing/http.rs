//! RFC 9421 in one fixed profile: `hmac-sha256` over method, authority, path, query and content digest, with the
//! parameters created, nonce, keyid and tag. No other choice is taken, so that nothing can be chosen by an attacker.
//!
//! ```text
//! Content-Digest: sha-256=:<base64 of the body's SHA-256>:
//! Signature-Input: sig=("@method" "@authority" "@path" "@query" "content-digest");created=1764345600;nonce="<22 to 64
//!     of A-Z a-z 0-9 - _>";keyid="<key id>";alg="hmac-sha256";tag="portcullis"
//! Signature: sig=:<base64 of the MAC>:
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{AHEAD_MS, SKEW_MS, SigningKey, mac_is};
use crate::time::Millis;

/// What is covered, in this order.
pub const COMPONENTS: [&str; 5] = ["@method", "@authority", "@path", "@query", "content-digest"];
/// What a device says in `caps` to be given a key, once.
pub const CAPABILITY: &str = "request-signing-v1";
/// Whose signatures these are: one made for another use is none.
pub const TAG: &str = "portcullis";
const ALGORITHM: &str = "hmac-sha256";
/// Longest value of each of the three headers, bytes.
const HEADER_MAX: usize = 1024;
const LABEL_MAX: usize = 32;
const KEY_ID_MAX: usize = 64;
const NONCE_SIZE: std::ops::RangeInclusive<usize> = 22..=64;

/// Why a request is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpRefusal {
    /// There is none.
    #[error("this request is not signed")]
    Missing,
    /// Not in the profile.
    #[error("the signature is not in the profile: {0}")]
    Shape(&'static str),
    /// Unknown key, wrong MAC: which of them is not told.
    #[error("the signature is wrong")]
    Wrong,
    /// More than 60 s old, or from the future.
    #[error("the signature's time is off by more than 60 s")]
    Stale,
    /// The body is not what was signed.
    #[error("the body is not the one that was signed")]
    Body,
}

/// A signature that was read, and not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature<'a> {
    /// Exactly as sent, from the list of components on.
    params: &'a str,
    /// Unix seconds.
    pub created: u64,
    /// Of one request.
    pub nonce: &'a str,
    /// Which key.
    pub key_id: &'a str,
    mac: [u8; 32],
}

/// What was asked, as the gateway sees it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// In capitals.
    pub method: &'a str,
    /// The `Host` header.
    pub authority: &'a str,
    /// The request came over TLS: its default port is 443, and 80 without (RFC 9421 2.2.3).
    pub tls: bool,
    /// As sent.
    pub path: &'a str,
    /// As sent, without `?`.
    pub query: &'a str,
    /// The header's value.
    pub content_digest: &'a str,
}

impl<'a> Signature<'a> {
    /// Reads the two headers' values.
    ///
    /// # Errors
    /// [`HttpRefusal::Shape`].
    pub fn parse(input: &'a str, signature: &str) -> Result<Self, HttpRefusal> {
        let shape = |why| Err(HttpRefusal::Shape(why));
        if input.len() > HEADER_MAX || signature.len() > HEADER_MAX {
            return shape("a header is too long");
        }
        let Some((label, params)) = input.split_once('=') else {
            return shape("Signature-Input is LABEL=(...);...");
        };
        let is_label = (1..=LABEL_MAX).contains(&label.len())
            && label.starts_with(|c: char| c.is_ascii_lowercase())
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !is_label {
            return shape("the label is a-z, then a-z, 0-9, - or _");
        }
        let Some(mac) = signature
            .strip_prefix(label)
            .and_then(|rest| rest.strip_prefix("=:"))
            .and_then(|rest| rest.strip_suffix(':'))
            .and_then(bytes_of)
        else {
            return shape("Signature is LABEL=:BASE64: of 32 bytes, under the same label");
        };
        let list = COMPONENTS.map(|name| format!("\"{name}\"")).join(" ");
        let Some(mut rest) = params
            .strip_prefix('(')
            .and_then(|p| p.strip_prefix(&*list))
            .and_then(|p| p.strip_prefix(')'))
        else {
            return shape(
                "it covers \"@method\" \"@authority\" \"@path\" \"@query\" \"content-digest\", in this order",
            );
        };
        let (mut created, mut nonce, mut key_id, mut alg, mut tag) = (None, None, None, None, None);
        while !rest.is_empty() {
            let Some((name, value, after)) = parameter(rest) else {
                return shape("a parameter is ;NAME=VALUE");
            };
            rest = after;
            let place = match name {
                "created" => &mut created,
                "nonce" => &mut nonce,
                "keyid" => &mut key_id,
                "alg" => &mut alg,
                "tag" => &mut tag,
                _ => return shape("its parameters are created, nonce, keyid, alg and tag"),
            };
            if place.replace(value).is_some() {
                return shape("a parameter stands twice");
            }
        }
        let Some(created) = created.and_then(Value::number) else {
            return shape("created is Unix seconds");
        };
        let Some(nonce) = nonce
            .and_then(Value::text)
            .filter(|nonce| NONCE_SIZE.contains(&nonce.len()) && is_word(nonce))
        else {
            return shape("nonce has 22 to 64 characters of A-Z, a-z, 0-9, - and _");
        };
        let Some(key_id) = key_id
            .and_then(Value::text)
            .filter(|id| (1..=KEY_ID_MAX).contains(&id.len()) && is_word(id))
        else {
            return shape("keyid is the key's id");
        };
        // Left out is what the key says, and every key is for this one.
        if alg.is_some_and(|alg| alg.text() != Some(ALGORITHM)) {
            return shape("alg is \"hmac-sha256\"");
        }
        if tag.and_then(Value::text) != Some(TAG) {
            return shape("tag is \"portcullis\"");
        }
        Ok(Self {
            params,
            created,
            nonce,
            key_id,
            mac,
        })
    }

    /// Its key and MAC, then its time. Without a key it costs the same and says the same.
    ///
    /// # Errors
    /// [`HttpRefusal::Wrong`], [`HttpRefusal::Stale`].
    pub fn check(
        &self,
        key: Option<&SigningKey>,
        target: &Target<'_>,
        now: Millis,
    ) -> Result<(), HttpRefusal> {
        let none = SigningKey::from_random(zeroize::Zeroizing::new([0; 32]));
        let right = mac_is(
            key.unwrap_or(&none).expose(),
            &[self.base(target).as_bytes()],
            &self.mac,
        );
        if key.is_none() || !right {
            return Err(HttpRefusal::Wrong);
        }
        if now.since(Millis(self.created_ms())) > SKEW_MS || self.ahead_ms(now) > AHEAD_MS {
            return Err(HttpRefusal::Stale);
        }
        Ok(())
    }

    /// How long its second is away still, ms.
    pub const fn ahead_ms(&self, now: Millis) -> u64 {
        self.created_ms().saturating_sub(now.0)
    }

    /// Unix ms.
    pub const fn created_ms(&self) -> u64 {
        self.created.saturating_mul(1000)
    }

    fn base(&self, target: &Target<'_>) -> String {
        let query = format!("?{}", target.query);
        let authority = target.authority.to_ascii_lowercase();
        let authority = authority
            .strip_suffix(if target.tls { ":443" } else { ":80" })
            .unwrap_or(&authority);
        let values = [
            target.method,
            authority,
            target.path,
            &query,
            target.content_digest,
        ];
        base(COMPONENTS.into_iter().zip(values), self.params)
    }
}

/// The signature base (RFC 9421 section 2.5).
pub fn base<'a>(components: impl Iterator<Item = (&'a str, &'a str)>, params: &str) -> String {
    use std::fmt::Write as _;
    let mut base = String::new();
    for (name, value) in components {
        // Writing to a string does not fail.
        let _ = writeln!(base, "\"{name}\": {value}");
    }
    let _ = write!(base, "\"@signature-params\": {params}");
    base
}

/// `Content-Digest` of a body, in the one form that is taken.
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

/// Is this the body whose digest was signed?
///
/// # Errors
/// [`HttpRefusal::Body`].
pub fn check_body(digest: &str, body: &[u8]) -> Result<(), HttpRefusal> {
    if content_digest(body) == digest {
        Ok(())
    } else {
        Err(HttpRefusal::Body)
    }
}

fn bytes_of(base64: &str) -> Option<[u8; 32]> {
    // The engine refuses what has a second spelling: missing padding, trailing bits.
    STANDARD.decode(base64).ok()?.try_into().ok()
}

fn is_word(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Number(u64),
}

impl<'a> Value<'a> {
    const fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(_) => None,
        }
    }

    const fn number(self) -> Option<u64> {
        match self {
            Self::Text(_) => None,
            Self::Number(number) => Some(number),
        }
    }
}

/// `;name=value` of RFC 8941, without escapes and without spaces, and what follows.
fn parameter(rest: &str) -> Option<(&str, Value<'_>, &str)> {
    let (name, rest) = rest.strip_prefix(';')?.split_once('=')?;
    if let Some(quoted) = rest.strip_prefix('"') {
        let (text, after) = quoted.split_once('"')?;
        let plain = text
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) && b != b'\\');
        return plain.then_some((name, Value::Text(text), after));
    }
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    // RFC 8941: at most 15 digits. One spelling: no zeros before it.
    let one_form = (1..=15).contains(&digits.len()) && (digits == "0" || !digits.starts_with('0'));
    let number = digits.parse().ok().filter(|_| one_form)?;
    Some((name, Value::Number(number), after))
}
