//! This machine as a device: a key that is made once, and its proof over a gateway's challenge.

use ed25519_dalek::{Signer as _, SigningKey};
use portcullis_core::auth::Role;
use portcullis_core::device::{Claim, DeviceKey, SignedVersion, signed_text};
use portcullis_core::encoding::base64url;
use portcullis_core::protocol::limits::PROTOCOL;
use portcullis_core::seal::Secret;
use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::cli::Failure;
use crate::random::random;

/// As what a client of ours connects.
#[derive(Debug, Clone)]
pub struct Who {
    /// Of the wire's closed list.
    pub id: &'static str,
    /// Of the wire's closed list.
    pub mode: &'static str,
    /// As which role.
    pub role: Role,
    /// Asked for.
    pub scopes: Vec<String>,
    /// What it can do.
    pub caps: Vec<String>,
    /// Shown to people.
    pub name: Option<String>,
    /// Further parameters of `connect`.
    pub more: Map<String, Value>,
}

/// A credential beside the device's signature.
pub enum Credential {
    /// What the gateway gave this device.
    Device(Secret),
    /// What all may share.
    Shared(Secret),
    /// None: the kernel says who we are.
    Kernel,
}

/// The key of one role at one gateway. Cannot be printed.
pub struct Device {
    key: SigningKey,
    public: DeviceKey,
}

impl Device {
    /// The key of this role at this gateway, made at its first use. At each gateway it is another one: a gateway that
    /// passes the challenge of another on gets a signature that is worth nothing there.
    ///
    /// # Errors
    /// As [`Keys::get_or_make`].
    pub fn of(keys: &Keys, role: Role, gateway: &str) -> Result<Self, Failure> {
        let name = format!("KEY_{}_{gateway}", role.as_str().to_ascii_uppercase());
        let seed = keys.get_or_make(&name, || Ok(Secret::new(random::<32>()?.to_vec())))?;
        let unusable = || {
            Failure::of(
                portcullis_core::codes::STATE_CORRUPT,
                "this client's device key is none",
            )
            .hint("move keys.json away, and pair this client anew")
        };
        let seed: &[u8; 32] = seed.expose().try_into().map_err(|_| unusable())?;
        let key = SigningKey::from_bytes(seed);
        let public = DeviceKey::from_raw(key.verifying_key().as_bytes()).map_err(|_| unusable())?;
        Ok(Self { key, public })
    }

    /// Its id, which is its fingerprint.
    pub fn id(&self) -> String {
        self.public.id()
    }

    /// The parameters of `connect`, signed over this socket's challenge.
    pub fn connect(&self, who: &Who, credential: &Credential, nonce: &str, ts: u64) -> Value {
        let auth = match credential {
            Credential::Device(secret) => Some(("deviceToken", secret)),
            Credential::Shared(secret) => Some(("token", secret)),
            Credential::Kernel => None,
        };
        // Both kinds are text: what is not would not be accepted either.
        let auth = auth.map(|(field, secret)| (field, String::from_utf8_lossy(secret.expose())));
        let secret = auth.as_ref().map_or("", |(_, secret)| secret);
        let (id, public_key) = (self.public.id(), self.public.to_text());
        let platform = std::env::consts::OS;
        let claim = Claim {
            device_id: &id,
            public_key: &public_key,
            signature: "",
            signed_at_ms: ts,
            nonce,
            client_id: who.id,
            client_mode: who.mode,
            role: who.role.as_str(),
            scopes: &who.scopes,
            token: secret,
            platform,
            device_family: FAMILY,
        };
        let text = signed_text(&claim, SignedVersion::V3);
        let signature = base64url(&self.key.sign(text.as_bytes()).to_bytes());
        let mut params = who.params();
        params["client"]["deviceFamily"] = FAMILY.into();
        params["device"] = json!({
            "id": id, "publicKey": public_key, "signature": signature, "signedAt": ts, "nonce": nonce,
        });
        if let Some((field, secret)) = &auth {
            params["auth"] = json!({ *field: secret });
        }
        params
    }

    /// This key's text, and its signature over these bytes, base64url.
    pub fn sign(&self, bytes: &[u8]) -> (String, String) {
        let signature = base64url(&self.key.sign(bytes).to_bytes());
        (self.public.to_text(), signature)
    }
}

const FAMILY: &str = "Linux";

impl Who {
    /// `connect` without a proof: of the control socket, whose peer the kernel names.
    pub fn params(&self) -> Value {
        let mut params = self.more.clone();
        let mut client = json!({
            "id": self.id, "mode": self.mode, "version": env!("CARGO_PKG_VERSION"),
            "platform": std::env::consts::OS,
        });
        if let Some(name) = &self.name {
            client["displayName"] = name.as_str().into();
        }
        params.insert("minProtocol".into(), PROTOCOL.into());
        params.insert("maxProtocol".into(), PROTOCOL.into());
        params.insert("client".into(), client);
        params.insert("role".into(), self.role.as_str().into());
        params.insert("scopes".into(), json!(self.scopes));
        params.insert("caps".into(), json!(self.caps));
        params.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::device::verify;

    #[test]
    fn the_proof_is_one_that_the_gateway_takes_and_for_this_challenge_only() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = DeviceKey::from_raw(key.verifying_key().as_bytes()).unwrap();
        let device = Device { key, public };
        let who = Who {
            id: "cli",
            mode: "cli",
            role: Role::Operator,
            scopes: vec!["operator.read".into(), "operator.write".into()],
            caps: vec![],
            name: None,
            more: Map::new(),
        };
        let secret = Credential::Device(Secret::new(b"a-token".to_vec()));
        let params = device.connect(&who, &secret, "nonce-1", 5_000);
        let text = |path: &str| params.pointer(path).unwrap().as_str().unwrap().to_owned();
        let (id, key, signature) = (
            text("/device/id"),
            text("/device/publicKey"),
            text("/device/signature"),
        );
        let claim = Claim {
            device_id: &id,
            public_key: &key,
            signature: &signature,
            signed_at_ms: 5_000,
            nonce: "nonce-1",
            client_id: "cli",
            client_mode: "cli",
            role: "operator",
            scopes: &who.scopes,
            token: "a-token",
            platform: &text("/client/platform"),
            device_family: &text("/client/deviceFamily"),
        };
        assert_eq!(verify(&claim, "nonce-1", 5_000).unwrap().id, device.id());
        assert!(verify(&claim, "nonce-2", 5_000).is_err());
        assert_eq!(params["auth"], json!({ "deviceToken": "a-token" }));
    }
}
