//! The head of a server's answer to a plain request: passed on without what is between neighbours, and nothing is followed.

use super::head::{HOP, HeadError, Header, Neighbours, end_of};

/// Longest head of an answer, in bytes.
pub const MOST: usize = 32 * 1024;
/// Most headers of an answer.
pub const MOST_HEADERS: usize = 128;
/// Most heads before the answer's own (1xx, RFC 9110 section 15.2).
pub const MOST_INTERIM: u32 = 16;

/// Why an answer is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is longer than [`MOST`].
    #[error("its head is longer than {MOST} bytes")]
    TooLong,
    /// It has more than [`MOST_HEADERS`], or more heads before its own than [`MOST_INTERIM`].
    #[error(
        "it has more than {MOST_HEADERS} headers, or more than {MOST_INTERIM} heads before its own"
    )]
    TooMany,
    /// It is no HTTP/1.
    #[error("it is not HTTP/1 as RFC 9112 has it")]
    Syntax,
    /// It would speak something else from here on.
    #[error("it changes the protocol")]
    Switch,
    /// How long its body is cannot be told, or can be told in two ways.
    #[error("its body's length is not said once and clearly")]
    Length,
    /// It is compressed although nobody asked for that, and cannot be searched for secrets.
    #[error(
        "it is compressed although that was not asked for, and could not be searched for secrets"
    )]
    Coded,
    /// It is in characters in which secrets are not looked for.
    #[error(
        "it says that it is in another charset than UTF-8, UTF-16, UTF-32, ISO-8859 or Windows-125x, and could not be searched for secrets"
    )]
    Charset,
    /// The search for secrets in it broke off.
    #[error("the search for secrets in it broke off")]
    Search,
    /// It is a part, although nobody asked for one.
    #[error(
        "it is a part of an answer although none was asked for, and could not be searched for secrets"
    )]
    Partial,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 100 to 599.
    pub status: u16,
    /// As the client gets it. Its body goes on as it comes, to the end of the connection.
    pub forward: Vec<u8>,
}

impl Answer {
    /// Another head follows (1xx).
    pub const fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Reads one from the beginning of what came: with how many bytes it has, or `None` where more must come.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, AnswerError> {
        let Some(Parts {
            status,
            reason,
            headers,
            end,
        }) = parts(bytes)?
        else {
            return Ok(None);
        };
        let mut forward = format!("HTTP/1.1 {status} ").into_bytes();
        forward.extend_from_slice(reason);
        forward.extend_from_slice(b"\r\n");
        let neighbours = Neighbours::of(&headers);
        for header in &headers {
            // How long the body is belongs to the client here: the body is passed on as it comes.
            let is_framing = header.is("content-length") || header.is("transfer-encoding");
            let is_hop = HOP.iter().any(|hop| header.is(hop)) && !is_framing;
            if !is_hop && (is_framing || !neighbours.names(header.name)) {
                forward.extend_from_slice(header.name.as_bytes());
                forward.extend_from_slice(b": ");
                forward.extend_from_slice(header.value);
                forward.extend_from_slice(b"\r\n");
            }
        }
        if status >= 200 {
            forward.extend_from_slice(b"Connection: close\r\n");
        }
        forward.extend_from_slice(b"\r\n");
        Ok(Some((Self { status, forward }, end)))
    }
}

/// What a head says, as it came.
pub(super) struct Parts<'a> {
    pub status: u16,
    pub reason: &'a [u8],
    pub headers: Vec<Header<'a>>,
    /// How many bytes it has.
    pub end: usize,
}

/// Takes a head apart; `None` where more must come. What changes the protocol is none.
pub(super) fn parts(bytes: &[u8]) -> Result<Option<Parts<'_>>, AnswerError> {
    let syntax = |_: HeadError| AnswerError::Syntax;
    let Some(end) = end_of(bytes).map_err(syntax)? else {
        return if bytes.len() >= MOST {
            Err(AnswerError::TooLong)
        } else {
            Ok(None)
        };
    };
    if end > MOST {
        return Err(AnswerError::TooLong);
    }
    let mut lines = bytes[..end - 4]
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let (status, reason) = status(lines.next().unwrap_or_default()).ok_or(AnswerError::Syntax)?;
    if status == 101 {
        return Err(AnswerError::Switch);
    }
    let headers: Result<Vec<_>, _> = lines
        .by_ref()
        .take(MOST_HEADERS)
        .map(Header::read)
        .collect();
    if lines.next().is_some() {
        return Err(AnswerError::TooMany);
    }
    Ok(Some(Parts {
        status,
        reason,
        headers: headers.map_err(syntax)?,
        end,
    }))
}

/// Status and reason of `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<(u16, &[u8])> {
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, reason) = rest.split_at_checked(3)?;
    let status = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let reason = match reason {
        [] => &[][..],
        [b' ', reason @ ..] => reason,
        _ => return None,
    };
    let is_clean = !reason
        .iter()
        .any(|byte| matches!(byte, 0..=8 | 10..=31 | 127));
    ((100..600).contains(&status) && digits[0] != b'+' && is_clean).then_some((status, reason))
}
