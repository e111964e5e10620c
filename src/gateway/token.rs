//! The shared token: given by environment or file, or made at the first start and kept as its hash.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use portcullis_actors::auth::SharedSecret;
use portcullis_actors::plain;
use portcullis_core::auth::password::PasswordHash;
use portcullis_core::auth::secret::{self, SharedHash, Strength};
use portcullis_core::codes;
use portcullis_core::seal::Secret;
use portcullis_core::token::{Token, TokenHash, TokenKind};
use zeroize::Zeroizing;

use crate::cli::Failure;
use crate::random::random;

/// A token that somebody chose.
pub struct Given(Zeroizing<String>);

const VARIABLE: &str = "PORTCULLIS_GATEWAY_TOKEN";
const VARIABLE_FILE: &str = "PORTCULLIS_GATEWAY_TOKEN_FILE";
/// Where the process that is started anew finds it.
const PASSED: &str = "/proc/self/fd/0";
/// The token of the environment. A token in a variable would stay readable in `/proc/PID/environ`: the process is
/// started anew without it, and reads it from standard input of that one moment, a sealed-off memory file.
pub fn take() -> Result<Option<Given>, Failure> {
    if let Some(given) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        return Err(start_again(&given));
    }
    if let Some(path) = std::env::var_os(VARIABLE_FILE).filter(|v| !v.is_empty()) {
        return read_file(Path::new(&path)).map(Some);
    }
    Ok(None)
}

/// Only returns on failure: otherwise this process is a new one.
fn start_again(token: &OsString) -> Failure {
    let failed =
        |e: io::Error| Failure::of(codes::INTERNAL, format!("cannot pass the token on: {e}"));
    let pass = || -> io::Result<io::Error> {
        let memory = rustix::fs::memfd_create("portcullis-token", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut memory = File::from(memory);
        memory.write_all(token.as_encoded_bytes())?;
        memory.rewind()?;
        let mut args = std::env::args_os();
        let name = args.next().unwrap_or_default();
        Ok(std::process::Command::new("/proc/self/exe")
            .arg0(name)
            .args(args)
            .env_remove(VARIABLE)
            .env(VARIABLE_FILE, PASSED)
            .stdin(memory)
            .exec())
    };
    match pass() {
        Ok(e) | Err(e) => failed(e),
    }
}

fn read_file(path: &Path) -> Result<Given, Failure> {
    let failed =
        |why: String| Failure::of(codes::TOKEN_INVALID, format!("{}: {why}", path.display()));
    // Who places secrets in files may do so by links; a pipe would be waited for.
    let mut file = plain::open_linked(path).map_err(|e| failed(e.to_string()))?;
    let meta = file.metadata().map_err(|e| failed(e.to_string()))?;
    // No name anywhere: ours of a moment ago.
    let is_memory = path == Path::new(PASSED) && meta.nlink() == 0;
    if !is_memory && meta.mode() & 0o077 != 0 {
        return Err(Failure::of(
            codes::STATE_MODE,
            format!("others can read {}", path.display()),
        )
        .hint(format!("chmod 600 {}", path.display())));
    }
    let mut text = Zeroizing::new(String::new());
    (&mut file)
        .take(secret::MAX as u64 + 2)
        .read_to_string(&mut text)
        .map_err(|_| failed("a token is text".to_owned()))?;
    if is_memory {
        forget(path).map_err(|e| failed(format!("cannot be wiped after it was read: {e}")))?;
    }
    Ok(Given(Zeroizing::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    )))
}

/// Read once: neither `/proc/PID/fd` nor a child of ours may find it later.
fn forget(passed: &Path) -> io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(passed)?
        .set_len(0)?;
    Ok(rustix::stdio::dup2_stdin(File::open("/dev/null")?)?)
}

/// What to compare with, and the token itself where it was made just now. A token of somebody's own choice is hashed
/// slowly here: its start takes that much longer. `is_kept`: the state has one.
pub fn settle(
    given: Option<Given>,
    token_file: &Path,
    pepper: &Secret,
    cost: u32,
    is_kept: bool,
) -> Result<(SharedSecret, Option<Token>), Failure> {
    let given = match given {
        Some(given) => Some(given),
        None if token_file.as_os_str().is_empty() => None,
        None => Some(read_file(token_file)?),
    };
    if let Some(Given(token)) = given {
        let unfit = |why: &dyn std::fmt::Display| {
            Failure::of(
                codes::TOKEN_INVALID,
                format!("this gateway token cannot be used: {why}"),
            )
        };
        let hash = match secret::check(&token).map_err(|why| unfit(&why))? {
            Strength::Random => SharedHash::Random(TokenHash::of(&token)),
            Strength::Chosen => {
                let hash = PasswordHash::make(token.as_bytes(), pepper, cost, random::<16>()?);
                SharedHash::Chosen(hash.map_err(|why| unfit(&why))?)
            }
        };
        return Ok((SharedSecret::Given(hash), None));
    }
    if is_kept {
        return Ok((SharedSecret::Kept, None));
    }
    let token = Token::from_random(TokenKind::Gateway, &random::<32>()?);
    Ok((SharedSecret::Made(token.hash()), Some(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_where_the_state_has_none_and_a_chosen_one_is_slow_to_guess() {
        let pepper = Secret::new(vec![1; 32]);
        let settle = |given, is_kept| settle(given, Path::new(""), &pepper, 10, is_kept).unwrap();
        let (SharedSecret::Made(hash), Some(made)) = settle(None, false) else {
            panic!("there was none")
        };
        assert!(hash.matches(made.expose()));
        assert!(matches!(settle(None, true), (SharedSecret::Kept, None)));
        let given = |text: &str| Some(Given(Zeroizing::new(text.to_owned())));
        for is_kept in [false, true] {
            let (chosen, none) = settle(given("correct-horse-battery-staple"), is_kept);
            assert!(matches!(chosen, SharedSecret::Given(SharedHash::Chosen(_))) && none.is_none());
            let (uuid, _) = settle(given("478c9e6a-b11b-422b-8bf4-6ef024b4d6c3"), is_kept);
            assert!(matches!(uuid, SharedSecret::Given(SharedHash::Random(_))));
        }
    }
}
