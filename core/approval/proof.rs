//! What shows who decided: a signature that is kept with the decision, and that anybody can check later without a
//! gateway.
//!
//! What is signed is, with each field as u32 big-endian length and bytes,
//!
//! ```text
//! domain | gateway id (32) | approval id | plan hash (32) | decision | scope | expiry, Unix ms (u64 big-endian)
//! device:  domain = "portcullis-decision-v1" 0x00
//! session: domain = "portcullis-decision-session-v1" 0x00, and behind the rest: principal | connection
//! ```
//!
//! A device signs with the key that is paired; `session` is signed by the gateway for who has no key at hand. The domain
//! itself has no length before it. The gateway's id is the SHA-256 of its public key.

use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Word;
use crate::device::DeviceKey;
use crate::encoding::{base64url, from_base64url};
use crate::identity::Identity;
use crate::ids::Hash32;
use crate::time::Millis;

const DEVICE: &[u8] = b"portcullis-decision-v1\0";
const SESSION: &[u8] = b"portcullis-decision-session-v1\0";
/// Of either kind of key.
const SIGNATURE: usize = 64;

/// How far a word reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// This question alone.
    Once,
    /// The same command in the same session.
    Session,
    /// The same command until a moment that was named.
    Until,
    /// The same command, as long as grants last.
    Always,
}

impl Extent {
    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Session => "session",
            Self::Until => "until",
            Self::Always => "always",
        }
    }

    /// From the wire; anything else is none.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Once, Self::Session, Self::Until, Self::Always]
            .into_iter()
            .find(|extent| extent.as_str() == text)
    }

    /// What a word reaches where nothing is said.
    pub const fn of(word: Word) -> Self {
        match word {
            Word::AllowOnce | Word::Deny => Self::Once,
            Word::AllowAlways => Self::Always,
        }
    }

    /// Can this word have it?
    pub const fn fits(self, word: Word) -> bool {
        matches!(
            (word, self),
            (Word::AllowOnce | Word::Deny, Self::Once)
                | (
                    Word::AllowAlways,
                    Self::Session | Self::Until | Self::Always
                )
        )
    }
}

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Which gateway is told.
    pub gateway: Hash32,
    /// About which question.
    pub approval: &'a str,
    /// About which plan.
    pub plan: Hash32,
    /// What is said.
    pub word: Word,
    /// How far it reaches.
    pub scope: Extent,
    /// After this nothing begins by it.
    pub expires: Millis,
}

const EXPORT: &[u8] = b"portcullis-vault-export-v1\0";

impl<'a> Statement<'a> {
    /// That the vault's secrets are taken out on this connection, which stands where an approval's id would: each
    /// connection has another name, so that the statement is worth nothing on any other.
    pub fn of_export(gateway: Hash32, connection: &'a str, expires: Millis) -> Self {
        Self {
            gateway,
            approval: connection,
            plan: Hash32::of(EXPORT),
            word: Word::AllowOnce,
            scope: Extent::Once,
            expires,
        }
    }

    /// The bytes that a device signs.
    pub fn to_sign(&self) -> Vec<u8> {
        self.bytes(DEVICE, &[])
    }

    fn bytes(&self, domain: &[u8], more: &[&str]) -> Vec<u8> {
        let expires = self.expires.0.to_be_bytes();
        let fields: [&[u8]; 6] = [
            &self.gateway.0,
            self.approval.as_bytes(),
            &self.plan.0,
            self.word.as_str().as_bytes(),
            self.scope.as_str().as_bytes(),
            &expires,
        ];
        let more = more.iter().map(|text| text.as_bytes());
        let mut all = domain.to_vec();
        for field in fields.into_iter().chain(more) {
            // No field is near 4 GiB: ids and names are bounded where they come in.
            let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
            all.extend(length.to_be_bytes());
            all.extend(field);
        }
        all
    }
}

/// With what a decision was made, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum DecisionProof {
    /// A paired device's key signed it.
    Device {
        /// Which gateway was told.
        gateway: Hash32,
        /// How far it reaches.
        scope: Extent,
        /// After this nothing begins by it.
        expires_at_ms: Millis,
        /// The key, base64url.
        key: String,
        /// Over [`Statement::to_sign`], base64url.
        signature: String,
    },
    /// The gateway signed that this principal said it on this connection.
    Session {
        /// Which gateway.
        gateway: Hash32,
        /// How far it reaches.
        scope: Extent,
        /// After this nothing begins by it.
        expires_at_ms: Millis,
        /// Who.
        principal: String,
        /// Where.
        connection: String,
        /// The gateway's key, base64url.
        key: String,
        /// Base64url.
        signature: String,
    },
}

/// Why a proof is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// No key in a form that is taken.
    #[error("its key is none")]
    Key,
    /// The gateway's id is not that of the key.
    #[error("its gateway's id is not that of its key")]
    Gateway,
    /// A scope that the decision cannot have.
    #[error("its scope does not fit the decision")]
    Scope,
    /// It was made for another question, plan, decision, scope, expiry or gateway, or with another key.
    #[error("its signature is not over this gateway, approval, plan, decision, scope and expiry")]
    Signature,
}

impl DecisionProof {
    /// `device` or `session`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Device { .. } => "device",
            Self::Session { .. } => "session",
        }
    }

    /// How far it reaches, and until when.
    pub const fn reach(&self) -> (Extent, Millis) {
        match self {
            Self::Device {
                scope,
                expires_at_ms,
                ..
            }
            | Self::Session {
                scope,
                expires_at_ms,
                ..
            } => (*scope, *expires_at_ms),
        }
    }

    /// Which gateway was told.
    pub const fn gateway(&self) -> Hash32 {
        match self {
            Self::Device { gateway, .. } | Self::Session { gateway, .. } => *gateway,
        }
    }

    /// The id of the device whose key signed, where one did.
    pub fn device(&self) -> Option<String> {
        match self {
            Self::Device { key, .. } => DeviceKey::parse(key).ok().map(|key| key.id()),
            Self::Session { .. } => None,
        }
    }
}

/// Checks a proof by itself, from what was recorded: that this key said this of this plan. Whose key it is, and that it
/// was paired then, says the log.
///
/// # Errors
/// [`ProofError`].
pub fn verify_proof(
    proof: &DecisionProof,
    approval: &str,
    plan: Hash32,
    word: Word,
) -> Result<(), ProofError> {
    let (scope, expires) = proof.reach();
    if !scope.fits(word) {
        return Err(ProofError::Scope);
    }
    let said = Statement {
        gateway: proof.gateway(),
        approval,
        plan,
        word,
        scope,
        expires,
    };
    let (key, bytes, signature) = match proof {
        DecisionProof::Device { key, signature, .. } => (key, said.to_sign(), signature),
        DecisionProof::Session {
            principal,
            connection,
            key,
            signature,
            ..
        } => (
            key,
            said.bytes(SESSION, &[principal, connection]),
            signature,
        ),
    };
    let key = DeviceKey::parse(key).map_err(|_| ProofError::Key)?;
    let is_session = matches!(proof, DecisionProof::Session { .. });
    if is_session && gateway_id(&key) != proof.gateway() {
        return Err(ProofError::Gateway);
    }
    let signature = from_base64url(signature).filter(|bytes| bytes.len() == SIGNATURE);
    let signature = signature.ok_or(ProofError::Signature)?;
    if key.verify(&bytes, &signature) {
        Ok(())
    } else {
        Err(ProofError::Signature)
    }
}

fn gateway_id(key: &DeviceKey) -> Hash32 {
    Hash32(Sha256::digest(key.canonical_bytes()).into())
}

/// The key with which a gateway signs what was said on its connections. Cannot be printed.
#[derive(Clone)]
pub struct DecisionKey {
    key: SigningKey,
    text: String,
    id: Hash32,
}

impl DecisionKey {
    /// The one that this machine's identity has for it.
    pub fn of(identity: &Identity) -> Self {
        Self::from_seed(identity.decisions().expose())
    }

    /// Of these 32 bytes, used for nothing else.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = DeviceKey::Ed25519(key.verifying_key());
        Self {
            text: public.to_text(),
            id: gateway_id(&public),
            key,
        }
    }

    /// The gateway's id in statements.
    pub const fn gateway(&self) -> Hash32 {
        self.id
    }

    /// Signs that this principal said so on this connection.
    pub fn session(
        &self,
        said: &Statement<'_>,
        principal: &str,
        connection: &str,
    ) -> DecisionProof {
        let said = Statement {
            gateway: self.id,
            ..*said
        };
        let bytes = said.bytes(SESSION, &[principal, connection]);
        DecisionProof::Session {
            gateway: self.id,
            scope: said.scope,
            expires_at_ms: said.expires,
            principal: principal.to_owned(),
            connection: connection.to_owned(),
            key: self.text.clone(),
            signature: base64url(&self.key.sign(&bytes).to_bytes()),
        }
    }
}

impl std::fmt::Debug for DecisionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DecisionKey({})", self.id)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn plan() -> Hash32 {
        Hash32::of(b"plan")
    }

    fn said(gateway: Hash32) -> Statement<'static> {
        Statement {
            gateway,
            approval: "pc-1",
            plan: plan(),
            word: Word::AllowOnce,
            scope: Extent::Once,
            expires: Millis(5_000),
        }
    }

    /// As a device of ours signs.
    pub fn signed(key: &SigningKey, said: &Statement<'_>) -> DecisionProof {
        DecisionProof::Device {
            gateway: said.gateway,
            scope: said.scope,
            expires_at_ms: said.expires,
            key: DeviceKey::Ed25519(key.verifying_key()).to_text(),
            signature: base64url(&key.sign(&said.to_sign()).to_bytes()),
        }
    }

    /// Written down in ARCHITECTURE.md: others sign these bytes.
    #[test]
    fn the_bytes_of_a_decision_are_these() {
        let bytes = said(Hash32([1; 32])).to_sign();
        let mut expected = b"portcullis-decision-v1\0".to_vec();
        expected.extend([0, 0, 0, 32]);
        expected.extend([1; 32]);
        expected.extend(b"\0\0\0\x04pc-1\0\0\0\x20");
        expected.extend(plan().0);
        expected.extend(b"\0\0\0\x0aallow-once\0\0\0\x04once\0\0\0\x08");
        expected.extend(5_000_u64.to_be_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_proof_holds_for_one_gateway_approval_plan_decision_scope_and_expiry() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let gateway = DecisionKey::from_seed(&[9; 32]);
        let whole = said(gateway.gateway());
        let both = [
            signed(&key, &whole),
            gateway.session(&whole, "uid:0", "c-1"),
        ];
        for proof in both {
            let check = |p: &DecisionProof, id: &str, plan, word| verify_proof(p, id, plan, word);
            assert_eq!(check(&proof, "pc-1", plan(), Word::AllowOnce), Ok(()));
            for refused in [
                check(&proof, "pc-2", plan(), Word::AllowOnce),
                check(&proof, "pc-1", Hash32::of(b"other"), Word::AllowOnce),
                check(&proof, "pc-1", plan(), Word::Deny),
            ] {
                assert_eq!(refused, Err(ProofError::Signature), "{}", proof.kind());
            }
            assert_eq!(
                check(&proof, "pc-1", plan(), Word::AllowAlways),
                Err(ProofError::Scope)
            );
            // Each kept field: an exported proof that was altered is none.
            let text = serde_json::to_value(&proof).unwrap();
            assert_eq!(
                serde_json::from_value::<DecisionProof>(text.clone()).unwrap(),
                proof
            );
            let other = DecisionKey::from_seed(&[8; 32]);
            for (field, value) in [
                ("gateway", other.gateway().to_string().into()),
                ("expiresAtMs", 5_001.into()),
                ("key", other.text.clone().into()),
                ("signature", base64url(&[0; 64]).into()),
                ("principal", "uid:1".into()),
                ("connection", "c-2".into()),
            ] {
                let mut altered = text.clone();
                let Some(held) = altered.get_mut(field) else {
                    continue;
                };
                *held = value;
                let altered: DecisionProof = serde_json::from_value(altered).unwrap();
                let refused = check(&altered, "pc-1", plan(), Word::AllowOnce);
                assert!(refused.is_err(), "{field} of {}", proof.kind());
            }
        }
    }

    /// A session's proof is no device's, nor one of another gateway that has this one's id.
    #[test]
    fn what_a_gateway_signed_is_no_devices_proof() {
        let gateway = DecisionKey::from_seed(&[9; 32]);
        let whole = said(gateway.gateway());
        let DecisionProof::Session {
            key,
            signature,
            gateway: id,
            scope,
            expires_at_ms,
            ..
        } = gateway.session(&whole, "uid:0", "c-1")
        else {
            panic!()
        };
        let as_device = DecisionProof::Device {
            gateway: id,
            scope,
            expires_at_ms,
            key,
            signature,
        };
        assert_eq!(
            verify_proof(&as_device, "pc-1", plan(), Word::AllowOnce),
            Err(ProofError::Signature)
        );
        let other = DecisionKey::from_seed(&[8; 32]);
        let DecisionProof::Session { key, signature, .. } = other.session(&whole, "uid:0", "c-1")
        else {
            panic!()
        };
        let posing = DecisionProof::Session {
            gateway: gateway.gateway(),
            scope: Extent::Once,
            expires_at_ms: Millis(5_000),
            principal: "uid:0".to_owned(),
            connection: "c-1".to_owned(),
            key,
            signature,
        };
        assert_eq!(
            verify_proof(&posing, "pc-1", plan(), Word::AllowOnce),
            Err(ProofError::Gateway)
        );
    }

    /// With lengths before them, what moves from one field into its neighbour is another statement.
    #[test]
    fn no_two_statements_have_the_same_bytes() {
        let gateway = DecisionKey::from_seed(&[9; 32]);
        let whole = said(gateway.gateway());
        let one = gateway.session(&whole, "uid:1", "2");
        let DecisionProof::Session { signature: a, .. } = one else {
            panic!()
        };
        let two = gateway.session(&whole, "uid:12", "");
        let DecisionProof::Session { signature: b, .. } = two else {
            panic!()
        };
        assert_ne!(a, b);
    }
}
