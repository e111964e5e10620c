//! Frames out, in the encoding that a connection speaks.

use serde::Serialize;
use serde_json::Value;

use super::frame::{ErrorBody, FrameError, Request};

/// How a connection's messages are written: agreed upon with the upgrade, for the connection's whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// One JSON text per text message: what every client of the wire speaks.
    #[default]
    Json,
    /// The same objects as MessagePack, one per binary message.
    MsgPack,
}

impl Encoding {
    /// The WebSocket subprotocol that asks for MessagePack.
    pub const SUBPROTOCOL: &str = "portcullis.msgpack.v1";

    /// From what a client offers in `Sec-WebSocket-Protocol`; none of ours is JSON, and then no subprotocol is named.
    pub fn offered<'a>(mut offers: impl Iterator<Item = &'a str>) -> Self {
        if offers.any(|offer| offer.trim() == Self::SUBPROTOCOL) {
            Self::MsgPack
        } else {
            Self::Json
        }
    }
}

/// A frame as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
}

impl Wire {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// A frame of ours could not be written: nothing that comes from outside brings that about.
#[derive(Debug, thiserror::Error)]
#[error("a frame could not be written: {0}")]
pub struct Unwritable(String);

#[derive(Serialize)]
struct Answer<'a, T: ?Sized> {
    r#type: &'static str,
    id: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorBody>,
}

#[derive(Serialize)]
struct Event<'a, T: ?Sized> {
    r#type: &'static str,
    #[serde(rename = "event")]
    name: &'a str,
    payload: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

impl Encoding {
    /// Writes one object.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub fn write<T: Serialize>(self, frame: &T) -> Result<Wire, Unwritable> {
        match self {
            Self::Json => serde_json::to_string(frame)
                .map(Wire::Text)
                .map_err(|e| Unwritable(e.to_string())),
            Self::MsgPack => rmp_serde::to_vec_named(frame)
                .map(Wire::Binary)
                .map_err(|e| Unwritable(e.to_string())),
        }
    }

    /// An answer that brings a value.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub fn ok<T: Serialize + ?Sized>(self, id: &str, payload: &T) -> Result<Wire, Unwritable> {
        self.write(&Answer {
            r#type: "res",
            id,
            ok: true,
            payload: Some(payload),
            error: None,
        })
    }

    /// An answer that brings an error.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub fn error(self, id: &str, error: &ErrorBody) -> Result<Wire, Unwritable> {
        self.write(&Answer::<Value> {
            r#type: "res",
            id,
            ok: false,
            payload: None,
            error: Some(error),
        })
    }

    /// An event; `seq` counts per client from 1, and `connect.challenge` has none.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub fn event<T: Serialize + ?Sized>(
        self,
        event: &str,
        payload: &T,
        seq: Option<u64>,
    ) -> Result<Wire, Unwritable> {
        self.write(&Event {
            r#type: "event",
            name: event,
            payload,
            seq,
        })
    }

    /// Reads a request out of a message's bytes. Text that is no UTF-8 does not get here.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read(self, bytes: &[u8]) -> Result<Request<'_>, FrameError> {
        match self {
            Self::Json => {
                Request::parse(std::str::from_utf8(bytes).map_err(|_| FrameError::NotJson)?)
            }
            Self::MsgPack => Request::unpack(bytes),
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
