//! A proxy's signed word on who somebody is: a JWT (RFC 7519), checked with a key set that the configuration names.
//!
//! Which algorithm a key is for is said by the key and by the configuration, never by the token.

use std::fmt;

use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value;
use thiserror::Error;

use crate::encoding::from_base64url;
use crate::protocol::strict;

/// Clocks of two machines differ by so many seconds.
const LEEWAY_S: u64 = 60;
/// Longest assertion, bytes.
const LONGEST: usize = 8 * 1024;

/// What signs assertions here: public keys only, a secret that both sides hold proves nothing.
const ALGORITHMS: [(&str, Algorithm); 5] = [
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("RS256", Algorithm::RS256),
    ("PS256", Algorithm::PS256),
];

/// A key set that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeySetError {
    /// Not RFC 7517.
    #[error("is no JSON Web Key Set")]
    Form,
    /// None of its keys is for signatures of an algorithm of the list.
    #[error("has no public key for signatures of any of the algorithms")]
    NoKey,
    /// Two keys with one name, or two without.
    #[error("has two keys with the same kid, or several of which one has none")]
    TwoNames,
    /// Of `algorithms`.
    #[error("{0:?} is not one of ES256, ES384, EdDSA, RS256, PS256")]
    Algorithm(String),
}

/// Why an assertion does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AssertionError {
    /// Not three parts of base64url, or too long, or it wants something of its reader.
    #[error("it is no signed token")]
    Form,
    /// Its `kid` is not in the key set.
    #[error("its key is not in the key set")]
    Key,
    /// Algorithm, signature, `iss` or `aud`.
    #[error("its signature, algorithm, issuer or audience is not the one configured")]
    Signature,
    /// `exp` or `nbf`.
    #[error("it has expired, is not valid yet, or does not say until when it is")]
    Time,
    /// The claim with the user is missing or blank.
    #[error("it names no user")]
    User,
}

/// Does a key of a kind that is known lack what such a key has? That is a broken set, and not one without keys.
fn has_broken(key_set: &[u8]) -> bool {
    let all: Value = serde_json::from_slice(key_set).unwrap_or_default();
    let keys = all["keys"].as_array().into_iter().flatten();
    keys.filter(|key| {
        ["EC", "OKP", "RSA", "oct"]
            .iter()
            .any(|kind| key["kty"] == *kind)
    })
    .any(|key| {
        let read = serde_json::from_value::<Jwk>(key.clone());
        !read.is_ok_and(|read| !matches!(read.algorithm, AlgorithmParameters::Other(_)))
    })
}

/// How to check assertions.
#[derive(Clone)]
pub struct Assertion {
    keys: Vec<Key>,
    issuer: String,
    audience: String,
    claim: String,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
}

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assertion({} keys of {})", self.keys.len(), self.issuer)
    }
}

impl Assertion {
    /// Of a key set's bytes.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn new(
        key_set: &[u8],
        algorithms: &[String],
        issuer: &str,
        audience: &str,
        claim: &str,
    ) -> Result<Self, KeySetError> {
        let mut allowed = vec![];
        for name in algorithms {
            let found = ALGORITHMS.into_iter().find(|(known, _)| known == name);
            allowed.push(found.ok_or_else(|| KeySetError::Algorithm(name.clone()))?.1);
        }
        let set: JwkSet = serde_json::from_slice(key_set).map_err(|_| KeySetError::Form)?;
        let mut keys: Vec<Key> = vec![];
        for jwk in &set.keys {
            let kind: &[Algorithm] = match &jwk.algorithm {
                AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                    EllipticCurve::P256 => &[Algorithm::ES256],
                    EllipticCurve::P384 => &[Algorithm::ES384],
                    _ => &[],
                },
                AlgorithmParameters::OctetKeyPair(pair) => match pair.curve {
                    EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
                    _ => &[],
                },
                AlgorithmParameters::RSA(_) => &[Algorithm::RS256, Algorithm::PS256],
                _ => &[],
            };
            let own = jwk.common.key_algorithm.map(|own| own.to_string());
            let fits = |alg: &Algorithm| {
                allowed.contains(alg) && own.as_ref().is_none_or(|own| *own == format!("{alg:?}"))
            };
            let algorithms: Vec<_> = kind.iter().copied().filter(fits).collect();
            if !verifies(&jwk.common) {
                continue;
            }
            let Ok(public) = DecodingKey::from_jwk(jwk) else {
                continue;
            };
            if algorithms.is_empty() {
                continue;
            }
            keys.push(Key {
                id: jwk.common.key_id.clone(),
                algorithms,
                public,
            });
        }
        if keys.is_empty() {
            return Err(if has_broken(key_set) {
                KeySetError::Form
            } else {
                KeySetError::NoKey
            });
        }
        let twice = |n: usize| keys[..n].iter().any(|before| before.id == keys[n].id);
        let nameless = keys.len() > 1 && keys.iter().any(|key| key.id.is_none());
        if nameless || (0..keys.len()).any(twice) {
            return Err(KeySetError::TwoNames);
        }
        Ok(Self {
            keys,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            claim: claim.to_owned(),
        })
    }

    /// The same, with no key: nothing verifies any more.
    #[must_use]
    pub fn without_keys(self) -> Self {
        Self {
            keys: vec![],
            ..self
        }
    }

    /// How many keys it may be signed with.
    #[allow(clippy::len_without_is_empty, reason = "for the record alone")]
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// The user that it names.
    ///
    /// # Errors
    /// [`AssertionError`].
    pub fn user(&self, token: &str, now_s: u64) -> Result<String, AssertionError> {
        if token.len() > LONGEST {
            return Err(AssertionError::Form);
        }
        let header = decode_header(token).map_err(|_| AssertionError::Form)?;
        // Whoever wants something understood that we do not know is refused (RFC 7515 4.1.11).
        if header.crit.is_some() {
            return Err(AssertionError::Form);
        }
        let key = match (&header.kid, &self.keys[..]) {
            (None, [only]) => only,
            (Some(_), [only]) if only.id.is_none() => only,
            (kid, keys) => keys
                .iter()
                .find(|key| kid.is_some() && key.id == *kid)
                .ok_or(AssertionError::Key)?,
        };
        if !key.algorithms.contains(&header.alg) {
            return Err(AssertionError::Signature);
        }
        let mut rules = Validation::new(header.alg);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&[&self.audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        // The library would ask the machine's clock: times are compared below.
        rules.validate_exp = false;
        let claims = decode::<Value>(token, &key.public, &rules)
            .map_err(|_| AssertionError::Signature)?
            .claims;
        // The library takes the last of two claims of one name, and one of several issuers.
        let payload = token.split('.').nth(1).and_then(from_base64url);
        let is_plain = payload.is_some_and(|payload| strict::json(&payload).is_ok());
        if !is_plain || !claims.get("iss").is_some_and(Value::is_string) {
            return Err(AssertionError::Form);
        }
        let time = |name: &str| claims.get(name).map(Value::as_f64);
        // Seconds far below 2^53.
        let now = now_s as f64;
        let leeway = LEEWAY_S as f64;
        let lives = matches!(time("exp"), Some(Some(end)) if end + leeway > now);
        let has_begun = match time("nbf") {
            None => true,
            Some(start) => start.is_some_and(|start| start <= now + leeway),
        };
        if !lives || !has_begun {
            return Err(AssertionError::Time);
        }
        let user = claims.get(&self.claim).and_then(Value::as_str);
        // Word for word: another spelling is another user.
        user.filter(|user| !user.trim().is_empty())
            .map(str::to_owned)
            .ok_or(AssertionError::User)
    }
}

/// Does the key itself say that it is for verifying signatures, or nothing about it? (RFC 7517 4.2 and 4.3)
fn verifies(key: &CommonParameters) -> bool {
    let is_to_sign = |it: &PublicKeyUse| *it == PublicKeyUse::Signature;
    let may_verify = |all: &Vec<KeyOperations>| all.contains(&KeyOperations::Verify);
    key.public_key_use.as_ref().is_none_or(is_to_sign)
        && key.key_operations.as_ref().is_none_or(may_verify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
    use ed25519_dalek::{Signer as _, SigningKey};
    use serde_json::json;

    const NOW: u64 = 1_800_000_000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn jwk(seed: u8, kid: &str) -> Value {
        let x = B64.encode(key(seed).verifying_key().as_bytes());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x })
    }

    fn open(keys: &Value, algorithms: &[&str]) -> Result<Assertion, KeySetError> {
        let algorithms: Vec<_> = algorithms.iter().map(|s| (*s).to_owned()).collect();
        let set = json!({ "keys": keys }).to_string();
        Assertion::new(
            set.as_bytes(),
            &algorithms,
            "https://idp.example",
            "gate",
            "email",
        )
    }

    fn token(header: &Value, claims: &Value, seed: u8) -> String {
        let part = |value: &Value| B64.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = key(seed).sign(text.as_bytes());
        format!("{text}.{}", B64.encode(signature.to_bytes()))
    }

    fn claims() -> Value {
        json!({ "iss": "https://idp.example", "aud": "gate", "exp": NOW + 300, "email": "ada@example.org" })
    }

    fn header() -> Value {
        json!({ "alg": "EdDSA", "kid": "a" })
    }

    #[test]
    fn a_token_of_a_listed_key_names_its_user_and_every_change_of_it_does_not() {
        let assertion = open(&json!([jwk(1, "a"), jwk(2, "b")]), &["EdDSA"]).unwrap();
        let look = |header: Value, claims: Value, seed| {
            assertion.user(&token(&header, &claims, seed), NOW)
        };
        let with = |name: &str, value: Value| {
            let mut all = claims();
            all[name] = value;
            all
        };
        assert_eq!(
            look(header(), claims(), 1).as_deref(),
            Ok("ada@example.org")
        );
        assert_eq!(
            look(header(), with("aud", json!(["x", "gate"])), 1).as_deref(),
            Ok("ada@example.org")
        );
        assert_eq!(
            look(header(), claims(), 2),
            Err(AssertionError::Signature),
            "another's key"
        );
        for (name, bad) in [
            ("iss", json!("https://evil.example")),
            ("aud", json!("other")),
            ("iss", Value::Null),
            ("aud", Value::Null),
            ("exp", Value::Null),
        ] {
            assert_eq!(
                look(header(), with(name, bad.clone()), 1),
                Err(AssertionError::Signature),
                "{name} {bad}"
            );
        }
        for (name, bad) in [
            ("exp", json!(NOW - 61)),
            ("exp", json!(0)),
            ("nbf", json!(NOW + 120)),
            ("nbf", json!("soon")),
        ] {
            let got = look(header(), with(name, bad.clone()), 1);
            assert_eq!(got, Err(AssertionError::Time), "{name} {bad}");
        }
        assert!(look(header(), with("exp", json!("never")), 1).is_err());
        assert_eq!(
            look(header(), with("email", json!(" ")), 1),
            Err(AssertionError::User)
        );
        assert_eq!(
            look(json!({ "alg": "EdDSA" }), claims(), 1),
            Err(AssertionError::Key),
            "no kid, two keys"
        );
        assert_eq!(
            look(json!({ "alg": "EdDSA", "kid": "c" }), claims(), 1),
            Err(AssertionError::Key)
        );
        for alg in ["none", "HS256", "ES256", "RS256"] {
            let got = look(json!({ "alg": alg, "kid": "a" }), claims(), 1);
            assert!(
                matches!(got, Err(AssertionError::Form | AssertionError::Signature)),
                "{alg}"
            );
        }
        let crit = json!({ "alg": "EdDSA", "kid": "a", "crit": ["b64"], "b64": false });
        assert_eq!(look(crit, claims(), 1), Err(AssertionError::Form));
        let good = token(&header(), &claims(), 1);
        for bad in [
            "",
            "a.b",
            "a.b.c",
            &good[..good.len() - 2],
            &format!("{good}A"),
            &"x".repeat(LONGEST + 1),
        ] {
            assert!(assertion.user(bad, NOW).is_err());
        }
        // The public key as a shared secret: the oldest trick.
        let hs = json!({ "alg": "HS256", "kid": "a" });
        assert!(look(hs, claims(), 1).is_err());
    }

    #[test]
    fn a_key_set_holds_public_keys_of_listed_algorithms_each_with_its_name() {
        let secret = json!({ "kty": "oct", "kid": "s", "alg": "HS256", "k": "AAAA" });
        assert_eq!(
            open(&json!([secret]), &["EdDSA"]).unwrap_err(),
            KeySetError::NoKey
        );
        assert_eq!(
            open(&json!([jwk(1, "a")]), &["ES256"]).unwrap_err(),
            KeySetError::NoKey
        );
        // One of a kind of tomorrow is no key for us; one that lacks its half is a broken set.
        assert_eq!(
            open(&json!([{ "kty": "AKP", "pub": "AA" }]), &["EdDSA"]).unwrap_err(),
            KeySetError::NoKey
        );
        assert_eq!(
            open(&json!([{ "kty": "OKP", "kid": "a" }]), &["EdDSA"]).unwrap_err(),
            KeySetError::Form
        );
        assert_eq!(
            open(&json!([]), &["EdDSA"]).unwrap_err(),
            KeySetError::NoKey
        );
        assert_eq!(
            open(&json!([jwk(1, "a"), jwk(2, "a")]), &["EdDSA"]).unwrap_err(),
            KeySetError::TwoNames
        );
        let bad = KeySetError::Algorithm("HS256".into());
        assert_eq!(open(&json!([jwk(1, "a")]), &["HS256"]).unwrap_err(), bad);
        assert_eq!(
            open(&json!("x"), &["EdDSA"]).unwrap_err(),
            KeySetError::Form
        );
    }

    /// The bug: `use` and `key_ops` were passed over, and a key for encryption verified.
    #[test]
    fn a_key_that_says_it_is_for_something_else_verifies_nothing() {
        let said = |name: &str, value: &Value| {
            let mut key = jwk(1, "a");
            key[name] = value.clone();
            key
        };
        let token = token(&header(), &claims(), 1);
        for (name, value) in [
            ("use", json!("enc")),
            ("use", json!("sign")),
            ("use", json!("")),
            ("key_ops", json!([])),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!(["encrypt", "Verify"])),
            ("alg", json!("ES256")),
            ("alg", json!("RSA-OAEP")),
            ("alg", json!("something")),
        ] {
            let key = said(name, &value);
            let alone = open(&json!([key]), &["EdDSA", "ES256"]).unwrap_err();
            assert_eq!(alone, KeySetError::NoKey, "{name} {value}");
            let beside = open(&json!([key, jwk(2, "b")]), &["EdDSA"]).unwrap();
            let got = beside.user(&token, NOW);
            assert_eq!(got, Err(AssertionError::Key), "{name} {value}");
        }
        for (name, value) in [
            ("use", json!("sig")),
            ("key_ops", json!(["verify"])),
            ("key_ops", json!(["sign", "verify"])),
            ("alg", json!("EdDSA")),
        ] {
            let assertion = open(&json!([said(name, &value)]), &["EdDSA"]).unwrap();
            assert!(assertion.user(&token, NOW).is_ok(), "{name} {value}");
        }
        // Both must say so, where both are there.
        let mut both = said("use", &json!("sig"));
        both["key_ops"] = json!(["wrapKey"]);
        assert!(open(&json!([both]), &["EdDSA"]).is_err());
        // One name for two purposes is no confusion: only one of them is for us.
        let twins = json!([said("use", &json!("enc")), jwk(1, "a")]);
        let assertion = open(&twins, &["EdDSA"]).unwrap();
        assert!(assertion.user(&token, NOW).is_ok());
    }
}
