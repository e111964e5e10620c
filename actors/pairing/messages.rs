//! What the room may be asked, and how it refuses.

use super::config::PairingConfig;
use crate::act::ActError;
use crate::audit::AuditHandle;
use crate::clock::Clock;
use crate::store::Store;
use crate::supervision::{Feed, Reply};
use portcullis_core::audit::Entry;
use portcullis_core::auth::{Role, ScopeSet};
use portcullis_core::ids::DeviceId;
use portcullis_core::pairing::{
    Caller, ConnectFacts, Declared, Effective, IssuedToken, LetIn, Maker, News, OperatorKey,
    Refusal, SurfaceState, Verdict,
};
use portcullis_core::time::Millis;
use portcullis_core::token::{Token, TokenHash};
use serde_json::Value;
use std::collections::BTreeSet;
use thiserror::Error;

/// What the room is given at each start.
#[derive(Clone)]
pub struct PairingWiring {
    /// Limits.
    pub config: PairingConfig,
    /// Where rows lie.
    pub store: Store,
    /// Where acts are recorded.
    pub audit: AuditHandle,
    /// The time.
    pub clock: Clock,
    /// Where news are told.
    pub news: Feed<News>,
}

/// A refusal of pairing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PairingRefusal {
    /// By the rules.
    #[error(transparent)]
    Rule(#[from] Refusal),
    /// Not recorded or not stored.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The room is down or did not answer in time.
    #[error("pairing does not answer: `portcullis status` shows why")]
    Down {
        /// The change may have been made.
        may_have_run: bool,
    },
    /// Too many requests wait already.
    #[error("pairing is overloaded: try again")]
    Overloaded,
}

impl PairingRefusal {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Rule(refusal) => refusal.code(),
            Self::Act(error) => error.code(),
            Self::Down { .. } => "ROOM_DOWN",
            Self::Overloaded => "OVERLOADED",
        }
    }
}

/// An operator, and what the record says of it.
pub struct By {
    pub(super) caller: Caller,
    pub(super) entry: Entry,
}

/// A request to the room.
pub enum PairingMsg {
    /// A proven device connects.
    Decide(Box<ConnectFacts>, Reply<Verdict, PairingRefusal>),
    /// Under which generation a session of this device and role may live.
    Generation(DeviceId, Role, Reply<Option<u64>, PairingRefusal>),
    /// Which generation of a device lives, in whatever role.
    Lives(DeviceId, Reply<Option<u64>, PairingRefusal>),
    /// How a device has come in.
    LetIn(DeviceId, Reply<Option<LetIn>, PairingRefusal>),
    /// The key of an operator's device.
    OperatorKey(DeviceId, Reply<Option<OperatorKey>, PairingRefusal>),
    /// `device.pair.list`, with the devices that are connected now.
    List(Caller, BTreeSet<DeviceId>, Reply<Value, PairingRefusal>),
    /// One request or device by its id.
    Show(Caller, String, Reply<Option<Value>, PairingRefusal>),
    /// Where a node's surface stands.
    Surface(DeviceId, Reply<SurfaceState, PairingRefusal>),
    /// A node, connected under this generation, says what it offers.
    Declare(
        DeviceId,
        u64,
        Box<Declared>,
        Reply<Effective, PairingRefusal>,
    ),
    /// `node.pair.list`.
    Nodes(Caller, Reply<Value, PairingRefusal>),
    /// `device.pair.*`, `device.token.*` and `node.pair.*`.
    Manage(Box<By>, Manage, Reply<Value, PairingRefusal>),
    /// Makes a setup code.
    MakeCode(Box<By>, Box<NewCode>, Reply<MadeCode, PairingRefusal>),
    /// Who made a code that is good.
    CodeMaker(String, Reply<Option<Maker>, PairingRefusal>),
    /// A proven device that is not known brings a setup code.
    UseCode(
        Box<ConnectFacts>,
        Presented,
        Reply<CodeVerdict, PairingRefusal>,
    ),
    /// `device.pair.setupStatus`.
    CodeStatus(String, Reply<Value, PairingRefusal>),
    /// From the room's own timer.
    Expire,
}

/// A setup code to be.
pub struct NewCode {
    /// By whom.
    pub maker: Maker,
    /// For this role.
    pub role: Role,
    /// For these scopes.
    pub scopes: ScopeSet,
}

/// A setup code on its only way out.
pub struct MadeCode {
    /// Its name: no secret.
    pub id: String,
    /// Its secret, shown this once.
    pub token: Token,
    /// Until when it is good.
    pub expires_at: Millis,
}

/// A setup code as somebody brings it.
pub struct Presented {
    /// Which.
    pub id: String,
    /// What it should be.
    pub hash: TokenHash,
}

/// What came of it.
pub enum CodeVerdict {
    /// Paired: asked ∩ given, the device's token, and its generation.
    Paired(ScopeSet, IssuedToken, u64),
    /// Not by this code, or not for this device: which of these, only the log is told.
    Refused,
}

/// What an operator does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manage {
    /// Says yes. `narrow`: to what the approver holds, where it holds less than is asked.
    Approve {
        /// Which request.
        request_id: String,
        /// See above.
        narrow: bool,
    },
    /// Says no.
    Reject {
        /// Which request.
        request_id: String,
    },
    /// Forgets a device.
    Remove(DeviceId),
    /// Names a device.
    Rename(DeviceId, String),
    /// Makes a new token.
    Rotate(DeviceId, Role, Option<ScopeSet>),
    /// Takes a role away.
    Revoke(DeviceId, Role),
    /// Says yes to a node's surface.
    ApproveSurface(String),
    /// Says no to it.
    RejectSurface(String),
    /// Forgets a device as a node.
    RemoveNode(DeviceId),
    /// Names a node.
    RenameNode(DeviceId, String),
}
