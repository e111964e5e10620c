//! From a request to what the cell is asked.

use std::time::Duration;

use portcullis_cell::{Spawn, Value, output_cap};
use portcullis_core::sandbox::Profile;

use super::messages::RunSpec;
use super::spec::{BoxSpec, WORKSPACE_INSIDE};

/// Between TERM and KILL of a cancelled run.
const GRACE_MS: u32 = 200;

/// What the cell is asked to start; where the box may reach hosts, it is told the way.
///
/// # Errors
/// Why the request cannot be a run.
pub fn spawn(profile: &Profile, may_leave: bool, spec: &RunSpec) -> Result<Spawn, String> {
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err("argv must name a command".to_owned());
    }
    let mut env: Vec<(String, Value)> = BoxSpec::cell_env()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::new(value)))
        .collect();
    if may_leave {
        let proxies = BoxSpec::egress_env().into_iter();
        env.extend(proxies.map(|(name, value)| (name.to_owned(), Value::new(&value))));
        if !profile.terminate.is_empty() {
            let trusted = BoxSpec::authorities_env().into_iter();
            env.extend(trusted.map(|(name, value)| (name.to_owned(), Value::new(value))));
        }
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains('=') {
            return Err(format!("env: {name:?} is no name of a variable"));
        }
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    let cwd = spec
        .cwd
        .clone()
        .unwrap_or_else(|| WORKSPACE_INSIDE.to_owned());
    let variables = env.iter();
    let variables = variables.flat_map(|(name, value)| [name.as_str(), value.expose()]);
    let texts = spec
        .argv
        .iter()
        .map(String::as_str)
        .chain(variables)
        .chain([cwd.as_str()]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err("argv, env and cwd must not hold NUL".to_owned());
    }
    if !cwd.starts_with('/') {
        return Err(
            "cwd must be an absolute path inside the sandbox, such as /workspace".to_owned(),
        );
    }
    Ok(Spawn {
        argv: spec.argv.clone(),
        env,
        cwd,
        timeout_ms: profile.timeout(spec.timeout.map(millis)),
        grace_ms: GRACE_MS,
        output_cap: output_cap(profile.output_cap_bytes, &spec.argv),
        open_files: profile.open_files,
        // None can pass the workspace's limit alone.
        file_bytes: profile.file_bytes.min(profile.workspace_bytes),
        stdin: spec.stdin,
        tty: spec.tty,
    })
}

/// Of a time that somebody asked for.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
