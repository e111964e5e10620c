//! `sandbox.list` and `sandbox.end`: the boxes that there are.

use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::auth::Principal;
use portcullis_core::codes;
use portcullis_core::ids::BoxId;
use portcullis_core::protocol::frame::ErrorBody;
use serde::Deserialize;
use serde_json::json;

use super::answer::Params;
use super::methods::{Answer, Methods, Nothing, refused};
use crate::act::entry_of;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    id: BoxId,
}

impl Methods {
    pub(super) async fn boxes(&self, by: &Principal, method: &str, params: &Params<'_>) -> Answer {
        let down =
            |error: &dyn std::fmt::Display| ErrorBody::of(codes::ROOM_DOWN, error.to_string());
        if method == "sandbox.list" {
            params.read::<Nothing>(method)?;
            let boxes = self.pool.list().await.map_err(|error| down(&error))?;
            return Ok(json!({ "boxes": boxes }));
        }
        let Which { id } = params.read(method)?;
        let entry = Entry {
            action: "sandbox.end".to_owned(),
            object: Some(format!("box:{id}")),
            ..entry_of(by)
        };
        let intent = self.audit.intent(entry).await;
        let intent = intent.map_err(|error| refused(error.code(), &error))?;
        let ended = self.pool.end(id.clone()).await;
        let outcome = match &ended {
            Ok(true) => Outcome::ok(),
            Ok(false) => Outcome::refused(codes::BOX_NOT_FOUND.name),
            Err(_) => Outcome::failed(codes::ROOM_DOWN.name),
        };
        if let Err(error) = self.audit.outcome(intent, outcome).await {
            tracing::error!(intent = intent.0, %error, "an outcome could not be recorded");
        }
        match ended {
            Ok(true) => Ok(json!({ "ended": id })),
            Ok(false) => Err(ErrorBody::of(
                codes::BOX_NOT_FOUND,
                format!("there is no sandbox {id}"),
            )),
            Err(error) => Err(down(&error)),
        }
    }
}
