//! Hosts whose TLS the gateway opens itself, and the secret that it puts into requests to them.
//!
//! An entry says which secret of the vault goes into which header of which requests to which host; to open TLS is no more than the way to do
//! that. What a box has of such entries can only become less where boxes are shared or made by others ([`Terminations::meet`]).

use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroize as _;

use super::head::{HOP, METHOD, is_token};
use super::host::{Host, Name, host_and_port};
use super::rules::DEFAULT_PORT;
use crate::seal::Secret;
use crate::vault::check_name;

/// Most entries of one list.
const MOST: usize = 64;
/// Most methods, and most paths, of one entry.
const WORDS: usize = 32;
/// Longest format and longest path, in bytes.
const LONG: usize = 256;
/// Shortest secret that is put in, in bytes: a shorter one could not be told from other text in an answer.
pub const SHORTEST: usize = 8;
/// What stands in a format for the secret, and for its base64.
const PLAIN: &str = "{}";
const BASE64: &str = "{base64}";

/// One entry: this secret, in this header, for these methods and paths of this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Termination {
    host: Name,
    port: u16,
    header: String,
    secret: String,
    format: String,
    methods: BTreeSet<String>,
    paths: BTreeSet<String>,
}

/// Why an entry is none. No text of it is repeated where a secret could stand in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TerminationError {
    /// Not one name with one port.
    #[error("host {0:?}: one name, as api.example.com:443; no address and no *")]
    Host(String),
    /// No name of the vault's.
    #[error("secret: a name of the vault's, A-Z, 0-9 and _, beginning with a letter")]
    Secret,
    /// No header, or one that belongs to the gateway.
    #[error(
        "header {0:?}: the name of a header that is not about the connection, the host or the body"
    )]
    Header(String),
    /// Not exactly one place for the secret.
    #[error(
        "format: up to 256 printable ASCII characters with {{}} once, as \"Bearer {{}}\", or {{base64}} once, as \"Basic {{base64}}\""
    )]
    Format,
    /// No method.
    #[error(
        "methods: 1 to 32 of GET, POST and their like, in capital letters; never CONNECT or TRACE"
    )]
    Methods,
    /// No path.
    #[error(
        "paths: 1 to 32, each beginning with /; one that ends with / stands for all below it, any other for itself; without . and .. segments, //, %, ?, # and \\"
    )]
    Paths,
    /// Two secrets for one header.
    #[error("{0} has two entries for the header {1}")]
    Twice(String, String),
    /// Too many.
    #[error("more than {MOST} entries")]
    TooMany,
}

impl Termination {
    /// Whose TLS is opened.
    pub const fn host(&self) -> &Name {
        &self.host
    }

    /// On which port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The header, as it is written to the server.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// The secret's name in the vault.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Is it put into such a request? `path` is without its query, and has passed [`super::inner::odd`].
    pub fn is_for(&self, method: &str, path: &str) -> bool {
        self.methods.contains(method) && self.paths.iter().any(|own| covers(own, path))
    }

    /// Whether a header of a client's is the one that the secret goes into, for any server: some read whatever is no letter and no digit as
    /// one and the same.
    pub fn is_header(&self, name: &str) -> bool {
        let one = |byte: u8| {
            if byte.is_ascii_alphanumeric() {
                byte.to_ascii_lowercase()
            } else {
                b'-'
            }
        };
        name.len() == self.header.len() && name.bytes().map(one).eq(self.header.bytes().map(one))
    }

    /// The header's value; `None` where the secret cannot stand in one.
    pub fn value(&self, secret: &Secret) -> Option<Secret> {
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~');
        let bytes = secret.expose();
        let is_trimmed = bytes.trim_ascii().len() == bytes.len();
        if bytes.len() < SHORTEST {
            return None;
        }
        let (before, after, middle) = if let Some((before, after)) = self.format.split_once(BASE64)
        {
            (before, after, base64(bytes))
        } else {
            let (before, after) = self.format.split_once(PLAIN)?;
            if !bytes.iter().all(is_plain) || !is_trimmed {
                return None;
            }
            (before, after, secret.clone())
        };
        // At once as long as it will be: no copy is left behind by growing.
        let mut value = Vec::with_capacity(before.len() + middle.len() + after.len());
        value.extend_from_slice(before.as_bytes());
        value.extend_from_slice(middle.expose());
        value.extend_from_slice(after.as_bytes());
        Some(Secret::new(value))
    }

    /// What of the secret a server gets to see where that is not the secret itself: it may write that in yet another way.
    pub fn encoded(&self, secret: &Secret) -> Option<Secret> {
        let text = self
            .format
            .contains(BASE64)
            .then(|| base64(secret.expose()))?;
        let padding = text
            .expose()
            .iter()
            .rev()
            .take_while(|byte| **byte == b'=')
            .count();
        Some(Secret::new(text.expose()[..text.len() - padding].to_vec()))
    }

    fn is_same(&self, other: &Self) -> bool {
        let key = |one: &Self| {
            (
                one.host.clone(),
                one.port,
                one.header.clone(),
                one.secret.clone(),
                one.format.clone(),
            )
        };
        key(self) == key(other)
    }

    fn is_within(&self, other: &Self) -> bool {
        let is_covered = |path: &String| other.paths.iter().any(|wider| covers(wider, path));
        self.is_same(other)
            && self.methods.is_subset(&other.methods)
            && self.paths.iter().all(is_covered)
    }

    /// What both allow, if anything.
    fn meet(&self, other: &Self) -> Option<Self> {
        let of = |one: &Self, two: &Self| {
            let is_in = |path: &&String| two.paths.iter().any(|wider| covers(wider, path));
            one.paths.iter().filter(is_in).cloned().collect::<Vec<_>>()
        };
        let methods: BTreeSet<_> = self.methods.intersection(&other.methods).cloned().collect();
        let paths = of(self, other).into_iter().chain(of(other, self)).collect();
        let met = Self {
            methods,
            paths: fewest(&paths),
            ..self.clone()
        };
        (self.is_same(other) && !met.methods.is_empty() && !met.paths.is_empty()).then_some(met)
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |words: &BTreeSet<String>| {
            words
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(",")
        };
        write!(
            f,
            "{}:{} {} {} {}: {:?} of {}",
            self.host,
            self.port,
            join(&self.methods),
            join(&self.paths),
            self.header,
            self.format,
            self.secret
        )
    }
}

/// Does a path of an entry stand for this path, or for all that another entry's path stands for?
fn covers(own: &str, path: &str) -> bool {
    own == path || own.ends_with('/') && path.starts_with(own)
}

/// Without what another one stands for.
fn fewest(paths: &BTreeSet<String>) -> BTreeSet<String> {
    let is_needless = |path: &String| {
        paths
            .iter()
            .any(|other| other != path && covers(other, path))
    };
    paths
        .iter()
        .filter(|path| !is_needless(path))
        .cloned()
        .collect()
}

fn base64(bytes: &[u8]) -> Secret {
    use base64::Engine as _;
    let mut text = vec![0; bytes.len().div_ceil(3) * 4];
    let written = base64::engine::general_purpose::STANDARD.encode_slice(bytes, &mut text);
    if written.is_err() {
        text.zeroize();
    }
    Secret::new(text)
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    host: String,
    secret: Reference,
    header: String,
    #[serde(default = "plain")]
    format: String,
    methods: Vec<String>,
    paths: Vec<String>,
}

fn plain() -> String {
    PLAIN.to_owned()
}

/// `{ vault = "NAME" }`. A text in its place is not repeated: it may be what was to be named.
struct Reference(String);

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Of {
            vault: String,
        }
        struct It;
        impl<'de> Visitor<'de> for It {
            type Value = Reference;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ vault = \"NAME\" }")
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Reference, E> {
                Err(E::custom(LITERAL))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Reference, A::Error> {
                Of::deserialize(MapAccessDeserializer::new(map)).map(|of| Reference(of.vault))
            }
        }
        from.deserialize_any(It)
    }
}

/// Where a secret is expected, a reference stands.
pub const LITERAL: &str = "a secret does not stand in the configuration: `portcullis vault set NAME < file`, then { vault = \"NAME\" } here";

impl TryFrom<Written> for Termination {
    type Error = TerminationError;

    fn try_from(written: Written) -> Result<Self, TerminationError> {
        let Written {
            host,
            secret: Reference(secret),
            header,
            format,
            methods,
            paths,
        } = written;
        let (name, port) = match host_and_port(&host) {
            Ok((Host::Name(name), port)) => (name, port.unwrap_or(DEFAULT_PORT)),
            _ => return Err(TerminationError::Host(host)),
        };
        check_name(&secret).map_err(|_| TerminationError::Secret)?;
        let is_taken = |known: &&str| header.eq_ignore_ascii_case(known);
        if !is_token(&header) || header.len() > LONG || HOP.iter().chain(&TAKEN).any(is_taken) {
            return Err(TerminationError::Header(header));
        }
        let places = format.matches(PLAIN).count() + format.matches(BASE64).count();
        let is_printable = format.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if places != 1 || !is_printable || format.len() > LONG || format.trim() != format {
            return Err(TerminationError::Format);
        }
        let is_method = |method: &String| {
            let is_word = method
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
            is_token(method)
                && is_word
                && method.len() <= METHOD
                && !["CONNECT", "TRACE"].contains(&method.as_str())
        };
        if !(1..=WORDS).contains(&methods.len()) || !methods.iter().all(is_method) {
            return Err(TerminationError::Methods);
        }
        let is_path = |path: &String| {
            path.starts_with('/')
                && path.len() <= LONG
                && !path.contains(['%', '?', '#', ','])
                && super::inner::odd(path).is_none()
        };
        if !(1..=WORDS).contains(&paths.len()) || !paths.iter().all(is_path) {
            return Err(TerminationError::Paths);
        }
        Ok(Self {
            host: name,
            port,
            header,
            secret,
            format,
            methods: methods.into_iter().collect(),
            paths: fewest(&paths.into_iter().collect()),
        })
    }
}

/// Headers that a secret does not go into beside [`HOP`]: they say whom a request is for, and how its answer is coded.
const TAKEN: [&str; 7] = [
    "host",
    "via",
    "accept-encoding",
    "range",
    "if-range",
    "expect",
    "content-type",
];

/// A list of entries, each header of a host once, in an order of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terminations(BTreeSet<Termination>);

impl Terminations {
    /// Checks a list.
    ///
    /// # Errors
    /// That there are too many, or two for one header of a host.
    pub fn new(entries: impl IntoIterator<Item = Termination>) -> Result<Self, TerminationError> {
        let all: BTreeSet<_> = entries.into_iter().collect();
        if all.len() > MOST {
            return Err(TerminationError::TooMany);
        }
        for (at, one) in all.iter().enumerate() {
            let is_same = |other: &&Termination| {
                other.host == one.host && other.port == one.port && other.is_header(&one.header)
            };
            if all.iter().skip(at + 1).any(|other| is_same(&other)) {
                return Err(TerminationError::Twice(
                    format!("{}:{}", one.host, one.port),
                    one.header.clone(),
                ));
            }
        }
        Ok(Self(all))
    }

    /// No host's TLS is opened.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each in its one form, ascending: for people and hashes.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(Termination::to_string).collect()
    }

    /// The entries of this host and port; none: its TLS goes through unopened.
    pub fn of(&self, host: &Host, port: u16) -> Vec<Termination> {
        let its = self
            .0
            .iter()
            .filter(|one| host.name() == Some(&one.host) && one.port == port);
        its.cloned().collect()
    }

    /// The hosts.
    pub fn hosts(&self) -> BTreeSet<Name> {
        self.0.iter().map(|one| one.host.clone()).collect()
    }

    /// Whether no secret goes anywhere that the other does not send it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0
            .iter()
            .all(|one| other.0.iter().any(|wider| one.is_within(wider)))
    }

    /// What both send.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let pairs = self
            .0
            .iter()
            .flat_map(|one| other.0.iter().map(move |two| (one, two)));
        Self(pairs.filter_map(|(one, two)| one.meet(two)).collect())
    }
}

/// A list of a file; an empty one says nothing, and one of `-` alone that there are none.
///
/// # Errors
/// What is wrong with it, without a text that could be a secret.
pub fn terminations<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Terminations>, D::Error> {
    /// An entry, or the word for none.
    struct Piece(Option<Termination>);
    impl<'de> Deserialize<'de> for Piece {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct It;
            impl<'de> Visitor<'de> for It {
                type Value = Piece;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(
                        "a table with host, secret, header, methods and paths, or \"-\" alone",
                    )
                }
                fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Piece, E> {
                    if text == "-" {
                        Ok(Piece(None))
                    } else {
                        Err(E::custom(
                            "an entry is a table with host, secret, header, methods and paths; [\"-\"] alone is none",
                        ))
                    }
                }
                fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Piece, A::Error> {
                    let written = Written::deserialize(MapAccessDeserializer::new(map))?;
                    written
                        .try_into()
                        .map(|one| Piece(Some(one)))
                        .map_err(A::Error::custom)
                }
            }
            from.deserialize_any(It)
        }
    }
    let pieces = Vec::<Piece>::deserialize(from)?;
    match &pieces[..] {
        [] => Ok(None),
        [Piece(None)] => Ok(Some(Terminations::default())),
        pieces if pieces.iter().any(|piece| piece.0.is_none()) => {
            Err(D::Error::custom("\"-\" stands alone"))
        }
        _ => Terminations::new(pieces.into_iter().filter_map(|piece| piece.0))
            .map(Some)
            .map_err(D::Error::custom),
    }
}
