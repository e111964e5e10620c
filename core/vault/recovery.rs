//! Recovery codes: 160 random bits, written for people to copy by hand.

use super::VaultError;
use crate::seal::{Secret, join};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Crockford's base 32: no I, L, O or U, which hands and eyes confuse.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Random bytes of a code.
pub const RECOVERY_BYTES: usize = 20;
/// Characters of the value, and of the check behind it (20 bits).
const VALUE: usize = 32;
const CHECK: usize = 4;
const GROUP: usize = 4;

/// A recovery code. Wiped when dropped; cannot be printed but by [`Self::text`].
pub struct RecoveryCode(Zeroizing<[u8; RECOVERY_BYTES]>);

impl RecoveryCode {
    /// Of bytes from the operating system.
    pub fn from_random(bytes: [u8; RECOVERY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// To be shown once: nine groups of four characters, the last of which is the check.
    pub fn text(&self) -> Zeroizing<String> {
        let mut all = Zeroizing::new(Vec::with_capacity(VALUE + CHECK));
        digits(&*self.0, VALUE, &mut all);
        digits(&check(&self.0), CHECK, &mut all);
        let mut text = Zeroizing::new(String::with_capacity(VALUE + CHECK + 8));
        for (at, digit) in all.iter().enumerate() {
            if at > 0 && at % GROUP == 0 {
                text.push('-');
            }
            text.push(char::from(*digit));
        }
        text
    }

    /// As somebody types it: in any case, with or without dashes and spaces, O for 0 and I or L for 1.
    ///
    /// # Errors
    /// [`VaultError::RecoveryTypo`]: it was mistyped, or is no such code.
    pub fn parse(text: &str) -> Result<Self, VaultError> {
        let mut all = Zeroizing::new([0_u8; VALUE + CHECK]);
        let mut count = 0;
        for c in text.chars().filter(|c| !matches!(c, '-' | ' ' | '\t')) {
            let upper = match c.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let value = DIGITS.iter().position(|digit| char::from(*digit) == upper);
            let slot = all.get_mut(count).ok_or(VaultError::RecoveryTypo)?;
            *slot = value
                .and_then(|value| u8::try_from(value).ok())
                .ok_or(VaultError::RecoveryTypo)?;
            count += 1;
        }
        if count != all.len() {
            return Err(VaultError::RecoveryTypo);
        }
        let mut bytes = Zeroizing::new([0; RECOVERY_BYTES]);
        // Eight characters are five bytes.
        for (chunk, digits) in bytes.chunks_mut(5).zip(all[..VALUE].chunks(8)) {
            let bits = digits
                .iter()
                .fold(0_u64, |n, digit| n << 5 | u64::from(*digit));
            chunk.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        let mut expected = Vec::with_capacity(CHECK);
        digits(&check(&bytes), CHECK, &mut expected);
        let typed = all[VALUE..].iter().map(|value| DIGITS[usize::from(*value)]);
        if !typed.eq(expected.iter().copied()) {
            return Err(VaultError::RecoveryTypo);
        }
        Ok(Self(bytes))
    }

    /// What the wrapping key is made of.
    pub fn secret(&self) -> Secret {
        Secret::new(self.0.to_vec())
    }
}

/// Of each eight characters the five bytes they are of; the check takes the first characters of its bytes.
fn digits(bytes: &[u8], count: usize, to: &mut Vec<u8>) {
    for chunk in bytes.chunks(5) {
        let mut wide = [0; 8];
        wide[3..3 + chunk.len()].copy_from_slice(chunk);
        let bits = u64::from_be_bytes(wide);
        for at in (0..8).rev() {
            let digit = DIGITS[usize::try_from(bits >> (at * 5) & 31).unwrap_or(0)];
            to.push(digit);
        }
    }
    debug_assert!(to.len() >= count);
    let full = bytes.len() * 8 / 5;
    to.truncate(to.len() - full.saturating_sub(count));
}

fn check(bytes: &[u8; RECOVERY_BYTES]) -> [u8; 5] {
    let digest = Sha256::digest(join(&[b"portcullis-vault-recovery-v1", bytes]));
    let mut check = [0; 5];
    check.copy_from_slice(&digest[..5]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn a_code_reads_back_as_people_type_it_and_one_wrong_character_is_told(bytes: [u8; RECOVERY_BYTES], at in 0..36_usize, other in 1..32_usize) {
            let text = RecoveryCode::from_random(bytes).text();
            prop_assert_eq!(text.len(), 44);
            let typed = [
                text.to_string(),
                text.to_lowercase(),
                text.replace('-', ""),
                text.replace('-', " ").replace('0', "o").replace('1', "l"),
            ];
            for typed in typed {
                let read = RecoveryCode::parse(&typed).map(|code| *code.0);
                prop_assert_eq!(read, Ok(bytes));
            }
            let mut plain: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
            let value = DIGITS.iter().position(|d| *d == plain[at]).unwrap();
            plain[at] = DIGITS[(value + other) % 32];
            let read = RecoveryCode::parse(std::str::from_utf8(&plain).unwrap());
            prop_assert!(read.is_err());
        }
    }

    #[test]
    fn what_is_no_code_is_told_before_any_work() {
        let text = RecoveryCode::from_random([7; RECOVERY_BYTES]).text();
        for bad in [
            "",
            "U",
            &text[1..],
            &format!("{}0", *text),
            "ÄÖÜ",
            "correct horse battery staple",
        ] {
            assert_eq!(
                RecoveryCode::parse(bad).err(),
                Some(VaultError::RecoveryTypo),
                "{bad}"
            );
        }
    }
}
