//! What the gateway and its runner say to one another: a length (u32, big-endian), then JSON, each with the number of its request.
//!
//! Every type denies fields that it does not know. A frame that cannot be read, or is too long, ends the conversation.

use std::io;

use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::ImageName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::sandbox_pool::docker::Seen;
use crate::sandbox_pool::holder::Whose;
use crate::sandbox_pool::spec::FoundBox;

/// Most bytes of a request: names and digests, no more.
pub const MOST_ASKED: usize = 16 << 10;
/// Most bytes of an answer: a list of boxes is the longest.
pub const MOST_ANSWERED: usize = 1 << 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its number: no two that are open have the same.
    pub id: u64,
    /// What.
    pub ask: Ask,
}

/// All that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Connect to the engine anew, and say what it is.
    Open,
    /// Make a box.
    Start(Box<Order>),
    /// End a box of this gateway.
    Stop(BoxId),
    /// The first process of a box of this gateway.
    Init(BoxId),
    /// Every box of this gateway.
    List,
    /// Answered when the engine is lost.
    Lost,
    /// The id of an image that the configuration names.
    Image(ImageName),
    /// Nobody waits for the answer to this request any more.
    Drop(u64),
    /// A sign of life.
    Ping,
}

/// A box that is asked for. All of it is compared with what the runner computes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its name.
    pub id: BoxId,
    /// For whom.
    pub whose: Whose,
    /// The folder below `workspaces/` that it sees; empty: none of its own.
    pub folder: String,
    /// The engine's id of its image; none: the default one's, for a trial.
    pub image: Option<String>,
    /// Digest of everything that shapes it.
    pub profile: String,
    /// What its cell must say: 32 lower-case hex digits.
    pub nonce: String,
    /// Host uid of everything in it.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Of the request.
    pub id: u64,
    /// What.
    pub answer: Result<Answer, Failed>,
}

/// All that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To [`Ask::Open`].
    Opened(Box<Seen>),
    /// To [`Ask::Start`]: its first process, and the image that it was made from.
    Started(u32, Option<String>),
    /// To [`Ask::Stop`].
    Stopped,
    /// To [`Ask::Init`].
    Init(Option<u32>),
    /// To [`Ask::List`].
    Boxes(Vec<FoundBox>),
    /// To [`Ask::Lost`]: why.
    Lost(String),
    /// To [`Ask::Image`].
    Image(String),
    /// To [`Ask::Ping`].
    Pong,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Failed {
    /// The engine cannot be used: what was seen, and what mends it.
    NoDriver(String, String),
    /// The engine did not do it.
    Not(String),
    /// It is not asked of the engine: the request is not what the configuration says.
    Refused(String),
    /// The runner ended before it answered. Never on the wire.
    #[serde(skip)]
    Gone(String),
}

/// One frame.
///
/// # Errors
/// It is longer than `most`.
pub fn frame(what: &impl Serialize, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, what)?;
    let length = bytes.len() - 4;
    let short = u32::try_from(length).ok().filter(|_| length <= most);
    let short = short.ok_or_else(|| invalid(format!("a frame of {length} bytes")))?;
    bytes[..4].copy_from_slice(&short.to_be_bytes());
    Ok(bytes)
}

/// Reads frames. Nothing is lost when a read is given up.
pub struct Incoming<R> {
    from: R,
    most: usize,
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Of frames of so many bytes at the most.
    pub const fn new(from: R, most: usize) -> Self {
        Self {
            from,
            most,
            bytes: Vec::new(),
        }
    }

    /// The next one; `None` where the other end has closed between two.
    ///
    /// # Errors
    /// One that is too long, broken off, or not what it should be.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(head) = self.bytes.first_chunk::<4>() {
                let length = u32::from_be_bytes(*head) as usize;
                if length > self.most {
                    return Err(invalid(format!("a frame of {length} bytes")));
                }
                if let Some(body) = self.bytes.get(4..4 + length) {
                    let read =
                        serde_json::from_slice(body).map_err(|error| invalid(error.to_string()));
                    self.bytes.drain(..4 + length);
                    return Ok(Some(read?));
                }
            }
            if self.from.read_buf(&mut self.bytes).await? == 0 {
                if self.bytes.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
