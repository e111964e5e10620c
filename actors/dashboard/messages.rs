//! What others may ask of the room.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_core::auth::ScopeSet;
use portcullis_core::dashboard::{Session, SessionRefusal};
use portcullis_core::ids::Hash32;
use zeroize::Zeroizing;

use crate::supervision::Reply;

/// A code or a session's key: 256 random bits in base64url. Not printable, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut())?;
        Ok(Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))))
    }

    /// What somebody brought. A text that cannot be one is kept as it is: it will not be found.
    pub fn brought(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The text, to hand to its holder.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(super) fn hash(&self) -> Hash32 {
        Hash32::of(self.0.as_bytes())
    }
}

/// A new code.
pub struct Minted {
    /// To type at the login.
    pub code: Secret,
    /// How long it works, ms.
    pub for_ms: u64,
}

/// See [`super::DashboardHandle`], whose methods they are.
#[allow(missing_docs, reason = "the handle's methods say what each is")]
pub enum DashboardMsg {
    Mint {
        scopes: ScopeSet,
        by: String,
        reply: Reply<Minted, SessionRefusal>,
    },
    Redeem {
        code: Secret,
        reply: Reply<(Secret, Session), SessionRefusal>,
    },
    Check {
        session: Secret,
        touch: bool,
        reply: Reply<Session, SessionRefusal>,
    },
    Read {
        session: Secret,
        reply: Reply<(), SessionRefusal>,
    },
    End {
        session: Secret,
        reply: Reply<(), SessionRefusal>,
    },
    EndAll {
        reply: Reply<usize, SessionRefusal>,
    },
    Refused {
        whole: bool,
        reply: Reply<Option<u64>, SessionRefusal>,
    },
    Sweep,
}
