//! Where the state is: the same rule for the gateway and for every command.

use std::path::{Path, PathBuf};

use portcullis_core::codes;

use super::args::Global;
use super::failure::Failure;
use crate::client::{Address, Door, Listener, Place, Remote, TokenFile};

/// `--state`, `PORTCULLIS_STATE_DIR`, `STATE_DIRECTORY` (systemd), `XDG_STATE_HOME/portcullis`,
/// `~/.local/state/portcullis`, in this order; empty counts as unset.
///
/// # Errors
/// `INVALID_PARAMS` when none is set.
pub fn state_dir(flag: Option<&Path>) -> Result<PathBuf, Failure> {
    pick(flag, |name| std::env::var_os(name))
}

/// Where an operator of another user finds the gateway of a machine.
const WELL_KNOWN: &str = "/run/portcullis/control.sock";

/// The control socket to dial: `--socket`, `PORTCULLIS_SOCKET`, the state directory's own, or where that one cannot be seen
/// and no state directory was named, the machine's.
///
/// # Errors
/// `INVALID_PARAMS` when there is no state directory either.
pub fn control_socket(socket: Option<&Path>, state: Option<&Path>) -> Result<PathBuf, Failure> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if let Some(named) = socket
        .map(Path::to_path_buf)
        .or_else(|| var("PORTCULLIS_SOCKET").map(PathBuf::from))
    {
        return Ok(named);
    }
    let own = state_dir(state)?.join("run/control.sock");
    let is_named = state.is_some() || var("PORTCULLIS_STATE_DIR").is_some();
    let known = Path::new(WELL_KNOWN);
    Ok(if !is_named && !own.exists() && known.exists() {
        known.to_owned()
    } else {
        own
    })
}

/// The gateway that a command speaks to: the one at `--url`, else this machine's own.
///
/// # Errors
/// `INVALID_PARAMS`.
pub fn door(global: &Global) -> Result<Door, Failure> {
    match remote(global)? {
        Some(remote) => Ok(Door::Remote(Box::new(remote))),
        None => control_socket(global.socket.as_deref(), global.state.as_deref()).map(Door::Socket),
    }
}

/// The gateway at `--url`, if one is named.
///
/// # Errors
/// `INVALID_PARAMS`.
pub fn remote(global: &Global) -> Result<Option<Remote>, Failure> {
    let Some(url) = &global.url else {
        return Ok(None);
    };
    let listener = global.gateway_user.as_deref().map(Listener::parse);
    let listener = listener.transpose()?.unwrap_or_default();
    Ok(Some(Remote {
        address: Address::parse(url, global.pin.as_deref())?.served_by(listener)?,
        place: Place::find(global.client_keys.as_deref())?,
        token_file: global.token_file.clone().map(TokenFile),
    }))
}

/// `--identity`, `PORTCULLIS_IDENTITY_FILE`, else none: the gateway has its own default.
pub fn identity_file(flag: Option<&Path>) -> Option<PathBuf> {
    flag.map(Path::to_path_buf).or_else(|| {
        std::env::var_os("PORTCULLIS_IDENTITY_FILE")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    })
}

fn pick(
    flag: Option<&Path>,
    var: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<PathBuf, Failure> {
    let var = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let found = flag
        .map(Path::to_path_buf)
        .or_else(|| var("PORTCULLIS_STATE_DIR"))
        // systemd joins several by a colon; the first is ours.
        .or_else(|| {
            var("STATE_DIRECTORY").map(|v| match v.to_str().and_then(|t| t.split_once(':')) {
                Some((first, _)) => PathBuf::from(first),
                None => v,
            })
        })
        // The XDG specification: relative paths are to be ignored.
        .or_else(|| {
            var("XDG_STATE_HOME")
                .filter(|v| v.is_absolute())
                .map(|v| v.join("portcullis"))
        })
        .or_else(|| var("HOME").map(|v| v.join(".local/state/portcullis")));
    let dir = found.ok_or_else(|| {
        Failure::of(
            codes::INVALID_PARAMS,
            "no state directory: neither --state nor HOME is set",
        )
        .hint("name one: `--state DIR`")
    })?;
    std::path::absolute(&dir).map_err(|e| {
        Failure::of(
            codes::INVALID_PARAMS,
            format!("the state directory {}: {e}", dir.display()),
        )
        .hint("name another: `--state DIR`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_set_counts() {
        let all = [
            ("PORTCULLIS_STATE_DIR", "/a"),
            ("STATE_DIRECTORY", "/b:/c"),
            ("XDG_STATE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let with = |from: usize| {
            pick(None, |name| {
                all[from..]
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| (*v).into())
            })
            .unwrap()
        };
        assert_eq!(with(0), Path::new("/a"));
        assert_eq!(with(1), Path::new("/b"));
        assert_eq!(with(2), Path::new("/d/portcullis"));
        assert_eq!(with(3), Path::new("/e/.local/state/portcullis"));
        assert!(pick(None, |_| None).is_err());
        assert!(pick(None, |_| Some(String::new().into())).is_err());
        assert_eq!(
            pick(Some(Path::new("/f")), |_| Some("/x".into())).unwrap(),
            Path::new("/f")
        );
    }
}
