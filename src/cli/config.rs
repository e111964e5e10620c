//! `portcullis config`.

use std::fmt::Write as _;
use std::path::PathBuf;

use portcullis_core::auth::Scope;
use serde_json::json;

use super::approvals::pretty;
use super::args::Config;
use super::failure::Failure;
use super::out::Out;
use crate::client::{Client, Door};
use crate::config::{self, LoadError};
use crate::show::text::clean;

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(
    door: impl FnOnce() -> Result<Door, Failure>,
    state: impl FnOnce() -> Result<PathBuf, Failure>,
    what: &Config,
    out: Out,
) -> Result<u8, Failure> {
    match what {
        Config::Check => {
            let path = state()?.join("config.toml");
            let loaded =
                config::load(&path, config::environment(), &[]).map_err(|error| failure(&error))?;
            let answer = json!({ "ok": true, "file": path, "leaves": loaded.leaves });
            out.both(&answer, || {
                let set = loaded.leaves.iter().filter(|leaf| leaf.origin != "default");
                let mut text =
                    "The configuration is valid. Set otherwise than by default:\n".to_owned();
                for leaf in set {
                    // Writing to a String cannot fail.
                    let _ = writeln!(
                        text,
                        "  {} = {} ({})",
                        clean(&leaf.key),
                        leaf.value,
                        clean(&leaf.origin)
                    );
                }
                text
            })?;
            Ok(0)
        }
        Config::Show => {
            let mut client = Client::connect(&door()?, &[Scope::Read], &[]).await?;
            let answer = client.call("config.get", json!({})).await?;
            client.close().await;
            out.both(&answer, || match answer.get("config") {
                Some(config) => pretty(config),
                None => pretty(&answer),
            })?;
            Ok(0)
        }
    }
}

/// Why there is no configuration, each error on lines of its own.
pub fn failure(error: &LoadError) -> Failure {
    match error {
        LoadError::File(error) => Failure::of(error.code(), error.to_string()),
        LoadError::Invalid(errors) => {
            let mut failure = Failure::of(error.code(), errors.summary());
            failure.fix = Some(errors.details().into());
            failure
        }
    }
}
