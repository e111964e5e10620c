//! The way to the room.

use std::time::Duration;

use portcullis_core::auth::Principal;

use super::actor::Signing;
use super::messages::{Claim, Minted, SigningMsg, SigningRefusal, SigningWiring};
use crate::supervision::{CallError, Handle, Policy, Reply, TreeBuilder};

const WITHIN: Duration = Duration::from_secs(5);
/// Requests the room takes at once.
const CAPACITY: usize = 1_024;

/// Cheap to clone; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct SigningHandle(Handle<SigningMsg>);

impl SigningHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: SigningWiring) -> Self {
        Self(tree.room::<Signing>(Policy::new(CAPACITY), wiring))
    }

    /// A key for the device behind a session, which must have proven its own key; `None` where there is no device, or
    /// it has one already. Durable when it returns.
    ///
    /// # Errors
    /// [`SigningRefusal`].
    pub async fn mint(&self, principal: &Principal) -> Result<Option<Minted>, SigningRefusal> {
        let Some(device) = principal.device().cloned() else {
            return Ok(None);
        };
        let (role, scopes) = (principal.role, principal.scopes.clone());
        let (generation, secret) = (principal.generation, principal.secret.clone());
        self.ask(|reply| SigningMsg::Mint {
            device,
            role,
            scopes,
            generation,
            secret,
            reply,
        })
        .await
    }

    /// Is this signed by a key that lives, and in time? Before the body is read.
    ///
    /// # Errors
    /// [`SigningRefusal`].
    pub async fn check(&self, claim: &Claim) -> Result<(), SigningRefusal> {
        let claim = Box::new(claim.clone());
        self.ask(|reply| SigningMsg::Check(claim, reply)).await
    }

    /// Uses its nonce, and says who asks. After the body was compared with its digest; then it is done, once.
    ///
    /// # Errors
    /// [`SigningRefusal`]; then nothing may be done.
    pub async fn spend(&self, claim: Claim) -> Result<Principal, SigningRefusal> {
        let claim = Box::new(claim);
        self.ask(|reply| SigningMsg::Spend(claim, reply)).await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(Reply<T, SigningRefusal>) -> SigningMsg,
    ) -> Result<T, SigningRefusal> {
        self.0
            .call(WITHIN, make)
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                CallError::Overloaded => SigningRefusal::Overloaded,
                CallError::Unavailable { .. } | CallError::Deadline { .. } => SigningRefusal::Down,
            })
    }
}
