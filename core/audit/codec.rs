//! Length-prefixed fields: writing them, and reading them back strictly and without allocating.

use super::entry::is_clean;
use std::collections::BTreeMap;

/// Why bytes are no canonical body. Static text only: it is shown to people.
pub(super) type Flaw = &'static str;

pub(super) fn put_str(out: &mut Vec<u8>, text: &str) -> Result<(), Flaw> {
    let len = u16::try_from(text.len()).map_err(|_| "a field is longer than 65,535 bytes")?;
    if !is_clean(text) {
        return Err("a field holds an unescaped control character");
    }
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

pub(super) fn put_opt(out: &mut Vec<u8>, text: Option<&str>) -> Result<(), Flaw> {
    out.push(u8::from(text.is_some()));
    text.map_or(Ok(()), |text| put_str(out, text))
}

pub(super) fn put_map(out: &mut Vec<u8>, map: &BTreeMap<String, String>) -> Result<(), Flaw> {
    let count = u16::try_from(map.len()).map_err(|_| "a map has more than 65,535 keys")?;
    out.extend_from_slice(&count.to_be_bytes());
    map.iter().try_for_each(|(key, value)| {
        put_str(out, key)?;
        put_str(out, value)
    })
}

/// Takes fields off the front of a body.
#[derive(Clone, Copy)]
pub(super) struct Cut<'a>(pub(super) &'a [u8]);

impl<'a> Cut<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Flaw> {
        let (front, rest) = self
            .0
            .split_at_checked(n)
            .ok_or("a field runs past the end of its record")?;
        self.0 = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let (front, rest) = self
            .0
            .split_first_chunk()
            .ok_or("a field runs past the end of its record")?;
        self.0 = rest;
        Ok(*front)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Flaw> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Flaw> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Flaw> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Flaw> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    pub(super) fn str(&mut self) -> Result<&'a str, Flaw> {
        let len = usize::from(self.u16()?);
        let text = std::str::from_utf8(self.bytes(len)?).map_err(|_| "a field is not UTF-8")?;
        if is_clean(text) {
            Ok(text)
        } else {
            Err("a field holds an unescaped control character")
        }
    }

    pub(super) fn opt(&mut self) -> Result<Option<&'a str>, Flaw> {
        if self.flag()? {
            self.str().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Checks a map (rising keys, clean text) and returns its bytes for [`pairs`].
    pub(super) fn map(&mut self) -> Result<&'a [u8], Flaw> {
        let whole = self.0;
        let mut before: Option<&str> = None;
        for _ in 0..self.u16()? {
            let key = self.str()?;
            if before.is_some_and(|before| before >= key) {
                return Err("the keys of a map do not rise");
            }
            before = Some(key);
            self.str()?;
        }
        Ok(&whole[..whole.len() - self.0.len()])
    }

    pub(super) fn end(self) -> Result<(), Flaw> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("bytes follow the last field")
        }
    }
}

/// The pairs of a map that [`Cut::map`] has checked.
pub(super) fn pairs(map: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let mut cut = Cut(map);
    let count = cut.u16().unwrap_or(0);
    (0..count).map_while(move |_| Some((cut.str().ok()?, cut.str().ok()?)))
}
