//! The page's way to the methods: the same function that answers a request on a socket.

use std::sync::Arc;

use portcullis_actors::connection::{About, Methods, Params};
use portcullis_core::audit::Entry;
use portcullis_core::auth::Principal;
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::method;
use serde_json::Value;

use crate::dashboard::{Calls, Page};

/// The page, shared by all doors.
#[derive(Clone)]
pub struct Site(Arc<Page<Local>>);

impl Site {
    /// Of a page.
    pub fn new(page: Page<Local>) -> Self {
        Self(Arc::new(page))
    }
}

impl std::ops::Deref for Site {
    type Target = Page<Local>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Calls from this process, admitted like every other.
pub struct Local(pub Arc<Methods>);

impl Calls for Local {
    async fn call(
        &self,
        principal: &Principal,
        name: &'static str,
        params: Value,
    ) -> Result<Value, ErrorBody> {
        method::admit(principal, name)?;
        let about = About {
            principal,
            connection: "page",
            proven: None,
        };
        self.0.call(about, name, &Params(&params)).await
    }

    async fn record(&self, entry: Entry) -> Result<(), ErrorBody> {
        let recorded = self.0.audit.event(entry).await;
        recorded.map(|_| ()).map_err(|error| {
            let code = codes::find(error.code()).unwrap_or(codes::CANNOT_RECORD);
            ErrorBody::of(code, error.to_string())
        })
    }
}
