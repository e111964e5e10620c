//! `portcullis config`.

use std::path::Path;

use portcullis_core::auth::Scope;
use portcullis_core::codes;
use serde_json::json;

use super::approvals::pretty;
use super::args::Config;
use super::client::Client;
use super::failure::Failure;
use super::out::Out;

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(state: &Path, what: &Config, out: Out) -> Result<u8, Failure> {
    match what {
        Config::Check => Err(Failure::of(codes::INTERNAL, "pending the config module")),
        Config::Show => {
            let mut client = Client::connect(state, &[Scope::Read], &[]).await?;
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
