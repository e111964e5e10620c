//! What the room may be asked, and how it refuses.

use portcullis_core::auth::{Principal, Role, ScopeSet, SecretStanding};
use portcullis_core::ids::DeviceId;
use portcullis_core::seal::Key;
use portcullis_core::signing::SigningKey;
use portcullis_core::signing::http::HttpRefusal;
use portcullis_core::signing::replay::ReplayRefusal;
use thiserror::Error;

use super::config::SigningConfig;
use crate::act::ActError;
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::pairing::PairingHandle;
use crate::store::Store;
use crate::supervision::Reply;
use crate::vault::{VaultHandle, VaultRefusal};

/// What the room is given at each start.
#[derive(Clone)]
pub struct SigningWiring {
    /// Limits.
    pub config: SigningConfig,
    /// Where rows lie.
    pub store: Store,
    /// Where acts are recorded.
    pub audit: AuditHandle,
    /// For the key that seals.
    pub vault: VaultHandle,
    /// Who holds what.
    pub pairing: PairingHandle,
    /// The time.
    pub clock: Clock,
}

/// A new key on its only way out.
pub struct Minted {
    /// Its name.
    pub key_id: String,
    /// To be given to the device.
    pub key: SigningKey,
}

/// A request's signature, and what it is said to be over.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "core::signing::http names each")]
pub struct Claim {
    pub input: String,
    pub signature: String,
    pub method: String,
    pub authority: String,
    /// It came over TLS.
    pub tls: bool,
    pub path: String,
    pub query: String,
    pub content_digest: String,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SigningRefusal {
    /// The signature.
    #[error(transparent)]
    Signature(#[from] HttpRefusal),
    /// It was right once: its device holds no more what the key was minted under.
    #[error("the credential of this key was changed or revoked")]
    Ended,
    /// Came already.
    #[error("this request came already: each has a nonce of its own")]
    Repeated,
    /// Signed before this gateway began to remember.
    #[error("this request was signed before the gateway was ready to take it: sign it anew")]
    BeforeStart,
    /// Too many within the window.
    #[error("as many signed requests came within two minutes as are remembered: wait a minute")]
    Full,
    /// Its keys are sealed.
    #[error(transparent)]
    Vault(#[from] VaultRefusal),
    /// Not recorded or not stored.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The room, or pairing, is down or did not answer in time.
    #[error("signed requests cannot be checked now: `portcullis status` shows why")]
    Down,
    /// Too many requests wait already.
    #[error("too many signed requests wait: try again")]
    Overloaded,
}

impl SigningRefusal {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Signature(HttpRefusal::Missing | HttpRefusal::Shape(_)) => "SIGNATURE_REQUIRED",
            Self::Signature(HttpRefusal::Wrong | HttpRefusal::Body) | Self::Ended => {
                "SIGNATURE_INVALID"
            }
            Self::Signature(HttpRefusal::Stale) | Self::BeforeStart => "SIGNATURE_STALE",
            Self::Repeated => "SIGNATURE_REPLAYED",
            Self::Full | Self::Overloaded => "OVERLOADED",
            Self::Vault(refusal) => refusal.code(),
            Self::Act(error) => error.code(),
            Self::Down => "ROOM_DOWN",
        }
    }
}

impl From<ReplayRefusal> for SigningRefusal {
    fn from(refusal: ReplayRefusal) -> Self {
        match refusal {
            ReplayRefusal::Stale => Self::BeforeStart,
            ReplayRefusal::Repeated => Self::Repeated,
            ReplayRefusal::Full => Self::Full,
        }
    }
}

/// To the room.
pub enum SigningMsg {
    /// A key for a device that has none under this generation.
    Mint {
        /// Whose.
        device: DeviceId,
        /// In which role.
        role: Role,
        /// As it may ask now.
        scopes: ScopeSet,
        /// Of its credential.
        generation: u64,
        /// The shared secret that its session came in by.
        secret: Option<SecretStanding>,
        /// `None`: it has one, and a key is given once.
        reply: Reply<Option<Minted>, SigningRefusal>,
    },
    /// Key, MAC, time.
    Check(Box<Claim>, Reply<(), SigningRefusal>),
    /// The same once more, then the nonce, then the credential: who asks.
    Spend(Box<Claim>, Reply<Principal, SigningRefusal>),
    /// From the room's own task: the vault is open, or stays closed.
    Vault(Result<Key, VaultRefusal>),
    /// A device's credential lives on under this generation, or not at all.
    Forget(DeviceId, Option<u64>),
    /// From the room's own timer.
    Sweep,
}
