//! Where the body of a plain request ends: what follows is another request, and goes nowhere.

/// Longest chunk, in bytes; a client that sends more in one sends another.
const CHUNK: u64 = 1 << 40;
/// Longest size of a chunk, in digits.
const DIGITS: u8 = 12;

/// What of the bytes behind a head belongs to it, as they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// As said, and how many are still to come.
    Length { said: u64, left: u64 },
    /// In the size of a chunk.
    Size { value: u64, digits: u8 },
    /// Behind the CR of a size.
    SizeEnd { value: u64 },
    /// In a chunk.
    Data { left: u64 },
    /// Behind a chunk: CR, then LF.
    DataEnd { cr: bool },
    /// Behind the last chunk: CR, then LF.
    LastEnd { cr: bool },
    /// Nothing more.
    Over,
}

/// The body is not in chunks as RFC 9112, section 7.1, has them; extensions and trailers are refused too, which nobody here needs and
/// servers read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not in plain chunks")]
pub struct BodyError;

impl Body {
    /// None at all.
    pub const fn none() -> Self {
        Self(State::Over)
    }

    /// Of so many bytes.
    pub const fn of_length(bytes: u64) -> Self {
        Self(State::Length {
            said: bytes,
            left: bytes,
        })
    }

    /// In chunks.
    pub const fn chunked() -> Self {
        Self(State::Size {
            value: 0,
            digits: 0,
        })
    }

    /// The length that was said, 0 included.
    pub const fn length(&self) -> Option<u64> {
        match self.0 {
            State::Length { said, .. } => Some(said),
            _ => None,
        }
    }

    /// Has all of it come?
    pub const fn is_over(&self) -> bool {
        matches!(self.0, State::Over | State::Length { left: 0, .. })
    }

    /// How many of these bytes belong to it: all, unless it ends in them.
    ///
    /// # Errors
    /// [`BodyError`]; nothing of these bytes is to be passed on.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            let here = bytes.len() - at;
            if let State::Length { left, .. } | State::Data { left } = &mut self.0
                && *left > 0
            {
                let part = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                *left -= part as u64;
                at += part;
                if self.0 == (State::Data { left: 0 }) {
                    self.0 = State::DataEnd { cr: false };
                }
                continue;
            }
            self.0 = next(&self.0, bytes[at])?;
            at += 1;
        }
        Ok(at)
    }
}

fn next(state: &State, byte: u8) -> Result<State, BodyError> {
    match (state, byte) {
        (&State::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < DIGITS => {
            let digit = char::from(byte).to_digit(16).ok_or(BodyError)?;
            Ok(State::Size {
                value: value * 16 + u64::from(digit),
                digits: digits + 1,
            })
        }
        (&State::Size { value, digits }, b'\r') if digits > 0 && value <= CHUNK => {
            Ok(State::SizeEnd { value })
        }
        (State::SizeEnd { value: 0 }, b'\n') => Ok(State::LastEnd { cr: false }),
        (&State::SizeEnd { value }, b'\n') => Ok(State::Data { left: value }),
        (State::DataEnd { cr: false }, b'\r') => Ok(State::DataEnd { cr: true }),
        (State::DataEnd { cr: true }, b'\n') => Ok(State::Size {
            value: 0,
            digits: 0,
        }),
        (State::LastEnd { cr: false }, b'\r') => Ok(State::LastEnd { cr: true }),
        (State::LastEnd { cr: true }, b'\n') => Ok(State::Over),
        _ => Err(BodyError),
    }
}
