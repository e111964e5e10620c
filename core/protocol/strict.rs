//! One value, read once, the same way in both encodings. What does not round-trip is refused at every depth: a key
//! that comes twice, a number that is not finite or beyond 2^53, bytes where text is meant, too deep a nesting.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};

use super::limits::JSON_DEPTH;

/// The greatest whole number that every reader keeps exactly.
const EXACT: u64 = 1 << 53;
/// Values of one tree: it costs a hundred bytes a value, however few the frame has for it.
pub const VALUES_MAX: usize = 100_000;
/// A key in a text about it, characters.
const KEY_SHOWN: usize = 64;

/// Why a value is refused though it can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// A key stands twice in one object.
    #[error("the key {0:?} stands twice")]
    Twice(String),
    /// Beyond 2^53 either way, or not finite.
    #[error("a number must be finite and at most 2^53 either way")]
    Number,
    /// Deeper than the limit.
    #[error("nested too deeply (more than {JSON_DEPTH})")]
    Deep,
    /// More values than are kept: a small frame must not become a large tree.
    #[error("more than {VALUES_MAX} values")]
    Many,
    /// Not of the types that both encodings have.
    #[error("{0}")]
    Kind(String),
}

impl Unsound {
    pub(super) fn twice(key: &str) -> Self {
        Self::Twice(key.chars().take(KEY_SHOWN).collect())
    }
}

/// Reads one value. What is unsound is noted once, and the rest is passed over, so that an answer still finds its id.
pub(super) struct Strict<'n> {
    depth: usize,
    note: &'n mut Option<Unsound>,
    left: &'n mut usize,
}

impl<'n> Strict<'n> {
    pub fn new(note: &'n mut Option<Unsound>, left: &'n mut usize) -> Self {
        Self {
            depth: 0,
            note,
            left,
        }
    }

    fn noted(self, unsound: Unsound) -> Value {
        self.note.get_or_insert(unsound);
        Value::Null
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a boolean, a number, a text, a list or an object")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        if value > EXACT {
            return Ok(self.noted(Unsound::Number));
        }
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > EXACT {
            return Ok(self.noted(Unsound::Number));
        }
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // Every double beyond 2^53 is a whole number that has neighbours it cannot be told from.
        match Number::from_f64(value) {
            // At 2^53 itself it may have been written as the next one.
            Some(number) if value.abs() < EXACT as f64 => Ok(number.into()),
            _ => Ok(self.noted(Unsound::Number)),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Value, E> {
        Ok(self.noted(Unsound::Kind("bytes stand where text is meant".to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = self.depth + 1;
        if depth > JSON_DEPTH {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(self.noted(Unsound::Deep));
        }
        // No room is made by what the other end announces.
        let mut list = Vec::new();
        let (note, left) = (self.note, self.left);
        while note.is_none() {
            match seq.next_element_seed(Strict { depth, note, left })? {
                Some(_) if *left == 0 => *note = Some(Unsound::Many),
                Some(value) => {
                    *left -= 1;
                    list.push(value);
                }
                None => return Ok(list.into()),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = self.depth + 1;
        if depth > JSON_DEPTH {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(self.noted(Unsound::Deep));
        }
        let mut object = Map::new();
        let (note, left) = (self.note, self.left);
        while note.is_none() {
            let Some(key) = map.next_key_seed(Text)? else {
                return Ok(object.into());
            };
            if object.contains_key(&*key) {
                *note = Some(Unsound::twice(&key));
                map.next_value::<IgnoredAny>()?;
                break;
            }
            let value = map.next_value_seed(Strict { depth, note, left })?;
            if *left == 0 {
                note.get_or_insert(Unsound::Many);
                break;
            }
            *left -= 1;
            object.insert(key.into_owned(), value);
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }
}

/// A text and nothing else, borrowed where it can be.
pub(super) struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Cow<'de, str>, D::Error> {
        d.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value))
    }
}

/// The same, or null.
pub(super) struct TextOrNull;

impl<'de> DeserializeSeed<'de> for TextOrNull {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for TextOrNull {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        Text.deserialize(d).map(Some)
    }
}

/// Reads one whole JSON text.
///
/// # Errors
/// Why it is refused.
pub fn json(bytes: &[u8]) -> Result<Value, Unsound> {
    let (mut note, mut left) = (None, VALUES_MAX);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = Strict::new(&mut note, &mut left)
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    match (read, note) {
        (Ok(value), None) => Ok(value),
        (_, Some(unsound)) => Err(unsound),
        (Err(error), None) => Err(of_json(&error)),
    }
}

/// serde_json names line and column of one long line: of no use to a reader.
pub(super) fn of_json(error: &serde_json::Error) -> Unsound {
    let why = error.to_string();
    let why = why.split(" at line ").next().unwrap_or_default();
    if why == OUT_OF_RANGE {
        return Unsound::Number;
    }
    Unsound::Kind(why.to_owned())
}

/// What serde_json says of `1e999`, which is JSON all the same.
pub(super) const OUT_OF_RANGE: &str = "number out of range";

/// Reads one whole MessagePack value.
///
/// # Errors
/// Why it is refused.
pub fn msgpack(bytes: &[u8]) -> Result<Value, Unsound> {
    let (mut note, mut left) = (None, VALUES_MAX);
    let read = whole(bytes, |reader| {
        Strict::new(&mut note, &mut left).deserialize(reader)
    });
    match (read, note) {
        (Ok(value), None) => Ok(value),
        (_, Some(unsound)) => Err(unsound),
        (Err(error), None) => Err(of_msgpack(&error)),
    }
}

pub(super) fn of_msgpack(error: &rmp_serde::decode::Error) -> Unsound {
    match error {
        rmp_serde::decode::Error::DepthLimitExceeded => Unsound::Deep,
        error => Unsound::Kind(error.to_string()),
    }
}

/// Takes no value at all.
struct End;

impl Visitor<'_> for End {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end")
    }
}

pub(super) type Unpack<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>;

/// Runs a reader over bytes that must end where it ends.
pub(super) fn whole<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut Unpack<'a>) -> Result<T, rmp_serde::decode::Error>,
) -> Result<T, rmp_serde::decode::Error> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    // What is passed over is read by recursion: the frame itself, our own limit, and some more.
    reader.set_max_depth(JSON_DEPTH * 2);
    let value = read(&mut reader)?;
    match reader.deserialize_any(End) {
        // No byte is left to tell a type. Nothing is read further: a list that only begins would end the same way.
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(rmp_serde::decode::Error::custom(
            "bytes follow after the end",
        )),
    }
}

/// Overwrites the texts of a value: it may hold a secret.
pub fn wipe(value: &mut Value) {
    use zeroize::Zeroize as _;
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(list) => list.iter_mut().for_each(wipe),
        Value::Object(object) => object.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
