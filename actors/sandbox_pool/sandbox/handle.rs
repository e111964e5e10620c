//! The pool's way to one box.

use crate::sandbox_pool::runs::Order;
use crate::sandbox_pool::sandbox::messages::SandboxMsg;
use crate::supervision::{Handle, TellError};

/// One box, for the pool.
#[derive(Clone, Debug)]
pub struct SandboxHandle(Handle<SandboxMsg>);

impl SandboxHandle {
    /// Of the child's handle.
    pub const fn new(handle: Handle<SandboxMsg>) -> Self {
        Self(handle)
    }

    /// Hands an order to the box; one that cannot be carried out drops its answer.
    pub async fn order(&self, order: Order) -> Result<(), TellError> {
        self.0.tell(SandboxMsg::Order(order)).await
    }

    /// Its loop stands still from here on.
    #[cfg(test)]
    pub async fn hang(&self) -> Result<(), TellError> {
        self.0.tell(SandboxMsg::Hang).await
    }
}
