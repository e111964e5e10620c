//! The way to one connection.

use super::messages::{Accepted, CloseOrder, ConnectionMsg};
use crate::supervision::{Handle, TellError};

/// Messages to one connection at once: control only, frames never come this way.
pub const CAPACITY: usize = 32;

/// Clone it freely.
#[derive(Clone, Debug)]
pub struct ConnectionHandle(Handle<ConnectionMsg>);

impl ConnectionHandle {
    /// Of the room's handle.
    pub const fn new(handle: Handle<ConnectionMsg>) -> Self {
        Self(handle)
    }

    /// Hands over the socket.
    ///
    /// # Errors
    /// [`TellError`]: the socket is lost.
    pub async fn adopt(&self, accepted: Accepted) -> Result<(), TellError> {
        self.0.tell(ConnectionMsg::Adopt(Box::new(accepted))).await
    }

    /// Lets the answer to what ends it go out before it ends.
    ///
    /// # Errors
    /// [`TellError`]: it has ended, or is ending.
    pub async fn linger(&self) -> Result<(), TellError> {
        self.0.tell(ConnectionMsg::Linger).await
    }

    /// Ends it before its next frame is answered.
    ///
    /// # Errors
    /// [`TellError`]: it has ended, or is ending.
    pub async fn close(&self, code: u16, reason: impl Into<String>) -> Result<(), TellError> {
        let order = CloseOrder {
            code,
            reason: reason.into(),
        };
        self.0.tell(ConnectionMsg::Close(order)).await
    }

    /// Ends it so that a newcomer has its place, unless its `connect` has come already: then it says so in its news
    /// ([`super::messages::ConnectionNews::Speaks`]) and stays.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub async fn make_room(&self) -> Result<(), TellError> {
        self.0.tell(ConnectionMsg::MakeRoom).await
    }
}
