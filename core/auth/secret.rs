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

/// Digits of 128 bits.
const HEX_MIN: usize = 32;

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

/// Of the shape of random ones, and printed: in RFC 9562, in the documentation of languages, databases and their UUID
/// libraries, as test vectors, and as digests of `password` and of nothing.
const EXAMPLES: &[&str] = &[
    "550e8400-e29b-41d4-a716-446655440000",
    "919108f7-52d1-4320-9bac-f847db4148a8",
    "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    "936da01f-9abd-4d9d-80c7-02af85c822a8",
    "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d",
    "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
    "3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "de305d54-75b4-431b-adb2-eb6b9e546014",
    "110ec58a-a0f2-4ac4-8393-c866d813b8d1",
    "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
    "2b7e151628aed2a6abf7158809cf4f3c",
    "5f4dcc3b5aa765d61d8327deb882cf99",
    "d41d8cd98f00b204e9800998ecf8427e",
    "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
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
    if text.chars().all(|c| Some(c) == first)
        || PLACEHOLDERS.iter().any(|p| lower.contains(p))
        || EXAMPLES.contains(&lower.as_str())
    {
        return Err(Unfit::Placeholder);
    }
    Ok(if is_random(text) {
        Strength::Random
    } else {
        Strength::Chosen
    })
}

/// Does it have the shape of 128 random bits? A token of ours; a UUID of version 4 (RFC 9562 5.4); or 32 or more hexadecimal
/// digits of one case that look like chance (see below). Text of letters and digits is always taken for chosen, base64
/// too: words, dates and columns of a keyboard can be put together so that no count of kinds tells them from chance, and to
/// take random text for chosen costs time and no safety.
pub fn is_random(text: &str) -> bool {
    Token::parse(text).is_ok() || is_uuid(text) || is_hex(text)
}

fn distinct(bytes: impl Iterator<Item = u8>) -> usize {
    bytes.collect::<std::collections::BTreeSet<_>>().len()
}

/// Of 32 random digits' 31 pairs about 29 differ, 4 are neighbours, and no digit comes more than 8 times.
fn is_chance(digits: &[u8]) -> bool {
    let head = &digits[..digits.len().min(64)];
    let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default();
    let pairs: std::collections::BTreeSet<_> = head.windows(2).collect();
    let steps = head
        .windows(2)
        .filter(|pair| value(pair[0]).abs_diff(value(pair[1])) == 1)
        .count();
    let most = (0..16)
        .map(|digit| head.iter().filter(|d| value(**d) == digit).count())
        .max()
        .unwrap_or_default();
    distinct(head.iter().copied()) >= 9
        && pairs.len() * 10 >= (head.len() - 1) * 7
        && steps * 100 <= (head.len() - 1) * 35
        && most * 4 <= head.len()
}

fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    let has_shape = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            // Version and variant: those of other versions are times and addresses.
            14 => *byte == b'4',
            19 => matches!(byte.to_ascii_lowercase(), b'8' | b'9' | b'a' | b'b'),
            _ => byte.is_ascii_hexdigit(),
        });
    let digits: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'-').collect();
    has_shape && is_chance(&digits)
}

fn is_hex(text: &str) -> bool {
    let bytes = text.as_bytes();
    let lower = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let upper = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    bytes.len() >= HEX_MIN
        && (lower || upper)
        && distinct(bytes.iter().copied()) >= 11
        && is_chance(bytes)
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
            ("550E8400-e29b-41d4-a716-446655440000", Unfit::Placeholder),
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
            // These were taken for random.
            "123e4567-e89b-12d3-a456-426614174000",
            "12345678-1234-1234-1234-123456789abc",
            "12345678-1234-4234-8234-123456789abc",
            "0123456789abcdeffedcba9876543210",
            "000102030405060708090a0b0c0d0e0f",
            "MyP4ssw0rdF0rTh3G4teway2024",
            "P0rtcull1sG4t3w4yT0k3n2026",
            "MyDogRexAteTheCatIn2024at7",
            "MyDogRexAteTheCatIn2024at7andLikedItALot",
            "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6",
            "1Qaz2Wsx3Edc4Rfv5Tgb6Yhn7Ujm8Ik9",
            "Cat-Dog-Sun-Map-Pen-Hat-Box-Key-7",
            "20260101-Ab-Cd-Ef-Gh-Ij-Kl-Mn-Op",
            // Chance too, but nobody can tell.
            "wJalrXUtnFEMI4K7MDENG2bPxRfiCYzE",
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

    type Make<'a> = &'a dyn Fn(&[u8]) -> String;

    #[test]
    fn most_random_texts_are_taken_for_random() {
        // A fixed stream of bytes: SHA-256 of a counter.
        use sha2::Digest as _;
        let random = |n: u32| sha2::Sha256::digest(n.to_be_bytes());
        let count = |shape: Make<'_>| {
            (0..1000_u32)
                .filter(|n| is_random(&shape(&random(*n))))
                .count()
        };
        let uuid = |bytes: &[u8]| {
            let mut digits = hex(&bytes[..16]).into_bytes();
            digits[12] = b'4';
            digits[16] = b"89ab"[usize::from(bytes[16] & 3)];
            for at in [8, 13, 18, 23] {
                digits.insert(at, b'-');
            }
            String::from_utf8(digits).unwrap()
        };
        let shapes: [(&str, Make<'_>, usize); 3] = [
            ("32 bytes of hexadecimal digits", &hex, 970),
            ("16 of them", &|bytes| hex(&bytes[..16]), 900),
            ("a UUID", &uuid, 900),
        ];
        for (shape, make, least) in shapes {
            let count = count(make);
            assert!(count > least, "{shape}: {count}");
        }
    }
}
