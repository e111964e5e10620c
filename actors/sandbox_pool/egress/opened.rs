//! The answer of a host whose TLS is opened, on its way to the box: out of the server's framing, through the search for secrets, into ours.

use std::io::Write as _;

use portcullis_core::egress::inner::Request;
use portcullis_core::egress::{AnswerError, Framed, Framing, MOST_INTERIM, Scrubber, Unframed};
use zeroize::Zeroizing;

/// One answer, as it comes.
pub struct Opened {
    method: String,
    /// The client reads a body in chunks.
    chunks: bool,
    scrubber: Scrubber,
    /// Heads before its own.
    interim: u32,
    state: State,
}

enum State {
    /// What came of its heads.
    Head(Zeroizing<Vec<u8>>),
    /// Its body, and whether there is one.
    Body(Unframed, bool),
    /// All of it has gone on.
    Over,
}

impl Opened {
    /// To this request.
    pub fn new(request: &Request, scrubber: Scrubber) -> Self {
        Self {
            method: request.method.clone(),
            chunks: request.is_1_1,
            scrubber,
            interim: 0,
            state: State::Head(Zeroizing::default()),
        }
    }

    /// Nothing more goes on.
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Places that were searched for secrets so far.
    pub const fn looked(&self) -> u64 {
        self.scrubber.looked()
    }

    /// Secrets that were taken out.
    pub const fn replaced(&self) -> u64 {
        self.scrubber.count()
    }

    /// More came; what goes on is added to `out`.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), AnswerError> {
        let behind = match &mut self.state {
            State::Over => return Ok(()),
            State::Body(..) => None,
            State::Head(came) => {
                came.extend_from_slice(bytes);
                loop {
                    let Some((head, used)) = Framed::read(came, &self.method)? else {
                        return Ok(());
                    };
                    out.extend(head.forward(&mut self.scrubber, self.chunks));
                    came.drain(..used);
                    if !head.is_interim() {
                        let behind = std::mem::take(came);
                        let has_body = head.framing != Framing::None;
                        self.state = State::Body(Unframed::new(head.framing), has_body);
                        break Some(behind);
                    }
                    self.interim += 1;
                    if self.interim > MOST_INTERIM {
                        return Err(AnswerError::TooMany);
                    }
                }
            }
        };
        self.body(behind.as_ref().map_or(bytes, |behind| behind), out)
    }

    /// The connection has ended.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<(), AnswerError> {
        match &self.state {
            State::Over => Ok(()),
            State::Body(body, _) if body.ends_with_connection() => {
                self.finish(out);
                Ok(())
            }
            State::Body(..) => Err(AnswerError::Length),
            State::Head(_) => Err(AnswerError::Syntax),
        }
    }

    fn body(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), AnswerError> {
        let State::Body(body, _) = &mut self.state else {
            return Ok(());
        };
        // All of it at once: each search looks once more at what was held back, however small the server's chunks are.
        let mut came = Zeroizing::new(Vec::with_capacity(bytes.len()));
        body.take(bytes, |part| came.extend_from_slice(part))?;
        let is_over = body.is_over();
        let mut plain = Zeroizing::new(Vec::new());
        self.scrubber.push(&came, &mut plain);
        chunk(self.chunks, &plain, out);
        if is_over {
            self.finish(out);
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let has_body = matches!(self.state, State::Body(_, true));
        let mut last = Vec::new();
        self.scrubber.finish(&mut last);
        if has_body {
            chunk(self.chunks, &last, out);
            if self.chunks {
                out.extend_from_slice(b"0\r\n\r\n");
            }
        }
        self.state = State::Over;
    }
}

/// In our framing.
fn chunk(is_chunked: bool, bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    if is_chunked {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{:x}\r\n", bytes.len());
    }
    out.extend_from_slice(bytes);
    if is_chunked {
        out.extend_from_slice(b"\r\n");
    }
}
