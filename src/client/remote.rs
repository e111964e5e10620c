//! A gateway elsewhere, to which this machine is a paired device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_core::auth::Role;
use portcullis_core::codes;
use portcullis_core::seal::Secret;
use portcullis_core::token::{Token, TokenKind};
use serde_json::Value;

use super::address::Address;
use super::device::{Credential, Device, Who};
use super::keys::{Keys, Place};
use super::wire::{Client, Door};
use crate::cli::Failure;
use crate::identity;
use crate::show::text::typed;

/// What the gateway says of a device token that is void.
const VOID: [&str; 2] = ["AUTH_DEVICE_TOKEN_MISMATCH", "AUTH_SCOPE_MISMATCH"];

/// A private file that holds a gateway's shared token.
#[derive(Debug, Clone)]
pub struct TokenFile(pub PathBuf);

/// Which gateway, and what this machine has to prove itself with.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Where it is.
    pub address: Address,
    /// Where the keys are.
    pub place: Place,
    /// For as long as there is no device token.
    pub token_file: Option<TokenFile>,
}

/// A [`Remote`] with its keys open.
pub struct Session {
    remote: Remote,
    keys: Arc<Keys>,
    device: Device,
    role: Role,
}

impl TokenFile {
    fn read(&self) -> Result<Secret, Failure> {
        let path: &Path = &self.0;
        let bytes = identity::read_private(path).map_err(|e| {
            Failure::of(
                codes::find(e.code()).unwrap_or(codes::STATE_MODE),
                e.to_string(),
            )
        })?;
        let token = bytes.ok_or_else(|| self.wrong("there is no such file"))?;
        let token = token.trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Err(self.wrong("holds no token: one line of printable characters"));
        }
        Ok(Secret::new(token.to_vec()))
    }

    fn wrong(&self, why: &str) -> Failure {
        let at = self.0.display();
        Failure::of(codes::INVALID_PARAMS, format!("--token-file {at}: {why}"))
    }
}

impl Remote {
    /// Opens the keys of this role at this gateway; its device key is made at the first use.
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub async fn open(self, role: Role) -> Result<Session, Failure> {
        let (place, gateway) = (self.place.clone(), self.address.id());
        let opened = tokio::task::spawn_blocking(move || {
            let keys = Keys::open(place)?;
            let device = Device::of(&keys, role, &gateway)?;
            Ok((keys, device))
        });
        let (keys, device) = opened
            .await
            .map_err(|e| Failure::of(codes::INTERNAL, e.to_string()))??;
        Ok(Session {
            remote: self,
            keys: Arc::new(keys),
            device,
            role,
        })
    }
}

impl Session {
    /// This device's id.
    pub fn device_id(&self) -> String {
        self.device.id()
    }

    /// This device.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Where it goes.
    pub fn url(&self) -> String {
        self.remote.address.url()
    }

    /// The way to this gateway.
    pub fn door(&self) -> Door {
        Door::Remote(Box::new(self.remote.clone()))
    }

    /// Connects as this device: with the token that the gateway gave it, else with the shared one. A new device token is
    /// kept before anything else is done.
    ///
    /// # Errors
    /// `PAIRING_REQUIRED` with the id that a person approves, the gateway's refusal, or why it is not reached.
    pub async fn connect(&self, who: &Who) -> Result<Client, Failure> {
        let kept = self.keys.get(&self.token_name())?;
        if let Some(token) = kept {
            match self.with(who, &Credential::Device(token)).await {
                Err(failure)
                    if VOID.contains(&failure.code.as_str())
                        && self.remote.token_file.is_some() => {}
                Err(failure) if VOID.contains(&failure.code.as_str()) => {
                    return Err(failure.hint(
                        "the token of this device was rotated or revoked: ask an operator of that gateway; a new one is fetched with --token-file FILE",
                    ));
                }
                other => return other,
            }
        }
        let Some(file) = &self.remote.token_file else {
            return Err(Failure::of(
                codes::CREDENTIAL_NEEDED,
                format!("no token of {} is kept here", self.url()),
            ));
        };
        self.with(who, &Credential::Shared(file.read()?)).await
    }

    async fn with(&self, who: &Who, credential: &Credential) -> Result<Client, Failure> {
        let address = &self.remote.address;
        let client = Client::over(address, |nonce, ts| {
            self.device.connect(who, credential, nonce, ts)
        })
        .await;
        let mut client = client.map_err(|f| self.explained(f))?;
        let given = client.hello.pointer_mut("/auth/deviceToken");
        let given = given.map(Value::take).unwrap_or_default();
        // A device's and no other: a shared token of somewhere else, planted here, would be signed and sent.
        let is_token = |text: &&str| matches!(Token::parse(text), Ok((TokenKind::Device, _)));
        if let Some(token) = given.as_str().filter(is_token) {
            let token = Secret::new(token.as_bytes().to_vec());
            self.keys.put(&self.token_name(), &token)?;
        }
        Ok(client)
    }

    /// What waits for a person is said with all that the person needs.
    fn explained(&self, failure: Failure) -> Failure {
        if failure.code != "PAIRING_REQUIRED" {
            return failure;
        }
        let id = typed(failure.request_id.as_deref().unwrap_or_default()).to_owned();
        let mut told = failure.hint(format!(
            "an operator of that gateway runs `portcullis devices approve {id}`, then run this again"
        ));
        let lines = format!(
            "request {id}\nfingerprint of this device {}",
            self.device.id()
        );
        told.fix = Some(lines.into());
        // What it advises itself is said above in our words.
        told.said = Some(Box::default());
        told
    }

    fn token_name(&self) -> String {
        let role = self.role.as_str().to_ascii_uppercase();
        format!("TOKEN_{role}_{}", self.remote.address.id())
    }
}
