//! From a request to what the cell is asked, and the name of what contains it.

use portcullis_cell::{Spawn, Value};
use portcullis_core::ids::Hash32;

use super::config::SandboxPoolConfig;
use super::driver::{Driver, ProbeContext};
use super::messages::RunSpec;
use super::spec::{BoxSpec, WORKSPACE_INSIDE};

/// Between TERM and KILL of a cancelled run.
const GRACE_MS: u32 = 200;

/// What the cell is asked to start.
///
/// # Errors
/// Why the request cannot be a run.
pub fn spawn(config: &SandboxPoolConfig, spec: &RunSpec) -> Result<Spawn, String> {
    if spec.argv.first().is_none_or(String::is_empty) {
        return Err("argv must name a command".to_owned());
    }
    let mut env: Vec<(String, Value)> = BoxSpec::cell_env()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::new(value)))
        .collect();
    if !config.egress.is_empty() {
        let proxies = BoxSpec::egress_env().into_iter();
        env.extend(proxies.map(|(name, value)| (name.to_owned(), Value::new(&value))));
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
        timeout_ms: config.timeout(spec.timeout),
        grace_ms: GRACE_MS,
        output_cap: config.output_cap_bytes,
        open_files: config.open_files,
        file_bytes: config.file_bytes,
    })
}

/// Digest of everything that shapes a box: two runs with the same hash were contained alike.
pub fn profile_hash(
    config: &SandboxPoolConfig,
    context: &ProbeContext,
    cell: &Hash32,
    driver: &Driver,
) -> String {
    let text = format!(
        "portcullis-profile-v1\n{}\ncell {}\nuid {} gid {}\nmemory {} cpu {} pids {}\nfiles {} bytes {}\noutput {}\nnetwork none\negress {:?}\negress_to_networks {:?}\n",
        driver.name(),
        cell,
        context.uid,
        context.gid,
        config.memory_bytes,
        config.cpu_millis,
        config.pids,
        config.open_files,
        config.file_bytes,
        config.output_cap_bytes,
        config.egress.texts(),
        config.egress_to_networks.texts(),
    );
    Hash32::of(text.as_bytes()).to_string()
}
