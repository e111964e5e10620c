//! The way to the room.

use std::time::Duration;

use portcullis_core::auth::ScopeSet;
use portcullis_core::codes::{self, Code};
use portcullis_core::dashboard::{Session, SessionRefusal};

use super::messages::{DashboardMsg, Minted, Secret};
use crate::supervision::{CallError, Handle, Reply};

const WITHIN: Duration = Duration::from_secs(5);

/// Why the room did not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DashboardError {
    /// It said no.
    #[error(transparent)]
    Refused(SessionRefusal),
    /// It is down, full or late.
    #[error("the page's sessions cannot be looked up now")]
    Room(&'static Code),
}

/// See the room's [`super`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DashboardHandle(Handle<DashboardMsg>);

impl DashboardHandle {
    /// Of the room in the tree.
    pub const fn new(handle: Handle<DashboardMsg>) -> Self {
        Self(handle)
    }

    /// Makes a one-time code. The caller has checked that this operator may have one, and records it.
    ///
    /// # Errors
    /// [`DashboardError`].
    pub async fn mint(&self, scopes: ScopeSet, by: String) -> Result<Minted, DashboardError> {
        self.ask(|reply| DashboardMsg::Mint { scopes, by, reply })
            .await
    }

    /// Opens a session for a code, once; returns the session's key for the cookie.
    ///
    /// # Errors
    /// [`DashboardError`].
    pub async fn redeem(&self, code: Secret) -> Result<(Secret, Session), DashboardError> {
        self.ask(|reply| DashboardMsg::Redeem { code, reply }).await
    }

    /// The session behind a cookie. `touch`: a person did something.
    ///
    /// # Errors
    /// [`DashboardError`].
    pub async fn check(&self, session: Secret, touch: bool) -> Result<Session, DashboardError> {
        self.ask(|reply| DashboardMsg::Check {
            session,
            touch,
            reply,
        })
        .await
    }

    /// The audit log was opened for this session, on record: what its view reloads is the same reading.
    ///
    /// # Errors
    /// [`DashboardError::Room`] only.
    pub async fn read(&self, session: Secret) -> Result<(), DashboardError> {
        self.ask(|reply| DashboardMsg::Read { session, reply })
            .await
    }

    /// Ends one session.
    ///
    /// # Errors
    /// [`DashboardError::Room`] only.
    pub async fn end(&self, session: Secret) -> Result<(), DashboardError> {
        self.ask(|reply| DashboardMsg::End { session, reply }).await
    }

    /// Ends every session and voids every code (the token was rotated, the configuration changed).
    ///
    /// # Errors
    /// [`DashboardError::Room`] only.
    pub async fn end_all(&self) -> Result<usize, DashboardError> {
        self.ask(|reply| DashboardMsg::EndAll { reply }).await
    }

    /// How many logins were refused since this was last told, if that is due to be recorded: at most once a minute, so
    /// that a stranger's guesses do not fill the log. `whole`: told in any case, beside a login that was not refused.
    ///
    /// # Errors
    /// [`DashboardError::Room`] only.
    pub async fn refused_logins(&self, whole: bool) -> Result<Option<u64>, DashboardError> {
        self.ask(|reply| DashboardMsg::Refused { whole, reply })
            .await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(Reply<T, SessionRefusal>) -> DashboardMsg,
    ) -> Result<T, DashboardError> {
        self.0
            .call(WITHIN, make)
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => DashboardError::Refused(refusal),
                CallError::Overloaded => DashboardError::Room(codes::OVERLOADED),
                CallError::Unavailable { .. } => DashboardError::Room(codes::ROOM_DOWN),
                CallError::Deadline { .. } => DashboardError::Room(codes::DEADLINE),
            })
    }
}
