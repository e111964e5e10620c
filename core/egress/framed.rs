//! A server's answer inside TLS that the gateway has opened: its head, where its body ends, and the body without its framing.
//!
//! A body is searched for secrets and may become shorter, so it is taken out of the server's framing and goes on in one of ours.

use super::head::{HOP, Header, Neighbours};
use super::reply::{AnswerError, Parts, parts};
use super::scrub::Scrubber;

/// Longest size line of a chunk, and most bytes of trailers.
const LINE: usize = 8 * 1024;

/// Where the body of an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// Behind so many bytes.
    Length(u64),
    /// Behind the last chunk.
    Chunked,
    /// Where the connection ends.
    Close,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framed {
    /// 100 to 599.
    pub status: u16,
    reason: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
    /// Where its body ends.
    pub framing: Framing,
}

impl Framed {
    /// Reads one from the beginning of what came, to a request of this method: with how many bytes it has, or `None` where more must come.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn read(bytes: &[u8], method: &str) -> Result<Option<(Self, usize)>, AnswerError> {
        let Some(Parts {
            status,
            reason,
            headers,
            end,
        }) = parts(bytes)?
        else {
            return Ok(None);
        };
        let framing = framing(&headers, status, method)?;
        let codings = headers
            .iter()
            .filter(|header| header.is("content-encoding"));
        // Where there is no body too: its length would tell of one that was compressed.
        if !codings
            .into_iter()
            .all(|header| header.value.eq_ignore_ascii_case(b"identity"))
        {
            return Err(AnswerError::Coded);
        }
        if !headers.iter().all(is_readable) {
            return Err(AnswerError::Charset);
        }
        if status == 206 {
            return Err(AnswerError::Partial);
        }
        // Nor the length of a body that does not come (HEAD, 304): it is that of one with the secrets in it.
        let neighbours = Neighbours::of(&headers);
        let is_kept = |header: &&Header<'_>| {
            !HOP.iter().any(|hop| header.is(hop)) && !neighbours.names(header.name)
        };
        let kept = headers.iter().filter(is_kept);
        let answer = Self {
            status,
            reason: reason.to_vec(),
            headers: kept
                .map(|header| (header.name.to_owned(), header.value.to_vec()))
                .collect(),
            framing,
        };
        Ok(Some((answer, end)))
    }

    /// Another head follows (1xx).
    pub const fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// As the client gets it, without secrets. `chunks`: it reads a body in chunks; else the body ends with the connection.
    pub fn forward(&self, scrubber: &mut Scrubber, chunks: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} ", self.status).into_bytes();
        head.extend(scrubber.whole(&self.reason));
        head.extend_from_slice(b"\r\n");
        for (name, value) in &self.headers {
            // Part of a name is no name.
            if scrubber.whole(name.as_bytes()) == name.as_bytes() {
                head.extend_from_slice(name.as_bytes());
                head.extend_from_slice(b": ");
                head.extend(scrubber.whole(value));
                head.extend_from_slice(b"\r\n");
            }
        }
        if !self.is_interim() {
            if self.framing != Framing::None && chunks {
                head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
            head.extend_from_slice(b"Connection: close\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// Its characters are of a kind in which secrets are searched for: ASCII is in it as it is, or by two or four bytes.
fn is_readable(header: &Header<'_>) -> bool {
    const KINDS: [&str; 9] = [
        "utf-8",
        "utf8",
        "us-ascii",
        "ascii",
        "iso-8859-",
        "windows-125",
        "utf-16",
        "utf-32",
        "latin1",
    ];
    if !header.is("content-type") {
        return true;
    }
    let text = String::from_utf8_lossy(header.value).to_ascii_lowercase();
    let mut said = text.split("charset").skip(1).map(|behind| {
        let value = behind.trim_start().trim_start_matches('=').trim_start();
        value.trim_start_matches(['"', '\''])
    });
    said.all(|kind| KINDS.iter().any(|known| kind.starts_with(known)))
}

/// RFC 9112, section 6.3; what says two lengths is no answer.
fn framing(headers: &[Header<'_>], status: u16, method: &str) -> Result<Framing, AnswerError> {
    let mut lengths = headers.iter().filter(|header| header.is("content-length"));
    let mut codings = headers
        .iter()
        .filter(|header| header.is("transfer-encoding"));
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() || codings.next().is_some() || length.is_some() && coding.is_some()
    {
        return Err(AnswerError::Length);
    }
    if status < 200 || matches!(status, 204 | 304) || method == "HEAD" {
        return Ok(Framing::None);
    }
    match (length, coding) {
        (Some(length), _) => {
            let digits = std::str::from_utf8(length.value).ok();
            let digits = digits
                .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
            let bytes = digits.and_then(|text| text.parse().ok());
            bytes.map(Framing::Length).ok_or(AnswerError::Length)
        }
        (None, Some(coding)) if coding.value.eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::Chunked)
        }
        (None, Some(_)) => Err(AnswerError::Length),
        (None, None) => Ok(Framing::Close),
    }
}

/// Takes a body out of its framing.
#[derive(Debug)]
pub struct Unframed(State);

#[derive(Debug)]
enum State {
    Left(u64),
    ToClose,
    /// In the size line of a chunk, or in trailers.
    Line {
        line: Vec<u8>,
        is_trailer: bool,
        seen: usize,
    },
    Chunk(u64),
    /// Behind a chunk.
    Behind {
        cr: bool,
    },
    Over,
}

impl Unframed {
    /// Of an answer with this framing.
    pub const fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None | Framing::Length(0) => State::Over,
            Framing::Length(bytes) => State::Left(bytes),
            Framing::Chunked => State::Line {
                line: Vec::new(),
                is_trailer: false,
                seen: 0,
            },
            Framing::Close => State::ToClose,
        })
    }

    /// Has all of it come?
    pub const fn is_over(&self) -> bool {
        matches!(self.0, State::Over)
    }

    /// Whether the end of the connection is the end of the body.
    pub const fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::Over | State::ToClose)
    }

    /// The parts of these bytes that are the body's. What follows the end is nobody's.
    ///
    /// # Errors
    /// [`AnswerError::Length`]: these are no chunks.
    pub fn take<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut each: impl FnMut(&'a [u8]),
    ) -> Result<(), AnswerError> {
        while !bytes.is_empty() {
            match &mut self.0 {
                State::Over => return Ok(()),
                State::ToClose => {
                    each(bytes);
                    return Ok(());
                }
                State::Left(left) | State::Chunk(left) => {
                    let part = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    let (own, rest) = bytes.split_at(part);
                    each(own);
                    *left -= part as u64;
                    bytes = rest;
                    match self.0 {
                        State::Left(0) => self.0 = State::Over,
                        State::Chunk(0) => self.0 = State::Behind { cr: false },
                        _ => {}
                    }
                }
                State::Behind { cr } => {
                    match (*cr, bytes[0]) {
                        (false, b'\r') => *cr = true,
                        (true, b'\n') => {
                            self.0 = State::Line {
                                line: Vec::new(),
                                is_trailer: false,
                                seen: 0,
                            }
                        }
                        _ => return Err(AnswerError::Length),
                    }
                    bytes = &bytes[1..];
                }
                State::Line {
                    line,
                    is_trailer,
                    seen,
                } => {
                    *seen += 1;
                    if *seen > LINE {
                        return Err(AnswerError::Length);
                    }
                    let byte = bytes[0];
                    bytes = &bytes[1..];
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let Some(text) = line.strip_suffix(b"\r") else {
                        return Err(AnswerError::Length);
                    };
                    self.0 = match (*is_trailer, text) {
                        // Trailers are not passed on: nothing that asks here needs one.
                        (true, []) => State::Over,
                        (true, _) => State::Line {
                            line: Vec::new(),
                            is_trailer: true,
                            seen: *seen,
                        },
                        (false, text) => match size(text)? {
                            0 => State::Line {
                                line: Vec::new(),
                                is_trailer: true,
                                seen: 0,
                            },
                            size => State::Chunk(size),
                        },
                    };
                }
            }
        }
        Ok(())
    }
}

/// Of a size line; its extension says nothing here.
fn size(line: &[u8]) -> Result<u64, AnswerError> {
    let digits = line
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    let is_number = (1..=12).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).map_err(|_| AnswerError::Length)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| AnswerError::Length)?;
    if is_number {
        Ok(size)
    } else {
        Err(AnswerError::Length)
    }
}
