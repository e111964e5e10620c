//! The shared token: given by environment or file, or made at the first start and kept as its hash.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use portcullis_actors::auth::SharedSecret;
use portcullis_core::auth::password::PasswordHash;
use portcullis_core::auth::secret::{self, SharedHash, Strength};
use portcullis_core::codes;
use portcullis_core::encoding::hex;
use portcullis_core::row::{Place, RowKey};
use portcullis_core::seal::Secret;
use portcullis_core::token::{Token, TokenHash, TokenKind};
use zeroize::Zeroizing;

use crate::cli::Failure;
use crate::files;
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
    let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let meta = file.metadata().map_err(|e| failed(e.to_string()))?;
    // No name anywhere: ours of a moment ago.
    let is_memory = path == Path::new(PASSED) && meta.is_file() && meta.nlink() == 0;
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
/// slowly here: its start takes that much longer.
pub fn settle(
    state: &Path,
    given: Option<Given>,
    token_file: &Path,
    pepper: &Secret,
    cost: u32,
    key: &RowKey,
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
        let is_given = true;
        return Ok((SharedSecret { hash, is_given }, None));
    }
    let ours = |hash: TokenHash| SharedSecret {
        hash: SharedHash::Random(hash),
        is_given: false,
    };
    let kept = state.join("keys/gateway-token.json");
    match std::fs::read(&kept) {
        Ok(bytes) => serde_json::from_slice::<Kept>(&bytes)
            .ok()
            // Else whoever writes the file would name a token of his own.
            .filter(|kept| kept.is_whole(key))
            .map(|kept| (ours(kept.sha256), None))
            .ok_or_else(|| {
                Failure::of(
                    codes::STATE_CORRUPT,
                    format!(
                        "{} is not the token's hash that this gateway wrote",
                        kept.display()
                    ),
                )
                .hint("restore it, or remove it: a new token is made at the next start")
            }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let bytes = random::<32>()?;
            let token = Token::from_random(TokenKind::Gateway, &bytes);
            keep(&kept, &token, key)
                .map_err(|e| Failure::io(codes::STATE_MODE, kept.display(), &e))?;
            Ok((ours(token.hash()), Some(token)))
        }
        Err(e) => Err(Failure::io(codes::STATE_MODE, kept.display(), &e)),
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    v: u32,
    sha256: TokenHash,
    tag: String,
}

impl Kept {
    const VERSION: u32 = 2;

    fn tag(sha256: &TokenHash, key: &RowKey) -> io::Result<String> {
        let place = Place::row("gateway-token", "only", i64::from(Self::VERSION), 0);
        Ok(hex(&key.tag(&place, &serde_json::to_vec(sha256)?, "")))
    }

    fn is_whole(&self, key: &RowKey) -> bool {
        // Who compares may know both: neither is a secret.
        self.v == Self::VERSION && Self::tag(&self.sha256, key).is_ok_and(|tag| tag == self.tag)
    }
}

fn keep(path: &Path, token: &Token, key: &RowKey) -> io::Result<()> {
    let sha256 = token.hash();
    let kept = Kept {
        v: Kept::VERSION,
        tag: Kept::tag(&sha256, key)?,
        sha256,
    };
    files::replace(path, &serde_json::to_vec(&kept)?)
}

#[cfg(test)]
mod tests {
    use portcullis_core::seal::Key;

    use super::*;

    #[test]
    fn a_made_token_is_kept_as_its_hash_and_found_again() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("keys")).unwrap();
        let pepper = Secret::new(vec![1; 32]);
        let key = RowKey::new(Key::new([1; 32]));
        let settle_by = |given, key| settle(state.path(), given, Path::new(""), &pepper, 10, key);
        let settle = |given| settle_by(given, &key).unwrap();
        let (kept, made) = settle(None);
        let made = made.unwrap();
        let SharedHash::Random(hash) = kept.hash else {
            panic!("a made token is random")
        };
        assert!(hash.matches(made.expose()) && !kept.is_given);
        let kept = std::fs::read_to_string(state.path().join("keys/gateway-token.json")).unwrap();
        assert!(!kept.contains(made.expose()));
        // The bug: whoever wrote the file named a token of his own.
        let path = state.path().join("keys/gateway-token.json");
        let other = Token::from_random(TokenKind::Gateway, &[7; 32]);
        keep(&path, &other, &RowKey::new(Key::new([2; 32]))).unwrap();
        let refused = settle_by(None, &key).err().unwrap();
        assert_eq!(refused.code, "STATE_CORRUPT");
        std::fs::write(&path, &kept).unwrap();
        let (again, none) = settle(None);
        let SharedHash::Random(again) = again.hash else {
            panic!("a made token is random")
        };
        assert!(none.is_none() && again.same(&hash));
        // One that somebody chose is kept slow to guess, and one that is random is not.
        let given = |text: &str| Some(Given(Zeroizing::new(text.to_owned())));
        let (chosen, _) = settle(given("correct-horse-battery-staple"));
        assert!(matches!(chosen.hash, SharedHash::Chosen(_)) && chosen.is_given);
        let (uuid, _) = settle(given("478c9e6a-b11b-422b-8bf4-6ef024b4d6c3"));
        assert!(matches!(uuid.hash, SharedHash::Random(_)));
    }
}
