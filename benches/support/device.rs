//! Devices with keys of their own, and the `connect` that they sign.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_tungstenite::tungstenite::Message;

use super::{Socket, TOKEN};

/// A key of either kind, and who it is.
pub struct Device {
    key: Key,
    id: String,
    public_key: String,
}

enum Key {
    Ed25519(Box<ed25519_dalek::SigningKey>),
    P256(Box<p256::ecdsa::SigningKey>),
}

impl Device {
    /// Ed25519 (RFC 8032).
    pub fn ed25519() -> Result<Self> {
        let key = ed25519_dalek::SigningKey::from_bytes(&random()?);
        let raw = key.verifying_key().as_bytes().to_vec();
        Ok(Self::of(Key::Ed25519(Box::new(key)), &raw))
    }

    /// P-256 (FIPS 186-5).
    pub fn p256() -> Result<Self> {
        let key = p256::ecdsa::SigningKey::from_slice(&random()?)?;
        let raw = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
        Ok(Self::of(Key::P256(Box::new(key)), &raw))
    }

    fn of(key: Key, raw: &[u8]) -> Self {
        let id: Vec<String> = Sha256::digest(raw)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            key,
            id: id.concat(),
            public_key: URL_SAFE_NO_PAD.encode(raw),
        }
    }

    fn sign(&self, text: &str) -> String {
        let bytes = match &self.key {
            Key::Ed25519(key) => {
                use ed25519_dalek::Signer as _;
                key.sign(text.as_bytes()).to_bytes().to_vec()
            }
            Key::P256(key) => {
                use p256::ecdsa::signature::Signer as _;
                let signature: p256::ecdsa::Signature = key.sign(text.as_bytes());
                signature.normalize_s().to_bytes().to_vec()
            }
        };
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Answers the challenge of a new socket with the shared token and the signature; the socket, and `hello-ok`.
    pub async fn join(&self, mut socket: Socket) -> Result<(Socket, Value)> {
        let challenge = frame(&mut socket).await?;
        let nonce = challenge["payload"]["nonce"].as_str();
        let nonce = nonce.with_context(|| format!("no challenge: {challenge}"))?;
        let at = challenge["payload"]["ts"].as_u64().context("no time")?;
        let text = format!(
            "v3|{}|gateway-client|backend|operator|operator.read|{at}|{TOKEN}|{nonce}|linux|bench",
            self.id
        );
        let params = json!({
            "minProtocol": 4, "maxProtocol": 4,
            "client": {
                "id": "gateway-client", "version": "1.0.0", "platform": "Linux", "deviceFamily": "Bench",
                "mode": "backend",
            },
            "role": "operator", "scopes": ["operator.read"], "auth": { "token": TOKEN },
            "device": {
                "id": self.id, "publicKey": self.public_key, "signature": self.sign(&text),
                "signedAt": at, "nonce": nonce,
            },
        });
        let request =
            json!({ "type": "req", "id": "connect", "method": "connect", "params": params });
        socket.send(Message::text(request.to_string())).await?;
        let hello = frame(&mut socket).await?;
        ensure!(hello["ok"] == true, "connect was refused: {hello}");
        Ok((socket, hello))
    }
}

async fn frame(socket: &mut Socket) -> Result<Value> {
    loop {
        let message = socket.next().await;
        if let Message::Text(text) = message.context("the socket was closed")?? {
            return Ok(serde_json::from_str(text.as_str())?);
        }
    }
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
