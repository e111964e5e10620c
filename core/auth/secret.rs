//! The shared secret of a gateway: which text may be one, and in which form it is kept.
//!
//! A text that cannot be told from 128 random bits is kept as its SHA-256 and compared at once, for nobody guesses it. One
//! that a person may have chosen is kept under bcrypt, and each look at it is counted first ([`super::limits`]).

use thiserror::Error;

use super::password::PasswordHash;
use crate::token::{Token, TokenHash};

/// Fewest characters.
pub const MIN: usize = 24;
/// Most bytes.
pub const MAX: usize = 512;

/// Texts out of manuals.
const PLACEHOLDERS: &[&str] = &[
    "changeme",
    "change-me",
    "placeholder",
    "your-token",
    "example",
    "secret-token",
    "undefined",
];

/// How hard a text is to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// At least 128 bits, by [`is_random`].
    Random,
    /// Somebody may have thought of it.
    Chosen,
}

/// Why a text cannot be the shared secret. Repeats nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unfit {
    /// Fewer than [`MIN`] characters.
    #[error("it has fewer than 24 characters")]
    Short,
    /// More than [`MAX`] bytes.
    #[error("it has more than 512 bytes")]
    Long,
    /// Space or control characters.
    #[error("it has space or control characters in it")]
    Characters,
    /// Out of a manual, or one character again and again.
    #[error("it is a placeholder")]
    Placeholder,
}

/// May this be the shared secret, and how strong is it?
///
/// # Errors
/// [`Unfit`].
pub fn check(text: &str) -> Result<Strength, Unfit> {
    let lower = text.to_ascii_lowercase();
    let first = text.chars().next();
    if text.chars().count() < MIN {
        return Err(Unfit::Short);
    }
    if text.len() > MAX {
        return Err(Unfit::Long);
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Unfit::Characters);
    }
    if text.chars().all(|c| Some(c) == first) || PLACEHOLDERS.iter().any(|p| lower.contains(p)) {
        return Err(Unfit::Placeholder);
    }
    Ok(if is_random(text) {
        Strength::Random
    } else {
        Strength::Chosen
    })
}

/// Does it have the shape of 128 random bits? A token of ours; a UUID; 32 or more hexadecimal digits of one case, 11 of
/// them and 7 in 10 of the first pairs different; or 24 or more characters of base64 with both cases and digits, 16 of them different, of which 34 in
/// 100 are of another kind than the one before (a small letter after a capital aside), and no more than six small letters
/// follow one another. Random text that
/// falls through is taken for chosen, which costs time and no safety.
pub fn is_random(text: &str) -> bool {
    Token::parse(text).is_ok() || is_uuid(text) || is_hex(text) || is_base64(text)
}

fn distinct(bytes: impl Iterator<Item = u8>) -> usize {
    bytes.collect::<std::collections::BTreeSet<_>>().len()
}

fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
        && distinct(bytes.iter().copied().filter(|b| *b != b'-')) >= 9
}

fn is_hex(text: &str) -> bool {
    let bytes = text.as_bytes();
    let lower = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let upper = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    // What repeats itself has few different pairs: of 32 random digits' 31 pairs about 29 differ.
    let head = &bytes[..bytes.len().min(64)];
    let pairs: std::collections::BTreeSet<_> = head.windows(2).collect();
    bytes.len() >= 32
        && (lower || upper)
        && distinct(bytes.iter().copied()) >= 11
        && pairs.len() * 10 >= (head.len() - 1) * 7
}

fn is_base64(text: &str) -> bool {
    let bytes = text.trim_end_matches('=').as_bytes();
    let kind = |byte: u8| match byte {
        b'a'..=b'z' => Some(0_u8),
        b'A'..=b'Z' => Some(1),
        b'0'..=b'9' => Some(2),
        b'-' | b'_' | b'+' | b'/' => Some(3),
        _ => None,
    };
    let Some(kinds) = bytes.iter().map(|b| kind(*b)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    // A capital and the small letter after it are how words begin.
    let is_change = |pair: &&[u8]| pair[0] != pair[1] && (pair[0], pair[1]) != (1, 0);
    let changes = kinds.windows(2).filter(is_change).count();
    let longest = kinds
        .split(|kind| *kind != 0)
        .map(<[u8]>::len)
        .max()
        .unwrap_or_default();
    bytes.len() >= 24
        && (0..3).all(|kind| kinds.contains(&kind))
        && distinct(bytes.iter().copied()) >= 16
        && changes * 100 >= (bytes.len() - 1) * 34
        && longest <= 6
}

/// The shared secret as it is kept.
#[derive(Debug, Clone)]
pub enum SharedHash {
    /// Of a random one.
    Random(TokenHash),
    /// Of a chosen one.
    Chosen(PasswordHash),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{base64url, hex};
    use crate::token::TokenKind;
    use proptest::prelude::*;

    #[test]
    fn short_texts_and_placeholders_are_refused_and_a_uuid_is_not() {
        for (bad, why) in [
            ("", Unfit::Short),
            ("short", Unfit::Short),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Unfit::Placeholder),
            ("changeme-changeme-changeme", Unfit::Placeholder),
            ("with space in it and long enough", Unfit::Characters),
        ] {
            assert_eq!(check(bad), Err(why), "{bad}");
        }
        assert_eq!(check(&"ab".repeat(300)), Err(Unfit::Long));
        assert_eq!(
            check("478c9e6a-b11b-422b-8bf4-6ef024b4d6c3"),
            Ok(Strength::Random)
        );
    }

    #[test]
    fn what_a_person_may_think_of_is_not_taken_for_random() {
        for chosen in [
            "correct-horse-battery-staple",
            "Summer2024Winter2025Spring2026",
            "MyDogIsCalledFido2024inBerlin",
            "P4ssw0rdP4ssw0rdP4ssw0rd",
            "12345678901234567890123456789012",
            "abcdef123456abcdef123456abcdef12",
            "00000000-0000-0000-0000-000000000001",
            "Qwertyuiop123Asdfghjkl456Zxcvbnm",
            "deadbeefdeadbeefdeadbeefdeadbeef",
        ] {
            assert_eq!(check(chosen), Ok(Strength::Chosen), "{chosen}");
        }
    }

    proptest! {
        #[test]
        fn tokens_of_ours_are_random_whatever_their_bytes(bytes: [u8; 32]) {
            for kind in TokenKind::ALL {
                prop_assert!(is_random(Token::from_random(kind, &bytes).expose()));
            }
        }

        /// Not all of them pass, but none that is shorter does.
        #[test]
        fn nothing_under_128_bits_is_random(bytes in proptest::collection::vec(any::<u8>(), 0..15)) {
            prop_assert!(!is_random(&hex(&bytes)));
            prop_assert!(!is_random(&base64url(&bytes)));
        }
    }

    #[test]
    fn most_random_texts_are_taken_for_random() {
        // A fixed stream of bytes: SHA-256 of a counter.
        use sha2::Digest as _;
        let random = |n: u32| sha2::Sha256::digest(n.to_be_bytes());
        let count = |shape: &dyn Fn(&[u8]) -> String| {
            (0..1000_u32)
                .filter(|n| is_random(&shape(&random(*n))))
                .count()
        };
        assert!(count(&base64url) > 900);
        assert!(count(&|bytes| base64url(&bytes[..18])) > 800);
        assert!(count(&hex) > 990);
        assert!(count(&|bytes| hex(&bytes[..16])) > 950);
    }
}
