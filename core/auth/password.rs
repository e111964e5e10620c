//! Passwords, and shared secrets that a person chose: bcrypt over a keyed hash, so that no byte is cut off.
//!
//! bcrypt reads 72 bytes and stops at a NUL. What we make is therefore bcrypt over `base64(HMAC-SHA256(pepper, password))`,
//! 44 bytes without NUL, under a prefix of its own; the pepper is sealed apart from the state. A plain bcrypt hash from
//! elsewhere is taken too, for passwords that it can hold.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::encoding::base64url;
use crate::seal::Secret;

/// The least cost that is taken.
pub const COST_FLOOR: u32 = 10;
/// The highest: each look costs twice as much as at the one below.
pub const COST_CEILING: u32 = 14;
/// Fewest characters of a new password.
pub const MIN: usize = 12;
/// Most bytes of any password.
pub const MAX: usize = 1024;
/// What bcrypt reads of a password.
const PLAIN_MAX: usize = 72;
/// Our own form.
const PREFIX: &str = "pc1:";

/// Why a hash or a password cannot be used. Repeats neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PasswordError {
    /// Not `$2a$`, `$2b$`, `$2y$`, or our form of it.
    #[error("this is no bcrypt hash ($2a$, $2b$ or $2y$, 60 characters)")]
    Format,
    /// Cheaper than [`COST_FLOOR`] or dearer than [`COST_CEILING`].
    #[error("the cost of a hash is 10 to 14")]
    Cost,
    /// Fewer than [`MIN`] characters, more than [`MAX`] bytes, or one character again and again.
    #[error("a password is 12 characters to 1024 bytes, and not one character again and again")]
    Unfit,
}

/// A password's hash. Not printable: a person's choice can be guessed from it.
#[derive(Clone)]
pub struct PasswordHash {
    prehashed: bool,
    cost: u32,
    bcrypt: String,
}

impl PasswordHash {
    /// Hashes a password. Slow on purpose: never on an actor's loop.
    ///
    /// # Errors
    /// [`PasswordError::Cost`].
    pub fn make(
        password: &[u8],
        pepper: &Secret,
        cost: u32,
        salt: [u8; 16],
    ) -> Result<Self, PasswordError> {
        in_bounds(cost)?;
        let parts = bcrypt::hash_with_salt(&*keyed(password, pepper), cost, salt)
            .map_err(|_| PasswordError::Cost)?;
        Ok(Self {
            prehashed: true,
            cost,
            bcrypt: parts.format_for_version(bcrypt::Version::TwoB),
        })
    }

    /// Reads our form, or a plain bcrypt hash.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub fn parse(text: &str) -> Result<Self, PasswordError> {
        let (prehashed, bcrypt) = match text.strip_prefix(PREFIX) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let known = ["$2a$", "$2b$", "$2y$"]
            .iter()
            .any(|version| bcrypt.starts_with(version));
        let parts: bcrypt::HashParts = bcrypt.parse().map_err(|_| PasswordError::Format)?;
        if !known || bcrypt.len() != 60 {
            return Err(PasswordError::Format);
        }
        let cost = parts.get_cost();
        in_bounds(cost)?;
        Ok(Self {
            prehashed,
            cost,
            bcrypt: bcrypt.to_owned(),
        })
    }

    /// Nobody's: for names that do not exist, so that they take the same time.
    pub fn nobodys(cost: u32) -> Self {
        let cost = cost.clamp(COST_FLOOR, COST_CEILING);
        Self {
            prehashed: true,
            cost,
            bcrypt: format!("$2b${cost}$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzABDEC"),
        }
    }

    /// As it is kept.
    pub fn to_text(&self) -> String {
        let prefix = if self.prehashed { PREFIX } else { "" };
        format!("{prefix}{}", self.bcrypt)
    }

    /// Its cost.
    pub const fn cost(&self) -> u32 {
        self.cost
    }

    /// [`Self::is_of`], in the time of a hash of this cost where that is the dearer one: names whose hashes cost
    /// differently are not told apart by a clock. 2^c and then 2^c, 2^(c+1) and so on add up to 2^cost.
    pub fn is_of_in_time(&self, password: &[u8], pepper: &Secret, cost: u32) -> bool {
        let mut is_right = self.is_of(password, pepper);
        for cost in self.cost..cost.min(COST_CEILING) {
            is_right &= !Self::nobodys(cost).is_of(password, pepper);
        }
        is_right
    }

    /// Is it this password's? Slow on purpose: never on an actor's loop. What bcrypt cannot hold is wrong, and takes as
    /// long.
    pub fn is_of(&self, password: &[u8], pepper: &Secret) -> bool {
        if self.prehashed {
            return bcrypt::verify(&*keyed(password, pepper), &self.bcrypt).unwrap_or(false);
        }
        let fits = password.len() <= PLAIN_MAX && !password.contains(&0);
        let read = &password[..password.len().min(PLAIN_MAX)];
        let is_right = bcrypt::verify(read, &self.bcrypt).unwrap_or(false);
        fits & is_right
    }
}

/// May a new password be this?
///
/// # Errors
/// [`PasswordError::Unfit`].
pub fn check(password: &str) -> Result<(), PasswordError> {
    let first = password.chars().next();
    let bad = password.chars().count() < MIN
        || password.len() > MAX
        || password.chars().all(|c| Some(c) == first);
    if bad {
        Err(PasswordError::Unfit)
    } else {
        Ok(())
    }
}

const fn in_bounds(cost: u32) -> Result<(), PasswordError> {
    if cost < COST_FLOOR || cost > COST_CEILING {
        return Err(PasswordError::Cost);
    }
    Ok(())
}

/// 43 characters of base64: every byte of the password counts, and none is a NUL.
fn keyed(password: &[u8], pepper: &Secret) -> Zeroizing<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(pepper.expose())
        .expect("invariant: HMAC takes a key of any length");
    mac.update(password);
    Zeroizing::new(base64url(&mac.finalize().into_bytes()))
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

impl Serialize for PasswordHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for PasswordHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Known answers of jBCrypt (ISC, Copyright (c) 2006 Damien Miller; see `tests/vectors/bcrypt/LICENSE`).
    const VECTORS: &str = include_str!("../../tests/vectors/bcrypt/bcrypt.json");

    fn pepper(byte: u8) -> Secret {
        Secret::new(vec![byte; 32])
    }

    #[test]
    fn the_bcrypt_vectors_pass_and_every_other_password_fails() {
        let vectors: serde_json::Value = serde_json::from_str(VECTORS).expect("json");
        let mut through_ours = 0;
        for test in vectors["tests"].as_array().expect("tests") {
            let text = |key: &str| test[key].as_str().expect("text").to_owned();
            let (password, hash) = (text("password"), text("hash"));
            assert!(bcrypt::verify(&password, &hash).expect("a hash"), "{hash}");
            assert!(!bcrypt::verify(format!("{password}x"), &hash).expect("a hash"));
            // Ours takes those whose cost is within its bounds.
            match PasswordHash::parse(&hash) {
                Ok(ours) => {
                    through_ours += 1;
                    assert_eq!(ours.to_text(), hash);
                    assert!(ours.is_of(password.as_bytes(), &pepper(1)));
                    assert!(!ours.is_of(format!("{password} ").as_bytes(), &pepper(1)));
                }
                Err(error) => assert_eq!(error, PasswordError::Cost, "{hash}"),
            }
        }
        assert!(through_ours >= 8, "{through_ours}");
    }

    #[test]
    fn nothing_is_cut_off_in_our_form_and_a_plain_hash_holds_72_bytes() {
        let long = "a".repeat(100);
        let ours = PasswordHash::make(long.as_bytes(), &pepper(1), 10, [7; 16]).expect("made");
        assert!(ours.is_of(long.as_bytes(), &pepper(1)));
        assert!(!ours.is_of(&long.as_bytes()[..72], &pepper(1)));
        assert!(!ours.is_of("a".repeat(101).as_bytes(), &pepper(1)));
        assert!(
            !ours.is_of(long.as_bytes(), &pepper(2)),
            "without the pepper"
        );
        let nul = PasswordHash::make(b"before\0after", &pepper(1), 10, [7; 16]).expect("made");
        assert!(nul.is_of(b"before\0after", &pepper(1)) && !nul.is_of(b"before", &pepper(1)));
        let again = PasswordHash::parse(&ours.to_text()).expect("parses");
        assert!(
            again.is_of(long.as_bytes(), &pepper(1)) && again.to_text().starts_with("pc1:$2b$10$")
        );

        let full = "b".repeat(72);
        let plain = bcrypt::hash_with_salt(&full, 10, [3; 16]).expect("made");
        let plain =
            PasswordHash::parse(&plain.format_for_version(bcrypt::Version::TwoY)).expect("parses");
        assert!(plain.is_of(full.as_bytes(), &pepper(1)));
        assert!(
            !plain.is_of("b".repeat(73).as_bytes(), &pepper(1)),
            "never truncated"
        );
        let short = bcrypt::hash_with_salt("short", 10, [3; 16]).expect("made");
        let short =
            PasswordHash::parse(&short.format_for_version(bcrypt::Version::TwoA)).expect("parses");
        assert!(short.is_of(b"short", &pepper(1)) && !short.is_of(b"short\0", &pepper(1)));
    }

    #[test]
    fn names_whose_hashes_cost_differently_are_not_told_apart_by_time() {
        let (cheap, dear) = ([10, 13])
            .map(|cost| {
                PasswordHash::make(b"a long password", &pepper(1), cost, [7; 16]).expect("made")
            })
            .into();
        let (mut took, plain) = (
            [Duration::MAX; 4],
            bcrypt::hash_with_salt("plain", 11, [3; 16]),
        );
        let plain = plain
            .expect("made")
            .format_for_version(bcrypt::Version::TwoB);
        let plain = PasswordHash::parse(&plain).expect("parses");
        for _ in 0..3 {
            let nobodys = PasswordHash::nobodys(13);
            for (at, hash) in [&cheap, &dear, &plain, &nobodys].into_iter().enumerate() {
                let began = Instant::now();
                assert!(!hash.is_of_in_time(b"another password", &pepper(1), 13));
                took[at] = took[at].min(began.elapsed());
            }
        }
        for one in took {
            let ratio = one.as_secs_f64() / took[1].as_secs_f64();
            // Cost 10 alone would be an eighth, cost 11 a quarter.
            assert!((0.6..1.7).contains(&ratio), "{took:?}");
        }
        for (hash, right) in [
            (&cheap, "a long password"),
            (&dear, "a long password"),
            (&plain, "plain"),
        ] {
            assert!(hash.is_of_in_time(right.as_bytes(), &pepper(1), 13));
        }
    }

    #[test]
    fn costs_out_of_bounds_and_foreign_forms_are_refused_and_nobodys_hash_is_nobodys() {
        for (cost, text) in [(9, "$2b$09$"), (15, "$2b$15$")] {
            assert_eq!(
                PasswordHash::make(b"x", &pepper(1), cost, [0; 16]).err(),
                Some(PasswordError::Cost)
            );
            let text = format!("{text}abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzABDEC");
            assert_eq!(PasswordHash::parse(&text).err(), Some(PasswordError::Cost));
        }
        for bad in [
            "",
            "pc1:",
            "$2x$10$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzABDEC",
            "$1$x",
            "$2b$10$short",
        ] {
            assert_eq!(
                PasswordHash::parse(bad).err(),
                Some(PasswordError::Format),
                "{bad}"
            );
        }
        let nobodys = PasswordHash::nobodys(10);
        assert!(PasswordHash::parse(&nobodys.to_text()).is_ok());
        assert!(!nobodys.is_of(b"", &pepper(1)) && !nobodys.is_of(b"password", &pepper(1)));
        assert!(check("a long enough one").is_ok());
        for bad in ["elevenchars", "aaaaaaaaaaaaaaaaa", &"x1".repeat(513)] {
            assert_eq!(check(bad), Err(PasswordError::Unfit));
        }
        assert_eq!(format!("{nobodys:?}"), "PasswordHash(..)");
    }
}
