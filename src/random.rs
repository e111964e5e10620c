//! Bytes of the operating system.

use portcullis_core::codes;

use crate::cli::Failure;

/// As many as asked for.
///
/// # Errors
/// The machine has none.
pub fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| {
        Failure::of(
            codes::INTERNAL,
            format!("the machine has no randomness: {e}"),
        )
    })?;
    Ok(bytes)
}
